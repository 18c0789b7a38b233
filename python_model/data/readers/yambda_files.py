"""Reads Yambda's Parquet files as checked rows, flat or sequential, and finds the boundaries between users."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from python_model.data.identifiers import is_text
from python_model.data.times import SECONDS, times_of
from python_model.io.errors import DataError
from python_model.io.files import open_parquet, reading_parquet, require_column
from python_model.io.settings import shown

Rows = dict[str, np.ndarray]
EVENT_TYPES = ("listen", "like", "dislike", "unlike", "undislike")
LISTEN_ONLY = ("played_ratio_pct", "track_length_seconds")
_FLAT_BATCH, _SEQUENTIAL_BATCH = 1 << 19, 256


class EventFile:
    """One event file; in sequential files every column but uid is a list, one row per user.

    columns: the columns to read beside uid. sort: the times of a user may be in any order; `in_order_of_time` then
    sorts them. Errors name 1-based data rows of the file.
    """

    def __init__(self, file: Path, columns: Sequence[str], *, sort: bool = False) -> None:
        self.file = file
        self.columns = tuple(columns)
        self.sort = sort
        parquet = open_parquet(file)
        kinds = {name: require_column(file, parquet.schema_arrow, name) for name in ("uid", *self.columns)}
        self.sequential = _is_list(kinds["item_id"])
        _require_kind(file, "uid", kinds.pop("uid"))
        for name, kind in kinds.items():
            if _is_list(kind) != self.sequential:
                raise DataError(file, "expected lists in all columns but uid, or in none", column=name)
            _require_kind(file, name, kind.value_type if self.sequential else kind)
        self.rows = parquet.metadata.num_rows

    def batches(self, first: int = 0, last: int | None = None) -> Iterator[tuple[Rows, np.ndarray]]:
        """Events of rows first .. last - 1 of the file (all by default), and the 1-based row each came from.

        Flat int64 columns (event_type: index into EVENT_TYPES), checked: no nulls, sorted, not negative. Where there is
        an event_type, listen-only columns may be null for other events and are then -1.
        """
        last_user, last_time = -1, 0
        batches = self._record_batches(first, self.rows if last is None else last)
        while True:
            with reading_parquet(self.file):
                found = next(batches, None)
                if found is None:
                    return
                rows, file_row = self._flatten(*found)
            if len(rows["uid"]) == 0:
                continue
            self._check(rows, file_row, last_user, last_time)
            last_user, last_time = int(rows["uid"][-1]), int(rows["timestamp"][-1])
            yield rows, file_row

    def read(self, first: int, last: int) -> Rows:
        """All events of `batches` together."""
        parts = [rows for rows, _ in self.batches(first, last)]
        return {
            name: np.concatenate([part[name] for part in parts]) if parts else np.zeros(0, np.int64)
            for name in ("uid", *self.columns)
        }

    def _record_batches(self, first: int, last: int) -> Iterator[tuple[pa.RecordBatch, int]]:
        """The unchecked rows, and the 0-based first row of each batch; reads only the row groups that are needed."""
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
        uid = whole_numbers(values["uid"], self.file, "uid", file_row)
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
        if kind is None or name not in LISTEN_ONLY:
            return whole_numbers(array, self.file, name, file_row)
        found = np.full(len(array), -1, np.int64)
        of_listen = kind == EVENT_TYPES.index("listen")
        found[of_listen] = whole_numbers(array.filter(pa.array(of_listen)), self.file, name, file_row[of_listen])
        return found

    def _event_types(self, array: pa.Array, file_row: np.ndarray) -> np.ndarray:
        self._refuse_nulls("event_type", array, file_row)
        names = array.cast(pa.string())
        index = pc.index_in(names, value_set=pa.array(EVENT_TYPES))
        unknown = index.is_null().to_numpy(zero_copy_only=False)
        expected = f"an event type of {', '.join(EVENT_TYPES)}"
        _refuse(self.file, "event_type", unknown, file_row, expected, names.to_numpy(zero_copy_only=False))
        return index.to_numpy(zero_copy_only=False).astype(np.int64)

    def _check(self, rows: Rows, file_row: np.ndarray, last_user: int, last_time: int) -> None:
        times_of(rows["timestamp"], SECONDS, self.file, "timestamp", file_row)
        if "is_organic" in rows:
            wrong = rows["is_organic"] > 1
            _refuse(self.file, "is_organic", wrong, file_row, "0 or 1", rows["is_organic"])
        user_step = np.diff(rows["uid"], prepend=last_user)
        _refuse(self.file, "uid", user_step < 0, file_row, "users in ascending order", rows["uid"])
        backwards = (np.diff(rows["timestamp"], prepend=last_time) < 0) & (user_step == 0)
        if not self.sort:
            expected = "times sorted within a user (unsorted=sort puts them in order)"
            _refuse(self.file, "timestamp", backwards, file_row, expected, rows["timestamp"])

    def _refuse_nulls(self, name: str, array: pa.Array, file_row: np.ndarray) -> None:
        if array.null_count:
            _refuse(self.file, name, np.asarray(array.is_null()), file_row, "a value", None)


def whole_numbers(array: pa.Array, file: Path, column: str, file_row: np.ndarray) -> np.ndarray:
    """int64 of an Arrow array of integers or booleans; DataError at the first null, negative or above 2⁶³ − 1."""
    if array.null_count:
        _refuse(file, column, np.asarray(array.is_null()), file_row, "a value", None)
    values = array.to_numpy(zero_copy_only=False)
    if values.dtype == np.uint64:
        _refuse(file, column, values > np.uint64(2**63 - 1), file_row, "a value below 2⁶³", values)
    _refuse(file, column, values < 0, file_row, "a value that is not negative", values)
    return values.astype(np.int64)


def _refuse(
    file: Path, column: str, bad: np.ndarray, file_row: np.ndarray, expected: str, values: np.ndarray | None
) -> None:
    if bad.any():
        at = int(np.argmax(bad))
        value = None if values is None else values[at]
        found = "null" if values is None else shown(value.item() if isinstance(value, np.generic) else value)
        raise DataError(file, f"expected {expected}, found {found}", column=column, row=int(file_row[at]))


def _require_kind(file: Path, column: str, kind: pa.DataType) -> None:
    """DataError where ids or times are not integers; flags may also be booleans."""
    if column == "event_type":
        words = kind.value_type if pa.types.is_dictionary(kind) else kind
        fits, expected = is_text(words), "text"
    else:
        fits = pa.types.is_integer(kind) or (column == "is_organic" and pa.types.is_boolean(kind))
        expected = "integers"
    if not fits:
        raise DataError(file, f"expected {expected}, found {kind}", column=column)


def in_order_of_time(rows: Rows) -> tuple[Rows, int]:
    """Rows of whole users stably sorted by time within each user, and the number of times that went back."""
    backwards = int(((np.diff(rows["timestamp"]) < 0) & (np.diff(rows["uid"]) == 0)).sum())
    if backwards == 0:
        return rows, 0
    order = np.lexsort((rows["timestamp"], rows["uid"]))
    return {name: values[order] for name, values in rows.items()}, backwards


class Cuts:
    """Collects, from the batches of a file, rows at which a new user begins, about one batch apart.

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
    """For each of these ascending uids, the first row of the file whose uid is at least as large."""
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
