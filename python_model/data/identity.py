"""The identity of a data set, compared when work resumes: its content, not only its name or its counts."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import pyarrow as pa

from python_model.data.description import EVENTS, INFO
from python_model.data.schema import Dataset, fingerprint_of_events
from python_model.data.shards import MANIFEST, SHARDS
from python_model.io.errors import DataError
from python_model.io.integrity import checksum
from python_model.training import process_group

_known: WeakKeyDictionary[Dataset, dict[str, Any]] = WeakKeyDictionary()


def identity_of(dataset: Dataset) -> dict[str, Any]:
    """Name, counts and checksums (CRC-32) of the values of events, items and users, however they are compressed.

    Reads every event once; of a sharded data set it reads the bytes, each rank a part of the files. Collective on
    several ranks. DataError where events or shards differ from those that dataset.json and shards.json describe.
    """
    if dataset not in _known:
        _require_shards(dataset)
        _known[dataset] = process_group.on_first(lambda: _identity(dataset))
    return dict(_known[dataset])


def _identity(dataset: Dataset) -> dict[str, Any]:
    info = dataset.info
    fingerprint = info.fingerprint
    if dataset.manifest is None:
        fingerprint = fingerprint_of_events(dataset)
        if info.fingerprint not in ("", fingerprint):
            message = f"expected the fingerprint {info.fingerprint} of {INFO}, found {fingerprint}: other events"
            raise DataError(dataset.path / EVENTS, message)
    return {
        "name": info.name, "users": info.users, "items": info.items, "events": info.events, "fingerprint": fingerprint,
        "items_fingerprint": fingerprint_of_items(dataset),
        "users_fingerprint": _checksum([dataset.user_ids]),
    }  # fmt: skip


def fingerprint_of_items(dataset: Dataset) -> str:
    """Checksum of the items' ids and features in their order: the meaning of the rows of an item table."""
    names = ["item_id", *(f"item_{name}" for name in dataset.info.item_features)]
    return _checksum(dataset.item_column(name) for name in names)


def _checksum(columns: Iterable[np.ndarray]) -> str:
    value = 0
    for column in columns:
        kind = pa.large_string() if column.dtype == object else None
        for buffer in pa.array(column, kind).buffers():
            value = zlib.crc32(b"" if buffer is None else buffer, value)
    return f"{value:08x}"


def _require_shards(dataset: Dataset) -> None:
    """DataError on every rank where one of them finds a shard that differs from the manifest."""
    if dataset.manifest is None:
        return
    failed: DataError | None = None
    for shard in dataset.manifest.shards[process_group.rank() :: process_group.size()]:
        try:
            _require_shard(dataset.path / shard.file, shard.crc32)
        except DataError as error:
            failed = failed or error
    first = next((error for error in process_group.gathered(failed) if error is not None), None)
    if first is not None:
        raise first


def _require_shard(file: Path, expected: str) -> None:
    if not file.is_file():
        raise DataError(file, "not found")
    try:
        found = checksum(file)
    except OSError as error:
        raise DataError(file, f"cannot be read: {error.strerror}") from error
    if expected not in ("", found):
        message = f"expected the checksum {expected} of {SHARDS}/{MANIFEST}, found {found}: other events, or damaged"
        raise DataError(file, message)
