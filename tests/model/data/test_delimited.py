"""Delimited text: what a row and a number are, whatever the line ends, quotes, encodings and cuts of a file."""

from __future__ import annotations

import os
import random
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from python_model.data.readers import delimited
from python_model.data.readers.delimited import MISSING, Form, pieces, read_delimited, read_piece
from python_model.io.errors import DataError

SCALE = int(os.environ.get("ARGUS_FUZZ_SCALE", "1"))
HEADER = "id,text,value\n"


def read(file: Path, size: int | None = None, form: Form = Form()) -> list[tuple[object, ...]]:  # noqa: B008
    """All rows (id, text, value), piece after piece; rows of errors as `sort_logs` counts them."""
    rows: list[tuple[object, ...]] = []
    for piece in pieces(file, form, size):
        try:
            table = read_piece(piece, integers=("id",), texts=("text",), optional=("value",))
        except DataError as error:
            row = None if error.row is None else error.row + len(rows)
            raise DataError(error.file, error.message, column=error.column, row=row) from error
        rows += zip(*(table[name].tolist() for name in ("id", "text", "value")), strict=True)
    return rows


def write(tmp_path: Path, content: str | bytes) -> Path:
    file = tmp_path / "table.csv"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return file


RIGHT = [
    (HEADER + "1,a,2\n3,b,4\n", [(1, "a", 2), (3, "b", 4)]),
    (HEADER + "1,a,2\n3,b,4", [(1, "a", 2), (3, "b", 4)]),
    (HEADER + "1,a,2\n3,b,4\n\n\r\n\n", [(1, "a", 2), (3, "b", 4)]),
    ("id,text,value\r\n1,a,2\r\n3,b,4\r\n", [(1, "a", 2), (3, "b", 4)]),
    ("\ufeffid,text,value\n1,a,2\n", [(1, "a", 2)]),
    ('\ufeff"id","text","value"\n1,a,2\n', [(1, "a", 2)]),
    (' id , "x" ,value,"text"\n1,7,2,a\n'.replace(' "x" ', '"x,\ny"'), [(1, "a", 2)]),
    (HEADER + '"1","a","2"\n', [(1, "a", 2)]),
    (HEADER + ' 1 ," a ", 2\n', [(1, "a", 2)]),
    (HEADER + '1,"a\nb",2\n3,"c\r\n""d""",4\n', [(1, "a\nb", 2), (3, 'c\r\n"d"', 4)]),
    (HEADER + "1,a\u0085b\u2028\u2029\x0b\x0c\x1cc,2\n", [(1, "a\u0085b\u2028\u2029\x0b\x0c\x1cc", 2)]),
    (HEADER + f"-9223372036854775808,,\n{2**63 - 1},\"\",7.0\n", [(-(2**63), "", MISSING), (2**63 - 1, "", 7)]),
]  # fmt: skip


@pytest.mark.parametrize(("content", "rows"), RIGHT)
def test_right_files_are_read_whatever_the_cuts(tmp_path: Path, content: str, rows: list[tuple[object, ...]]) -> None:
    file = write(tmp_path, content)
    for size in (None, 1, 2, 3, 5, 8, 13, 21):
        assert read(file, size) == rows


