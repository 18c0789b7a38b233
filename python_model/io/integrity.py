"""Checksums: of a directory's files, compared before they are used, and of the inputs of a job that may be resumed.

CRC-32 detects accidents (a truncated copy, a flipped bit) and is fast compared with the disk. It is not a signature:
anybody who changes a file can change its checksum, so reading must be safe for any content. SHA-256 identifies the
inputs of a job, since sizes, times and footer statistics can be equal while the content differs; reading and hashing
takes a second of processor time for 1.1 to 1.8 GB where the processor has SHA instructions.
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
    """Write the sums of all files of a directory to its checksums.json; sums: the values, where known already."""
    if sums is None:
        files = directory.rglob("*")
        sums = sums_of(directory, (path for path in files if path.is_file() and path.name != CHECKSUMS))
    (directory / CHECKSUMS).write_text(json.dumps(dict(sorted(sums.items())), indent=2) + "\n", encoding="utf-8")


def require_whole(directory: Path, names: Iterable[str] | None = None, *, at_least: Iterable[str] = ()) -> None:
    """DataError naming the first file that is missing, truncated or changed.

    names: the files to check, None for all in checksums.json. at_least: further files that it must list.
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
    """SHA-256 over the sizes and bytes of files in order, independent of names; DataError where one is missing."""
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
    """The content of checksums.json, whose names must all lie below the directory."""
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
