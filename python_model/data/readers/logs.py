"""Event logs of any size in order of (user, time): an external sort whose memory does not grow with the log.

Text is read in pieces of a few megabytes. Each piece is checked, sorted by user and put down as a Parquet file; then
the users are cut into ranges of about `RANGE_ROWS` rows, and each range gathers its users' rows from all pieces and
puts them in order. Memory is that of one piece or one range (at least one user) plus the distinct users and items; the
disk takes the rows once more while it lasts. Pieces and ranges are tasks of an `Engine`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from python_model.data.engines import Engine
from python_model.data.readers.delimited import Piece
from python_model.data.readers.tables import Progress, event_order
from python_model.io.errors import DataError

PIECE_BYTES = 1 << 24
RANGE_ROWS = 1 << 19
_GROUP_ROWS = 1 << 14
Rows = dict[str, np.ndarray]


@dataclass(frozen=True)
class UserRange:
    """Users first .. last - 1 (dense numbers), whose ids are lowest .. highest, and how many rows they have."""

    first: int
    last: int
    lowest: int
    highest: int
    rows: int


@dataclass
class SortedLogs:
    """What the pieces hold: distinct ids in ascending order, rows of each user, and whether any row was `noted`."""

    directory: Path
    pieces: int = 0
    rows: int = 0
    noted: bool = False
    user_ids: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    item_ids: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    counts: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))

    def ranges(self) -> list[UserRange]:
        """The users in ranges of at most RANGE_ROWS rows each, or of one user."""
        ends = np.cumsum(self.counts)
        out, first = [], 0
        while first < len(ends):
            done = ends[first - 1] if first else 0
            last = max(int(np.searchsorted(ends, done + RANGE_ROWS, side="right")), first + 1)
            lowest, highest = int(self.user_ids[first]), int(self.user_ids[last - 1])
            out.append(UserRange(first, last, lowest, highest, int(ends[last - 1] - done)))
            first = last
        return out

    def columns(
        self, columns: Callable[[Rows], Rows], engine: Engine, progress: Progress | None = None
    ) -> Iterator[Rows]:
        """Range by range: `columns` of its rows in order of (user, time), where user and item are dense numbers."""
        np.save(self.directory / "items.npy", self.item_ids)
        ranges = self.ranges()
        done = 0
        gather = partial(_gather, self.directory, self.pieces, columns)
        for users, found in zip(ranges, engine.map(gather, ranges), strict=True):
            yield found
            done += users.rows
            if progress is not None:
                progress((self.rows + done) // 2, self.rows)


def sort_logs(
    read: Callable[[Piece], Rows], todo: Sequence[Piece], directory: Path, engine: Engine, *,
    note: Callable[[Rows], bool] | None = None, progress: Progress | None = None,
) -> SortedLogs:  # fmt: skip
    """Read, check and sort every piece into `directory`, which is made.

    read: the rows of a piece in the order of the file, with int64 columns user, item and order (what sorts the events
    of a user; ties keep the order of the pieces). note: a fact about rows that the source wants to know of the whole.
    DataError with the row of the whole file where `read` refuses one of a piece.
    """
    directory.mkdir()
    logs = SortedLogs(directory)
    total = sum(piece.end - piece.start for piece in todo)
    before: dict[Path, int] = {}
    seen = 0
    scans = engine.map(partial(_scan, read, note, directory), list(enumerate(todo)))
    for piece in todo:
        try:
            scan = next(scans)
        except DataError as error:
            row = error.row if error.row is None else error.row + before.get(piece.file, 0)
            raise DataError(error.file, error.message, column=error.column, row=row) from error
        before[piece.file] = before.get(piece.file, 0) + scan.rows
        _add(logs, scan)
        seen += piece.end - piece.start
        if progress is not None:
            progress(logs.rows // 2, max(int(logs.rows * total / max(seen, 1)), 1))
    return logs


@dataclass(frozen=True)
class _Scan:
    rows: int
    user_ids: np.ndarray
    counts: np.ndarray
    item_ids: np.ndarray
    noted: bool


def _scan(
    read: Callable[[Piece], Rows], note: Callable[[Rows], bool] | None, directory: Path, task: tuple[int, Piece]
) -> _Scan:
    number, piece = task
    rows = read(piece)
    order = event_order(rows["user"], rows["order"])
    table = pa.table({name: values[order] for name, values in rows.items()})
    pq.write_table(table, _file(directory, number), row_group_size=_GROUP_ROWS, compression="zstd")
    user_ids, counts = np.unique(rows["user"], return_counts=True)
    return _Scan(len(order), user_ids, counts, np.unique(rows["item"]), note is not None and note(rows))


def _add(logs: SortedLogs, scan: _Scan) -> None:
    user_ids = np.union1d(logs.user_ids, scan.user_ids)
    counts = np.zeros(len(user_ids), np.int64)
    counts[np.searchsorted(user_ids, logs.user_ids)] = logs.counts
    counts[np.searchsorted(user_ids, scan.user_ids)] += scan.counts
    logs.user_ids, logs.counts = user_ids, counts
    logs.item_ids = np.union1d(logs.item_ids, scan.item_ids)
    logs.pieces, logs.rows, logs.noted = logs.pieces + 1, logs.rows + scan.rows, logs.noted or scan.noted


def _gather(directory: Path, count: int, columns: Callable[[Rows], Rows], users: UserRange) -> Rows:
    parts = [_rows_of(_file(directory, number), users) for number in range(count)]
    rows = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    order = event_order(rows["user"], rows["order"])
    rows = {name: values[order] for name, values in rows.items()}
    _, dense = np.unique(rows["user"], return_inverse=True)
    item_ids = np.load(directory / "items.npy", mmap_mode="r")
    item = np.searchsorted(item_ids, rows["item"])
    return columns(rows | {"user": (users.first + dense).astype(np.int32), "item": item.astype(np.int32)})


def _rows_of(file: Path, users: UserRange) -> Rows:
    """The rows of a range's users in one sorted piece; groups of rows that hold none of them are not read."""
    with pq.ParquetFile(file) as parquet:
        metadata, column = parquet.metadata, parquet.schema_arrow.get_field_index("user")
        groups = []
        for group in range(metadata.num_row_groups):
            found = metadata.row_group(group).column(column).statistics
            if found.max >= users.lowest and found.min <= users.highest:
                groups.append(group)
        table = parquet.read_row_groups(groups)
    rows = {name: table.column(name).to_numpy() for name in table.column_names}
    low = int(np.searchsorted(rows["user"], users.lowest))
    high = int(np.searchsorted(rows["user"], users.highest, side="right"))
    return {name: values[low:high] for name, values in rows.items()}


def _file(directory: Path, number: int) -> Path:
    return directory / f"piece-{number:06d}.parquet"