BAD = "\u0085\u2028\x0b,\x0c,1\n"  # no line ends but the last
WRONG = [
    (HEADER + "1,a,2\n007,b,4\n", "id", 2, "expected an integer in plain digits, found '007'"),
    (HEADER + "+7,b,4\n", "id", 1, "found '+7'"),
    (HEADER + "7.0,b,4\n", "id", 1, "found '7.0'"),
    (HEADER + "7e0,b,4\n", "id", 1, "found '7e0'"),
    (HEADER + "٥,b,4\n", "id", 1, "found '٥'"),
    (HEADER + "\u00a07,b,4\n", "id", 1, r"found '\xa07'"),
    (HEADER + "\t7,b,4\n", "id", 1, r"found '\t7'"),
    (HEADER + "-0,b,4\n", "id", 1, "found '-0'"),
    (HEADER + "0x7,b,4\n", "id", 1, "found '0x7'"),
    (HEADER + "1_0,b,4\n", "id", 1, "found '1_0'"),
    (HEADER + "9223372036854775808,b,4\n", "id", 1, "expected an integer in [-2⁶³, 2⁶³), found"),
    (HEADER + "18446744073709551615,b,4\n", "id", 1, "expected an integer in [-2⁶³, 2⁶³), found"),
    (HEADER + "1,b,7.5\n", "value", 1, "found '7.5'"),
    (HEADER + "1,b,nan\n", "value", 1, "found 'nan'"),
    (HEADER + "1,a,2\n ,b,4\n", "id", 2, "found nothing"),
    (HEADER + "1,a\u0085\u2028\x0b\x0c,1\nx,a,1\n", "id", 2, "found 'x'"),
    (HEADER + '1,"a\nb\n",1\n2,"\r\n",1\nx,a,1\n', "id", 3, "found 'x'"),
    (HEADER + '1,"a\nb\n",1\n2,"\n\n",1\n3,a\n', None, 3, "expected 3 cells, found 2"),
    (HEADER + "1,a,2\n3,b,4,5\n", None, 2, "expected 3 cells, found 4"),
    (HEADER + "1,a,2\n\n3,b,4\n", None, 2, "expected 3 cells, found an empty line"),
    (HEADER + "1,a,2\n\r\n3,b,4\n", None, 2, "expected 3 cells, found an empty line"),
    (HEADER + '1,"a,2\n3,b,4\n', None, 1, 'expected a " that closes the cell'),
    (HEADER + '1,a,2\n3,b"c,4\n', None, 2, 'found a " inside a cell'),
    (HEADER + '1,a,2\n3,"b"c,4\n', None, 2, 'found a " inside a cell'),
    (HEADER + '1,a,2\n3, "b",4\n', None, 2, 'found a " inside a cell'),
    (HEADER + "1,a,2\n3,b\0,4\n", None, 2, "found a NUL byte"),
    (HEADER + "1,a,2\n3,b\r4,c,5\n", None, 2, r"expected lines that end with \n or \r\n, found \r alone"),
    (b"id,text,value\n1,a,2\n3,\xe9,4\n", None, 2, "expected text in utf-8, found the byte 0xe9"),
    ("id,text,value\r1,a,2\r", None, None, "expected a first line with the names of the columns"),
    ('id,"text,value\n1,a,2\n', None, None, "expected a first line with the names of the columns"),
    (b"id,te\xffxt,value\n1,a,2\n", None, None, "expected a first line with the names of the columns"),
    (HEADER, None, None, "the file is empty: expected at least one data row"),
    ("", None, None, "the file is empty"),
    (b"\xef\xbb\xbf\r\n\n", None, None, "the file is empty"),
    ("id,text,value,id\n1,a,2,3\n", "id", None, "expected this column once, found it 2 times"),
    ("id;text;value\n1;a;2\n", "id", None, "this column is missing; the file has id;text;value"),
    (HEADER.encode("utf-16"), None, None, "expected delimited text in UTF-8, found text in UTF-16"),
    (b"\x1f\x8b\x08\0\0\0", None, None, "found compressed with gzip"),
    (b"PK\x03\x04abc", None, None, "found a zip archive"),
    (b"PAR1\x15\x04", None, None, "found a Parquet file"),
]  # fmt: skip


@pytest.mark.parametrize(("content", "column", "row", "says"), WRONG)
def test_wrong_files_are_located_whatever_the_cuts(
    tmp_path: Path, content: str | bytes, column: str | None, row: int | None, says: str
) -> None:
    file = write(tmp_path, content)
    for size in (None, 1, 4, 11, 30):
        with pytest.raises(DataError) as caught:
            read(file, size)
        assert (caught.value.file, caught.value.column, caught.value.row) == (file, column, row), str(caught.value)
        assert says in caught.value.message and "\n" not in str(caught.value)


def test_a_quote_that_is_never_closed_is_found_in_its_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delimited, "MAX_RECORD", 50)
    file = write(tmp_path, HEADER + '1,a,2\n3,"b,4\n' + "5,c,6\n" * 100)
    assert len(pieces(file, Form(), 10)) > 5, "the rest of the file is no single piece"
    with pytest.raises(DataError, match=r'data row 2: expected a " that closes the cell'):
        read(file, 10)


def test_two_characters_between_cells_and_no_quotes(tmp_path: Path) -> None:
    file = write(tmp_path, '\ufeff1::"a::2\n3::b"c,d::4\n')
    form = Form("::", ("id", "text", "value"), quotes=False)
    assert read(file, 3, form) == [(1, '"a', 2), (3, 'b"c,d', 4)]
    file.write_bytes("1::é\x85::2\n7::x\n".encode("latin-1"))
    with pytest.raises(DataError, match="data row 2: expected 3 cells, found 2"):
        read_delimited(file, Form("::", ("id", "text", "value"), "latin-1", quotes=False), integers=("id",))


