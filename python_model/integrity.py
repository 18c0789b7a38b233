"""Checksums of a directory's files: written when it is complete, compared before it is believed.

CRC-32 is there for accidents (a cut copy, a flipped bit), not for forgery, and is quick beside the disk.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from python_model.data.errors import DataError

CHECKSUMS = "checksums.json"
_BLOCK = 1 << 22


def sums_of(directory: Path, files: Iterable[Path]) -> dict[str, Any]:
    """Size and checksum of some files of a directory, by their names in it."""
    return {
        path.relative_to(directory).as_posix(): {"bytes": path.stat().st_size, "crc32": checksum(path)}
        for path in files
    }


def seal(directory: Path, sums: Mapping[str, Any] | None = None) -> None:
    """Write the sums of all files of a directory to its checksums.json; sums: where they are known already."""
    if sums is None:
        files = directory.rglob("*")
        sums = sums_of(directory, (path for path in files if path.is_file() and path.name != CHECKSUMS))
    (directory / CHECKSUMS).write_text(json.dumps(dict(sorted(sums.items())), indent=2) + "\n", encoding="utf-8")


def require_whole(directory: Path, names: Iterable[str] | None = None) -> None:
    """DataError naming the first file that is missing, truncated or changed; names: some files, None for all."""
    record = _read(directory)
    for name in record if names is None else names:
        if name not in record:
            raise DataError(directory / CHECKSUMS, f"does not name {name}: the directory is incomplete")
        _require_file(directory / name, record[name])


def checksum(file: Path) -> str:
    """CRC-32 of a file as eight hexadecimal digits."""
    value = 0
    with file.open("rb") as stream:
        while block := stream.read(_BLOCK):
            value = zlib.crc32(block, value)
    return f"{value:08x}"


def _require_file(file: Path, expected: dict[str, Any]) -> None:
    if not file.is_file():
        raise DataError(file, "not found: the checkpoint is incomplete")
    try:
        size = file.stat().st_size
        if size != expected["bytes"]:
            message = f"damaged or truncated: expected {expected['bytes']:,} bytes, found {size:,}"
            raise DataError(file, message)
        if (found := checksum(file)) != expected["crc32"]:
            message = f"damaged: expected the checksum {expected['crc32']} it was written with, found {found}"
            raise DataError(file, message)
    except (OSError, KeyError, TypeError) as error:
        raise DataError(file, f"cannot be checked: {error}") from error


def _read(directory: Path) -> dict[str, Any]:
    file = directory / CHECKSUMS
    if not file.is_file():
        raise DataError(file, "not found: the checkpoint is incomplete")
    try:
        record = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(file, f"damaged or truncated: {error}") from error
    if not isinstance(record, dict):
        raise DataError(file, f"expected a JSON object, found {type(record).__name__}")
    return record
