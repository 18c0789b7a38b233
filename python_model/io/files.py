"""Opens files from other programs: one clear error for a path that is missing, not a file or not readable."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from python_model.io.errors import DataError, one_line


def require_file(file: Path) -> None:
    """DataError where a path is missing or is not a regular file."""
    with reading(file):
        mode = file.stat().st_mode
    if stat.S_ISDIR(mode):
        raise DataError(file, "is a directory, expected a file")
    if not stat.S_ISREG(mode):
        raise DataError(file, "is no regular file")


def require_path(path: Path) -> None:
    """DataError where a path is neither a file nor a directory."""
    with reading(path):
        path.stat()


def present(path: Path) -> bool:
    """Whether a path exists; a dangling link counts, so that it is refused and not ignored."""
    return os.path.lexists(path)


@contextmanager
def reading(file: Path) -> Iterator[None]:
    """Turns an OSError about a file into a DataError that names it."""
    try:
        yield
    except FileNotFoundError as error:
        raise DataError(file, "not found") from error
    except (OSError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(file, f"cannot be read: {getattr(error, 'strerror', None) or error}") from error


def open_parquet(file: Path) -> pq.ParquetFile:
    """Open a Parquet file; DataError where it is missing or is not Parquet.

    Pages with checksums are verified. The file is not memory-mapped: if another process truncated it, access would kill
    this process instead of raising.
    """
    require_file(file)
    try:
        return pq.ParquetFile(file, page_checksum_verification=True)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(file, f"not a readable Parquet file: {one_line(error)}") from error


@contextmanager
def reading_parquet(file: Path, column: str | None = None) -> Iterator[None]:
    """Turns the library's error about damaged pages into a DataError that names file and column."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise DataError(file, f"cannot be read: {one_line(error)}", column=column) from error


def require_column(file: Path, schema: pa.Schema, name: str) -> pa.DataType:
    """The type of a column; DataError where it is missing or occurs twice."""
    count = schema.names.count(name)
    if count == 0:
        raise DataError(file, f"this column is missing; the file has {', '.join(schema.names)}", column=name)
    if count > 1:
        raise DataError(file, f"expected this column once, found it {count} times", column=name)
    return schema.field(name).type


def require_schema(file: Path, schema: pa.Schema) -> None:
    """DataError where a Parquet file lacks a column of a schema or has it in another type."""
    found = open_parquet(file).schema_arrow
    for expected in schema:
        kind = require_column(file, found, expected.name)
        if kind != expected.type:
            raise DataError(file, f"expected type {expected.type}, found {kind}", column=expected.name)


def require_values(
    file: Path, name: str, values: pa.Array | pa.ChunkedArray, first_row: int = 1, rows: np.ndarray | None = None
) -> None:
    """DataError at the first null of a column; rows: the 1-based row of each value, from `first_row` on by default."""
    if values.null_count:
        at = int(np.argmax(np.asarray(values.is_null())))
        row = first_row + at if rows is None else int(rows[at])
        raise DataError(file, "a value is null", column=name, row=row)