def test_no_file_no_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="not found"):
        pieces(tmp_path / "nowhere.csv", Form())
    with pytest.raises(DataError, match="is a directory, expected a file"):
        pieces(tmp_path, Form())
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="is no regular file"):
        pieces(tmp_path / "pipe", Form())
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(DataError, match="cannot be read: Too many levels"):
        pieces(tmp_path / "loop", Form())

    def locked(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    file = write(tmp_path, HEADER + "1,a,2\n")
    monkeypatch.setattr(Path, "open", locked)
    with pytest.raises(DataError, match=r"table\.csv: cannot be read: Permission denied"):
        pieces(file, Form())


def test_a_file_that_shrinks_is_said_to(tmp_path: Path) -> None:
    file = write(tmp_path, HEADER + "1,a,2\n" * 9)
    [whole] = pieces(file, Form())
    file.write_text(HEADER)
    with pytest.raises(DataError, match="it has become shorter"):
        read_piece(whole, integers=("id",))


def reference(content: bytes) -> list[list[str]]:
    """The cells of every row, letter by letter; ValueError where the file is not one of rows of three cells."""
    text = content.decode("utf-8-sig").rstrip("\r\n")
    rows: list[list[str]] = [[""]]
    state = "start"  # of a cell; or "plain", "quoted", "closed" (behind a quote that closed it, or the first of two)
    for letter in re.findall(r"\r\n|.", text, re.DOTALL):
        if state == "quoted":
            state = "closed" if letter == '"' else state
            rows[-1][-1] += "" if letter == '"' else letter
        elif letter == '"':
            if state == "plain":
                raise ValueError("a quote inside a cell")
            rows[-1][-1] += '"' * (state == "closed")
            state = "quoted"
        elif letter == ",":
            rows[-1].append("")
            state = "start"
        elif letter in ("\n", "\r\n"):
            rows.append([""])
            state = "start"
        elif state == "closed" or letter in "\r\0":
            raise ValueError("a letter that cannot stand there")
        else:
            rows[-1][-1] += letter
            state = "plain"
    if state == "quoted" or "\0" in text or len({len(row) for row in rows[1:]} - {len(rows[0])}) or len(rows) < 2:
        raise ValueError("no table")
    return rows


def mutants(dice: random.Random, count: int) -> Iterator[bytes]:
    """Small tables with a few bytes replaced, taken out, doubled or put in."""
    parts = [b",", b'"', b"\n", b"\r\n", b"\r", b'""', b'"\n', b"\0", b"\xff", "\u0085".encode(), b"a", b"7", b" ", b""]
    for _ in range(count):
        cells = [b"7", b'"a"', b"b", b'"x,y"', b'"\n"', b'"q""q"', b"", b'""', "é\u2028".encode()]
        rows = [b",".join([b"%d" % n, dice.choice(cells), dice.choice([b"", b"3"])]) for n in range(dice.randrange(6))]
        end = dice.choice([b"\n", b"\r\n"])
        content = bytearray(dice.choice([b"", b"\xef\xbb\xbf"]) + end.join([HEADER.strip().encode(), *rows, b""]))
        for _ in range(dice.choice([0, 1, 1, 2, 4])):
            at = dice.randrange(len(content) + 1)
            content[at : at + dice.choice([0, 0, 1, 2])] = dice.choice(parts)
        yield bytes(content)


def test_mutated_tables_are_read_as_letter_by_letter_or_refused(tmp_path: Path) -> None:
    dice, outcomes = random.Random(3), {"read": 0, "refused": 0}
    for content in mutants(dice, 800 * SCALE):
        file = write(tmp_path, content)
        form = Form()
        try:
            expected = reference(content)
        except ValueError:
            expected = None
        size = dice.choice([None, 1, 7, 16, 40])
        try:
            found = [read_piece(piece, texts=("id", "text", "value")) for piece in pieces(file, form, size)]
        except DataError as error:
            outcomes["refused"] += 1
            missing = expected is None or not {"id", "text", "value"} <= {name.strip() for name in expected[0]}
            assert missing or error.column is not None, (content, str(error))
            assert error.file == file and "\n" not in str(error)
            continue
        outcomes["read"] += 1
        assert expected is not None, content
        names = [name.strip() for name in expected[0]]
        for name in ("id", "text", "value"):
            cells = np.concatenate([part[name] for part in found]).tolist()
            assert cells == [row[names.index(name)].strip() for row in expected[1:]], content
    assert min(outcomes.values()) > 150 * SCALE, outcomes


def test_mutated_numbers_are_plain_digits_or_refused(tmp_path: Path) -> None:
    dice, letters = random.Random(5), "0123456789" * 2 + "+-._eE٥² \tx\u00a0"
    accepted = 0
    for _ in range(600 * SCALE):
        cell = "".join(dice.choice(letters) for _ in range(dice.randrange(1, 4)))
        if dice.random() < 0.2:
            cell = str(dice.randrange(2**62, 2**66))
        file = write(tmp_path, f"id\n1\n{cell}\n" if cell.strip() else "id\n1\nx\n")
        plain = re.fullmatch(r"0|-?[1-9][0-9]*", cell.strip(" "), re.ASCII)
        if plain and -(2**63) <= int(plain[0]) < 2**63:
            assert read_delimited(file, Form(), integers=("id",))["id"].tolist() == [1, int(plain[0])]
            accepted += 1
        else:
            with pytest.raises(DataError) as caught:
                read_delimited(file, Form(), integers=("id",))
            assert (caught.value.column, caught.value.row) == ("id", 2), cell
    assert accepted > 40 * SCALE
