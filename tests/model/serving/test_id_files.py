"""Files of ids: every id is used, or unknown and counted, or refused by file and line; never passed over."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from python_model.io.errors import DataError
from python_model.serving.id_files import IdsOfFile, read_ids
from python_model.serving.ids import IdTable

INTEGERS = IdTable(np.array([50, 7, 0, -3]), "the items of exports/ml")
UNSIGNED = IdTable(np.array([2**63 + 1, 2**63, 2], np.uint64), "the items")
TEXTS = IdTable(np.array(["tea", "007", "50", "red tea", "a,b", "é", " cup", "x\x85y"], object), "the items")


def read(tmp_path: Path, content: bytes | str, table: IdTable = INTEGERS, name: str = "ids.txt") -> IdsOfFile:
    file = tmp_path / name
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return read_ids(file, table, "item_id")


@pytest.mark.parametrize(
    ("content", "table", "numbers", "unknown"),
    [
        ("50\n7\n", INTEGERS, [0, 1], 0),
        ("\ufeff50\n", INTEGERS, [0], 0),
        ("50\r\n\r\n 7\t\r\n-3", INTEGERS, [0, 1, 3], 0),
        ("50\n50\n999\n0", INTEGERS, [0, 2], 1),
        ("", INTEGERS, [], 0),
        ("\n \n", INTEGERS, [], 0),
        ("9223372036854775809\n9223372036854775808\n9223372036854775807\n-1", UNSIGNED, [0, 1], 2),
        ("007\n7\n50\nTea", TEXTS, [1, 2], 2),
        ("red tea\na,b\n cup\né\nx\x85y\n# tea\nred", TEXTS, [3, 4, 5, 6, 7], 2),
    ],
)
def test_what_a_text_names(tmp_path: Path, content: str, table: IdTable, numbers: list[int], unknown: int) -> None:
    found = read(tmp_path, content, table)
    assert (found.numbers.tolist(), found.unknown) == (numbers, unknown)


@pytest.mark.parametrize(
    ("content", "table", "expected"),
    [
        ('7\n"50"\n', INTEGERS, "line 2: expected an integer alone on its line, found '\"50\"'"),
        ("50,\n", INTEGERS, "line 1: expected an integer alone on its line, found '50,'"),
        ("7\n\n50.0", INTEGERS, "line 3: expected an integer alone on its line, found '50.0'"),
        ("50 7 0", INTEGERS, "line 1: .* found '50 7 0'"),
        ("50,7,0", INTEGERS, "line 1: .* found '50,7,0'"),
        ("item_id\n50", INTEGERS, "line 1: .* found 'item_id'"),
        ("# blocked\n50", INTEGERS, "line 1: .* found '# blocked'"),
        ("+50", INTEGERS, "found '\\+50'"),
        ("050", INTEGERS, "found '050'"),
        ("٥٠", INTEGERS, "found '٥٠'"),
        ("50\xa0", INTEGERS, "found '50"),
        (str(2**64), INTEGERS, "found '18446744073709551616'"),
        ("50\r7\r", INTEGERS, "line 1: .* found a carriage return within it"),
        ("50\n7\x85", INTEGERS, "line 2: .* found '7"),
        (b"50\n\xff7\n", INTEGERS, "line 2: expected Parquet or UTF-8 text, found the byte 0xff"),
        ("50\n7".encode("utf-16"), INTEGERS, "an id a line, found UTF-16 text"),
        ("50\n7".encode("utf-16-le"), INTEGERS, "line 1: expected an id alone on its line, found a NUL"),
        (gzip.compress(b"50\n", mtime=0), INTEGERS, "an id a line, found a gzip archive"),
        ('"tea"', TEXTS, "line 1: expected an id as the catalogue spells it, found '\"tea\"'"),
        ("tea ,", TEXTS, "found 'tea ,'"),
        ("tea\t", TEXTS, r"found 'tea\\t'"),
        ("007 50 tea", TEXTS, "found '007 50 tea'"),
        ("tea;50", TEXTS, "found 'tea;50'"),
    ],
)
def test_a_line_that_is_no_id_is_named(tmp_path: Path, content: bytes | str, table: IdTable, expected: str) -> None:
    with pytest.raises(DataError, match=rf"ids\.txt: .*{expected}") as refused:
        read(tmp_path, content, table)
    assert "\n" not in str(refused.value)


def parquet(tmp_path: Path, values: pa.Array, name: str = "ids.parquet", column: str = "item_id") -> Path:
    pq.write_table(pa.table({column: values}), tmp_path / name)
    return tmp_path / name


@pytest.mark.parametrize("name", ["ids.parquet", "ids.PARQUET", "ids.pq", "ids.txt", "ids"])
def test_parquet_is_known_by_its_content(tmp_path: Path, name: str) -> None:
    found = read_ids(parquet(tmp_path, pa.array([7, 50, 7, 1]), name), INTEGERS, "item_id")
    assert (found.numbers.tolist(), found.ids, found.unknown, found.examples) == ([0, 1], 4, 1, ("1",))


@pytest.mark.parametrize(
    ("values", "table", "expected"),
    [
        (pa.array([50.0]), INTEGERS, "column 'item_id': expected integers or text, found double"),
        (
            pa.array(["50"]),
            INTEGERS,
            "column 'item_id': expected integers like the ids of the items of exports/ml, found string",
        ),
        (pa.array([50]), TEXTS, "column 'item_id': expected text like the ids of the items, found int64"),
        (pa.array([7, None]), INTEGERS, "column 'item_id', data row 2: expected an id, found nothing"),
        (pa.nulls(2), INTEGERS, "column 'item_id': expected integers or text, found null"),
        (pa.array([[50]]), INTEGERS, "column 'item_id': expected integers or text, found list"),
    ],
)
def test_a_column_that_holds_no_ids(tmp_path: Path, values: pa.Array, table: IdTable, expected: str) -> None:
    with pytest.raises(DataError, match=rf"ids\.parquet, {expected}"):
        read_ids(parquet(tmp_path, values), table, "item_id")


def test_ids_of_other_arrow_types_are_the_same_ids(tmp_path: Path) -> None:
    for kind in (pa.int8(), pa.int32(), pa.uint64()):
        assert read_ids(parquet(tmp_path, pa.array([50]).cast(kind)), INTEGERS, "item_id").numbers.tolist() == [0]
    for kind in (pa.large_string(), pa.dictionary(pa.int8(), pa.string())):
        found = read_ids(parquet(tmp_path, pa.array(["007", "7"]).cast(kind)), TEXTS, "item_id")
        assert (found.numbers.tolist(), found.unknown) == ([1], 1)


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="this column is missing; it has user_id"):
        read_ids(parquet(tmp_path, pa.array([50]), column="user_id"), INTEGERS, "item_id")
    with pytest.raises(DataError, match=r"no\.txt: not found: expected a file of ids"):
        read_ids(tmp_path / "no.txt", INTEGERS, "item_id")
    with pytest.raises(DataError, match="is a folder, expected a file of ids"):
        read_ids(tmp_path, INTEGERS, "item_id")
    with pytest.raises(DataError, match="not a readable Parquet file"):
        read(tmp_path, b"PAR1")


def test_what_was_used_is_said(tmp_path: Path) -> None:
    file = tmp_path / "ids.txt"
    assert str(read(tmp_path, "50\n7\n50")) == f"{file}: 3 ids, 2 of the items of exports/ml"
    assert str(read(tmp_path, "50\n9")).endswith("2 ids, 1 of the items of exports/ml; 1 is unknown: 9")
    assert str(read(tmp_path, "1\n2\n3\n4")).endswith("4 ids, 0 of the items of exports/ml; none is known: 1, 2, 3, …")
    assert str(read(tmp_path, "")).endswith("0 ids, 0 of the items of exports/ml")


def test_no_line_is_passed_over(tmp_path: Path) -> None:
    """Lines of digits, quotes, separators and blanks: used, counted as unknown, or refused by a line that is there."""
    draw = np.random.default_rng(7)
    pieces = ["50", "7", "999", "tea", "007", " ", ",", '"', ".0", "-", "\t", "é", "\ufeff", "\x85", "\r", "+"]
    read_through = 0
    for _ in range(800 * int(os.environ.get("ARGUS_FUZZ_SCALE", "1"))):
        lines = ["".join(draw.choice(pieces, draw.integers(0, 4))) for _ in range(draw.integers(0, 5))]
        if draw.random() < 0.5:
            lines = [str(draw.choice(["50", "7", "0", "999", ""])) for _ in lines]
        for table in (INTEGERS, TEXTS):
            shown = [line for line in lines if line.removesuffix("\r").strip()]
            try:
                found = read(tmp_path, "\n".join(lines), table)
            except DataError as error:
                row = int(str(error).split("line ")[1].split(":")[0])
                assert lines[row - 1]
                continue
            read_through += 1
            bom = 1 if lines and lines[0].startswith("\ufeff") and not lines[0][1:].strip() else 0
            assert found.ids == len(shown) - bom
            exact = {line.removeprefix("\ufeff") if at == 0 else line for at, line in enumerate(lines)}
            wanted = {str(one) for one in table.ids} & {one.removesuffix("\r") for one in exact}
            assert {str(table.ids[number]) for number in found.numbers} >= wanted
    assert read_through > 200
