"""Reads columns of a log as ids, categories, yes or no, numbers and times: each value exactly, or refused by its row.

Text (delimited files, JSON lines) and typed columns (Parquet, data frames) give the same result for the same value.
Empty cells, nulls and not-a-number are missing.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from python_model.data.identifiers import CANONICAL, MAX_BYTES, is_text
from python_model.data.readers.delimited import numbers_of
from python_model.data.times import SECONDS, UNITS, times_of, unit_of
from python_model.io.errors import DataError
from python_model.io.settings import shown

if TYPE_CHECKING:
    import polars as pl

TEXT, INT64, UINT64 = "text", "int64", "uint64"
MICRO = 1_000_000
_YES = {"true": 1, "1": 1, "1.0": 1, "yes": 1, "t": 1, "y": 1, "false": 0, "0": 0, "0.0": 0, "no": 0, "f": 0, "n": 0}
_ISO = (
    r"^([0-9]{4}-[0-9]{2}-[0-9]{2})(?:[T ]([0-9]{2}:[0-9]{2}(?::[0-9]{2})?)(?:[.,]([0-9]{1,9}))?"
    r" ?(Z|UTC|[+-](?:[01][0-9]|2[0-3])(?::?[0-5][0-9])?)?)?$"
)
_MOMENT = "a time, such as 2024-05-17T08:30:00Z or a number of seconds since 1970"


def kind_of_ids(schemas: Sequence[pa.Schema | None], column: str) -> str:
    """How to read a column of ids or categories in all files: as text unless it is an integer column in each."""
    kinds = [None if schema is None else schema.field(column).type for schema in schemas]
    if any(kind is None or not pa.types.is_integer(kind) for kind in kinds):
        return TEXT
    return UINT64 if any(kind == pa.uint64() for kind in kinds) else INT64


def ids(values: pl.Series, kind: str, file: Path) -> pl.Series:
    """Ids as text or integers of one type, null where missing; DataError for another type or an id that is too long."""
    import polars as pl

    name = values.name
    if isinstance(values.dtype, (pl.Categorical, pl.Enum)):
        values = values.cast(pl.String)
    if values.dtype == pl.Binary:
        values = _uuids(values, file)
    if values.dtype == pl.Null:
        return values.cast(pl.String if kind == TEXT else pl.Int64)
    if not (values.dtype.is_integer() or values.dtype == pl.String):
        raise DataError(file, f"expected ids that are integers or text, found {values.dtype}", column=name)
    if kind != TEXT:
        wanted = pl.UInt64 if kind == UINT64 else pl.Int64
        found = values.cast(wanted, strict=False)
        _refuse(file, name, values, found.is_null() & values.is_not_null(), f"an integer of {kind} as in other files")
        return found
    values = _nothing_is_null(values.cast(pl.String))
    long = (values.str.len_bytes() > MAX_BYTES).fill_null(False)
    _refuse(file, name, values, long, f"an id of 1 to {MAX_BYTES} bytes")
    return values


def whole_ids(values: pa.Array, from_text: bool) -> pa.Array:
    """The distinct ids of a whole log; text becomes integers where every id spells an integer of 64 bits."""
    import polars as pl

    if not from_text or not is_text(values.type):
        return values
    texts = pl.Series(values)
    if not texts.str.contains(CANONICAL).all():
        return values
    for kind in (pl.Int64, pl.UInt64):
        found = texts.cast(kind, strict=False)
        if found.null_count() == 0:
            return found.to_arrow()
    return values


def categories(values: pl.Series, kind: str, file: Path) -> pl.Series:
    """Categories as text or integers, null where missing; a whole float becomes the text of its integer."""
    import polars as pl

    if kind != TEXT:
        return values.cast(pl.Int64 if kind == INT64 else pl.UInt64)
    if values.dtype.is_float():
        return values.fill_nan(None).cast(pl.String).str.strip_suffix(".0")
    if values.dtype.is_nested() or values.dtype == pl.Binary:
        raise DataError(file, f"expected categories, found {values.dtype}", column=values.name)
    return _nothing_is_null(values.cast(pl.String))


def yes_no(values: pl.Series, file: Path) -> np.ndarray:
    """int16: 1 yes, 0 no, -1 missing; DataError at the first value that is neither."""
    import polars as pl

    if values.dtype == pl.Boolean:
        return values.cast(pl.Int16).fill_null(-1).to_numpy()
    if values.dtype.is_float():
        values = values.fill_nan(None)
    if values.dtype.is_numeric():
        found = values.cast(pl.Float64)
        bad = (found != 0) & (found != 1)
        _refuse(file, values.name, values, bad.fill_null(False), "yes or no (true, false, 1 or 0)")
        return found.cast(pl.Int16).fill_null(-1).to_numpy()
    text = categories(values, TEXT, file).str.to_lowercase()
    found = text.replace_strict(_YES, default=2, return_dtype=pl.Int16).set(text.is_null(), -1)
    _refuse(file, values.name, values, found == 2, "yes or no (true, false, 1 or 0)")
    return found.to_numpy()


def numbers(values: pl.Series, file: Path) -> np.ndarray:
    """float64, nan where missing; DataError at the first value that is no finite number."""
    import polars as pl

    if isinstance(values.dtype, (pl.Categorical, pl.Enum)):
        values = values.cast(pl.String)
    if values.dtype == pl.String:
        return numbers_of(values.fill_null(""), file, values.name).to_numpy()
    if values.dtype == pl.Null:
        return np.full(len(values), np.nan)
    if not (values.dtype.is_numeric() or values.dtype == pl.Boolean):
        raise DataError(file, f"expected numbers, found {values.dtype}", column=values.name)
    found = values.cast(pl.Float64)
    _refuse(file, values.name, values, found.is_infinite().fill_null(False), "a finite number")
    return found.fill_null(float("nan")).to_numpy()


def whole_numbers(values: pl.Series, high: int, file: Path) -> np.ndarray:
    """int64 from 0 to `high`, -1 where missing or given as -1; DataError at the first other value."""
    import polars as pl

    found = pl.Series(numbers(values, file)).fill_nan(-1)
    bad = (found != found.floor()) | (found > high) | (found < -1)
    _refuse(file, values.name, values, bad, f"a whole number from 0 to {high}, or -1")
    return found.cast(pl.Int64).to_numpy()


def times(values: pl.Series, unit: str | None, file: Path) -> tuple[np.ndarray, str]:
    """(microseconds since 1970 int64, the format or unit of the column); no value may be missing.

    unit: of numbers, None to detect it. Text times are ISO 8601, in UTC where they name no zone. DataError at the first
    value that is not a time, or has another format than the first.
    """
    import polars as pl

    name = values.name
    if len(values) == 0:
        return np.zeros(0, np.int64), "nothing"
    if isinstance(values.dtype, pl.Datetime):
        per_micro = {"ns": -1000, "us": 1, "ms": 1000}[values.dtype.time_unit]
        ticks = values.to_physical().to_numpy()
        micro = ticks * per_micro if per_micro > 0 else ticks // -per_micro
        said = "timestamps"
    elif values.dtype == pl.Date:
        micro, said = values.to_physical().cast(pl.Int64).to_numpy() * 86_400 * MICRO, "dates"
    elif values.dtype == pl.Float32:
        # float32 resolves a time of 2024 to about 128 s, in any unit: every gap between events would be wrong.
        raise DataError(file, "expected times of 64 bits, found 32, which cannot hold their seconds", column=name)
    elif values.dtype.is_numeric():
        values = values.cast(pl.Float64) if values.dtype.is_decimal() else values
        micro, said = _ticks(values.to_numpy(), unit, file, name)
    elif values.dtype == pl.String:
        micro, said = _text_times(values, unit, file)
    else:
        raise DataError(file, f"expected {_MOMENT}, found {values.dtype}", column=name)
    times_of(micro // MICRO, SECONDS, file, name)
    if unit is not None and said not in {one.name for one in UNITS.values()}:
        raise DataError(file, f"unit is {unit}, which only numbers have, and found {said}: leave it out", column=name)
    return micro, said


def _ticks(values: np.ndarray, unit: str | None, file: Path, name: str) -> tuple[np.ndarray, str]:
    found = unit_of(values, file, name) if unit is None else UNITS[unit]
    # Report a value out of range in the unit of the column.
    whole = np.floor(values).clip(-(2.0**62), 2.0**62).astype(np.int64) if values.dtype.kind == "f" else values
    ticks = times_of(whole, found, file, name)
    if found.per_second > MICRO:
        return ticks // (found.per_second // MICRO), found.name
    scale = MICRO // found.per_second
    if values.dtype.kind == "f":
        return ticks * scale + ((values - whole) * scale).astype(np.int64), found.name
    return ticks * scale, found.name


def _text_times(values: pl.Series, unit: str | None, file: Path) -> tuple[np.ndarray, str]:
    import polars as pl

    if "-" not in values[0][1:] and "/" not in values[0]:
        whole = values.cast(pl.Int64, strict=False)
        if whole.null_count() == 0 and values.str.contains(CANONICAL).all():
            return _ticks(whole.to_numpy(), unit, file, values.name)
        return _ticks(numbers_of(values, file, values.name).to_numpy(), unit, file, values.name)
    parts = pl.DataFrame({"": values.str.extract_groups(_ISO)}).unnest("")
    date, clock, fraction, zone = (parts.to_series(index) for index in range(4))
    clock = clock.fill_null("00:00:00")
    clock = pl.select(pl.when(clock.str.len_bytes() == 5).then(clock + ":00").otherwise(clock)).to_series()
    moment = (date + "T" + clock).str.to_datetime("%Y-%m-%dT%H:%M:%S", time_unit="us", strict=False)
    _refuse(file, values.name, values, moment.is_null(), f"{_MOMENT}")
    zoned = zone.is_not_null()
    either = "with" if zoned[0] else "without"
    _refuse(file, values.name, values, zoned != zoned[0], f"a time {either} a zone as in the rows before")
    micro = moment.to_physical() + fraction.str.pad_end(6, "0").str.slice(0, 6).cast(pl.Int64).fill_null(0)
    if zoned[0]:
        digits = zone.str.replace(":", "", literal=True).str.pad_end(5, "0")
        minutes = digits.str.slice(1, 2).cast(pl.Int64, strict=False) * 60
        minutes = (minutes + digits.str.slice(3, 2).cast(pl.Int64, strict=False)).fill_null(0)
        ahead = pl.select(pl.when(digits.str.starts_with("-")).then(-minutes).otherwise(minutes)).to_series()
        micro = micro - ahead * 60 * MICRO
    return micro.to_numpy(), f"ISO 8601 {either} a zone"


def _uuids(values: pl.Series, file: Path) -> pl.Series:
    size = values.bin.size()
    _refuse(file, values.name, values, (size != 16).fill_null(False), "a UUID of 16 bytes or text")
    digits = values.bin.encode("hex")
    cuts = [(0, 8), (8, 4), (12, 4), (16, 4), (20, 12)]
    first, *rest = (digits.str.slice(start, length) for start, length in cuts)
    for part in rest:
        first = first + "-" + part
    return first.alias(values.name)


def _nothing_is_null(values: pl.Series) -> pl.Series:
    empty = values == ""
    return values.set(empty, None) if empty.any() else values


def _refuse(file: Path, column: str, values: pl.Series, bad: pl.Series, expected: str) -> None:
    if bad.any():
        row = int(bad.arg_max() or 0)
        value: Any = values[row]
        found = "nothing" if value is None or value == "" else shown(value)
        raise DataError(file, f"expected {expected}, found {found}", column=column, row=row + 1)
