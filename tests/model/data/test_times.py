"""One definition of a time: units, ranges, timestamps with zones, and what a wrong one says."""

import re
from datetime import datetime, timezone

import numpy as np
import pyarrow as pa
import pytest

from python_model.data.time_features import gap_bucket, hour_and_day
from python_model.data.times import LATEST, MILLISECONDS, SECONDS, second_of, seconds_of, times_of
from python_model.io.errors import DataError


def test_an_ambiguous_local_hour_is_the_moment_that_is_stored() -> None:
    kind = pa.timestamp("us", tz="America/New_York")
    assert seconds_of(pa.array([1762061400000000], kind), "log", "time").tolist() == [1762061400]


@pytest.mark.parametrize(("unit", "ticks"), [("s", 1), ("ms", 10**3), ("us", 10**6), ("ns", 10**9)])
@pytest.mark.parametrize("zone", [None, "UTC", "Europe/Berlin", "+05:30"])
def test_timestamps_of_every_unit_and_zone_are_the_same_seconds(unit: str, ticks: int, zone: str | None) -> None:
    column = pa.chunked_array([pa.array([893286638 * ticks + ticks // 2], pa.timestamp(unit, tz=zone))])
    assert seconds_of(column, "log", "time").tolist() == [893286638]


@pytest.mark.parametrize("kind", [pa.int32(), pa.uint32(), pa.int64(), pa.uint64()])
def test_integers_of_every_width_are_seconds(kind: pa.DataType) -> None:
    found = seconds_of(pa.array([0, 893286638], kind), "log", "time")
    assert found.dtype == np.int64
    assert found.tolist() == [0, 893286638]


@pytest.mark.parametrize(
    ("value", "unit", "guess"),
    [
        (893286638000, SECONDS, "in milliseconds it would be 1998-04-22: give seconds"),
        (893286638000000, SECONDS, "in microseconds it would be 1998-04-22"),
        (1650000000, MILLISECONDS, "in seconds it would be 2022-04-15: give milliseconds"),
        (1650000000000000, MILLISECONDS, "in microseconds it would be 2022-04-15"),
        (-1, SECONDS, "found -1"),
        (2**63 - 1, SECONDS, f"found {2**63 - 1}"),
    ],
)
def test_a_value_of_another_unit_is_refused_with_its_row(value: int, unit: object, guess: str) -> None:
    good = 1650000000 * unit.per_second  # type: ignore[attr-defined]
    with pytest.raises(DataError, match="whole number") as caught:
        times_of(np.array([good, value]), unit, "log", "time")  # type: ignore[arg-type]
    assert (caught.value.row, caught.value.column) == (2, "time")
    assert guess in str(caught.value)


def test_uint64_beyond_int64_is_refused() -> None:
    with pytest.raises(DataError, match=str(2**64 - 1)):
        times_of(np.array([2**64 - 1], np.uint64), SECONDS, "log", "time")


@pytest.mark.parametrize(
    "column",
    [
        pa.array([1.0]),
        pa.array(["2024-01-01"]),
        pa.array([True]),
        pa.array([1], pa.date32()),
        pa.array([1], pa.duration("s")),
    ],
)
def test_other_types_are_refused(column: pa.Array) -> None:
    with pytest.raises(DataError, match=f"found {re.escape(str(column.type))}"):
        seconds_of(column, "log", "time")


def test_a_missing_time_names_its_row() -> None:
    with pytest.raises(DataError, match="found nothing") as caught:
        seconds_of(pa.array([1, None, 2]), "log", "time", first_row=11)
    assert caught.value.row == 12


def test_one_time_of_a_request() -> None:
    assert second_of(np.int32(5), "now") == 5
    for wrong in (True, 1.0, "1", None, -1, 1762061400000):
        with pytest.raises(ValueError, match=r"^now.*expected"):
            second_of(wrong, "now")


def test_hours_days_and_gaps_at_the_ends_of_the_range() -> None:
    time = np.array([0, 3_599, 3_600, 86_399, 86_400, LATEST - 1, LATEST])
    hour, day = hour_and_day(time)
    for value, found in zip(time.tolist(), zip(hour.tolist(), day.tolist(), strict=True), strict=True):
        expected = datetime.fromtimestamp(value, timezone.utc)
        assert found == (expected.hour, expected.weekday())
    gaps = gap_bucket(np.zeros(len(time), np.int32), time).tolist()
    assert gaps == [-1, 4, 1, 5, 1, 7, 1]
