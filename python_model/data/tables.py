"""What the readers of text files share: typed columns with located errors, dense ids, time features, event order."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from python_model.data.errors import DataError

if TYPE_CHECKING:
    import polars as pl

DAY, HOUR = 86_400, 3_600
# Upper edges in seconds of the time since the user's event before: the same page, minute, sitting, hour, day, week.
GAP_EDGES = np.array([1, 10, 60, 600, 3_600, DAY, 7 * DAY])
GAP_BUCKETS = len(GAP_EDGES) + 1

Progress = Callable[[int, int], None]


def read_delimited(
    file: Path,
    *,
    part: Piece | None = None,
    integers: Sequence[str] = (),
    numbers: Sequence[str] = (),
    texts: Sequence[str] = (),
    separator: str = ",",
    names: Sequence[str] | None = None,
    encoding: str = "utf-8",
    quote: str | None = '"',
) -> dict[str, np.ndarray]:
    """Columns of a text file or a part of it: int64, float64 (missing = nan, allowed) and object str (missing = "").

    names gives the columns of a file without a header line. Rows in errors are 1-based data rows, a header not
    counted. DataError for: no file, no row, a missing column, a line of another width, a cell that is missing (of an
    integer column) or is not a number, text that is not in `encoding`.
    """
    # Only readers of text need polars; training and benchmarks import this module and run without it.
    import polars as pl

    content = part.text() if part is not None else _bytes(file)
    names = part.names if part is not None else names
    frame = _read_strings(file, content, separator, names, encoding, quote)
    if frame.height == 0:
        raise DataError(file, "the file is empty: expected at least one data row")
    columns: dict[str, np.ndarray] = {}
    for name in (*integers, *numbers, *texts):
        if name not in frame.columns:
            raise DataError(file, f"this column is missing; the file has {', '.join(frame.columns)}", column=name)
        cells = frame[name].str.strip_chars()
        if name in texts:
            columns[name] = cells.fill_null("").to_numpy()
        elif name in integers:
            columns[name] = _numeric(file, name, cells, pl.Int64, "an integer", required=True)
        else:
            columns[name] = _numeric(file, name, cells, pl.Float64, "a number", required=False)
    return columns


@dataclass(frozen=True)
class Piece:
    """Bytes start .. end of a text file, whole lines; names: its columns where the piece does not begin with them."""

    file: Path
    start: int
    end: int
    names: tuple[str, ...] | None

    def text(self) -> bytes:
        """The bytes of the piece; DataError where the file has gone or has become shorter."""
        try:
            with self.file.open("rb") as stream:
                stream.seek(self.start)
                content = stream.read(self.end - self.start)
        except OSError as error:
            raise DataError(self.file, f"cannot be read: {error.strerror}") from error
        if len(content) < self.end - self.start:
            raise DataError(self.file, "cannot be read: it has become shorter")
        return content


def pieces(file: Path, separator: str, names: Sequence[str] | None, size: int) -> list[Piece]:
    """A delimited file cut at line ends into pieces of about `size` bytes; names None: its first line has them."""
    if not file.is_file():
        raise DataError(file, "not found")
    length, cuts = file.stat().st_size, [0]
    with file.open("rb") as stream:
        header = stream.readline()
        least = len(header) + 1 if names is None else 1
        while cuts[-1] + max(size, least) < length:
            stream.seek(cuts[-1] + max(size, least) - 1)
            stream.readline()
            cuts.append(stream.tell())
    if cuts[-1] < length or length == 0:
        cuts.append(length)
    titles = header.decode("utf-8", errors="replace").rstrip("\r\n").split(separator)
    first = tuple(names) if names is not None else None
    later = first if first is not None else tuple(title.strip().strip('"') for title in titles)
    return [Piece(file, start, end, later if start else first) for start, end in pairwise(cuts)]


def _bytes(file: Path) -> bytes:
    if not file.is_file():
        raise DataError(file, "not found")
    return file.read_bytes()


def _read_strings(
    file: Path, content: bytes, separator: str, names: Sequence[str] | None, encoding: str, quote: str | None
) -> pl.DataFrame:
    import polars as pl

    if not content.strip():
        raise DataError(file, "the file is empty")
    try:
        text = content.decode(encoding).rstrip("\r\n")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + (0 if names is None else 1)
        raise DataError(file, f"expected text in {encoding}: {error.reason}", row=max(line, 1)) from error
    # The separator of ratings.dat has two characters, which no columnar reader takes.
    if len(separator) > 1:
        text, separator = text.replace(separator, "\x1f"), "\x1f"
    try:
        return pl.read_csv(
            BytesIO(text.encode()),
            separator=separator,
            has_header=names is None,
            new_columns=list(names) if names else None,
            infer_schema=False,
            quote_char=quote,
        )
    except (pl.exceptions.PolarsError, ValueError) as error:
        reason = str(error).splitlines()[0]
        located = _locate_bad_line(file, text, separator, quote, names)
        raise located or DataError(file, f"unreadable: {reason}") from error


def _locate_bad_line(
    file: Path, text: str, separator: str, quote: str | None, names: Sequence[str] | None
) -> DataError | None:
    """The first line that has more cells than there are columns, or a first line that has fewer, as an error."""
    quoted = re.compile(f"{re.escape(quote)}[^{re.escape(quote)}]*{re.escape(quote)}") if quote else None
    width = len(names) if names else None
    for number, line in enumerate(text.splitlines()):
        found = (quoted.sub("", line) if quoted else line).count(separator) + 1
        width = width or found
        if found > width or (number == 0 and found < width):
            return DataError(file, f"expected {width} cells, found {found}", row=number + (1 if names else 0))
    return None


def _numeric(
    file: Path, name: str, cells: pl.Series, kind: type[pl.DataType], expected: str, *, required: bool
) -> np.ndarray:
    empty = (cells.is_null() | (cells == "")).fill_null(True)
    if required and empty.any():
        raise DataError(file, f"expected {expected}, found nothing", column=name, row=_first(empty))
    values = cells.cast(kind, strict=False)
    wrong = values.is_null() & ~empty
    if wrong.any():
        row = _first(wrong)
        raise DataError(file, f"expected {expected}, found {cells[row - 1]!r}", column=name, row=row)
    return values.fill_null(float("nan")).to_numpy() if not required else values.to_numpy()


def _first(mask: pl.Series) -> int:
    return int(np.argmax(mask.to_numpy())) + 1


def refuse(file: Path, column: str, values: np.ndarray, bad: np.ndarray, expected: str) -> None:
    """DataError at the first row where `bad` is set."""
    if bad.any():
        row = int(np.argmax(bad))
        raise DataError(file, f"expected {expected}, found {values[row]}", column=column, row=row + 1)


def event_order(user: np.ndarray, time: np.ndarray) -> np.ndarray:
    """Order by (user, time); ties keep the order of the file."""
    return np.lexsort((time, user))


def dense(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(original ids sorted [n], int32 number of each row)."""
    unique, numbers = np.unique(ids, return_inverse=True)
    return unique, numbers.astype(np.int32)


