"""Prepared data that was damaged or written by somebody else: loaded as it is, or refused by file, column and row."""

from __future__ import annotations

import copy
import json
import os
import random
import shutil
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from python_model.config import TrainConfig
from python_model.data.feedback import BINARY
from python_model.data.schema import EVENTS, INFO, ITEMS, USERS, DatasetWriter, load_dataset, validate
from python_model.data.shards import read_manifest, shard_dataset
from python_model.data.stream import ShardStream
from python_model.io.errors import DataError

SCALE = int(os.environ.get("ARGUS_FUZZ_SCALE", "1"))
SHARDS = "shards/shards.json"
ROWS = 40


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four users of ten events each."""
    out = tmp_path_factory.mktemp("good") / "data"
    with DatasetWriter(
        out, name="toy", source="test", context={"hour": 24}, feedback={"like": BINARY}, item_features={"artist": 3},
        grades="", pair_window=60, params={"a": [1.5, None, {"b": "c"}]},
    ) as writer:  # fmt: skip
        row = np.arange(ROWS)
        writer.write_events({
            "user": row // 10, "item": row % 7, "time": row, "organic": row % 2 == 0, "grade": row % 3,
            "context_hour": row % 24, "feedback_like": row % 2,
        })  # fmt: skip
        writer.write_users(["007", "7", "a", "b"])
        writer.write_items(np.arange(7, dtype=np.uint64) + np.uint64(2**63), {"artist": np.arange(7) % 3})
    return out


@pytest.fixture
def place(good: Path, tmp_path: Path) -> Callable[[bool], Path]:
    """A fresh copy of the data set, whole or in two shards."""

    def copy_of(in_shards: bool = False) -> Path:
        out = tmp_path / "data"
        shutil.rmtree(out, ignore_errors=True)
        if in_shards:
            shard_dataset(good, out, 2)
        else:
            shutil.copytree(good, out)
        return out

    return copy_of


def use(path: Path) -> tuple[Any, ...]:
    """Everything that a data set says, through every door."""
    info = validate(path)
    dataset = load_dataset(path)
    columns = [dataset.column(name) for name in ("user", "item", "time", "organic", "grade")]
    columns += [dataset.context("hour"), dataset.feedback("like"), dataset.item_column("item_id"), dataset.user_ids]
    columns += [dataset.item_column("count"), dataset.item_column("item_artist"), dataset.offsets]
    return info, *(values.tolist() for values in columns)


def put(path: Path, keys: tuple[Any, ...], value: Any) -> None:
    """Set one place of a JSON file; `...` removes it."""
    raw = json.loads(path.read_text())
    inner = raw
    for key in keys[:-1]:
        inner = inner[key]
    if value is ...:
        del inner[keys[-1]]
    else:
        inner[keys[-1]] = value
    path.write_text(json.dumps(raw))


DESCRIPTIONS: list[tuple[str, str, tuple[Any, ...], Any, str]] = [
    ("info", INFO, ("users",), "4", "users is '4', expected a whole number in [0, 2147483647]"),
    ("info", INFO, ("users",), 10**18, "users is 1000000000000000000, expected"),
    ("info", INFO, ("events",), 40.0, "events is 40.0, expected a whole number of at least 0"),
    ("info", INFO, ("events",), True, "events is True"),
    ("info", INFO, ("items",), None, "items is None"),
    ("info", INFO, ("context",), ["hour"], "context is ['hour'], expected a mapping from text to a whole number"),
    ("info", INFO, ("context", "hour"), 0, "context is {'hour': 0}"),
    ("info", INFO, ("feedback", "like"), "1", "feedback is {'like': '1'}"),
    ("info", INFO, ("item_features", "id"), 3, "expected another name than 'id'"),
    ("info", INFO, ("pair_window",), -1, "pair_window is -1"),
    ("info", INFO, ("has_oracle",), "false", "has_oracle is 'false', expected true or false"),
    ("info", INFO, ("params",), [], "params is [], expected a mapping"),
    ("info", INFO, ("grades",), None, "grades is None, expected text"),
    ("info", INFO, ("grades",), ..., "this key is missing"),
    ("info", INFO, ("format",), 2, "expected format 1, found 2"),
    ("shards", SHARDS, ("shards",), {}, "shards: expected an array, found an object"),
    ("shards", SHARDS, ("shards", 0), [], "shards[0]: expected an object, found an array"),
    ("shards", SHARDS, ("shards", 0, "users"), "2", "shards[0].users is '2', expected a whole number"),
    ("shards", SHARDS, ("shards", 1, "first_row"), 1, "expected user 2 and row 20 first, found user 2 and row 1"),
    ("shards", SHARDS, ("shards", 1, "events"), 19, "expected 4 users and 40 events as dataset.json says"),
    ("shards", SHARDS, ("shards", 0, "file"), "../../secret", "expected a file shards/part-…, found '../../secret'"),
    ("shards", SHARDS, ("shards", 0, "file"), ..., "shards[0]: file is missing"),
    ("shards", SHARDS, ("shards", 0, "colour"), 3, "shards[0]: colour is unknown"),
    ("shards", SHARDS, ("temporal_start",), 1.5, "temporal_start is 1.5"),
    ("shards", SHARDS, ("last_time",), 1_600_000_000_000, "last_time is 1600000000000, expected a whole number in"),
    ("shards", SHARDS, ("last_time",), ..., "last_time is missing"),
]


@pytest.mark.parametrize(("kind", "name", "keys", "value", "says"), DESCRIPTIONS)
def test_descriptions_of_wrong_types(
    place: Callable[[bool], Path], kind: str, name: str, keys: tuple[Any, ...], value: Any, says: str
) -> None:
    data = place(kind == "shards")
    put(data / name, keys, value)
    with pytest.raises(DataError) as caught:
        load_dataset(data)
    assert caught.value.file == data / name
    assert says in str(caught.value)


TEXTS = [b"", b"[" * 200_000, b"[]", b"null", b"\xff\xfe{}", b'{"format": NaN}', b'{"format": 1, "format": 1}', b"{"]


@pytest.mark.parametrize("content", TEXTS)
@pytest.mark.parametrize("name", [INFO, SHARDS])
def test_descriptions_that_are_no_json(place: Callable[[bool], Path], name: str, content: bytes) -> None:
    data = place(True)
    (data / name).write_bytes(content)
    with pytest.raises(DataError, match="expected") as caught:
        load_dataset(data)
    assert caught.value.file == data / name and len(str(caught.value)) < 400


def change(file: Path, column: str, values: Any) -> None:
    table = pq.read_table(file)
    place = table.schema.get_field_index(column)
    pq.write_table(table.set_column(place, column, values), file)


TABLES = [
    (ITEMS, "item_id", pa.array([1.0] * 7), None, "expected integers or text, found double"),
    (ITEMS, "item_id", pa.array([1, 2, 3, 4, 5, 6, None]), 7, "expected an id, found nothing"),
    (ITEMS, "item_id", pa.array([1, 2, 3, 4, 5, 6, 1]), 7, "expected every id once, found 1 again"),
    (ITEMS, "item", pa.array(range(7), pa.int64()), None, "expected type int32, found int64"),
    (ITEMS, "item", pa.array([0, 1, 2, 3, 4, 6, 5], pa.int32()), 6, "expected 0, 1, 2"),
    (ITEMS, "item_artist", pa.array(["a"] * 7), None, "expected type int32, found string"),
    (ITEMS, "item_artist", pa.array([0, 1, 2, 3, 0, 1, 2], pa.int32()), 4, "expected a value in [-1, 2], found 3"),
    (ITEMS, "count", pa.array([-1] * 7, pa.int64()), 1, "expected a value in [0, 40], found -1"),
    (USERS, "user_id", pa.array(["a", "b", "a", "c"]), 3, "expected every id once, found 'a' again"),
    (USERS, "user_id", pa.array([[1]] * 4), None, "expected integers or text, found list"),
    (USERS, "user", pa.array([0, 1, 2, None], pa.int32()), 4, "a value is null"),
    (EVENTS, "time", pa.array([10**12] * ROWS, pa.int64()), 1, "expected a whole number of seconds since 1970"),
    (EVENTS, "time", pa.array([None] * ROWS, pa.int64()), 1, "a value is null"),
    (EVENTS, "user", pa.array([0] * ROWS, pa.int32()), None, "other events"),
    (EVENTS, "item", pa.array([7] * ROWS, pa.int32()), 1, "expected a value in [0, 6], found 7"),
]


@pytest.mark.parametrize(("name", "column", "values", "row", "says"), TABLES)
def test_tables_of_wrong_types_and_values(
    place: Callable[[bool], Path], name: str, column: str, values: pa.Array, row: int | None, says: str
) -> None:
    data = place(False)
    change(data / name, column, values)
    with pytest.raises(DataError) as caught:
        use(data)
    assert caught.value.file == data / name and says in caught.value.message
    assert caught.value.row == row and caught.value.column in (column, None)


def test_the_time_of_a_data_set_is_held_to_its_range_when_it_is_read(place: Callable[[bool], Path]) -> None:
    data = place(False)
    change(data / EVENTS, "time", pa.array([5] * 39 + [1_600_000_000_000], pa.int64()))
    with pytest.raises(DataError, match=r"column 'time', data row 40: .* in milliseconds it would be 2020"):
        _ = load_dataset(data).time


def test_a_data_set_that_cannot_be_cut(place: Callable[[bool], Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is in shards already: cut the data set that they were made from"):
        shard_dataset(place(True), tmp_path / "out", 2)
    for column, values, says in (
        ("user", [9] * ROWS, r"column 'user', data row 1: expected a value in \[0, 3\], found 9"),
        ("time", [None] * ROWS, "column 'time', data row 1: a value is null"),
        ("item", [None] * ROWS, "column 'item', data row 1: a value is null"),
    ):
        data = place(False)
        kind = pq.read_schema(data / EVENTS).field(column).type
        change(data / EVENTS, column, pa.array(values, kind))
        with pytest.raises(DataError, match=says):
            shard_dataset(data, tmp_path / "out", 2)
    pq.write_table(pq.read_table(data / EVENTS).slice(0, 30).drop_columns(["item"]), data / EVENTS)
    with pytest.raises(DataError, match="column 'item': this column is missing"):
        shard_dataset(data, tmp_path / "out", 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]


def test_mutated_files_are_loaded_as_they_are_or_refused(place: Callable[[bool], Path]) -> None:
    """Bytes of every file changed, cut off or taken out: what loads is what was written, as far as checksums go."""
    dice, outcomes = random.Random(11), {"loaded": 0, "refused": 0}
    whole = use(place(False))
    for in_shards, names in (
        (False, (INFO, ITEMS, USERS, EVENTS)),
        (True, (INFO, SHARDS, "shards/part-00001.parquet")),
    ):
        data = place(in_shards)
        assert use(data) == whole
        for name in names:
            file = data / name
            content = file.read_bytes()
            for _ in range(60 * SCALE):
                changed = bytearray(content)
                at = dice.randrange(len(changed))
                cut = dice.choice(["byte", "byte", "zero", "short", "gap"])
                if cut == "byte":
                    changed[at] = dice.randrange(256)
                elif cut == "zero":
                    changed[at : at + 8] = bytes(min(8, len(changed) - at))
                else:
                    del changed[at : len(changed) if cut == "short" else at + dice.randrange(1, 9)]
                file.write_bytes(changed)
                try:
                    found = use(data)
                except DataError as error:
                    outcomes["refused"] += 1
                    assert "\n" not in str(error) and len(str(error)) < 1_000
                    continue
                outcomes["loaded"] += 1
                # dataset.json has no checksum: what it names may have changed. The rows may not.
                assert found[1:8] == whole[1:8], (name, at)
            file.write_bytes(content)
    assert outcomes["refused"] > 150 * SCALE and outcomes["loaded"] > 0, outcomes


def test_random_values_in_descriptions(place: Callable[[bool], Path]) -> None:
    """Any JSON value at any place of dataset.json and shards.json: loaded or a DataError, never another exception."""
    dice, refused = random.Random(12), 0
    values: list[Any] = [None, True, 0, 1, -1, 4, 40, 2**31, 2**63, 1.5, 1e308, "", "4", [], [1], {}, {"a": 1}]
    data = place(True)
    for name in (INFO, SHARDS):
        original = json.loads((data / name).read_text())
        for _ in range(150 * SCALE):
            raw = copy.deepcopy(original)
            inner: Any = raw
            while True:
                keys = list(inner) if isinstance(inner, dict) else list(range(len(inner)))
                key = dice.choice(keys)
                if not isinstance(inner[key], (dict, list)) or not inner[key] or dice.random() < 0.3:
                    break
                inner = inner[key]
            inner[key] = dice.choice(values)
            (data / name).write_text(json.dumps(raw))
            try:
                load_dataset(data)
            except DataError as error:
                refused += 1
                assert "\n" not in str(error)
        (data / name).write_text(json.dumps(original))
    assert refused > 100 * SCALE


@pytest.mark.parametrize(
    ("column", "value"),
    [("user", 4), ("user", -1), ("item", 7), ("context_hour", 24), ("feedback_like", 2), ("grade", -2)],
)
@pytest.mark.parametrize("in_shards", [False, True])
def test_columns_index_nothing_outside_when_they_are_read(
    place: Callable[[bool], Path], column: str, value: int, in_shards: bool
) -> None:
    data = place(in_shards)
    file = data / ("shards/part-00001.parquet" if in_shards else EVENTS)
    table = pq.read_table(file)
    values = table.column(column).to_pylist()
    values[-2] = value
    change(file, column, pa.array(values, table.schema.field(column).type))
    with pytest.raises(DataError, match=rf"column '{column}', data row {len(values) - 1}: expected a value .*{value}$"):
        load_dataset(data).column(column)
    if in_shards:
        stream = ShardStream(load_dataset(data), read_manifest(data), TrainConfig(batch_events=8, window=4))  # type: ignore[arg-type]
        with pytest.raises(DataError, match=rf"part-00001.parquet, column '{column}', data row {len(values) - 1}: "):
            list(islice(stream.walk(stream.start(), [0], 1), 20))
