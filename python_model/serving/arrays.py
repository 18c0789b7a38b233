"""The .npy files of an export: checked against their checksum, read and never mapped.

A mapped file that somebody cuts short kills the process that reads it (SIGBUS); a file that is read gives an error.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy

from python_model.io.errors import DataError


class ArrayFile:
    """An array on disk, [rows, …]; DataError where it is not of this type and shape.

    shape: what is expected; None for a number of rows that the file says itself.
    """

    def __init__(self, file: Path, dtype: type, shape: Sequence[int | None]) -> None:
        self.file, self.dtype = file, np.dtype(dtype)
        try:
            # As long as the descriptor is open a file that is replaced is still the one that was checked.
            self._stream = open(file, "rb", buffering=0)  # noqa: SIM115
            weakref.finalize(self, self._stream.close)
            found, is_fortran, kind = _header(self._stream)
        except (OSError, ValueError, TypeError, SyntaxError, EOFError, MemoryError, RecursionError) as error:
            raise DataError(file, f"expected a NumPy array: {str(error).splitlines()[0][:200]}") from error
        fits = len(found) == len(shape) and all(want in (None, have) for want, have in zip(shape, found, strict=True))
        if kind != self.dtype or not fits or is_fortran:
            expected = ", ".join("rows" if want is None else str(want) for want in shape)
            raise DataError(file, f"expected {self.dtype} [{expected}], found {kind} {list(found)}")
        self.shape, self._start = tuple(found), self._stream.tell()
        self._row_bytes = self.dtype.itemsize * int(np.prod(found[1:], dtype=np.int64))
        expected_bytes = self._start + found[0] * self._row_bytes
        if (size := os.fstat(self._stream.fileno()).st_size) != expected_bytes:
            raise DataError(file, f"damaged or truncated: expected {expected_bytes:,} bytes, found {size:,}")

    def __len__(self) -> int:
        return self.shape[0]

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Rows start to stop (exclusive), a copy; DataError where the file has been cut short since."""
        out = np.empty((stop - start, *self.shape[1:]), self.dtype)
        view, place = out.reshape(-1).view(np.uint8).data, self._start + start * self._row_bytes
        done = 0
        while done < len(view):
            count = os.preadv(self._stream.fileno(), [view[done : done + (1 << 30)]], place + done)
            if count == 0:
                raise DataError(self.file, "was cut short while it was read")
            done += count
        return out

    def read(self) -> np.ndarray:
        """All rows."""
        return self.rows(0, len(self))


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = npy.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"version {version} of the format, expected 1.0 or 2.0")
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, is_fortran, dtype = read(stream)
    if any(length < 0 for length in shape):
        raise ValueError(f"the shape is {shape}")
    return shape, bool(is_fortran) and len(shape) > 1, dtype


def require_offsets(offsets: np.ndarray, rows: int, file: Path) -> np.ndarray:
    """Offsets int64 [n + 1] that cut so many rows into n parts; DataError where they do not."""
    if offsets[0] != 0 or offsets[-1] != rows or (np.diff(offsets) < 0).any():
        raise DataError(file, f"expected offsets that rise from 0 to {rows}")
    return offsets
