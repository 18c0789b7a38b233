"""Reads a user's file of ids: every id is used, or counted as unknown, or refused with file and line.

A list that cannot be read must not be taken as empty: the items that it blocks would be served.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from python_model.data.identifiers import ids_of, integer_of
from python_model.io.errors import DataError, counted
from python_model.serving.ids import IdTable

EXAMPLES = 3
_PARQUET = b"PAR1"
_OTHERS = {
    b"\x1f\x8b": "a gzip archive", b"\x28\xb5\x2f\xfd": "a zstd archive", b"PK\x03\x04": "a zip archive",
    b"BZh": "a bzip2 archive", b"\xff\xfe": "UTF-16 text", b"\xfe\xff": "UTF-16 text",
}  # fmt: skip
_SEPARATORS = re.compile(r"[\s,;|]+")


@dataclass(frozen=True)
class IdsOfFile:
    """The ids of a file. numbers: dense int64, rising, distinct. ids, unknown: counts of all and of unknown ids."""

    file: Path
    what: str
    numbers: np.ndarray
    ids: int
    unknown: int
    examples: tuple[str, ...]

    def __str__(self) -> str:
        """A sentence: how many ids of the file are known, and which are not."""
        text = f"{self.file}: {counted(self.ids, 'id')}, {len(self.numbers):,} of {self.what}"
        if not self.unknown:
            return text
        more = ", …" if self.unknown > len(self.examples) else ""
        some = f"{self.unknown:,} {'is' if self.unknown == 1 else 'are'} unknown"
        return f"{text}; {'none is known' if self.unknown == self.ids else some}: {', '.join(self.examples)}{more}"


def read_ids(file: Path, table: IdTable, column: str) -> IdsOfFile:
    """The ids of a file: of Parquet (recognised by content) its `column`; of UTF-8 text one id per line.

    Blank lines and a byte order mark are skipped. DataError for other files, for a line that is not an id as the table
    spells it (for integers `"50"` in quotes, `50,` or `50.0`), and for ids of another type.
    """
    if file.is_dir():
        raise DataError(file, "is a folder, expected a file of ids")
    try:
        content = file.read_bytes()
    except FileNotFoundError as error:
        raise DataError(file, "not found: expected a file of ids") from error
    except OSError as error:
        raise DataError(file, f"cannot be read: {error.strerror}") from error
    if content.startswith(_PARQUET):
        found, shown = _of_parquet(file, content, table, column)
    else:
        found, shown = _of_text(file, content, table)
    unknown = np.flatnonzero(found < 0)
    examples = tuple(str(shown[at]) for at in unknown[:EXAMPLES])
    return IdsOfFile(file, table.what, np.unique(found[found >= 0]), len(found), len(unknown), examples)


def _of_parquet(file: Path, content: bytes, table: IdTable, column: str) -> tuple[np.ndarray, Sequence[Any]]:
    """Dense numbers, −1 where unknown, and the ids."""
    try:
        read = pq.ParquetFile(pa.BufferReader(content))
        names = read.schema_arrow.names
        values = read.read(columns=[column]).column(0) if names.count(column) == 1 else None
    except (pa.ArrowException, OSError) as error:
        raise DataError(file, f"not a readable Parquet file: {error}") from error
    if column not in names:
        raise DataError(file, f"this column is missing; it has {', '.join(names) or 'none'}", column=column)
    if values is None:
        raise DataError(file, f"expected this column once, found it {names.count(column)} times", column=column)
    ids = ids_of(values, file, column)
    return find_ids(table, values, file, column), ids.tolist()


def find_ids(table: IdTable, values: pa.Array | pa.ChunkedArray, file: str | Path, column: str) -> np.ndarray:
    """The result of `IdTable.find`; DataError about the column of the file where its ids have another type."""
    try:
        return table.find(values, column)
    except DataError as error:
        kind = "integers" if table.are_integers else "text"
        raise DataError(
            file, f"expected {kind} like the ids of {table.what}, found {values.type}", column=column
        ) from error


def _of_text(file: Path, content: bytes, table: IdTable) -> tuple[np.ndarray, Sequence[Any]]:
    """Dense numbers, −1 where unknown, and the ids as they are written."""
    found, ids = [], []
    for row, line in _lines(file, content):
        number = _number(line, table)
        if number is None:
            expected = "an integer alone on its line" if table.are_integers else "an id as the catalogue spells it"
            raise DataError(file, f"line {row:,}: expected {expected}, found {line[:40]!r}")
        found.append(number)
        ids.append(line)
    return np.array(found, np.int64), ids


def _lines(file: Path, content: bytes) -> Iterator[tuple[int, str]]:
    """The non-blank lines with their numbers from 1; only a line feed ends a line, as ids may hold other separators."""
    for magic, name in _OTHERS.items():
        if content.startswith(magic):
            raise DataError(file, f"expected Parquet or UTF-8 text with an id a line, found {name}")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        row = content[: error.start].count(b"\n") + 1
        byte = content[error.start]
        raise DataError(file, f"line {row:,}: expected Parquet or UTF-8 text, found the byte 0x{byte:02x}") from error
    for row, line in enumerate(text.split("\n"), 1):
        line = line.removesuffix("\r")
        if "\0" in line or "\r" in line:
            found = "a NUL" if "\0" in line else "a carriage return within it"
            raise DataError(file, f"line {row:,}: expected an id alone on its line, found {found}")
        if line.strip():
            yield row, line


def _number(line: str, table: IdTable) -> int | None:
    """Dense number of a line's id, −1 where unknown; None where the line is not an id, or misspells a known one."""
    if table.are_integers:
        word = line.strip(" \t")
        return None if integer_of(word) is None else table.number(word)
    number = table.number(line)
    if number >= 0:
        return number
    words = [word.strip("\"'") for word in _SEPARATORS.split(line) if word]
    # A byte order mark inside a text comes from concatenated files.
    undressed = line.strip("\ufeff").strip().strip("\"',;|").strip()
    known = table.number(undressed) >= 0 or all(table.number(word) >= 0 for word in words)
    return None if known else -1
