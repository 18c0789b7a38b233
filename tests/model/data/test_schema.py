"""The prepared format: what is written is read back, faults are located, nothing is left half-written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from python_model.data.schema import EVENTS, INFO, ITEMS, USERS, DataError, DatasetWriter, load_dataset, validate

COLUMNS: dict[str, np.ndarray] = {
    "user": np.array([0, 0, 0, 1, 1], np.int32),
    "item": np.array([2, 0, 2, 1, 0], np.int32),
    "time": np.array([5, 5, 9, 0, 7], np.int64),
    "organic": np.array([True, False, True, False, False]),
    "grade": np.array([-1, 0, -1, 2, 1], np.int8),
    "context_hour": np.array([0, 23, -1, 4, 5], np.int32),
    "feedback_like": np.array([0, 1, -1, 1, 0], np.int16),
    "feedback_share": np.array([4, 0, -1, 2, 3], np.int16),
    "oracle_affinity": np.array([0.5, -1, 0, 2, 1], np.float32),
    "oracle_feedback_like": np.array([0.1, 0.2, 0, 1, 0.5], np.float32),
}


def writer(out: Path, **changes: Any) -> DatasetWriter:
    settings: dict[str, Any] = {
        "name": "toy", "source": "test", "context": {"hour": 24}, "feedback": {"like": 1, "share": 5},
        "item_features": {"artist": 2}, "grades": "test", "pair_window": 60, "has_oracle": True, **changes,
    }  # fmt: skip
    return DatasetWriter(out, **settings)


def write(out: Path, columns: dict[str, np.ndarray] = COLUMNS, items: int = 3, users: int = 2, **changes: Any) -> None:
    with writer(out, **changes) as target:
        target.write_events(columns)
        target.write_users([f"user-{i}" for i in range(users)])
        target.write_items(np.arange(items) * 10, {"artist": np.array([0, 1, -1, 0][:items])})


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    write(tmp_path / "d")
    dataset = load_dataset(tmp_path / "d")
    for name, values in COLUMNS.items():
        np.testing.assert_array_equal(dataset.column(name), values)
        assert dataset.column(name).dtype == values.dtype
    assert dataset.offsets.tolist() == [0, 3, 5]
    assert dataset.item_column("item_id").tolist() == [0, 10, 20]
    assert dataset.item_column("count").tolist() == [2, 1, 2]
    assert dataset.item_column("item_artist").tolist() == [0, 1, -1]
    assert dataset.user_ids.tolist() == ["user-0", "user-1"]
    assert (dataset.info.users, dataset.info.items, dataset.info.events, len(dataset)) == (2, 3, 5, 5)
    assert validate(tmp_path / "d") == dataset.info
    with pytest.raises(ValueError, match="read-only"):
        dataset.item[0] = 1


def test_bytes_do_not_depend_on_the_chunks(tmp_path: Path) -> None:
    for cuts in ((), (1,), (2, 3), (1, 2, 3, 4)):
        out = tmp_path / f"cut-{cuts}"
        with writer(out, row_group=2) as target:
            for rows in np.split(np.arange(5), cuts):
                target.write_events({name: values[rows] for name, values in COLUMNS.items()})
            target.write_users([7, 8])
            target.write_items(np.arange(3), {"artist": np.zeros(3, np.int8)})
    reference = tmp_path / "cut-()"
    for other in tmp_path.iterdir():
        for file in (EVENTS, ITEMS, USERS, INFO):
            assert (other / file).read_bytes() == (reference / file).read_bytes(), (other, file)
    assert pq.ParquetFile(reference / EVENTS).metadata.num_row_groups == 3


@pytest.mark.parametrize("interruption", [RuntimeError("disk on fire"), KeyboardInterrupt(), SystemExit(1)])
def test_an_interrupted_write_leaves_nothing(tmp_path: Path, interruption: BaseException) -> None:
    with pytest.raises(type(interruption)), writer(tmp_path / "d") as target:
        target.write_events(COLUMNS)
        raise interruption
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_overwrite_keeps_the_old(tmp_path: Path) -> None:
    write(tmp_path / "d")
    before = {file.name: file.read_bytes() for file in (tmp_path / "d").iterdir()}
    with pytest.raises(KeyboardInterrupt), writer(tmp_path / "d", overwrite=True) as target:
        target.write_events(COLUMNS)
        raise KeyboardInterrupt
    assert {file.name: file.read_bytes() for file in (tmp_path / "d").iterdir()} == before
    assert [file.name for file in tmp_path.iterdir()] == ["d"]


def test_a_failure_while_closing_does_not_hide_the_first_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="the first error"), writer(tmp_path / "d") as target:
        target._events._writer.close()
        target._events._writer = None
        raise RuntimeError("the first error")
    assert list(tmp_path.iterdir()) == []


def test_existing_targets(tmp_path: Path) -> None:
    out = tmp_path / "d"
    out.mkdir()
    write(out)
    with pytest.raises(FileExistsError, match="not empty"):
        write(out)
    write(out, overwrite=True, name="second")
    assert load_dataset(out).info.name == "second"
    assert [file.name for file in tmp_path.iterdir()] == ["d"]
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.tex").write_text("years of work")
    with pytest.raises(FileExistsError, match="is not overwritten"):
        write(precious, overwrite=True)
    assert (precious / "thesis.tex").read_text() == "years of work"
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError, match="is a file"):
        write(tmp_path / "file", overwrite=True)


FAULTS = [
    ("user", 0, 1, 1, "numbered from 0"),
    ("user", 4, 0, 5, "sorted"),
    ("user", 3, 2, 4, "without gaps"),
    ("time", 0, -1, 1, "seconds since 1970"),
    ("time", 2, 4, 3, "times sorted"),
    ("item", 1, -1, 2, "[0, 2]"),
    ("item", 1, 3, 2, "[0, 2]"),
    ("grade", 2, -2, 3, "at least -1"),
    ("context_hour", 3, 24, 4, "[-1, 23]"),
    ("context_hour", 3, -2, 4, "[-1, 23]"),
    ("feedback_like", 4, 2, 5, "[-1, 1]"),
    ("feedback_share", 4, 5, 5, "[-1, 4]"),
    ("oracle_affinity", 1, np.nan, 2, "finite"),
    ("oracle_feedback_like", 2, 1.5, 3, "a probability"),
    ("oracle_feedback_like", 2, np.nan, 3, "a probability"),
]


@pytest.mark.parametrize(("column", "index", "value", "row", "says"), FAULTS)
def test_validate_locates_every_fault(
    tmp_path: Path, column: str, index: int, value: float, row: int, says: str
) -> None:
    write(tmp_path / "d")
    file = tmp_path / "d" / EVENTS
    table = pq.read_table(file)
    values = COLUMNS[column].copy()
    values[index] = value
    place = table.schema.get_field_index(column)
    pq.write_table(table.set_column(place, table.schema.field(column), pa.array(values)), file)
    with pytest.raises(DataError) as caught:
        validate(tmp_path / "d")
    assert (caught.value.file, caught.value.column, caught.value.row) == (file, column, row)
    assert says in caught.value.message


@pytest.mark.parametrize(("column", "index", "value", "row", "says"), [f for f in FAULTS if f[0] != "item"])
def test_the_writer_refuses_the_same_faults(
    tmp_path: Path, column: str, index: int, value: float, row: int, says: str
) -> None:
    values = COLUMNS[column].copy()
    values[index] = value
    with pytest.raises(DataError, match=column) as caught:
        write(tmp_path / "d", {**COLUMNS, column: values})
    assert (caught.value.row, says in caught.value.message) == (row, True)
    assert list(tmp_path.iterdir()) == []


def test_faults_across_chunks_are_seen_and_counted_on(tmp_path: Path) -> None:
    first = {name: values[:3] for name, values in COLUMNS.items()}
    again = {name: values[:3] for name, values in COLUMNS.items()}
    with pytest.raises(DataError, match="data row 4: expected times sorted"), writer(tmp_path / "d") as target:
        target.write_events(first)
        target.write_events(again)


@pytest.mark.parametrize(("changes", "says"), [({"items": 2}, "at least 3 items"), ({"users": 3}, "expected 2 users")])
def test_tables_must_fit_the_events(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(DataError, match=says):
        write(tmp_path / "d", **changes)
    assert list(tmp_path.iterdir()) == []


def test_an_empty_data_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="empty"):
        write(tmp_path / "d", {name: values[:0] for name, values in COLUMNS.items()}, users=0)
    assert list(tmp_path.iterdir()) == []


def test_columns_must_be_those_of_the_schema(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="context_hour"):
        write(tmp_path / "d", {name: values for name, values in COLUMNS.items() if name != "context_hour"})


def test_a_null_is_located(tmp_path: Path) -> None:
    write(tmp_path / "d")
    file = tmp_path / "d" / EVENTS
    table = pq.read_table(file)
    nulls = pa.array([1, 2, None, 1, 0], pa.int32())
    pq.write_table(table.set_column(1, pa.field("item", pa.int32()), nulls), file)
    with pytest.raises(DataError, match="column 'item', data row 3: a value is null"):
        validate(tmp_path / "d")
    with pytest.raises(DataError, match="data row 3"):
        _ = load_dataset(tmp_path / "d").item


def test_item_features_are_validated(tmp_path: Path) -> None:
    write(tmp_path / "d")
    file = tmp_path / "d" / ITEMS
    table = pq.read_table(file)
    place = table.schema.get_field_index("item_artist")
    pq.write_table(table.set_column(place, "item_artist", pa.array([0, 2, 1], pa.int32())), file)
    with pytest.raises(DataError, match="column 'item_artist', data row 2"):
        validate(tmp_path / "d")


@pytest.mark.parametrize("file", [EVENTS, ITEMS, USERS, INFO])
def test_missing_and_corrupt_files_are_named(tmp_path: Path, file: str) -> None:
    write(tmp_path / "d")
    content = (tmp_path / "d" / file).read_bytes()
    (tmp_path / "d" / file).write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=file):
        load_dataset(tmp_path / "d")
    (tmp_path / "d" / file).unlink()
    with pytest.raises(DataError, match=f"{file}.*: not found"):
        load_dataset(tmp_path / "d")


def test_a_description_of_another_format_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "d")
    file = tmp_path / "d" / INFO
    good = json.loads(file.read_text())
    file.write_text(json.dumps({**good, "format": 99}))
    with pytest.raises(DataError, match="expected format 1, found 99"):
        load_dataset(tmp_path / "d")
    file.write_text(json.dumps({key: value for key, value in good.items() if key != "feedback"}))
    with pytest.raises(DataError, match=r"column 'feedback'.*missing"):
        load_dataset(tmp_path / "d")
    file.write_text(json.dumps({**good, "events": 6}))
    with pytest.raises(DataError, match="expected 6 rows"):
        load_dataset(tmp_path / "d")
    file.write_text(json.dumps({**good, "context": {"mood": 3}}))
    with pytest.raises(DataError, match="column 'context_mood': this column is missing"):
        load_dataset(tmp_path / "d")
