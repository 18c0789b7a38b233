"""Ids: integers of 64 bits, signed or not, or text, compared exactly and never converted into each other.

All code that reads, compares or searches ids of users and items uses this module. "007" and "7" are different ids; 1.0
and true are not ids.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from python_model.io.errors import DataError, one_line
from python_model.io.settings import shown

CANONICAL = r"^(0|-?[1-9][0-9]*)$"
"""An integer as text in its one spelling: ASCII digits, no sign before 0 or a positive one, no leading zeros."""
MAX_BYTES = 1024
"""Longest text id in UTF-8."""
_EXPECTED = "integers or text"
_INTEGER = re.compile(CANONICAL, re.ASCII)


def is_text(kind: pa.DataType) -> bool:
    """Whether an Arrow type is a text type."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def ids_of(values: pa.Array | pa.ChunkedArray, file: str | Path, column: str, first_row: int = 1) -> np.ndarray:
    """The ids of an Arrow column unchanged: int64, uint64 where a value needs it, or objects of text.

    DataError where the column has another type, or at the first row with no id, an empty id, or a text of more than
    MAX_BYTES (rows are 1-based; `first_row` is the row of the first value).
    """
    if isinstance(values, pa.ChunkedArray):
        values = values.combine_chunks()
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    kind = values.type
    if not (pa.types.is_integer(kind) or is_text(kind)):
        raise DataError(file, f"expected {_EXPECTED}, found {kind}", column=column)
    if values.null_count:
        row = int(np.argmax(np.asarray(values.is_null()))) + first_row
        raise DataError(file, "expected an id, found nothing", column=column, row=row)
    if pa.types.is_integer(kind):
        return narrowed(values.to_numpy(zero_copy_only=False))
    found = values.to_numpy(zero_copy_only=False).astype(object)
    for at, text in enumerate(found):
        if not text or len(text.encode()) > MAX_BYTES:
            message = f"expected an id of 1 to {MAX_BYTES} bytes, found {len(text.encode())}"
            raise DataError(file, message, column=column, row=at + first_row)
    return found


def ids_from(values: Any, file: str | Path, column: str, first_row: int = 1) -> np.ndarray:
    """The ids of an array or a sequence from a program, in the types of `ids_of`.

    DataError where they are of mixed or other types, or not in one dimension.
    """
    scalar = isinstance(values, (str, bytes, Mapping, Set)) or not hasattr(values, "__len__")
    if scalar or getattr(values, "ndim", 1) == 0:
        raise DataError(file, f"expected a column of {_EXPECTED}, found {type(values).__name__}", column=column)
    if len(values) == 0:
        return np.zeros(0, np.int64)
    if isinstance(values, np.ndarray) and values.dtype.kind in "iu":
        values = values.astype(values.dtype.newbyteorder("="))
    try:
        found = pa.array(values)
    except OverflowError:
        found = _large(values, file, column, first_row)
    except (pa.ArrowException, ValueError, TypeError) as error:
        message = f"expected a column of {_EXPECTED}, all of one type: {one_line(error)}"
        raise DataError(file, message, column=column) from error
    return ids_of(found, file, column, first_row)


def _large(values: Any, file: str | Path, column: str, first_row: int) -> pa.Array:
    """Integers, at least one of them above 2⁶³ − 1."""
    for row, value in enumerate(values):
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not 0 <= value < 2**64:
            message = f"expected integers of 64 bits, none negative beside one above 2⁶³ − 1, found {value!r:.60}"
            raise DataError(file, message, column=column, row=first_row + row)
    return pa.array(values, pa.uint64())


def joined(parts: Sequence[np.ndarray], file: str | Path, column: str) -> np.ndarray:
    """Ids of several parts as one column; DataError where text and integers mix, or no type holds them all.

    numpy would convert int64 and uint64 to float64, in which neighbouring ids become equal.
    """
    parts = [part for part in parts if len(part)]
    if not parts:
        return np.zeros(0, np.int64)
    if len({part.dtype.kind == "O" for part in parts}) > 1:
        raise DataError(file, "expected ids of one type, found integers and text", column=column)
    if any(part.dtype == np.uint64 for part in parts):
        for part in parts:
            if part.dtype == np.int64 and int(part.min()) < 0:
                message = f"expected no negative id beside one above 2⁶³ − 1, found {int(part.min())}"
                raise DataError(file, message, column=column)
        parts = [part.astype(np.uint64) for part in parts]
    return np.concatenate(parts)


def require_distinct(ids: np.ndarray, file: str | Path, column: str) -> None:
    """DataError at the first id that occurs a second time."""
    # Ids are numbered in the order of their first occurrence: a repeated id gets no new largest number.
    numbers = pa.array(ids).dictionary_encode().indices.to_numpy()
    again = np.diff(np.maximum.accumulate(numbers), prepend=-1) == 0
    if again.any():
        row = int(np.argmax(again))
        found = ids[row].item() if isinstance(ids[row], np.generic) else ids[row]
        raise DataError(file, f"expected every id once, found {shown(found)} again", column=column, row=row + 1)


def narrowed(ids: np.ndarray) -> np.ndarray:
    """Integer ids as int64, or as uint64 where one is above 2⁶³ − 1."""
    if ids.dtype == np.uint64 and len(ids) and int(ids.max()) > np.iinfo(np.int64).max:
        return ids
    return ids.astype(np.int64)


def integer_of(text: str) -> int | None:
    """The integer that a text spells canonically and that fits int64 or uint64; None for any other text."""
    if len(text) > 20 or _INTEGER.fullmatch(text) is None:
        return None
    value = int(text)
    return value if -(2**63) <= value < 2**64 else None


def id_of(value: Any, what: str) -> int | str:
    """One id from a request; ValueError that begins with `what` where the value is not an id."""
    if isinstance(value, np.integer):
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise ValueError(f"{what} is {value!r}, expected an integer or text")
    if isinstance(value, int):
        if not -(2**63) <= value < 2**64:
            raise ValueError(f"{what} is {value}, expected an integer of 64 bits")
        return value
    if not value or len(value.encode(errors="surrogatepass")) > MAX_BYTES:
        size = len(value.encode(errors="surrogatepass"))
        raise ValueError(f"{what} is a text of {size:,} bytes, expected 1 to {MAX_BYTES}")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise ValueError(f"{what} is {value!r}, expected text that UTF-8 can hold")
    return value
