"""The prepared data set: its files, its description, loading and validation.

A prepared data set is a directory:

- events.parquet   one row per event, sorted by (user, time, original order)
- items.parquet    one row per item, users.parquet one row per user: dense number -> original id
- labels.parquet   labels of category numbers, where the source has them (`python_model.data.names`)
- dataset.json     `DatasetInfo`
- shards/          instead of events.parquet, several files of whole users each (`python_model.data.shards`)
- oracle/          synthetic data only: the hidden state that `python_model.data.synthetic.OracleScores` reads

Columns and their meaning are in docs/data.md. `DatasetWriter` makes such a directory, `load_dataset` reads it lazily,
`validate` checks every row of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa

from python_model.data.checks import EventChecker, event_ranges
from python_model.data.columns import require_range
from python_model.data.description import EVENTS, FORMAT, INFO, ITEMS, USERS, DatasetInfo, Fingerprint, event_schema
from python_model.data.identifiers import ids_of, require_distinct
from python_model.data.names import LABELS, Names, read_names
from python_model.data.shards import Manifest, read_manifest
from python_model.data.times import SECONDS, times_of
from python_model.data.writer import DatasetWriter
from python_model.io.errors import DataError
from python_model.io.files import open_parquet, reading_parquet, require_column, require_schema, require_values
from python_model.io.publish import recover

__all__ = [
    "EVENTS",
    "FORMAT",
    "INFO",
    "ITEMS",
    "USERS",
    "DataError",
    "Dataset",
    "DatasetInfo",
    "DatasetWriter",
    "EventChecker",
    "event_schema",
    "load_dataset",
    "validate",
]


class Dataset:
    """A prepared data set; columns are read on first use and kept as read-only numpy arrays of length `events`."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.info = DatasetInfo.load(self.path)
        self._columns: dict[str, np.ndarray] = {}
        self._items: dict[str, np.ndarray] = {}

    def __len__(self) -> int:
        return self.info.events

    def column(self, name: str) -> np.ndarray:
        """One column of events.parquet [T]."""
        if name not in self._columns:
            parts = [self._event_column(file, name, rows) for file, rows in self.event_files]
            self._columns[name] = parts[0] if len(parts) == 1 else np.concatenate(parts)
            self._columns[name].setflags(write=False)
        return self._columns[name]

    def _event_column(self, file: Path, name: str, rows: int) -> np.ndarray:
        values = _read_column(file, name, rows, event_schema(self.info).field(name).type)
        self.require_in_range(name, values, file)
        return values

    def require_in_range(self, name: str, values: np.ndarray, file: Path, rows: np.ndarray | None = None) -> None:
        """DataError at the first value of an event column that is an invalid index or time; rows: 1-based rows."""
        if name == "time":
            times_of(values, SECONDS, file, name, rows)
            return
        ranges = {**event_ranges(self.info, self.info.items), "user": (0, self.info.users - 1)}
        if name in ranges:
            low, high = ranges[name]
            require_range(values, low, high, file, name, rows=rows)

    @cached_property
    def manifest(self) -> Manifest | None:
        """The manifest of the shards; None for a data set that `argus shard` has not cut into files."""
        return read_manifest(self.path)

    @property
    def event_files(self) -> list[tuple[Path, int]]:
        """The files of the events in order, and the rows of each."""
        if self.manifest is None:
            return [(self.path / EVENTS, self.info.events)]
        return [(self.path / shard.file, shard.events) for shard in self.manifest.shards]

    @property
    def user(self) -> np.ndarray:
        """int32 [T], dense, sorted."""
        return self.column("user")

    @property
    def item(self) -> np.ndarray:
        """int32 [T], dense."""
        return self.column("item")

    @property
    def time(self) -> np.ndarray:
        """int64 [T], seconds, sorted within a user."""
        return self.column("time")

    @property
    def organic(self) -> np.ndarray:
        """Whether [T] the event was the user's own choice (True) or an impression (False)."""
        return self.column("organic")

    @property
    def grade(self) -> np.ndarray:
        """int8 [T]: order of preference, -1 where the event takes no part in pairs."""
        return self.column("grade")

    def context(self, name: str) -> np.ndarray:
        """int32 [T], -1 = missing."""
        return self.column(f"context_{name}")

    def feedback(self, name: str) -> np.ndarray:
        """int16 [T] class index, -1 = not observed."""
        return self.column(f"feedback_{name}")

    def item_column(self, name: str) -> np.ndarray:
        """One column of items.parquet [V]: `item_id`, `count` or `item_<feature>`."""
        if name not in self._items:
            file, rows = self.path / ITEMS, self.info.items
            if name == "item_id":
                self._items[name] = _read_ids(file, name, rows)
            else:
                values = _read_column(file, name, rows, pa.int64() if name == "count" else pa.int32())
                cardinality = self.info.item_features.get(name.removeprefix("item_"))
                high = self.info.events if cardinality is None else cardinality - 1
                require_range(values, 0 if name == "count" else -1, high, file, name)
                self._items[name] = values
        return self._items[name]

    @cached_property
    def names(self) -> Names:
        """Titles of items and labels of categories, where the data set has any."""
        return read_names(self.path / ITEMS, self.path / LABELS)

    @cached_property
    def user_ids(self) -> np.ndarray:
        """Original user ids [U]."""
        return _read_ids(self.path / USERS, "user_id", self.info.users)

    @cached_property
    def offsets(self) -> np.ndarray:
        """int64 [U + 1]: events of user u are rows offsets[u] .. offsets[u + 1]."""
        counts = np.bincount(self.user, minlength=self.info.users)
        return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)])


