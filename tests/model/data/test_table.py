"""Logs of one's own: every kind of file, id, time and feedback comes out as it was written, in order of time."""

from __future__ import annotations

import datetime
import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from python_model.data.feedback import BINARY, categorical
from python_model.data.prepare import prepare
from python_model.data.readers import logs
from python_model.data.readers.table import sources
from python_model.data.readers.table.mapping import MAPPING, TableMapping
from python_model.data.readers.table.profile import lines
from python_model.data.readers.table.reader import from_frame
from python_model.data.schema import Dataset, load_dataset, validate

BEGIN = 1_700_000_000
ROWS: list[dict[str, Any]] = [
    {"user": "ann", "item": "tea", "time": BEGIN + 50, "liked": True, "stars": 10, "share": 0.9, "device": "phone"},
    {"user": "bob", "item": "cup", "time": BEGIN + 10, "liked": False, "stars": 2, "share": 0.1, "device": "tv"},
    {"user": "ann", "item": "cup", "time": BEGIN + 20, "liked": None, "stars": 9, "share": None, "device": None},
    {"user": "ann", "item": "tea", "time": BEGIN + 20, "liked": False, "stars": None, "share": 0.5, "device": "tv"},
    {"user": "bob", "item": "Ä, \"pot\"", "time": BEGIN + 90, "liked": True, "stars": 10, "share": 1.5, "device": "tv"},
]  # fmt: skip
SETTINGS: dict[str, Any] = {
    "feedback": {"like": "liked", "stars": "stars:classes", "share": "share:bins=0.2,0.8"},
    "context": {"device": "device"},
}


def csv_text(rows: list[dict[str, Any]], separator: str = ",", end: str = "\n") -> str:
    def cell(value: Any) -> str:
        text = "" if value is None else str(value)
        return '"' + text.replace('"', '""') + '"' if set(text) & set(separator + '"\n') else text

    names = list(rows[0])
    lines = [names, *([row[name] for name in names] for row in rows)]
    return "".join(separator.join(map(cell, line)) + end for line in lines)


def prepared(out: Path, *paths: Path, **settings: Any) -> Dataset:
    prepare("table", list(paths), out, **settings)
    validate(out)
    return load_dataset(out)


def events(dataset: Dataset) -> list[tuple[Any, ...]]:
    ids, names = dataset.item_column("item_id"), [f"feedback_{name}" for name in dataset.info.feedback]
    columns = [dataset.user_ids[dataset.user], ids[dataset.item], dataset.time, *map(dataset.column, names)]
    return list(zip(*(column.tolist() for column in columns), strict=True))


EXPECTED = [
    ("ann", "cup", BEGIN + 20, -1, 1, -1), ("ann", "tea", BEGIN + 20, 0, -1, 1), ("ann", "tea", BEGIN + 50, 1, 2, 2),
    ("bob", "cup", BEGIN + 10, 0, 0, 0), ("bob", 'Ä, "pot"', BEGIN + 90, 1, 2, 2),
]  # fmt: skip


def write(file: Path, kind: str) -> Path:
    frame = pa.Table.from_pylist(ROWS)
    if kind == "parquet":
        pq.write_table(frame, file)
    elif kind == "jsonl":
        file.write_text("".join(json.dumps(row) + "\n" for row in ROWS), "utf-8")
    elif kind == "gz":
        file.write_bytes(gzip.compress(csv_text(ROWS).encode()))
    else:
        separator = {"csv": ",", "crlf": ",", "bom": ",", "tsv": "\t", "semicolon": ";"}[kind]
        text = csv_text(ROWS, separator, "\r\n" if kind == "crlf" else "\n")
        file.write_bytes(text.encode("utf-8-sig" if kind == "bom" else "utf-8"))
    return file


@pytest.mark.parametrize("kind", ["csv", "tsv", "semicolon", "crlf", "bom", "jsonl", "parquet", "gz"])
def test_every_kind_of_file_gives_the_same_events(tmp_path: Path, kind: str) -> None:
    dataset = prepared(tmp_path / "out", write(tmp_path / "log", kind), **SETTINGS)
    assert events(dataset) == EXPECTED
    assert dataset.info.feedback == {"like": BINARY, "stars": categorical(3), "share": categorical(3)}
    assert dataset.context("device").tolist() == [-1, 1, 0, 1, 1]
    assert dataset.grade.tolist() == [1, 1, 2, 1, 2]
    assert dataset.names.label("feedback_stars", 2) == "10", "classes that are numbers rise as numbers"
    assert dataset.names.label("context_device", 1) == "tv"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log", "out"]


