"""DatasetWriter: hostile columns are one sentence with column and row, ids stay what they are."""

from __future__ import annotations

import datetime
import os
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from python_model.data.columns import typed
from python_model.data.feedback import BINARY
from python_model.data.schema import EVENTS, ITEMS, USERS, DatasetWriter, load_dataset, validate
from python_model.data.shards import shard_dataset
from python_model.data.times import LATEST
from python_model.io.errors import DataError

SCALE = int(os.environ.get("ARGUS_FUZZ_SCALE", "1"))
GOOD: Mapping[str, Any] = {
    "user": [0, 0, 1], "item": [1, 0, 1], "time": [5, 6, 0], "organic": [True, False, True], "grade": [1, -1, 0],
    "context_hour": [0, 23, -1], "feedback_like": [0, 1, -1],
}  # fmt: skip
NOW = datetime.datetime(2020, 1, 1)


def write(
    out: Path, columns: Mapping[str, Any] = GOOD, users: Any = (7, 9), items: Any = (5, 6), artist: Any = (0, 1)
) -> None:
    with DatasetWriter(
        out, name="toy", source="test", context={"hour": 24}, feedback={"like": BINARY}, item_features={"artist": 2},
        grades="", pair_window=60,
    ) as writer:  # fmt: skip
        writer.write_events(columns)
        writer.write_users(users)
        writer.write_items(items, {"artist": artist})


def test_lists_and_any_width_of_integers_are_taken(tmp_path: Path) -> None:
    write(tmp_path / "lists")
    arrays = {name: np.array(values) for name, values in GOOD.items()}
    changes: dict[str, dict[str, Any]] = {
        "wide": {name: values.astype(np.int64) for name, values in arrays.items() if name != "organic"},
        "unsigned": {"item": arrays["item"].astype(np.uint64), "time": arrays["time"].astype(np.uint32)},
        "foreign": {"item": arrays["item"].astype(">i8"), "time": np.repeat(arrays["time"], 2)[::2]},
        "arrow": {"item": pa.array([1, 0, 1])},
    }
    for name, change in changes.items():
        write(tmp_path / name, {**arrays, **change})
        for file in (EVENTS, ITEMS, USERS):
            assert (tmp_path / name / file).read_bytes() == (tmp_path / "lists" / file).read_bytes()


WRONG: list[tuple[str, Any, int | None, str]] = [
    ("item", ["a", "b", "c"], 1, "expected whole numbers (int32), found 'a' of a column of <U1"),
    ("item", [1.0, 0.0, 1.0], 1, "found 1.0 of a column of float64"),
    ("item", [1, 0.5, 1], 2, "found 0.5 of a column of float64"),
    ("item", [True, False, True], 1, "found True of a column of bool"),
    ("item", [1, True, 0], None, "expected values of one type, found booleans among others"),
    ("item", [1, None, 0], 2, "found None of a column of object"),
    ("item", [[1], [0], [1]], None, "expected one dimension, found the shape (3, 1)"),
    ("item", [[1], [0, 2], [1]], None, "expected a column of values: "),
    ("item", 1, None, "expected one dimension, found the shape ()"),
    ("item", torch.ones(3, requires_grad=True), None, "expected a column of values: Can't call numpy()"),
    ("item", np.ma.array([1, 0, 1], mask=[False, True, False]), None, "found a masked array"),
    ("item", [1, 2**31, 0], 2, "(int32) in [-2147483648, 2147483647], found 2147483648"),
    ("item", [1, 2**64, 0], 1, "found 1 of a column of object"),
    ("item", [1, -1, 0], 2, "expected a value of at least 0, found -1"),
    ("item", [1, 0], None, "expected 3 values as in user, found 2"),
    ("item", np.array([1, 0, 1], "timedelta64[s]"), 1, "of a column of timedelta64[s]"),
    ("item", np.array([1, 0, 1], complex), 1, "of a column of complex128"),
    ("item", np.array([b"1", b"0", b"1"]), 1, "of a column of |S1"),
    ("time", np.array(["2020-01-01"] * 3, "datetime64[s]"), 1, "of a column of datetime64[s]"),
    ("time", [NOW, NOW, NOW], 1, "of a column of object"),
    ("time", [5.0, 6.0, 0.0], 1, "expected whole numbers (int64), found 5.0 of a column of float64"),
    (
        "time",
        np.array([5, 2**63, 0], np.uint64),
        2,
        "(int64) in [-9223372036854775808, 9223372036854775807], found 9223372036854775808",
    ),
    ("time", [5, LATEST + 1, 0], 2, "expected a whole number of seconds since 1970 up to 2100"),
    ("time", [5, 1_600_000_000_000, 0], 2, "in milliseconds it would be 2020-09-13: give seconds"),
    ("time", [5, 6, -1], 3, "expected a whole number of seconds since 1970"),
    ("organic", [1, 0, 1], 1, "expected true and false, found 1 of a column of int64"),
    ("organic", ["true", "false", "true"], 1, "expected true and false, found 'true'"),
    ("grade", [1, 300, 0], 2, "(int8) in [-128, 127], found 300"),
    ("grade", [1, -2, 0], 2, "expected a value of at least -1, found -2"),
    ("context_hour", [0, 24, 0], 2, "expected a value in [-1, 23], found 24"),
    ("feedback_like", [0, float("nan"), 1], 2, "expected whole numbers (int16), found nan of a column of float64"),
    ("feedback_like", [0, 2, 1], 2, "expected a value in [-1, 1], found 2"),
    ("feedback_like", [0, 65_536, 1], 2, "(int16) in [-32768, 32767], found 65536"),
    ("user", [0, 0, 2], 3, "expected users sorted and numbered without gaps, found 2"),
]


