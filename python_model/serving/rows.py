"""The input rows of `argus score`: Parquet files, read by row group, and the position of each row in its file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from python_model.io.errors import DataError
from python_model.serving.scorers import ROWS

BATCH = 1 << 17
"""Rows in memory at once."""
PARQUET = ".parquet"


@dataclass(frozen=True)
class Part:
    """One row group of the input, after `first` rows of its file; group None: the only part of an empty input."""

    file: Path
    group: int | None
    rows: int
    first: int = 0


def input_parts(rows: Path) -> list[Part]:
    """The row groups of a Parquet file, or of all Parquet files in a folder by name.

    DataError where it is neither, a column occurs twice, or the files of a folder differ in their columns.
    """
    files = _files_of(rows) if rows.is_dir() else [rows]
    parts: list[Part] = []
    schema = open_parquet(files[0]).schema_arrow
    for name in schema.names:
        if schema.names.count(name) > 1:
            raise DataError(
                files[0], f"expected every column once, found it {schema.names.count(name)} times", column=name
            )
    for file in files:
        found = open_parquet(file)
        if not found.schema_arrow.equals(schema):
            raise DataError(
                file, f"its columns differ from those of {files[0].name}{_difference(found.schema_arrow, schema)}"
            )
        first = 0
        for group in range(found.metadata.num_row_groups):
            parts.append(Part(file, group, found.metadata.row_group(group).num_rows, first))
            first += parts[-1].rows
    return parts or [Part(files[0], None, 0)]


def files_of(parts: list[Part]) -> list[Path]:
    """The files of some parts, each once, in their order."""
    return list(dict.fromkeys(part.file for part in parts))


def tables(part: Part, columns: list[str] | None = None) -> Iterator[pa.Table]:
    """The rows of a part in their order, at most BATCH at once."""
    if part.rows == 0:
        yield empty_table(part, columns)
        return
    try:
        for batch in open_parquet(part.file).iter_batches(batch_size=BATCH, row_groups=[part.group], columns=columns):
            yield pa.Table.from_batches([batch])
    except (pa.ArrowException, OSError) as error:
        raise DataError(part.file, f"row group {part.group} cannot be read: {error}") from error


def empty_table(part: Part, columns: list[str] | None = None) -> pa.Table:
    """No rows, with the columns of the file."""
    found = open_parquet(part.file).schema_arrow.empty_table()
    return found if columns is None else found.select(columns)


@contextmanager
def located(part: Part, before: int = 0) -> Iterator[None]:
    """Restates a scorer's errors about rows of its table for the file; before: rows of the part before the table."""
    try:
        yield
    except DataError as error:
        row = None if error.row is None else part.first + before + error.row
        group = "" if row is None else f" (row group {part.group})"
        if error.file != Path(ROWS):
            raise
        raise DataError(part.file, error.message + group, column=error.column, row=row) from error


def open_parquet(file: Path) -> pq.ParquetFile:
    """Open a Parquet file; DataError where it is missing."""
    if not file.is_file():
        raise DataError(file, "not found: expected a Parquet file, or a folder of them")
    try:
        return pq.ParquetFile(file)
    except (pa.ArrowException, OSError) as error:
        raise DataError(file, f"not a readable Parquet file: {error}") from error


def _files_of(folder: Path) -> list[Path]:
    """The Parquet files of a folder; hidden files and names that begin with _ are ignored, as in Spark."""
    shown = sorted(entry for entry in folder.iterdir() if not entry.name.startswith((".", "_")))
    for entry in shown:
        if entry.is_dir() or entry.suffix.lower() != PARQUET:
            what = "a folder" if entry.is_dir() else "another file"
            raise DataError(
                entry, f"expected {PARQUET} files alone in a folder of rows, found {what}: move it elsewhere"
            )
    if not shown:
        raise DataError(folder, f"the folder has no {PARQUET} file")
    return shown


def _difference(found: pa.Schema, expected: pa.Schema) -> str:
    for name in dict.fromkeys([*expected.names, *found.names]):
        one, other = (
            found.field(name) if name in found.names else None,
            expected.field(name) if name in expected.names else None,
        )
        if one is None or other is None:
            return f": {name!r} is in one of them only"
        if not one.equals(other):
            return f": {name!r} is {one.type} here and {other.type} there"
    return " in their order"