@pytest.mark.parametrize("library", ["pandas", "polars", "pyarrow"])
def test_a_frame_gives_the_same_events(tmp_path: Path, library: str) -> None:
    module = pytest.importorskip(library)
    make = pa.Table.from_pylist if library == "pyarrow" else module.DataFrame
    titles = [{"item": "tea", "name": "Green tea"}]
    from_frame(make(ROWS), tmp_path / "out", items=make(titles), title="name", **SETTINGS)
    dataset = load_dataset(tmp_path / "out")
    assert events(dataset) == EXPECTED
    ids = dataset.item_column("item_id").tolist()
    assert {one: dataset.names.title(item) for item, one in enumerate(ids)} == {
        "tea": "Green tea", "cup": None, 'Ä, "pot"': None
    }  # fmt: skip


def test_something_else_than_a_frame_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="frame is a list, expected a pandas or polars DataFrame or a pyarrow Table"):
        from_frame(ROWS, tmp_path / "out", **SETTINGS)


@pytest.mark.parametrize(("piece", "rows"), [(1, 1), (150, 3), (10**6, 10**6)])
def test_the_sizes_of_pieces_and_ranges_do_not_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece: int, rows: int
) -> None:
    dice = np.random.default_rng(0)
    table = [{"user": f"u{dice.integers(6)}", "item": f"i{dice.integers(9)}", "time": BEGIN + int(dice.integers(40)),
              "kind": str(dice.integers(12))} for _ in range(80)]  # fmt: skip
    (tmp_path / "a.csv").write_text(csv_text(table[:50]))
    (tmp_path / "b.csv").write_text(csv_text(table[50:]))
    monkeypatch.setattr(sources, "PIECE_BYTES", piece)
    monkeypatch.setattr(logs, "RANGE_ROWS", rows)
    monkeypatch.setattr(logs, "_MERGE", 1)
    dataset = prepared(tmp_path / "out", tmp_path / "a.csv", tmp_path / "b.csv", feedback={"kind": "kind:classes"})
    expected = sorted(table, key=lambda row: (row["user"], row["time"]))
    found = [(user, item, time, dataset.names.label("feedback_kind", number))
             for user, item, time, number in events(dataset)]  # fmt: skip
    assert found == [tuple(row.values()) for row in expected]


IDS = [
    ([2**64 - 1, 5, 2**63], np.uint64), ([-(2**63), 7, 2**63 - 1], np.int64), (["007", "7", "07"], object),
    (["0f8fad5b-d9cb-469f-a165-70867728950e", "x", "y"], object),
]  # fmt: skip


@pytest.mark.parametrize(("ids", "dtype"), IDS)
@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_ids_are_kept_as_they_are(tmp_path: Path, ids: list[Any], dtype: type, kind: str) -> None:
    rows = [{"user": one, "item": other, "time": BEGIN} for one in ids for other in ids]
    file = tmp_path / "log"
    if kind == "csv":
        file.write_text(csv_text(rows))
    elif kind == "jsonl":
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        # pyarrow takes integers above 2⁶³ for floats unless it is told.
        type_ = pa.string() if dtype is object else pa.from_numpy_dtype(dtype)
        columns = {name: pa.array([row[name] for row in rows], type_) for name in ("user", "item")}
        pq.write_table(pa.table({**columns, "time": [BEGIN] * len(rows)}), file)
    dataset = prepared(tmp_path / "out", file)
    assert dataset.user_ids.dtype == dtype
    assert set(dataset.user_ids.tolist()) == set(ids) == set(dataset.item_column("item_id").tolist())


def test_uuids_of_16_bytes_are_text(tmp_path: Path) -> None:
    ids = [bytes(range(16)), bytes(range(1, 17))]
    pq.write_table(pa.table({"user": pa.array([ids[0]] * 2, pa.binary(16)), "item": pa.array(ids, pa.binary(16)),
                             "time": [BEGIN, BEGIN]}), tmp_path / "log")  # fmt: skip
    dataset = prepared(tmp_path / "out", tmp_path / "log")
    assert dataset.user_ids.tolist() == ["00010203-0405-0607-0809-0a0b0c0d0e0f"]


