"""Reads Yambda's Parquet files as a stream of checked rows, flat or sequential, whole users at a time."""

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

    def batches(self) -> Iterator[Rows]:
        """Flat int64 columns (event_type: index into EVENT_TYPES), checked: no nulls, sorted, nothing negative.

        Where there is an event_type, nulls of the listen-only columns are allowed off listens and come as -1.
        """
        size = _SEQUENTIAL_BATCH if self.sequential else _FLAT_BATCH
        start, last_user, last_time = 0, -1, 0
        try:
            for batch in open_parquet(self.file).iter_batches(batch_size=size, columns=["uid", *self.columns]):
                rows, file_row = self._flatten(batch, start)
                start += batch.num_rows
                if len(rows["uid"]) == 0:
                    continue
                self._check(rows, file_row, last_user, last_time)
                last_user, last_time = int(rows["uid"][-1]), int(rows["timestamp"][-1])
                yield rows
        except (pa.ArrowException, OSError) as error:
            raise DataError(self.file, f"cannot be read: {error}") from error

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


def whole_users(batches: Iterator[Rows]) -> Iterator[Rows]:
    """The same rows in the same order, cut so that no user is in two chunks."""
    held: list[Rows] = []
    for rows in batches:
        users = rows["uid"]
        cut = int(np.searchsorted(users, users[-1]))
        if cut == 0 and (not held or held[-1]["uid"][-1] == users[0]):
            held.append(rows)
            continue
        held.append({name: values[:cut] for name, values in rows.items()})
        yield _join(held)
        held = [{name: values[cut:] for name, values in rows.items()}]
    if held:
        yield _join(held)


def in_order_of_time(rows: Rows) -> tuple[Rows, int]:
    """Rows of whole users sorted by time within each, equal times as they came, and how often time went back."""
    backwards = int(((np.diff(rows["timestamp"]) < 0) & (np.diff(rows["uid"]) == 0)).sum())
    if backwards == 0:
        return rows, 0
    order = np.lexsort((rows["timestamp"], rows["uid"]))
    return {name: values[order] for name, values in rows.items()}, backwards


class UserCursor:
    """Walks along a stream of rows sorted by uid, handing out all rows up to a given user."""

    def __init__(self, batches: Iterator[Rows]) -> None:
        self._batches = batches
        self._held: Rows | None = None

    def through(self, uid: int) -> Rows | None:
        """Rows not handed out before, of users up to and including uid; None where there are none."""
        taken: list[Rows] = []
        while True:
            if self._held is None:
                self._held = next(self._batches, None)
                if self._held is None:
                    break
            cut = int(np.searchsorted(self._held["uid"], uid, side="right"))
            taken.append({name: values[:cut] for name, values in self._held.items()})
            if cut < len(self._held["uid"]):
                self._held = {name: values[cut:] for name, values in self._held.items()}
                break
            self._held = None
        return _join(taken) if taken else None


def _join(parts: list[Rows]) -> Rows:
    if len(parts) == 1:
        return parts[0]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind)
