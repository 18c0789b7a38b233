"""Converts columns from a program to the types of the prepared format: each value exactly, or refused with its row."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pyarrow as pa

from python_model.io.errors import DataError, one_line
from python_model.io.settings import shown

Values = np.ndarray | Sequence[Any]


def typed(values: Values, kind: pa.DataType, file: Path, column: str, first_row: int = 1) -> np.ndarray:
    """One column in the numpy type of an Arrow type: booleans, integers that fit it, or numbers as float32.

    Ambiguous values are not converted: floats, texts, times and booleans are not integers, 0 and 1 are not booleans.
    DataError with the row (`first_row` is that of the first value) of a value that does not fit.
    """
    array = _array(values, file, column)
    dtype = np.dtype(kind.to_pandas_dtype())
    if len(array) == 0:
        return np.zeros(0, dtype)
    expected = _expected(dtype)
    if array.dtype.kind not in {"b": "b", "i": "iu", "f": "iuf"}[dtype.kind]:
        _refuse_type(array, expected, file, column, first_row)
    if dtype.kind == "i":
        bounds = np.iinfo(dtype)
        if int(array.min()) < bounds.min or int(array.max()) > bounds.max:
            row = int(np.argmax((array < bounds.min) | (array > bounds.max)))
            message = f"expected {expected} in [{bounds.min}, {bounds.max}], found {array[row]}"
            raise DataError(file, message, column=column, row=first_row + row)
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(array, dtype)


def require_range(
    values: np.ndarray, low: int, high: int | None, file: Path, column: str, first_row: int = 1,
    rows: np.ndarray | None = None,
) -> None:  # fmt: skip
    """DataError at the first value out of [low, high]; rows: 1-based row of each value, from `first_row` by default."""
    if len(values) == 0 or (values.min() >= low and (high is None or values.max() <= high)):
        return
    bad = values < low
    if high is not None:
        bad |= values > high
    at = int(np.argmax(bad))
    row = first_row + at if rows is None else int(rows[at])
    expected = f"a value of at least {low}" if high is None else f"a value in [{low}, {high}]"
    raise DataError(file, f"expected {expected}, found {values[at]}", column=column, row=row)


def _array(values: Values, file: Path, column: str) -> np.ndarray:
    if isinstance(values, np.ma.MaskedArray):
        raise DataError(file, "expected values, found a masked array: fill it, with -1 where missing", column=column)
    if isinstance(values, (list, tuple)) and len({isinstance(one, (bool, np.bool_)) for one in values}) > 1:
        raise DataError(file, "expected values of one type, found booleans among others", column=column)
    try:
        array = np.asarray(values)
    except (ValueError, TypeError, RuntimeError) as error:
        raise DataError(file, f"expected a column of values: {one_line(error)}", column=column) from error
    if array.ndim != 1:
        raise DataError(file, f"expected one dimension, found the shape {array.shape}", column=column)
    return array


def _expected(dtype: np.dtype[Any]) -> str:
    names = {"b": "true and false", "i": f"whole numbers ({dtype.name})", "f": "numbers"}
    return names[dtype.kind]


def _refuse_type(array: np.ndarray, expected: str, file: Path, column: str, first_row: int) -> NoReturn:
    """DataError at the first value that shows that the type is wrong."""
    row = 0
    if array.dtype.kind == "f":
        broken = ~np.isfinite(array) | (np.floor(array) != array)
        row = int(np.argmax(broken)) if broken.any() else 0
    elif array.dtype.kind == "O":
        row = next((at for at, one in enumerate(array) if type(one) is not type(array[0]) or one is None), 0)
    value = array[row].item() if isinstance(array[row], np.generic) and array.dtype.kind != "M" else array[row]
    found = f"{shown(value)} of a column of {array.dtype}"
    raise DataError(file, f"expected {expected}, found {found}", column=column, row=first_row + row)
