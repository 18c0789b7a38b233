"""The files of a log, cut into pieces: delimited text, JSON lines, Parquet, each as it is or compressed with gzip."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import pyarrow as pa

from python_model.data.readers.delimited import Form, Piece, pieces, text_columns
from python_model.data.readers.logs import PIECE_BYTES
from python_model.io.disk import WriteError, reason_of
from python_model.io.errors import DataError, one_line
from python_model.io.files import open_parquet, reading, reading_parquet, require_column, require_file, require_path
from python_model.io.json_text import kind_of, parse

if TYPE_CHECKING:
    import polars as pl

SEPARATORS = (",", "\t", ";", "|")
ROWS = 1 << 19
"""Rows of row groups that are read at once; a group that is larger is read as a whole."""
_BLOCK = 1 << 20


@dataclass(frozen=True)
class TextPart:
    """Bytes of delimited text or JSON lines; file: the file that errors name, the compressed one where there is one."""

    file: Path
    piece: Piece
    json: bool = False

    @property
    def size(self) -> int:
        """Bytes."""
        return self.piece.size

    def read(self, names: Sequence[str]) -> dict[str, pl.Series]:
        """The cells of some columns as text, "" or null where empty."""
        with _named(self.file):
            return _json_columns(self.piece, names) if self.json else text_columns(self.piece, names)


@dataclass(frozen=True)
class ParquetPart:
    """Row groups of a Parquet file."""

    file: Path
    groups: tuple[int, ...]
    rows: int
    content: Path

    @property
    def size(self) -> int:
        """Rows."""
        return self.rows

    def read(self, names: Sequence[str]) -> dict[str, pl.Series]:
        """Some columns in their own types."""
        with _named(self.file):
            parquet = open_parquet(self.content)
            with reading_parquet(self.content):
                table = parquet.read_row_groups(list(self.groups), columns=list(names), use_threads=False)
        return _series(table, names)


@dataclass(frozen=True)
class FramePart:
    """Rows of an in-memory table."""

    file: Path
    table: pa.Table

    @property
    def size(self) -> int:
        """Rows."""
        return self.table.num_rows

    def read(self, names: Sequence[str]) -> dict[str, pl.Series]:
        """Some columns in their own types."""
        return _series(self.table, names)


TablePart = TextPart | ParquetPart | FramePart


@dataclass(frozen=True)
class Source:
    """One file, or a table: its parts, and the types of its columns; None where all of them are text."""

    file: Path
    parts: tuple[TablePart, ...]
    schema: pa.Schema | None


def files_of(paths: Sequence[Path]) -> list[Path]:
    """The named files and the files of the named directories, without hidden ones; each once."""
    found: list[Path] = []
    for path in paths:
        require_path(path)
        if path.is_dir():
            inside = sorted(one for one in path.iterdir() if one.is_file() and not one.name.startswith((".", "_")))
            if not inside:
                raise DataError(path, "no file here: expected the files of a log")
            found += inside
        else:
            found.append(path)
    for number, file in enumerate(found):
        if any(file.samefile(other) for other in found[:number]):
            raise DataError(file, "expected every file once, found it again")
    return found


def open_source(file: Path, names: Sequence[str], space: Path) -> Source:
    """A file as parts of about PIECE_BYTES with the columns `names`; its format is recognised by its content.

    space: a directory for decompressed files. DataError where the file has another format, lacks a column, or is cut
    short.
    """
    require_file(file)
    content = file
    if _head(file).startswith(b"\x1f\x8b"):
        content = space / f"{len(list(space.iterdir())):06d}-{file.stem}"[:200]
        _decompress(file, content)
    with _named(file, content):
        head = _head(content)
        if head.startswith(b"PAR1"):
            return _parquet(file, content, names)
        begin = b"".join(head.removeprefix(b"\xef\xbb\xbf").split())
        if begin.startswith(b"[{"):
            raise DataError(file, "expected one JSON object a line, found an array of them: write them as JSON lines")
        if begin.startswith(b"{"):
            form = Form(names=tuple(names), quotes=False)
            parts = tuple(TextPart(file, piece, json=True) for piece in pieces(content, form, PIECE_BYTES))
        else:
            parts = tuple(TextPart(file, piece) for piece in pieces(content, _form(content, names), PIECE_BYTES))
            _require_header(parts[0].piece, names)
    return Source(file, parts, None)


def frame_source(frame: Any, name: str, names: Sequence[str]) -> Source:
    """A pandas or polars DataFrame or a pyarrow Table; ValueError for anything else, DataError for a missing column."""
    table = _arrow(frame, name)
    file = Path(name)
    for column in names:
        require_column(file, table.schema, column)
    if table.num_rows == 0:
        raise DataError(file, "it is empty: expected at least one row")
    table = table.select(list(names))
    parts = tuple(FramePart(file, table.slice(start, ROWS)) for start in range(0, table.num_rows, ROWS))
    return Source(file, parts, table.schema)


def _arrow(frame: Any, name: str) -> pa.Table:
    if isinstance(frame, pa.Table):
        return frame
    if isinstance(frame, pa.RecordBatch):
        return pa.Table.from_batches([frame])
    kind = type(frame)
    if kind.__module__.split(".")[0] == "polars" and kind.__name__ in ("DataFrame", "LazyFrame"):
        return (frame.collect() if kind.__name__ == "LazyFrame" else frame).to_arrow()
    if kind.__module__.split(".")[0] == "pandas" and kind.__name__ == "DataFrame":
        if not frame.columns.is_unique:
            again = frame.columns[frame.columns.duplicated()][0]
            raise DataError(Path(name), "expected every column once, found it again", column=str(again))
        try:
            return pa.Table.from_pandas(frame, preserve_index=False)
        except (pa.ArrowException, TypeError, ValueError) as error:
            raise DataError(Path(name), f"a column has values of several types: {one_line(error)}") from error
    raise ValueError(f"{name} is a {kind.__name__}, expected a pandas or polars DataFrame or a pyarrow Table")


def _series(table: pa.Table, names: Sequence[str]) -> dict[str, pl.Series]:
    import polars as pl

    found = pl.from_arrow(table)
    assert isinstance(found, pl.DataFrame)
    columns = {name: found[name] for name in names}
    # Arrow lists of fixed size are read as ordinary lists.
    return {name: one.arr.to_list() if one.dtype == pl.Array else one for name, one in columns.items()}


def _parquet(file: Path, content: Path, names: Sequence[str]) -> Source:
    parquet = open_parquet(content)
    for name in names:
        require_column(file, parquet.schema_arrow, name)
    metadata = parquet.metadata
    if metadata.num_rows == 0:
        raise DataError(file, "the file is empty: expected at least one row")
    parts, waiting, rows = [], [], 0
    for group in range(metadata.num_row_groups):
        waiting.append(group)
        rows += metadata.row_group(group).num_rows
        if rows >= ROWS or group == metadata.num_row_groups - 1:
            parts.append(ParquetPart(file, tuple(waiting), rows, content))
            waiting, rows = [], 0
    return Source(file, tuple(parts), parquet.schema_arrow)


def _form(content: Path, names: Sequence[str]) -> Form:
    """The separator with which the header contains the most of `names`; a comma on a tie."""

    def known(separator: str) -> int:
        try:
            return len(set(pieces(content, Form(separator), None)[0].names) & set(names))
        except DataError:
            return -1

    return Form(max(SEPARATORS, key=known))


def _require_header(piece: Piece, names: Sequence[str]) -> None:
    for name in names:
        if (count := piece.names.count(name)) != 1:
            said = f"the file has {', '.join(piece.names)}" if count == 0 else f"found it {count} times"
            message = f"{'this column is missing' if count == 0 else 'expected this column once'}; {said}"
            raise DataError(piece.file, message, column=name)


def _json_columns(piece: Piece, names: Sequence[str]) -> dict[str, pl.Series]:
    import polars as pl

    content = piece.content()
    lines = content.count(b"\n") + (not content.endswith(b"\n"))
    try:
        found = pl.read_ndjson(content, schema=dict.fromkeys(names, pl.String))
    except (pl.exceptions.PolarsError, ValueError) as error:
        raise _json_fault(piece, content) or DataError(piece.file, f"unreadable: {one_line(error)}") from error
    if found.height != lines:
        raise _json_fault(piece, content) or DataError(piece.file, f"expected {lines} rows, found {found.height}")
    return {name: found[name] for name in names}


def _json_fault(piece: Piece, content: bytes) -> DataError | None:
    """The error at the first line that is not a JSON object; None without one."""
    for row, line in enumerate(content.split(b"\n"), 1):
        try:
            value = parse(line)
        except ValueError as error:
            return DataError(piece.file, f"expected one JSON object a line: {error}", row=row)
        if not isinstance(value, dict):
            return DataError(piece.file, f"expected one JSON object a line, found {kind_of(value)}", row=row)
    return None


def _head(file: Path) -> bytes:
    with reading(file), file.open("rb") as stream:
        return stream.read(64)


def _decompress(file: Path, content: Path) -> None:
    with reading(file), gzip.open(file) as stream, content.open("wb") as out:
        while block := _block(file, cast(BinaryIO, stream)):
            try:
                out.write(block)
            except OSError as error:
                # The caller that gave the directory reports this: `file` itself can be read.
                raise WriteError(content, reason_of(error, content)) from error


def _block(file: Path, stream: BinaryIO) -> bytes:
    try:
        return stream.read(_BLOCK)
    except EOFError as error:
        raise DataError(file, "the compressed file is cut short: make or copy it again") from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise DataError(file, f"damaged, gzip cannot be read: {one_line(error)}") from error


@contextmanager
def _named(file: Path, content: Path | None = None) -> Iterator[None]:
    """Errors in decompressed content name the file that the user named."""
    try:
        yield
    except DataError as error:
        if error.file == file or (content is not None and error.file != content):
            raise
        raise DataError(file, error.message, column=error.column, row=error.row) from error