MOMENT = datetime.datetime(2023, 11, 14, 22, 13, 20, tzinfo=datetime.timezone.utc)
TIMES = [
    ("1700000000", "seconds"), ("1700000000.25", "seconds"), ("1700000000123", "milliseconds"),
    ("1700000000123456", "microseconds"), ("1700000000123456789", "nanoseconds"),
    ("2023-11-14T22:13:20Z", "ISO 8601 with a zone"), ("2023-11-15 00:13:20.5+02:00", "ISO 8601 with a zone"),
    ("2023-11-14T17:13:20-0500", "ISO 8601 with a zone"), ("2023-11-14 22:13:20", "ISO 8601 without a zone"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "said"), TIMES)
def test_the_unit_of_times_is_found_and_said(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "log").write_text(f"user,item,time\na,x,{text}\na,y,{text}\n")
    dataset = prepared(tmp_path / "out", tmp_path / "log")
    assert dataset.time.tolist() == [BEGIN, BEGIN]
    assert any(line.startswith(f"Times: read as {said}, 2023-11-14 22:13:20")
               for line in lines(dataset.info.params["profile"], 2))  # fmt: skip


@pytest.mark.parametrize("kind", [pa.timestamp("ns"), pa.timestamp("ms", "Asia/Tokyo"), pa.timestamp("us", "UTC")])
def test_timestamps_of_parquet(tmp_path: Path, kind: pa.DataType) -> None:
    times = pa.array([MOMENT.replace(tzinfo=None if kind.tz is None else MOMENT.tzinfo)] * 2, kind)
    pq.write_table(pa.table({"user": ["a", "a"], "item": ["x", "y"], "time": times}), tmp_path / "log")
    assert prepared(tmp_path / "out", tmp_path / "log").time.tolist() == [BEGIN, BEGIN]


def test_what_is_finer_than_a_second_orders_events(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("user,item,time\na,late,1700000000900\na,early,1700000000100\n")
    dataset = prepared(tmp_path / "out", tmp_path / "log")
    assert dataset.item_column("item_id")[dataset.item].tolist() == ["early", "late"]


def test_organic_grade_and_negative(tmp_path: Path) -> None:
    rows = [
        {"user": 1, "item": 5, "time": BEGIN, "own": "yes", "skip": 0, "rank": 3},
        {"user": 1, "item": 6, "time": BEGIN + 1, "own": "no", "skip": 1, "rank": ""},
        {"user": 1, "item": 5, "time": BEGIN + 2, "own": "no", "skip": 0, "rank": 7},
    ]
    (tmp_path / "log").write_text(csv_text(rows))
    given = {"organic": "own", "feedback": {"skip": "skip"}, "negative": ("skip",)}
    dataset = prepared(tmp_path / "out", tmp_path / "log", **given)
    assert dataset.organic.tolist() == [True, False, False]
    assert dataset.grade.tolist() == [-1, 0, 1]
    assert dataset.info.negative == ("skip",)
    assert prepared(tmp_path / "two", tmp_path / "log", grade="rank", **given).grade.tolist() == [-1, -1, 7]
    assert prepared(tmp_path / "three", tmp_path / "log", grade="skip", **given).grade.tolist() == [-1, 1, 0]


def test_a_log_without_feedback_has_one_component(tmp_path: Path) -> None:
    dataset = prepared(tmp_path / "out", write(tmp_path / "log", "csv"))
    assert dataset.info.feedback == {"event": BINARY}
    assert (dataset.feedback("event") == 1).all()


def write_items(file: Path) -> Path:
    rows = [
        {"sku": "tea", "name": 'Tea "Earl"', "kinds": "drink|hot", "price": 4.0, "maker": "A"},
        {"sku": "cup", "name": "Cup", "kinds": "thing", "price": 2.0, "maker": ""},
        {"sku": "never", "name": "Unused", "kinds": "thing", "price": 99.0, "maker": "Z"},
    ]
    file.write_text(csv_text(rows), "utf-8")
    return file


ITEMS = {
    "item_id": "sku", "title": "name",
    "item_features": {
        "kind": "kinds:several=2", "maker": "maker", "price": "price:quantiles=2", "dear": "price:bins=3"
    },
}  # fmt: skip


def test_items_have_titles_and_features(tmp_path: Path) -> None:
    write_items(tmp_path / "items.csv")
    dataset = prepared(
        tmp_path / "out", write(tmp_path / "log", "csv"), items=str(tmp_path / "items.csv"), **ITEMS, **SETTINGS
    )
    ids, names = dataset.item_column("item_id").tolist(), dataset.names
    found = {
        one: [names.title(item), *(names.label(f"item_{name}", int(dataset.item_column(f"item_{name}")[item]))
                                   for name in dataset.info.item_features)]
        for item, one in enumerate(ids)
    }  # fmt: skip
    assert found == {
        "tea": ['Tea "Earl"', "drink", "hot", "A", "4 and more", "3 and more"],
        "cup": ["Cup", "thing", "–", "–", "under 4", "under 3"],
        'Ä, "pot"': [None, "–", "–", "–", "–", "–"],
    }
    assert dataset.info.item_features == {"kind": 3, "kind_2": 3, "maker": 1, "price": 2, "dear": 2}
    assert dataset.info.params["profile"]["items_unused"] == 1


def test_the_mapping_beside_the_data_set_repeats_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_items(tmp_path / "items.csv")
    write(tmp_path / "log.csv", "csv")
    given = {"items": "items.csv", "name": 'my "log" ü', **ITEMS, **SETTINGS}
    prepare("table", "log.csv", "one", **given)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    prepare("table", tmp_path / "log.csv", "two", mapping=tmp_path / "one" / MAPPING)
    for name in ("events.parquet", "items.parquet", "users.parquet", "labels.parquet", MAPPING):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "elsewhere" / "two" / name).read_bytes()
    assert TableMapping.read(tmp_path / "one" / MAPPING).name == 'my "log" ü'