def load_dataset(path: str | Path) -> Dataset:
    """Open a prepared data set; DataError where the directory is not one or its files disagree with dataset.json."""
    recover(Path(path), INFO)
    dataset = Dataset(path)
    info = dataset.info
    if dataset.manifest is not None:
        dataset.manifest.require(dataset.path, info)
    items, users = (dataset.path / ITEMS, info.items), (dataset.path / USERS, info.users)
    for file, rows in (*dataset.event_files, items, users):
        found = open_parquet(file).metadata.num_rows
        if found != rows:
            raise DataError(file, f"expected {rows} rows as {INFO} says, found {found}")
    for file, _ in dataset.event_files:
        require_schema(file, event_schema(info))
    return dataset


def fingerprint_of_events(dataset: Dataset) -> str:
    """The fingerprint that belongs in dataset.json, from one pass over the events in bounded memory."""
    schema, fingerprint = event_schema(dataset.info), Fingerprint()
    for file, _ in dataset.event_files:
        for columns in _batches(file, schema.names):
            fingerprint.update(schema, columns)
    return fingerprint.text()


def validate(path: str | Path) -> DatasetInfo:
    """Check every row of a prepared data set, in bounded memory; returns its description or raises DataError."""
    dataset = load_dataset(path)
    info = dataset.info
    checker, fingerprint = EventChecker(dataset.path / EVENTS, info, info.items), Fingerprint()
    for file, _ in dataset.event_files:
        for columns in _batches(file, event_schema(info).names):
            checker.check(columns)
            fingerprint.update(event_schema(info), columns)
    checker.finish(info.items)
    if info.fingerprint not in ("", fingerprint.text()):
        message = f"expected the fingerprint {info.fingerprint} of {INFO}, found {fingerprint.text()}: other events"
        raise DataError(checker.file, message)
    if checker.user != info.users - 1:
        message = f"expected {info.users} users with events, found {checker.user + 1}"
        raise DataError(checker.file, message, column="user")
    for name, key, rows in ((ITEMS, "item", info.items), (USERS, "user", info.users)):
        wrong = _read_column(dataset.path / name, key, rows, pa.int32()) != np.arange(rows)
        if wrong.any():
            raise DataError(dataset.path / name, "expected 0, 1, 2, ...", column=key, row=int(np.argmax(wrong)) + 1)
    require_distinct(dataset.item_column("item_id"), dataset.path / ITEMS, "item_id")
    require_distinct(dataset.user_ids, dataset.path / USERS, "user_id")
    for column in ("count", *(f"item_{name}" for name in info.item_features)):
        dataset.item_column(column)
    _ = dataset.names
    return info


def _values(file: Path, name: str, rows: int) -> pa.ChunkedArray:
    """One column; DataError where it does not have `rows` rows."""
    parquet = open_parquet(file)
    require_column(file, parquet.schema_arrow, name)
    with reading_parquet(file, name):
        values = parquet.read(columns=[name]).column(0)
    if len(values) != rows:
        raise DataError(file, f"expected {rows} rows, found {len(values)}", column=name)
    return values


def _read_column(file: Path, name: str, rows: int, kind: pa.DataType) -> np.ndarray:
    values = _values(file, name, rows)
    if values.type != kind:
        raise DataError(file, f"expected type {kind}, found {values.type}", column=name)
    require_values(file, name, values)
    array = values.to_numpy()
    array.setflags(write=False)
    return array


def _read_ids(file: Path, name: str, rows: int) -> np.ndarray:
    ids = ids_of(_values(file, name, rows), file, name)
    ids.setflags(write=False)
    return ids


def _batches(file: Path, names: list[str]) -> Iterator[dict[str, np.ndarray]]:
    start = 0
    with reading_parquet(file):
        for batch in open_parquet(file).iter_batches(columns=names, batch_size=1 << 18):
            for name in names:
                require_values(file, name, batch.column(name), start + 1)
            yield {name: batch.column(name).to_numpy(zero_copy_only=False) for name in names}
            start += batch.num_rows
