"""Files of one array (.npy): read and written in blocks, and never mapped.

If a mapped file is truncated, or the disk is full, access to it kills the process (SIGBUS); reading and writing raises
an error instead.
"""

from __future__ import annotations

import math
import os
import weakref
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy

from python_model.io.errors import DataError

_MOST_BYTES = 1 << 30
_NEAR_BYTES = 1 << 16
"""Bytes between two rows up to which reading them is cheaper than another call."""


class ArrayFile:
    """An array on disk, [rows, …]; DataError where it is not of this type and shape.

    shape: the expected shape; None as the number of rows takes it from the file.
    """

    def __init__(self, file: Path, dtype: type, shape: Sequence[int | None]) -> None:
        self.file, self.dtype = file, np.dtype(dtype)
        try:
            # The open descriptor keeps the checked file, even if another one replaces it under its name.
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
            count = os.preadv(self._stream.fileno(), [view[done : done + _MOST_BYTES]], place + done)
            if count == 0:
                raise DataError(self.file, "was cut short while it was read")
            done += count
        return out

    def read(self) -> np.ndarray:
        """All rows."""
        return self.rows(0, len(self))

    def take(self, places: np.ndarray) -> np.ndarray:
        """The rows `places` (int64 [n], rising), a copy; rows that lie close together are read at once."""
        out = np.empty((len(places), *self.shape[1:]), self.dtype)
        near = max(1, _NEAR_BYTES // max(self._row_bytes, 1))
        cuts = np.flatnonzero(np.diff(places) > near) + 1
        for begin, end in pairwise([0, *cuts.tolist(), len(places)]):
            if begin < end:
                first = int(places[begin])
                out[begin:end] = self.rows(first, int(places[end - 1]) + 1)[places[begin:end] - first]
        return out


class ArrayWriter:
    """An .npy file of known size, zeros at first, written block by block; a full disk is an OSError.

    again: continue the existing file, of this type and shape.
    """

    def __init__(self, file: Path, dtype: type, shape: Sequence[int], *, again: bool = False) -> None:
        self.file, self.dtype, self.shape = file, np.dtype(dtype), tuple(shape)
        self._row_bytes = self.dtype.itemsize * math.prod(self.shape[1:])
        self._stream = open(file, "r+b" if again else "w+b", buffering=0)  # noqa: SIM115
        weakref.finalize(self, self._stream.close)
        if again:
            _header(self._stream)
        else:
            described = {"descr": npy.dtype_to_descr(self.dtype), "fortran_order": False, "shape": self.shape}
            npy.write_array_header_1_0(self._stream, described)
        self._start = self._stream.tell()
        self._stream.truncate(self._start + self.shape[0] * self._row_bytes)

    def write(self, start: int, rows: np.ndarray) -> None:
        """Rows from `start` on, in the type of the file."""
        view = np.ascontiguousarray(rows, self.dtype).reshape(-1).view(np.uint8).data
        done, place = 0, self._start + start * self._row_bytes
        while done < len(view):
            done += os.pwrite(self._stream.fileno(), view[done : done + _MOST_BYTES], place + done)

    def flush(self) -> None:
        """Wait until all written data is on the disk."""
        os.fsync(self._stream.fileno())

    def close(self) -> None:
        """Close the file."""
        self._stream.close()


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
    """Offsets int64 [n + 1] that cut `rows` rows into n parts; DataError where they do not."""
    if offsets[0] != 0 or offsets[-1] != rows or (np.diff(offsets) < 0).any():
        raise DataError(file, f"expected offsets that rise from 0 to {rows}")
    return offsets