@pytest.mark.parametrize(("column", "values", "row", "says"), WRONG)
def test_columns_of_events(tmp_path: Path, column: str, values: Any, row: int | None, says: str) -> None:
    with pytest.raises(DataError) as caught:
        write(tmp_path / "out", {**GOOD, column: values})
    assert (caught.value.file, caught.value.column, caught.value.row) == (tmp_path / "out" / EVENTS, column, row)
    assert says in caught.value.message and "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


IDS: list[tuple[Any, int | None, str | None]] = [
    ([7, 7], 2, "expected every id once, found 7 again"),
    (["a", "a"], 2, "expected every id once, found 'a' again"),
    ([7.0, 9.0], None, "expected integers or text, found double"),
    ([True, False], None, "expected integers or text, found bool"),
    ([7, "9"], None, "all of one type"),
    (["7", 9], None, "all of one type"),
    ([7, True], None, "all of one type"),
    ([7, None], 2, "expected an id, found nothing"),
    (["", "a"], 1, "expected an id of 1 to 1024 bytes, found 0"),
    (["\ud800", "a"], None, "surrogates not allowed"),
    ([b"a", b"b"], None, "expected integers or text, found binary"),
    ([NOW, NOW], None, "expected integers or text, found timestamp[us]"),
    ([[1], [2]], None, "expected integers or text, found list<item: int64>"),
    ([2**64, 1], 1, "expected integers of 64 bits"),
    ([2**63, -1], 2, "none negative beside one above 2⁶³ − 1, found -1"),
    (np.array([[1, 2]]), None, "1-dimensional"),
    (np.ma.array([1, 2], mask=[False, True]), 2, "expected an id, found nothing"),
    ("ab", None, "expected a column of integers or text, found str"),
    (7, None, "expected a column of integers or text, found int"),
    (np.array(7), None, "expected a column of integers or text, found ndarray"),
    ([7], None, "found 1"),
    ([7, 8, 9], None, None),
]


