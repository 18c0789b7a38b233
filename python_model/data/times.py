"""Times: whole seconds since 1970 in UTC, no later than 2100; the one definition for the package.

Readers, the writer, `argus score` and `argus serve` use this module. A number outside the range of its unit has another
unit. Milliseconds read as seconds would silently put every gap between events into the last bucket and let a score see
the future.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from python_model.io.errors import DataError
from python_model.io.settings import shown

LATEST = 4_102_444_800
"""2100-01-01 00:00 UTC in seconds; larger values are milliseconds or a finer unit."""


@dataclass(frozen=True)
class Unit:
    """A unit of times: its name, how many make a second, and the earliest value accepted, in this unit."""

    name: str
    per_second: int
    earliest: int

    @property
    def latest(self) -> int:
        """The latest value, in this unit."""
        return LATEST * self.per_second

    def expected(self) -> str:
        """The valid range of this unit, in words."""
        since = "since 1970" if self.earliest == 0 else f"since 1970, at least {self.earliest}"
        return f"a whole number of {self.name} {since} up to 2100 ({self.latest})"


SECONDS = Unit("seconds", 1, 0)
# Present-day seconds read as milliseconds fall into January 1970, when nobody logged an event.
MILLISECONDS = Unit("milliseconds", 1_000, 10**11)
MICROSECONDS = Unit("microseconds", 1_000_000, 10**14)
NANOSECONDS = Unit("nanoseconds", 1_000_000_000, 10**17)
UNITS = {unit.name: unit for unit in (SECONDS, MILLISECONDS, MICROSECONDS, NANOSECONDS)}
_LIKELY = 631_152_000
_TICKS = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}


def times_of(
    values: np.ndarray, unit: Unit, file: str | Path, column: str, rows: np.ndarray | None = None
) -> np.ndarray:
    """The times of a column of integers, int64 in `unit`; DataError at the first value out of range.

    rows: the 1-based data row of each value; 1, 2, … by default.
    """
    if values.dtype.kind not in "iu":
        raise DataError(file, f"expected {unit.expected()}, found {values.dtype}", column=column)
    bad = (values < unit.earliest) | (values > unit.latest)
    if bad.any():
        at = int(np.argmax(bad))
        row = at + 1 if rows is None else int(rows[at])
        raise DataError(file, _wrong(int(values[at]), unit), column=column, row=row)
    return values.astype(np.int64)


def unit_of(values: np.ndarray, file: str | Path, column: str) -> Unit:
    """The unit in which every number of a column is a time from 1990 to 2100; these ranges do not overlap.

    DataError at the first number that is a time in no unit, or in another unit than the first one.
    """
    low, high = values.min(), values.max()
    for unit in UNITS.values():
        if low >= _LIKELY * unit.per_second and high <= unit.latest:
            return unit
    first = _likely_unit(values[0].item())
    for row, value in enumerate(values.tolist(), 1):
        name = _likely_unit(value)
        if name is None:
            message = (
                f"expected a time from 1990 to 2100 in {', '.join(UNITS)}, found {shown(value)}; where times count "
            )
            raise DataError(file, f"{message}from another origin, name their unit", column=column, row=row)
        if name != first:
            message = f"expected {first} as in the rows before, found {shown(value)}, which would be {name}"
            raise DataError(file, message, column=column, row=row)
    raise AssertionError("a column out of every range has a value out of it")


def _likely_unit(value: float) -> str | None:
    for unit in UNITS.values():
        if _LIKELY * unit.per_second <= value <= unit.latest:
            return unit.name
    return None


def seconds_of(values: pa.Array | pa.ChunkedArray, file: str | Path, column: str, first_row: int = 1) -> np.ndarray:
    """Seconds int64 of an Arrow column of integers (seconds) or timestamps of any unit and zone.

    A timestamp without a zone is taken as UTC. Fractions of a second are cut off. DataError for null, another type, or
    a time before 1970 or after 2100; `first_row` is the row of the first.
    """
    if isinstance(values, pa.ChunkedArray):
        values = values.combine_chunks()
    rows = np.arange(first_row, first_row + len(values))
    kind = values.type
    if not (pa.types.is_integer(kind) or pa.types.is_timestamp(kind)):
        raise DataError(file, f"expected {SECONDS.expected()} or a timestamp, found {kind}", column=column)
    if values.null_count:
        row = int(rows[np.argmax(np.asarray(values.is_null()))])
        raise DataError(file, f"expected {SECONDS.expected()}, found nothing", column=column, row=row)
    if pa.types.is_integer(kind):
        return times_of(values.to_numpy(zero_copy_only=False), SECONDS, file, column, rows)
    # The stored number is in UTC: the zone is not used, so no local hour can be ambiguous.
    ticks = values.view(pa.int64()).to_numpy(zero_copy_only=False)
    return times_of(ticks // _TICKS[kind.unit], SECONDS, file, column, rows)


def second_of(value: Any, what: str) -> int:
    """One time in seconds, checked; ValueError that begins with `what`."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)):
        raise ValueError(f"{what} is {value!r}, expected {SECONDS.expected()}")
    if not SECONDS.earliest <= value <= SECONDS.latest:
        raise ValueError(f"{what}: {_wrong(int(value), SECONDS)}")
    return int(value)


def _wrong(value: int, unit: Unit) -> str:
    return f"expected {unit.expected()}, found {value}{_guess(value, unit)}"


def _guess(value: int, unit: Unit) -> str:
    """A hint, as a question: the coarsest unit in which the value is a time after 1990."""
    name = _likely_unit(value)
    if name is None or name == unit.name:
        return ""
    day = datetime.fromtimestamp(value // UNITS[name].per_second, timezone.utc).date().isoformat()
    return f"; in {name} it would be {day}: give {unit.name}"
