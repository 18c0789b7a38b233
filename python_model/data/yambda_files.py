"""Reads Yambda's Parquet files as checked rows, flat or sequential, and finds where whole users begin and end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from python_model.data.errors import DataError

Rows = dict[str, np.ndarray]
EVENT_TYPES = ("listen", "like", "dislike", "unlike", "undislike")
LISTEN_ONLY = ("played_ratio_pct", "track_length_seconds")
_FLAT_BATCH, _SEQUENTIAL_BATCH = 1 << 19, 256


def open_parquet(file: Path) -> pq.ParquetFile:
    """DataError where the file is not there or not Parquet."""
    if not file.is_file():
        raise DataError(file, "not found")
    try:
        return pq.ParquetFile(file)
    except (pa.ArrowException, OSError) as error:
        raise DataError(file, f"not a readable Parquet file: {error}") from error


class EventFile:
    """One event file; in sequential files every column but uid is a list, one row a user.

    columns: the columns to read beside uid. sort: times of a user may be in any order, which `in_order_of_time` then
    mends. Rows of errors are 1-based data rows of the file.
    """

    def __init__(self, file: Path, columns: Sequence[str], *, sort: bool = False) -> None:
        self.file = file
        self.columns = tuple(columns)
        self.sort = sort
        parquet = open_parquet(file)
        schema = parquet.schema_arrow
        for name in ("uid", *self.columns):
            if name not in schema.names:
                raise DataError(file, f"this column is missing; the file has {', '.join(schema.names)}", column=name)
        self.sequential = _is_list(schema.field("item_id").type)
        for name in self.columns:
            if _is_list(schema.field(name).type) != self.sequential:
                raise DataError(file, "expected lists in all columns but uid, or in none", column=name)
            if name != "event_type":
                kind = schema.field(name).type
                element = kind.value_type if self.sequential else kind
                if not (pa.types.is_integer(element) or pa.types.is_boolean(element)):
                    raise DataError(file, f"expected integers, found {element}", column=name)
        self.rows = parquet.metadata.num_rows

    def batches(self, first: int = 0, last: int | None = None) -> Iterator[tuple[Rows, np.ndarray]]:
        """Events of rows first .. last - 1 of the file (all by default), and the 1-based row each came from.

        Flat int64 columns (event_type: index into EVENT_TYPES), checked: no nulls, sorted, nothing negative. Where
        there is an event_type, nulls of the listen-only columns are allowed off listens and come as -1.
        """
        last_user, last_time = -1, 0
        try:
            for batch, start in self._record_batches(first, self.rows if last is None else last):
                rows, file_row = self._flatten(batch, start)
                if len(rows["uid"]) == 0:
                    continue
                self._check(rows, file_row, last_user, last_time)
                last_user, last_time = int(rows["uid"][-1]), int(rows["timestamp"][-1])
                yield rows, file_row
        except (pa.ArrowException, OSError) as error:
            raise DataError(self.file, f"cannot be read: {error}") from error

    def read(self, first: int, last: int) -> Rows:
        """The events of `batches` at once."""
        parts = [rows for rows, _ in self.batches(first, last)]
        return {
            name: np.concatenate([part[name] for part in parts]) if parts else np.zeros(0, np.int64)
            for name in ("uid", *self.columns)
        }

    def _record_batches(self, first: int, last: int) -> Iterator[tuple[pa.RecordBatch, int]]:
        """The rows as they are, and the 0-based row each batch begins with; reads only row groups that hold some."""
        parquet = open_parquet(self.file)
        groups, start, before = [], 0, 0
        for group in range(parquet.metadata.num_row_groups):
            after = before + parquet.metadata.row_group(group).num_rows
            if after <= first:
                start = after
            elif before < last:
                groups.append(group)
            before = after
        size = _SEQUENTIAL_BATCH if self.sequential else _FLAT_BATCH
        for batch in parquet.iter_batches(batch_size=size, row_groups=groups, columns=["uid", *self.columns]):
            low, high = max(first - start, 0), min(last - start, batch.num_rows)
            if low < high:
                yield batch.slice(low, high - low), start + low
            start += batch.num_rows
            if start >= last:
                return

    def _flatten(self, batch: pa.RecordBatch, start: int) -> tuple[Rows, np.ndarray]:
        """(columns, 1-based row of the file that each event came from)."""
        file_row = np.arange(start + 1, start + batch.num_rows + 1)
        values = {name: batch.column(name) for name in ("uid", *self.columns)}
        self._refuse_nulls("uid", values["uid"], file_row)
        uid = values["uid"].to_numpy(zero_copy_only=False).astype(np.int64)
        if self.sequential:
            lengths = self._lengths(values, file_row)
            uid, file_row = np.repeat(uid, lengths), np.repeat(file_row, lengths)
            values = {name: values[name].flatten() for name in self.columns}
        rows: Rows = {"uid": uid}
        if "event_type" in self.columns:
            rows["event_type"] = self._event_types(values["event_type"], file_row)
        for name in self.columns:
            if name != "event_type":
                rows[name] = self._integers(name, values[name], file_row, rows.get("event_type"))
        return rows, file_row

    def _lengths(self, values: dict[str, pa.Array], file_row: np.ndarray) -> np.ndarray:
        """Events of each row of a sequential file; all its lists must agree."""
        expected: np.ndarray | None = None
        for name in self.columns:
            self._refuse_nulls(name, values[name], file_row)
            lengths = pc.list_value_length(values[name]).to_numpy(zero_copy_only=False).astype(np.int64)
            if expected is None:
                expected = lengths
            elif (lengths != expected).any():
                at = int(np.argmax(lengths != expected))
                message = f"expected a list of {expected[at]} events as in {self.columns[0]}, found {lengths[at]}"
                raise DataError(self.file, message, column=name, row=int(file_row[at]))
        assert expected is not None
        return expected

    def _integers(self, name: str, array: pa.Array, file_row: np.ndarray, kind: np.ndarray | None) -> np.ndarray:
        if array.null_count:
            missing = array.is_null().to_numpy(zero_copy_only=False)
            allowed = kind != EVENT_TYPES.index("listen") if kind is not None and name in LISTEN_ONLY else False
            self._refuse(name, missing & ~np.asarray(allowed), file_row, "a value", None)
            array = pc.fill_null(array.cast(pa.int64()), -1)
        return array.to_numpy(zero_copy_only=False).astype(np.int64)

    def _event_types(self, array: pa.Array, file_row: np.ndarray) -> np.ndarray:
        self._refuse_nulls("event_type", array, file_row)
        try:
            names = array.cast(pa.string())
        except pa.ArrowException as error:
            raise DataError(self.file, f"expected text, found {array.type}", column="event_type") from error
        index = pc.index_in(names, value_set=pa.array(EVENT_TYPES))
        unknown = index.is_null().to_numpy(zero_copy_only=False)
        expected = f"an event type of {', '.join(EVENT_TYPES)}"
        self._refuse("event_type", unknown, file_row, expected, np.asarray(names.to_numpy(zero_copy_only=False)))
        return index.to_numpy(zero_copy_only=False).astype(np.int64)

    def _check(self, rows: Rows, file_row: np.ndarray, last_user: int, last_time: int) -> None:
        for name in ("uid", *self.columns):
            if name not in LISTEN_ONLY or "event_type" not in rows:
                self._refuse(name, rows[name] < 0, file_row, "a value that is not negative", rows[name])
        user_step = np.diff(rows["uid"], prepend=last_user)
        self._refuse("uid", user_step < 0, file_row, "users in ascending order", rows["uid"])
        backwards = (np.diff(rows["timestamp"], prepend=last_time) < 0) & (user_step == 0)
        if not self.sort:
            expected = "times sorted within a user (unsorted=sort puts them in order)"
            self._refuse("timestamp", backwards, file_row, expected, rows["timestamp"])

    def _refuse_nulls(self, name: str, array: pa.Array, file_row: np.ndarray) -> None:
        if array.null_count:
            self._refuse(name, array.is_null().to_numpy(zero_copy_only=False), file_row, "a value", None)

    def _refuse(
        self, name: str, bad: np.ndarray, file_row: np.ndarray, expected: str, values: np.ndarray | None
    ) -> None:
        if bad.any():
            at = int(np.argmax(bad))
            found = "null" if values is None else repr(values[at].item() if hasattr(values[at], "item") else values[at])
            raise DataError(self.file, f"expected {expected}, found {found}", column=name, row=int(file_row[at]))


def in_order_of_time(rows: Rows) -> tuple[Rows, int]:
    """Rows of whole users sorted by time within each, equal times as they came, and how often time went back."""
    backwards = int(((np.diff(rows["timestamp"]) < 0) & (np.diff(rows["uid"]) == 0)).sum())
    if backwards == 0:
        return rows, 0
    order = np.lexsort((rows["timestamp"], rows["uid"]))
    return {name: values[order] for name, values in rows.items()}, backwards


class Cuts:
    """Rows of a file at which a new user begins, about a batch apart, from its batches as they flow by.

    rows: 0-based rows; users: the uid that begins there.
    """

    def __init__(self) -> None:
        self.rows: list[int] = []
        self.users: list[int] = []
        self._last = -1

    def add(self, uid: np.ndarray, file_row: np.ndarray) -> None:
        """The next batch: users in ascending order, the 1-based row of each event."""
        cut = int(np.searchsorted(uid, uid[-1]))
        if cut > 0 or self._last not in (-1, uid[0]):
            self.rows.append(int(file_row[cut]) - 1)
            self.users.append(int(uid[cut]))
        self._last = int(uid[-1])


def rows_of_users(file: EventFile, users: Sequence[int]) -> list[int]:
    """For each of these uids, in ascending order, the first row of the file whose user is not below it."""
    wanted = np.array(users, np.int64)
    found = np.full(len(wanted), file.rows, np.int64)
    done = 0
    for rows, file_row in file.batches():
        reached = int(np.searchsorted(wanted, rows["uid"][-1], side="right"))
        found[done:reached] = file_row[np.searchsorted(rows["uid"], wanted[done:reached])] - 1
        done = max(done, reached)
    return found.tolist()


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind)