def test_duplicates_are_counted_and_can_be_left_out(tmp_path: Path) -> None:
    (tmp_path / "log").write_text(csv_text([ROWS[0], ROWS[3], ROWS[2], ROWS[3], ROWS[0], ROWS[0], ROWS[1]]))
    kept = prepared(tmp_path / "kept", tmp_path / "log", **SETTINGS)
    assert (len(kept), kept.info.params["profile"]["duplicates"]) == (7, 3)
    once = prepared(tmp_path / "once", tmp_path / "log", duplicates="drop", **SETTINGS)
    assert (len(once), once.info.params["profile"]["duplicates"]) == (4, 3)
    assert len(set(events(once))) == 4
    assert "Duplicates: 3 rows the same as one before, left out" in lines(once.info.params["profile"], 2)


def test_rows_without_an_id_can_be_left_out(tmp_path: Path) -> None:
    rows = [ROWS[0], {**ROWS[0], "user": None}, ROWS[1], {**ROWS[1], "time": None}, {**ROWS[1], "item": ""}, ROWS[2]]
    (tmp_path / "log").write_text(csv_text(rows))
    dataset = prepared(tmp_path / "out", tmp_path / "log", missing="drop", **SETTINGS)
    assert len(dataset) == 3
    said = lines(dataset.info.params["profile"], 2)
    assert [line for line in said if line.startswith("Left out")] == [
        "Left out: 1 row without user", "Left out: 1 row without item", "Left out: 1 row without time"
    ]  # fmt: skip


def test_the_profile_in_words(tmp_path: Path) -> None:
    dataset = prepared(tmp_path / "out", write(tmp_path / "log", "csv"), **SETTINGS)
    assert lines(dataset.info.params["profile"], dataset.info.items) == [
        "Rows: 5; 5 events of 2 users on 3 items",
        "Events a user: 2 to 3, median 2, mean 2.5; 0 users with one event",
        "Times: read as seconds, 2023-11-14 22:13:30 to 2023-11-14 22:14:50 UTC",
        "Feedback like: 50.0 % yes",
        "Feedback stars: 2 25.0 %, 9 25.0 %, 10 50.0 %",
        "Feedback share: under 0.2 25.0 %, 0.2 to 0.8 25.0 %, 0.8 and more 50.0 %",
    ]
