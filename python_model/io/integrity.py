"""Checksums of a directory's files, compared before it is believed, and of what a stopped job goes on with.

CRC-32 is there for accidents (a cut copy, a flipped bit) and quick beside the disk. It is no signature: whoever changes
a file can change its sum, so nothing that is read may be able to do harm, whole or not. SHA-256 tells one input of a
job from another, where sizes, times and the statistics in a footer can be equal and the content is not; reading and
hashing takes a second of processor time for 1.1 to 1.8 GB where the processor has SHA instructions.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from python_model.io.errors import DataError
from python_model.io.json_text import read_object

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


def require_whole(directory: Path, names: Iterable[str] | None = None, *, at_least: Iterable[str] = ()) -> None:
    """DataError naming the first file that is missing, truncated or changed.

    names: some files, None for all that checksums.json names. at_least: files that it must name as well.
    """
    record = _read(directory)
    chosen = list(record if names is None else names)
    for name in chosen:
        if name in record:
            _require_file(directory / name, record[name])
    for name in [*chosen, *at_least]:
        if name not in record:
            raise DataError(directory / CHECKSUMS, f"does not name {name}: the directory is incomplete")


def checksum(file: Path) -> str:
    """CRC-32 of a file as eight hexadecimal digits."""
    value = 0
    with file.open("rb") as stream:
        while block := stream.read(_BLOCK):
            value = zlib.crc32(block, value)
    return f"{value:08x}"


def content_of_files(files: Iterable[Path]) -> str:
    """SHA-256 over the sizes and bytes of files in their order, whatever their names; DataError where one is gone."""
    digest = hashlib.sha256()
    for file in files:
        try:
            digest.update(f"{file.stat().st_size}:".encode())
            with file.open("rb") as stream:
                while block := stream.read(_BLOCK):
                    digest.update(block)
        except OSError as error:
            raise DataError(file, f"cannot be read: {error.strerror}") from error
    return digest.hexdigest()


def content_of_arrays(*arrays: np.ndarray) -> str:
    """SHA-256 over the types, shapes and values of arrays, text (dtype object) among them."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        if array.dtype == object:
            for text in array.ravel():
                word = str(text).encode()
                digest.update(b"%d:%b" % (len(word), word))
        else:
            digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _require_file(file: Path, expected: _Sum) -> None:
    if not file.is_file():
        raise DataError(file, "not found: the checkpoint is incomplete")
    try:
        size = file.stat().st_size
        if size != expected.bytes:
            message = f"damaged or truncated: expected {expected.bytes:,} bytes, found {size:,}"
            raise DataError(file, message)
        if (found := checksum(file)) != expected.crc32:
            message = f"damaged: expected the checksum {expected.crc32} it was written with, found {found}"
            raise DataError(file, message)
    except OSError as error:
        raise DataError(file, f"cannot be checked: {error.strerror}") from error


class _Sum(NamedTuple):
    bytes: int
    crc32: str


def _read(directory: Path) -> dict[str, _Sum]:
    """checksums.json, every name one below the directory."""
    file = directory / CHECKSUMS
    if not file.is_file():
        raise DataError(file, "not found: the checkpoint is incomplete")
    found = {}
    for name, said in read_object(file).items():
        place = PurePosixPath(name)
        if place.is_absolute() or ".." in place.parts or not place.parts or "\0" in name:
            raise DataError(file, f"expected names of files in the directory, found {name!r}")
        try:
            found[name] = _Sum(**said)
        except TypeError as error:
            raise DataError(file, "expected bytes and crc32", column=name) from error
        if type(found[name].bytes) is not int or not isinstance(found[name].crc32, str):
            raise DataError(file, "expected a number of bytes and a checksum as text", column=name)
    return found