def codes(values: np.ndarray, missing: np.ndarray) -> tuple[np.ndarray, int]:
    """Categories numbered by their sorted values, -1 where missing: (int32 [n], cardinality, at least 1)."""
    numbers = np.full(len(values), -1, np.int32)
    present = ~missing
    unique, numbers[present] = np.unique(values[present], return_inverse=True)
    return numbers, max(len(unique), 1)


def align(keys: np.ndarray, values: Mapping[str, np.ndarray], wanted: np.ndarray) -> dict[str, np.ndarray]:
    """Rows of a table of int32 columns for the ids `wanted`; -1 where `keys` lacks an id, the first of several."""
    unique, first = np.unique(keys, return_index=True)
    place = np.minimum(np.searchsorted(unique, wanted), len(unique) - 1)
    found = unique[place] == wanted
    return {name: np.where(found, column[first[place]], -1).astype(np.int32) for name, column in values.items()}


def hour_and_day(time: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Hour of day and day of week (Monday = 0) in UTC of unix seconds, int32."""
    return (time // HOUR % 24).astype(np.int32), ((time // DAY + 3) % 7).astype(np.int32)


def gap_bucket(user: np.ndarray, time: np.ndarray) -> np.ndarray:
    """int32: bucket (GAP_EDGES) of the time since the user's event before, -1 for his first; rows in event order."""
    gap = np.diff(time, prepend=time[:1])
    bucket = np.searchsorted(GAP_EDGES, gap, side="right").astype(np.int32)
    bucket[np.diff(user.astype(np.int64), prepend=-1) != 0] = -1
    return bucket