@pytest.mark.parametrize(("values", "row", "says"), IDS)
@pytest.mark.parametrize("file", [ITEMS, USERS])
def test_ids(tmp_path: Path, file: str, values: Any, row: int | None, says: str | None) -> None:
    if says is None and file == ITEMS:
        pytest.skip("there may be items without events")
    with pytest.raises(DataError) as caught:
        if file == USERS:
            write(tmp_path / "out", users=values)
        else:
            artists = [0] * (len(values) if hasattr(values, "__len__") and getattr(values, "shape", None) != () else 2)
            write(tmp_path / "out", items=values, artist=artists)
    # Of a catalogue that is whole, but too small, the data set is named: it has no file yet.
    named = "out" if says == "found 1" and file == ITEMS else file
    assert (caught.value.file.name, caught.value.row) == (named, row), str(caught.value)
    assert (says or "expected 2 users as in the events, found 3") in caught.value.message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("artist", "row", "says"),
    [([0, 2], 2, "expected a value in [-1, 1], found 2"), ([0], None, "expected 2 values as in item_id, found 1"),
     ([0.0, 1.0], 1, "expected whole numbers (int32)"), ([0, 2**32], 2, "found 4294967296")],
)  # fmt: skip
def test_features_of_items(tmp_path: Path, artist: Any, row: int | None, says: str) -> None:
    with pytest.raises(DataError) as caught:
        write(tmp_path / "out", artist=artist)
    assert (caught.value.column, caught.value.row) == ("item_artist", row)
    assert says in caught.value.message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("ids", [
    [-(2**63), 2**63 - 1], [2**53, 2**53 + 1], [2**63, 2**64 - 1], [2**63 - 1, 2**63], ["007", "7"], ["٥", "5"],
    [" 7", "7"], np.array([1, 2], np.uint64), np.array(["a", "b"]), np.array([3, 4], ">i8"),
    pa.array(["x", "y"]).dictionary_encode(),
])  # fmt: skip
def test_ids_come_back_as_they_were(tmp_path: Path, ids: Any) -> None:
    write(tmp_path / "out", users=ids, items=ids)
    dataset = load_dataset(tmp_path / "out")
    expected = ids.to_pylist() if isinstance(ids, pa.Array) else list(ids)
    assert dataset.user_ids.tolist() == expected
    assert dataset.item_column("item_id").tolist() == expected
    validate(tmp_path / "out")


