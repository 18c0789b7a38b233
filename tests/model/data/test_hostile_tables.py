"""Hostile logs of one's own: each a right result, or one sentence with file, column and row; nothing half-written."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from python_model.data.feedback import BINARY
from python_model.data.prepare import prepare
from python_model.data.readers import logs
from python_model.data.readers.table import sources
from python_model.data.readers.table.mapping import TableMapping
from python_model.data.readers.table.reader import from_frame
from python_model.data.schema import load_dataset

BEGIN = 1_700_000_000
HEADER = "user,item,time,liked"
GOOD = f"a,x,{BEGIN},1"
Refusal = Callable[..., Any]

BROKEN: list[tuple[list[str], dict[str, Any], str | None, int | None, str]] = [
    ([GOOD, f",x,{BEGIN},1"], {}, "user", 2, "expected an id, found nothing; --missing drop leaves such rows out"),
    ([GOOD, f"a,,{BEGIN},1"], {}, "item", 2, "expected an id, found nothing"),
    ([GOOD, "a,x,,1"], {}, "time", 2, "expected a time, found nothing; --missing drop leaves such rows out"),
    ([GOOD, f"{'u' * 1025},x,{BEGIN},1"], {}, "user", 2, "expected an id of 1 to 1024 bytes"),
    ([GOOD, f"a,x,{BEGIN}000,1"], {}, "time", 2, "expected seconds as in the rows before, found 1700000000000"),
    ([f"a,x,{BEGIN}000,1", GOOD], {}, "time", 2, "expected milliseconds as in the rows before"),
    ([GOOD, "a,x,12,1"], {}, "time", 2, "expected a time from 1990 to 2100 in seconds, milliseconds"),
    ([GOOD, "a,x,9999999999,1"], {}, "time", 2, "found 9999999999"),
    ([GOOD, "a,x,2023-11-14T22:13:20Z,1"], {}, "time", 2, "expected a number, found '2023-11-14T22:13:20Z'"),
    (["a,x,2023-11-14T22:13:20Z,1", GOOD], {}, "time", 2, "expected a time, such as"),
    (["a,x,2023-11-14T22:13:20Z,1", "a,y,2023-11-14T22:13:20,1"], {}, "time", 2, "a time with a zone as in the rows"),
    (["a,x,2023-02-30,1"], {}, "time", 1, "found '2023-02-30'"),
    (["a,x,2023-11-14T25:00:00Z,1"], {}, "time", 1, "found '2023-11-14T25:00:00Z'"),
    (["a,x,2023-11-14T22:13+24:00,1"], {}, "time", 1, "found '2023-11-14T22:13+24:00'"),
    (["a,x,2023-11-14T22:13+05:60,1"], {}, "time", 1, "found '2023-11-14T22:13+05:60'"),
    (["a,x,14/11/2023,1"], {}, "time", 1, "expected a time, such as 2024-05-17T08:30:00Z"),
    (["a,x,1950-01-01,1"], {}, "time", 1, "found -631152000"),
    ([f"a,x,{BEGIN},1"], {"unit": "milliseconds"}, "time", 1, "in seconds it would be 2023-11-14: give milliseconds"),
    (["a,x,2024-05-01,1"], {"unit": "seconds"}, "time", None, "found ISO 8601 without a zone: leave it out"),
    ([f"a,x,{BEGIN}000,1"], {"unit": "seconds"}, "time", 1, "in milliseconds it would be 2023-11-14: give seconds"),
    ([GOOD, f"a,y,{BEGIN},4"], {"feedback": {"like": "liked"}}, "liked", 2, "expected yes or no (true, false, 1 or 0)"),
    ([GOOD, f"a,y,{BEGIN},maybe"], {"feedback": {"like": "liked"}}, "liked", 2, "found 'maybe'"),
    ([GOOD, f"a,y,{BEGIN},x"], {"feedback": {"like": "liked:bins=2"}}, "liked", 2, "expected a number, found 'x'"),
    ([GOOD, f"a,y,{BEGIN},inf"], {"feedback": {"like": "liked:bins=2"}}, "liked", 2, "expected a number, found 'inf'"),
    ([GOOD, f"a,y,{BEGIN},1"], {"feedback": {"like": "liked:classes"}}, "liked", None, "found 1 ('1' in every row)"),
    ([GOOD, f"a,y,{BEGIN},200"], {"grade": "liked"}, "liked", 2, "expected a whole number from 0 to 127"),
    ([GOOD, f"a,y,{BEGIN},-2"], {"grade": "liked"}, "liked", 2, "expected a whole number from 0 to 127"),
    ([GOOD, f"a,y,{BEGIN},1.5"], {"grade": "liked"}, "liked", 2, "expected a whole number from 0 to 127"),
    ([GOOD, f"a,y,{BEGIN},"], {"organic": "liked"}, "liked", 2, "expected yes or no, found nothing"),
    ([GOOD, GOOD], {"feedback": {"like": "lked"}}, "lked", None, "missing; the file has user, item, time, liked"),
    ([f"a,x,{BEGIN},", f"a,y,{BEGIN},"], {"feedback": {"like": "liked"}}, "liked", None, "no row has a value"),
    ([GOOD, f"a,y,{BEGIN}"], {}, None, 2, "expected 4 cells, found 3"),
    ([GOOD, f'a,"y,{BEGIN},1'], {}, None, 2, 'a " that closes the cell'),
    ([], {}, None, None, "the file is empty"),
    ([f",x,{BEGIN},1"], {"missing": "drop"}, None, None, "no row has a user, an item and a time"),
]  # fmt: skip


@pytest.mark.parametrize(("rows", "settings", "column", "row", "says"), BROKEN)
def test_broken_logs_are_located(
    tmp_path: Path, refused: Refusal, rows: list[str], settings: dict[str, Any], column: str | None, row: int | None,
    says: str,
) -> None:  # fmt: skip
    file = tmp_path / "log.csv"
    file.write_text("\n".join([HEADER, *rows]) + "\n")
    with refused(tmp_path / "out", file, column, row, says):
        prepare("table", file, tmp_path / "out", **settings)


def test_a_fault_in_the_second_file_names_it_and_its_own_row(tmp_path: Path, refused: Refusal) -> None:
    (tmp_path / "a.csv").write_text(f"{HEADER}\n{GOOD}\n{GOOD}\n")
    (tmp_path / "b.csv").write_text(f"{HEADER}\n{GOOD}\na,x,{BEGIN},7\n")
    with refused(tmp_path / "out", tmp_path / "b.csv", "liked", 2, "expected yes or no"):
        prepare("table", [tmp_path / "a.csv", tmp_path / "b.csv"], tmp_path / "out", feedback={"like": "liked"})
    (tmp_path / "b.csv").write_text(f"{HEADER}\na,x,{BEGIN}000,1\n")
    with refused(tmp_path / "out", tmp_path / "b.csv", "time", 1, "expected seconds as in the rows before"):
        prepare("table", [tmp_path / "a.csv", tmp_path / "b.csv"], tmp_path / "out")
    with refused(tmp_path / "out", tmp_path / "a.csv", None, None, "every file once"):
        prepare("table", [tmp_path / "a.csv", tmp_path / "a.csv"], tmp_path / "out")


def test_a_row_left_out_does_not_move_the_rows_of_errors(tmp_path: Path, refused: Refusal) -> None:
    file = tmp_path / "log.csv"
    file.write_text(f"{HEADER}\n,x,{BEGIN},1\n{GOOD}\na,y,12,1\n")
    with refused(tmp_path / "out", file, "time", 3, "expected a time from 1990"):
        prepare("table", file, tmp_path / "out", missing="drop")


@pytest.mark.parametrize("cut", [1, 9, 30])
def test_gzip_cut_short(tmp_path: Path, refused: Refusal, cut: int) -> None:
    dice = np.random.default_rng(0)
    rows = "".join(f"a,{dice.integers(10**9)},{BEGIN},1\n" for _ in range(50))
    file = tmp_path / "log.csv.gz"
    file.write_bytes(gzip.compress(f"{HEADER}\n{rows}".encode())[:-cut])
    with refused(tmp_path / "out", file, None, None, "the compressed file is cut short"):
        prepare("table", file, tmp_path / "out")


def test_damaged_gzip(tmp_path: Path, refused: Refusal) -> None:
    file = tmp_path / "log.csv.gz"
    content = bytearray(gzip.compress(f"{HEADER}\n{GOOD}\n".encode()))
    content[-6] ^= 255
    file.write_bytes(bytes(content))
    with refused(tmp_path / "out", file, None, None, "damaged, gzip cannot be read"):
        prepare("table", file, tmp_path / "out")


def test_a_fault_in_a_compressed_file_names_the_file_that_was_given(tmp_path: Path, refused: Refusal) -> None:
    file = tmp_path / "log.csv.gz"
    file.write_bytes(gzip.compress(f"{HEADER}\n{GOOD}\na,x\n".encode()))
    with refused(tmp_path / "out", file, None, 2, "expected 4 cells, found 2"):
        prepare("table", file, tmp_path / "out")
    file.write_bytes(gzip.compress(b"who,what\na,x\n"))
    with refused(tmp_path / "out", file, "user", None, "missing; the file has who, what"):
        prepare("table", file, tmp_path / "out")


JSON = [
    ('{"user": "a", "item": "x", "time": 1700000000', 2, "expected one JSON object a line: expected JSON"),
    ("[1]", 2, "expected one JSON object a line, found an array"),
    ("", 2, "expected one JSON object a line: expected JSON"),
    ('{"user": "a", "item": "x"}', 2, "expected a time, found nothing"),
]


@pytest.mark.parametrize(("line", "row", "says"), JSON)
def test_broken_json_lines(tmp_path: Path, refused: Refusal, line: str, row: int, says: str) -> None:
    file = tmp_path / "log.jsonl"
    good = json.dumps({"user": "a", "item": "x", "time": BEGIN})
    file.write_text(f"{good}\n{line}\n{good}\n")
    column = "time" if "found nothing" in says else None
    with refused(tmp_path / "out", file, column, row, says):
        prepare("table", file, tmp_path / "out")


def test_an_array_of_json_is_refused(tmp_path: Path, refused: Refusal) -> None:
    file = tmp_path / "log.json"
    file.write_text(json.dumps([{"user": "a", "item": "x", "time": BEGIN}], indent=1))
    with refused(tmp_path / "out", file, None, None, "found an array of them: write them as JSON lines"):
        prepare("table", file, tmp_path / "out")


def test_parquet_of_other_types(tmp_path: Path, refused: Refusal) -> None:
    file = tmp_path / "log.parquet"
    pq.write_table(pa.table({"user": [1.5, 2.0], "item": [1, 2], "time": [BEGIN, BEGIN]}), file)
    with refused(tmp_path / "out", file, "user", None, "expected ids that are integers or text, found Float64"):
        prepare("table", file, tmp_path / "out")
    pq.write_table(pa.table({"user": [1, None], "item": [1, 2], "time": [BEGIN, BEGIN]}), file)
    with refused(tmp_path / "out", file, "user", 2, "expected an id, found nothing"):
        prepare("table", file, tmp_path / "out")
    file.write_bytes(file.read_bytes()[:-20])
    with refused(tmp_path / "out", file, None, None, "not a readable Parquet file"):
        prepare("table", file, tmp_path / "out")


ONE = [
    ([GOOD, f"a,x,{BEGIN + 1},1"], "expected at least 2 items to choose from, found 1"),
    ([GOOD, f"b,y,{BEGIN + 1},1"], "nobody has two events"),
]


@pytest.mark.parametrize(("rows", "says"), ONE)
def test_nothing_to_learn_from(tmp_path: Path, rows: list[str], says: str) -> None:
    file = tmp_path / "log.csv"
    file.write_text("\n".join([HEADER, *rows]) + "\n")
    with pytest.raises(ValueError, match=says):
        prepare("table", file, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["log.csv"]


def test_one_user_constant_feedback_quoted_newlines_and_the_future(tmp_path: Path) -> None:
    file = tmp_path / "log.csv"
    file.write_bytes(f'{HEADER}\r\na,"x\r\ny",{BEGIN},1\r\na,"x\r\ny",4000000000,1\r\na,z,{BEGIN},1\r\n'.encode())
    info = prepare("table", file, tmp_path / "out", feedback={"like": "liked"})
    dataset = load_dataset(tmp_path / "out")
    assert sorted(dataset.item_column("item_id").tolist()) == ["x\r\ny", "z"]
    assert (info.users, info.params["profile"]["in_the_future"]) == (1, 1)
    assert info.params["profile"]["feedback"] == {"like": 1.0}


def test_more_events_of_one_user_than_a_range_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "RANGE_ROWS", 64)
    monkeypatch.setattr(sources, "ROWS", 1000)
    count = 20_000
    order = np.random.default_rng(0).permutation(count)
    frame = pa.table({"user": np.zeros(count, np.int64), "item": order % 7, "time": BEGIN + order})
    from_frame(frame, tmp_path / "out")
    dataset = load_dataset(tmp_path / "out")
    np.testing.assert_array_equal(dataset.time, BEGIN + np.arange(count))
    np.testing.assert_array_equal(dataset.item, np.arange(count) % 7)


ITEMS = [
    ("item,name\nx,X\nx,Y\n", "item", 2, "expected every id once, found x again with other values"),
    ("item,name\n,X\n", "item", 1, "expected an id, found nothing"),
    ("item,name\nq,X\n", "item", None, "none of its ids is an item of the log, which has x, y"),
    ("item,title\nx,X\n", "name", None, "missing; the file has item, title"),
]


@pytest.mark.parametrize(("text", "column", "row", "says"), ITEMS)
def test_broken_items(tmp_path: Path, refused: Refusal, text: str, column: str, row: int | None, says: str) -> None:
    log, file = tmp_path / "log.csv", tmp_path / "items.csv"
    log.write_text(f"{HEADER}\n{GOOD}\na,y,{BEGIN},0\n")
    file.write_text(text)
    with refused(tmp_path / "out", file, column, row, says):
        prepare("table", log, tmp_path / "out", items=str(file), title="name")


SETTINGS: list[tuple[dict[str, Any], str]] = [
    ({"feedback": {"like!": "x"}}, "feedback: expected a name of letters, digits and _, found 'like!'"),
    ({"feedback": {"like": "x:bins"}}, "feedback like=x:bins: expected edges, rising numbers"),
    ({"feedback": {"like": "x:bins=2,1"}}, "expected edges, rising numbers such as bins=0.2,0.8"),
    ({"feedback": {"like": "x:bins=a"}}, "expected edges, rising numbers"),
    ({"feedback": {"like": "x:bins=nan"}}, "expected edges, rising numbers"),
    ({"feedback": {"like": "x:bins=0,inf"}}, "expected edges, rising numbers"),
    ({"feedback": {"like": "x:bool=1"}}, "expected no number behind bool"),
    ({"feedback": {"like": "x:several=2"}}, "expected :bool, :classes, :bins behind the column, found :several"),
    ({"feedback": {"like": ""}}, "feedback like=: expected a column"),
    ({"context": {"hour": "x"}}, "context: hour is made of the time, give another name"),
    ({"negative": ("skip",)}, r"negative: expected names of feedback \(none\), found 'skip'"),
    ({"title": "name"}, "are columns of a file of items: name it with items"),
    ({"items": "f", "item_features": {"id": "x"}}, "expected another name than 'id'"),
    ({"items": "f", "item_features": {"p": "x:quantiles=1"}}, "how many buckets, 2 to 1000"),
    ({"items": "f", "item_features": {"g": "x:several=2", "g_2": "y"}}, "feature g_2: expected once, found it twice"),
    ({"user": "a", "item": "a"}, "user, item and time: expected three columns, found a, a, time"),
    ({"unit": "hours"}, "unit is 'hours', expected one of auto, seconds, milliseconds"),
    ({"user": 3}, "user is 3, expected text"),
]


@pytest.mark.parametrize(("settings", "says"), SETTINGS)
def test_settings_that_do_not_fit(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        TableMapping(**settings)


def test_a_mapping_that_is_none(tmp_path: Path, refused: Refusal) -> None:
    file, log = tmp_path / "mapping.toml", tmp_path / "log.csv"
    log.write_text(f"{HEADER}\n{GOOD}\n")
    for text, says in (("user = ", "expected a mapping in TOML"), ("usr = 'a'", "unknown setting usr"),
                       ("user = 3", "user is 3, expected text")):  # fmt: skip
        file.write_text(text)
        with refused(tmp_path / "out", file, None, None, says):
            prepare("table", log, tmp_path / "out", mapping=file)


def test_a_column_with_a_colon_in_its_name(tmp_path: Path) -> None:
    file = tmp_path / "log.csv"
    file.write_text(f"user,item,time,a:b\na,x,{BEGIN},1\na,y,{BEGIN},0\n")
    assert prepare("table", file, tmp_path / "out", feedback={"like": "a:b"}).feedback == {"like": BINARY}


def _table(**columns: Any) -> pa.Table:
    return pa.table({"user": ["a", "a", "b", "b"], "item": ["x", "y", "x", "y"],
                     "time": [BEGIN, BEGIN, BEGIN, BEGIN], **columns})  # fmt: skip


TYPED: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"time": [True] * 4}, {}, "column 'time': expected a time, such as"),
    ({"time": pa.array([1, 2, 3, 4], pa.duration("s"))}, {}, "column 'time': expected a time, such as"),
    ({"time": np.full(4, BEGIN, np.float32)}, {}, "column 'time': expected times of 64 bits, found 32"),
    ({"time": [float("inf")] * 4}, {}, "column 'time', data row 1: expected a time from 1990"),
    ({"time": pa.array([2**64 - 1] * 4, pa.uint64())}, {}, "column 'time', data row 1: expected a time from 1990"),
    ({"user": [["a"]] * 4}, {}, r"column 'user': expected ids that are integers or text, found List\(String\)"),
    ({"user": [1.0, 2.0, None, 4.0]}, {}, "column 'user': expected ids that are integers or text, found Float64"),
    ({"liked": [[1]] * 4}, {"feedback": {"like": "liked:classes"}}, "column 'liked': expected categories, found List"),
    ({"liked": pa.nulls(4)}, {"feedback": {"like": "liked"}}, "column 'liked': no row has a value in this column"),
    ({"own": [True, None, False, True]}, {"organic": "own"}, "column 'own', data row 2: expected yes or no"),
]


@pytest.mark.parametrize(("columns", "settings", "says"), TYPED)
def test_typed_columns_of_other_types(
    tmp_path: Path, columns: dict[str, Any], settings: dict[str, Any], says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        from_frame(_table(**columns), tmp_path / "out", **settings)
    assert list(tmp_path.iterdir()) == []


CLASSES: list[tuple[list[Any], list[str]]] = [
    ([10.0, 9.0, None, 2.5], ["2.5", "9", "10"]), ([1, 20, 3, 3], ["1", "3", "20"]),
    ([True, False, None, True], ["false", "true"]),
]  # fmt: skip


@pytest.mark.parametrize("rows", [1, 100])
@pytest.mark.parametrize(("values", "labels"), CLASSES)
def test_classes_are_labelled_alike_in_every_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, values: list[Any], labels: list[str], rows: int
) -> None:
    monkeypatch.setattr(sources, "ROWS", rows)
    from_frame(_table(stars=values), tmp_path / "out", feedback={"stars": "stars:classes"})
    assert list(load_dataset(tmp_path / "out").names.labels["feedback_stars"].values()) == labels


def test_titles_that_are_lists_are_refused(tmp_path: Path) -> None:
    items = pa.table({"item": ["x", "y"], "name": [["a"], ["b"]]})
    with pytest.raises(ValueError, match="items, column 'name': expected categories, found List"):
        from_frame(_table(), tmp_path / "out", items=items, title="name")


SEVERAL: list[tuple[Any, list[str], list[list[int]]]] = [
    ([["Rock, Pop", "a|b"], ["Jazz"]], ["Jazz", "Rock, Pop", "a|b"], [[1, 0], [2, -1]]),
    (pa.array([["a", "b"], ["b", "c"]], pa.list_(pa.string(), 2)), ["a", "b", "c"], [[0, 1], [1, 2]]),
    ([["", "b"], [None, None]], ["b"], [[0, -1], [-1, -1]]),
    (["a||b", "|c"], ["a", "b", "c"], [[0, 2], [1, -1]]),
]


@pytest.mark.parametrize(("values", "labels", "codes"), SEVERAL)
def test_a_list_is_not_cut_at_separators_and_nothing_takes_no_place(
    tmp_path: Path, values: Any, labels: list[str], codes: list[list[int]]
) -> None:
    items = pa.table({"item": ["x", "y"], "tags": values})
    from_frame(_table(), tmp_path / "out", items=items, item_features={"tag": "tags:several=2"})
    dataset = load_dataset(tmp_path / "out")
    assert list(dataset.names.labels["item_tag"].values()) == labels
    assert [dataset.item_column(name).tolist() for name in ("item_tag", "item_tag_2")] == codes


def test_lists_of_what_is_no_category_are_refused(tmp_path: Path) -> None:
    items = pa.table({"item": ["x", "y"], "tags": [[{"a": 1}], [{"a": 2}]]})
    with pytest.raises(
        ValueError, match=r"items, column 'tags': expected categories or lists of them, found List\(Str"
    ):
        from_frame(_table(), tmp_path / "out", items=items, item_features={"tag": "tags:several=2"})


def test_a_column_of_a_frame_that_is_there_twice(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame([[1, 1, 2, BEGIN]], columns=["user", "user", "item", "time"])
    with pytest.raises(ValueError, match="frame, column 'user': expected every column once, found it again"):
        from_frame(frame, tmp_path / "out")
