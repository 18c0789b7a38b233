r"""Delimited text of any size: cut into pieces of whole rows, checked byte by byte, read as typed columns.

A row ends with \n or \r\n and with nothing else; within quotes neither ends it. A quote opens a cell, closes it or is
doubled inside one. So the rows do not depend on where the file is cut, and errors number rows as a spreadsheet without
its header does: 1 is the first row below the header.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO, StringIO
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from python_model.data.identifiers import CANONICAL
from python_model.io.errors import DataError, one_line
from python_model.io.files import reading, require_file
from python_model.io.settings import shown

if TYPE_CHECKING:
    # Only the readers of text need it; training, evaluation and serving do not.
    import polars as pl

MISSING = int(np.iinfo(np.int64).min)
"""Value of an empty cell in a column of `optional` integers."""
MAX_RECORD = 1 << 20
"""Longest header, and longest cell with line ends in it, in bytes."""
_QUOTE, _RETURN, _LINE = b'"', b"\r", b"\n"
_UNIT = b"\x1f"
_OTHER_FILES = {
    b"\x1f\x8b": "compressed with gzip", b"PK\x03\x04": "a zip archive", b"\x28\xb5\x2f\xfd": "compressed with zstd",
    b"BZh91AY&SY": "compressed with bzip2", b"\xfd7zXZ": "compressed with xz", b"PAR1": "a Parquet file",
    b"\xff\xfe": "text in UTF-16", b"\xfe\xff": "text in UTF-16",
}  # fmt: skip
_INTEGER = "an integer in plain digits"
_NUMBER = r"^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?$"


@dataclass(frozen=True)
class Form:
    """The format of a table; names: its columns where it has no header line. separator "::" has no quotes."""

    separator: str = ","
    names: tuple[str, ...] | None = None
    encoding: str = "utf-8"
    quotes: bool = True


@dataclass(frozen=True)
class Piece:
    """Bytes start .. end of a text file, whole rows without the header; names: the columns."""

    file: Path
    start: int
    end: int
    names: tuple[str, ...]
    form: Form

    @property
    def size(self) -> int:
        """Bytes of the piece."""
        return self.end - self.start

    def content(self) -> bytes:
        """The bytes of the piece; DataError where the file was removed or has become shorter."""
        with reading(self.file), self.file.open("rb") as stream:
            stream.seek(self.start)
            content = stream.read(self.end - self.start)
        if len(content) < self.end - self.start:
            raise DataError(self.file, "cannot be read: it has become shorter")
        return content


def pieces(file: Path, form: Form, size: int | None = None) -> list[Piece]:
    """Cut the rows of a file into pieces of about `size` bytes, by default one; empty lines at its end are no rows.

    DataError where the file is missing, has another format, or has no row or no readable header.
    """
    require_file(file)
    with reading(file), file.open("rb") as stream:
        begin = _begin(file, stream)
        end = _end(stream, begin)
        if begin >= end:
            raise DataError(file, "the file is empty: expected at least one data row")
        names = form.names
        if names is None:
            names, begin = _header(file, stream, begin, form)
        if begin >= end:
            raise DataError(file, "the file is empty: expected at least one data row below the header")
        cuts = [begin, *_cuts(stream, begin, end, end - begin if size is None else size, form), end]
    return [Piece(file, first, last, names, form) for first, last in pairwise(cuts)]


def read_delimited(
    file: Path,
    form: Form,
    *,
    integers: Sequence[str] = (),
    optional: Sequence[str] = (),
    numbers: Sequence[str] = (),
    texts: Sequence[str] = (),
) -> dict[str, np.ndarray]:
    """The columns of a whole file, see `read_piece`."""
    [whole] = pieces(file, form)
    return read_piece(whole, integers=integers, optional=optional, numbers=numbers, texts=texts)


def read_piece(
    piece: Piece,
    *,
    integers: Sequence[str] = (),
    optional: Sequence[str] = (),
    numbers: Sequence[str] = (),
    texts: Sequence[str] = (),
) -> dict[str, np.ndarray]:
    """Columns of a piece: int64 (optional: MISSING where empty), float64 (nan where empty), object str.

    An integer has one spelling, plain digits without leading zeros: "007" and "7" may be different users in the source.
    Spaces around a number are ignored. Where integers are optional, a column with gaps may be written as "7.0". Errors
    number the rows of the piece from 1. DataError for a missing column, a row of another width, a cell that is not a
    number, an empty cell in `integers`, and text that is not in the form's encoding.
    """
    wanted = (*integers, *optional, *numbers, *texts)
    places = [_place(piece, name) for name in wanted]
    columns = _cells(piece, sorted(set(places)))
    found: dict[str, np.ndarray] = {}
    for name, place in zip(wanted, places, strict=True):
        cells = columns[place]
        if name in texts:
            found[name] = cells.str.strip_chars().to_numpy()
        elif name in numbers:
            found[name] = _numbers(piece.file, name, cells.str.strip_chars(" "))
        else:
            found[name] = _integers(piece.file, name, cells.str.strip_chars(" "), name in optional)
    return found


def text_columns(piece: Piece, names: Sequence[str]) -> dict[str, pl.Series]:
    """The cells of some columns as text without the spaces around them, "" where empty; DataError as `read_piece`."""
    places = {name: _place(piece, name) for name in names}
    cells = _cells(piece, sorted(set(places.values())))
    return {name: cells[place].str.strip_chars(" ").alias(name) for name, place in places.items()}


def refuse(file: Path, column: str, values: np.ndarray, bad: np.ndarray, expected: str) -> None:
    """DataError at the first row where `bad` is set."""
    if bad.any():
        row = int(np.argmax(bad))
        raise DataError(file, f"expected {expected}, found {shown(values[row].item())}", column=column, row=row + 1)


def _begin(file: Path, stream: BinaryIO) -> int:
    """Offset of the text, after a byte order mark; DataError for files of another format."""
    head = stream.read(16)
    for magic, what in _OTHER_FILES.items():
        if head.startswith(magic):
            raise DataError(file, f"expected delimited text in UTF-8, found {what}")
    return 3 if head.startswith(b"\xef\xbb\xbf") else 0


def _end(stream: BinaryIO, begin: int) -> int:
    """Offset at which the last non-empty line ends; only line ends follow it."""
    end, block = stream.seek(0, 2), 1 << 16
    while end > begin:
        start = max(begin, end - block)
        stream.seek(start)
        content = stream.read(end - start).rstrip(_RETURN + _LINE)
        end = start + len(content)
        if content:
            break
    return end


def _header(file: Path, stream: BinaryIO, begin: int, form: Form) -> tuple[tuple[str, ...], int]:
    """(names of the columns, where the rows begin)."""
    stream.seek(begin)
    content, quotes = b"", 0
    while not content.endswith(_LINE) or quotes % 2:
        line = stream.readline(MAX_RECORD)
        content, quotes = content + line, quotes + line.count(_QUOTE)
        if not line or len(content) > MAX_RECORD:
            break
    text = content.removesuffix(_LINE).removesuffix(_RETURN)
    if quotes % 2 or len(content) > MAX_RECORD or _RETURN in text:
        raise DataError(file, "expected a first line with the names of the columns, ended by \\n or \\r\\n")
    try:
        names = next(csv.reader(StringIO(text.decode("utf-8"), newline=""), delimiter=form.separator, strict=True), [])
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(file, f"expected a first line with the names of the columns: {error}") from error
    return tuple(name.strip() for name in names), begin + len(content)


def _cuts(stream: BinaryIO, begin: int, end: int, size: int, form: Form) -> Iterator[int]:
    """Ends of rows about `size` bytes apart: line ends with an even number of quotes before them."""
    start = begin
    while start + size < end:
        stream.seek(start)
        quotes = stream.read(max(size, 1) - 1).count(_QUOTE)
        line = stream.readline()
        quotes, limit = quotes + line.count(_QUOTE), stream.tell() + MAX_RECORD
        # A quote that stays open this long is an error, which the check of the piece that ends here reports.
        while form.quotes and quotes % 2 and line and stream.tell() < limit:
            line = stream.readline()
            quotes += line.count(_QUOTE)
        start = stream.tell()
        if start >= end:
            return
        yield start


def _place(piece: Piece, name: str) -> int:
    count = piece.names.count(name)
    if count == 0:
        raise DataError(piece.file, f"this column is missing; the file has {', '.join(piece.names)}", column=name)
    if count > 1:
        raise DataError(piece.file, f"expected this column once, found it {count} times", column=name)
    return piece.names.index(name)


def _cells(piece: Piece, places: list[int]) -> dict[int, pl.Series]:
    """The text of some columns, "" where empty; the caller has checked that every row has one cell per name."""
    import polars as pl

    content, separator = piece.content(), piece.form.separator.encode()
    if len(separator) > 1:
        # No columnar reader accepts a separator of two characters.
        content, separator = content.replace(separator, _UNIT), _UNIT
    rows = _check_rows(piece, content, separator)
    if piece.form.encoding != "utf-8":
        content = content.decode(piece.form.encoding).encode()
    try:
        frame = pl.read_csv(
            BytesIO(content), columns=places, separator=separator.decode(), has_header=False, infer_schema=False,
            quote_char='"' if piece.form.quotes else None,
        )  # fmt: skip
    except (pl.exceptions.PolarsError, ValueError) as error:
        raise DataError(piece.file, f"unreadable: {one_line(error)}") from error
    if frame.height != rows:
        raise DataError(piece.file, f"unreadable: expected {rows} rows, found {frame.height}")
    return {place: frame.to_series(index).fill_null("") for index, place in enumerate(places)}


def _check_rows(piece: Piece, content: bytes, separator: bytes) -> int:
    """Number of rows; DataError at the first row that breaks the form."""
    buffer = np.frombuffer(content, np.uint8)
    quotes = np.flatnonzero(buffer == ord(_QUOTE)) if piece.form.quotes else np.zeros(0, np.int64)

    def outside(byte: bytes) -> np.ndarray:
        found = np.flatnonzero(buffer == ord(byte))
        return found[np.searchsorted(quotes, found) % 2 == 0] if len(quotes) else found

    ends = outside(_LINE)
    if len(ends) == 0 or ends[-1] != len(content) - 1:
        ends = np.append(ends, len(content))

    def wrong(position: int, expected: str, found: str) -> DataError:
        row = int(np.searchsorted(ends, position)) + 1
        return DataError(piece.file, f"expected {expected}, found {found}", row=row)

    _check_quotes(buffer, quotes, separator, wrong)
    if (at := content.find(b"\0")) >= 0:
        raise wrong(at, "text", "a NUL byte")
    returns = outside(_RETURN)
    bare = returns[buffer[np.minimum(returns + 1, len(buffer) - 1)] != ord(_LINE)]
    if len(bare):
        raise wrong(int(bare[0]), "lines that end with \\n or \\r\\n", "\\r alone")
    before = np.searchsorted(outside(separator), ends)
    width = np.diff(before, prepend=0) + 1
    if (width != len(piece.names)).any():
        row = int(np.argmax(width != len(piece.names)))
        start = ends[row - 1] + 1 if row else 0
        found = str(width[row]) if content[start : ends[row]].strip(b"\r") else "an empty line"
        raise DataError(piece.file, f"expected {len(piece.names)} cells, found {found}", row=row + 1)
    try:
        content.decode(piece.form.encoding)
    except UnicodeDecodeError as error:
        raise wrong(error.start, f"text in {piece.form.encoding}", f"the byte 0x{content[error.start]:02x}") from error
    return len(ends)


def _check_quotes(
    buffer: np.ndarray, quotes: np.ndarray, separator: bytes, wrong: Callable[[int, str, str], DataError]
) -> None:
    """Quotes alternate: one opens a cell (or ends a doubled quote), the next closes it (or begins a doubled quote)."""
    if len(quotes) == 0:
        return
    edges = [ord(separator), ord(_RETURN), ord(_LINE), ord(_QUOTE)]
    opening, closing = quotes[::2], quotes[1::2]
    before = np.isin(buffer[np.maximum(opening - 1, 0)], edges) | (opening == 0)
    after = np.isin(buffer[np.minimum(closing + 1, len(buffer) - 1)], edges) | (closing == len(buffer) - 1)
    bad = np.concatenate([opening[~before], closing[~after]])
    if len(bad):
        raise wrong(int(bad.min()), "quotes around whole cells alone, doubled within", 'a " inside a cell')
    if len(quotes) % 2:
        raise wrong(int(quotes[-1]), 'a " that closes the cell', "none up to the end")


def _numbers(file: Path, name: str, cells: pl.Series) -> np.ndarray:
    return numbers_of(cells, file, name).to_numpy()


def numbers_of(cells: pl.Series, file: Path, name: str) -> pl.Series:
    """Float64 values of text cells, nan where empty; DataError at the first that is not a finite number."""
    import polars as pl

    empty = cells == ""
    values = cells.cast(pl.Float64, strict=False)
    wrong = ~empty & ~(cells.str.contains(_NUMBER) & values.is_finite().fill_null(False))
    refuse_cells(file, name, cells, wrong, "a number")
    return values.fill_null(float("nan"))


def _integers(file: Path, name: str, cells: pl.Series, optional: bool) -> np.ndarray:
    import polars as pl

    empty = cells == ""
    if optional:
        cells = cells.str.strip_suffix(".0")
    else:
        refuse_cells(file, name, cells, empty, _INTEGER)
    refuse_cells(file, name, cells, ~empty & ~cells.str.contains(CANONICAL), _INTEGER)
    values = cells.cast(pl.Int64, strict=False)
    refuse_cells(file, name, cells, ~empty & values.is_null(), "an integer in [-2⁶³, 2⁶³)")
    return values.fill_null(MISSING).to_numpy()


def refuse_cells(file: Path, name: str, cells: pl.Series, bad: pl.Series, expected: str) -> None:
    """DataError at the first cell where `bad` is set."""
    if bad.any():
        row = int(np.argmax(bad.to_numpy()))
        found = shown(cells[row]) if cells[row] else "nothing"
        raise DataError(file, f"expected {expected}, found {found}", column=name, row=row + 1)