@pytest.mark.parametrize(
    ("chunks", "says"),
    [([[1], [2**63]], None), ([[2**63], [1]], None), ([[-1], [2**63]], "expected no negative id beside"),
     ([[1], ["2"]], "expected ids of one type, found integers and text"), ([[1], [1]], "every id once, found 1 again")],
)  # fmt: skip
def test_ids_in_chunks_are_one_column(tmp_path: Path, chunks: list[Any], says: str | None) -> None:
    def run() -> None:
        with DatasetWriter(
            tmp_path / "out", name="t", source="t", context={"hour": 24}, feedback={"like": BINARY}, item_features={},
            grades="", pair_window=0,
        ) as writer:  # fmt: skip
            writer.write_events(GOOD)
            for chunk in chunks:
                writer.write_users(chunk)
                writer.write_items(chunk, {})

    if says is None:
        run()
        assert load_dataset(tmp_path / "out").user_ids.tolist() == [chunk[0] for chunk in chunks]
    else:
        with pytest.raises(DataError, match=says):
            run()
        assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_trained_on_is_refused(tmp_path: Path) -> None:
    alone = {**GOOD, "user": [0, 1, 2]}
    with pytest.raises(DataError, match=r"/out, column 'user': nobody has two events .* which column has the users"):
        write(tmp_path / "out", alone, users=[1, 2, 3])
    with pytest.raises(DataError, match=r"/out, column 'item': expected at least 2 items to choose from, found 1: "):
        write(tmp_path / "out", {**GOOD, "item": [0, 0, 0]}, items=[5], artist=[0])
    with pytest.raises(DataError, match=r"items.parquet: expected at least 2147483648 items, found 2"):
        write(tmp_path / "out", {**GOOD, "item": [0, 2**31 - 1, 0]})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"context": {"hour": 0}}, r"context is {'hour': 0}, expected a mapping from text to a whole number in \[1, "),
        ({"feedback": {"like": "a"}}, "feedback is {'like': 'a'}"),
        ({"feedback": {"like": 2**15}}, "feedback is {'like': 32768}"),
        ({"item_features": {"id": 3}}, "expected another name than 'id'"),
        ({"item_features": [3]}, r"item_features is \[3\]"),
        ({"pair_window": -1}, "pair_window is -1, expected a whole number of at least 0"),
        ({"pair_window": None}, "pair_window is None"),
        ({"name": 3}, "name is 3, expected text"),
    ],
)
def test_the_description_is_checked_first(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    settings: dict[str, Any] = {"name": "t", "source": "t", "context": {}, "feedback": {}, "item_features": {},
                                "grades": "", "pair_window": 0}  # fmt: skip
    with pytest.raises(ValueError, match=says):
        DatasetWriter(tmp_path / "out", **{**settings, **changes})


def test_params_are_json_or_refused(tmp_path: Path) -> None:
    for value in (float("nan"), {1, 2}, np.int64(3)):
        with pytest.raises(ValueError, match="params: expected what JSON holds"), DatasetWriter(
            tmp_path / "out", name="t", source="t", context={"hour": 24}, feedback={"like": BINARY}, item_features={},
            grades="", pair_window=0, params={"x": value},
        ) as writer:  # fmt: skip
            writer.write_events(GOOD)
            writer.write_users([1, 2])
            writer.write_items([1, 2], {})
        assert list(tmp_path.iterdir()) == []


def test_rows_that_were_refused_changed_nothing(tmp_path: Path) -> None:
    write(tmp_path / "plain")
    with DatasetWriter(
        tmp_path / "tried", name="toy", source="test", context={"hour": 24}, feedback={"like": BINARY},
        item_features={"artist": 2}, grades="", pair_window=60,
    ) as writer:  # fmt: skip
        for name, values, _, _ in WRONG:
            with pytest.raises(DataError):
                writer.write_events({**GOOD, name: values})
        writer.write_events(GOOD)
        for file, ids in ((USERS, [1.5, 2.5]), (ITEMS, ["a", 1])):
            with pytest.raises(DataError):
                writer.write_users(ids) if file == USERS else writer.write_items(ids, {"artist": [0, 0]})
        with pytest.raises(DataError):
            writer.write_items([5, 6], {"artist": [0, 7]})
        writer.write_users([7, 9])
        writer.write_items([5, 6], {"artist": [0, 1]})
    for file in (EVENTS, ITEMS, USERS):
        assert (tmp_path / "plain" / file).read_bytes() == (tmp_path / "tried" / file).read_bytes()


def test_random_columns_are_exact_or_refused() -> None:
    """Values of any kind, in lists and arrays of any type: what comes out equals what went in, or it is a DataError."""
    dice, outcomes = random.Random(1), {"taken": 0, "refused": 0}
    values = [0, 1, -1, 127, 128, -129, 2**15, 2**31, 2**63, 2**64, 0.0, 0.5, float("nan"), float("inf"), True, None,
              "1", b"1", NOW, [1], (), {}, np.int8(3), np.uint64(2**63), np.float32(1), np.bool_(True), 1j]  # fmt: skip
    types: list[Any] = [None, object, np.int8, np.uint64, np.float64, np.bool_, "U3", ">i4", "datetime64[s]", complex]
    kinds = [pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.bool_(), pa.float32()]
    for _ in range(4_000 * SCALE):
        pool = dice.sample(values, dice.choice([1, 1, 2, 3]))
        column: Any = [dice.choice(pool) for _ in range(dice.randrange(4))]
        dtype = dice.choice(types)
        if dtype is not None:
            try:
                column = np.array(column, dtype)
            except (ValueError, TypeError, OverflowError):
                continue
        kind = dice.choice(kinds)
        try:
            found = typed(column, kind, Path("events"), "column", 5)
        except DataError as error:
            outcomes["refused"] += 1
            assert error.column == "column" and "\n" not in str(error) and len(str(error)) < 400
            continue
        outcomes["taken"] += 1
        assert found.dtype == kind.to_pandas_dtype()
        for came, went in zip(found.tolist(), list(column), strict=True):
            expected = float(np.float32(went)) if kind == pa.float32() else went
            assert came == expected or (came != came and expected != expected), (column, kind)
            assert isinstance(came, bool) == isinstance(went, (bool, np.bool_))
    assert min(outcomes.values()) > 300 * SCALE, outcomes


@pytest.mark.parametrize("row_group", [0, -1, 1.5, True, "1"])
def test_row_groups_hold_at_least_a_row(tmp_path: Path, row_group: Any) -> None:
    with pytest.raises(ValueError, match=r"^row_group is .*, expected a whole number of at least 1$"):
        DatasetWriter(
            tmp_path / "out", name="toy", source="test", context={}, feedback={}, item_features={}, grades="",
            pair_window=60, row_group=row_group,
        )  # fmt: skip
    with pytest.raises(ValueError, match=r"^row_group is .*, expected a whole number of at least 1$"):
        shard_dataset(tmp_path, tmp_path / "shards", 1, row_group=row_group)
    assert list(tmp_path.iterdir()) == []
