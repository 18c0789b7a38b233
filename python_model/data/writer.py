"""Writes a prepared data set: streamed record batches, one atomic rename at the end, nothing half-written.

Rows are collected into row groups of a fixed size, so the bytes of the files do not depend on the chunk sizes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from typing_extensions import Self

from python_model.data.checks import EventChecker
from python_model.data.columns import Values, require_range, typed
from python_model.data.description import EVENTS, INFO, ITEMS, USERS, DatasetInfo, Fingerprint, event_schema
from python_model.data.feedback import FeedbackComponent, PositiveEvents
from python_model.data.identifiers import ids_from, joined, require_distinct
from python_model.data.names import LABELS, TITLE, write_labels
from python_model.io.errors import DataError, one_line
from python_model.io.files import require_values
from python_model.io.publish import require_place, whole_directory
from python_model.io.settings import Between, checked

ROW_GROUP = 1 << 17


class DatasetWriter:
    """Context manager that makes one prepared data set.

    Everything goes to a hidden directory beside `out`; leaving the block without an exception checks the whole and
    renames it to `out`, leaving it by any exception (Ctrl-C included) removes it. Write events in order of (user,
    time), users in order, items once or in chunks:

        with DatasetWriter(out, name="...", context={"hour": 24}, feedback={"like": BINARY}, ...) as writer:
            writer.write_events({"user": ..., "item": ..., ...})
            writer.write_users(user_ids)
            writer.write_items(item_ids, {"artist": ...})

    Raises FileExistsError where `out` exists and is not an empty directory, unless overwrite=True; DataError where
    rows break the contract or there are none; ValueError for settings of other types or ranges; WriteError where the
    disk is full.
    """

    def __init__(
        self,
        out: str | Path,
        *,
        name: str,
        source: str,
        context: Mapping[str, int],
        feedback: Mapping[str, FeedbackComponent],
        item_features: Mapping[str, int],
        grades: str,
        pair_window: int,
        has_oracle: bool = False,
        negative: Sequence[str] = (),
        derived: Sequence[str] = (),
        utc_offset: int = 0,
        params: Mapping[str, Any] | None = None,
        positive: PositiveEvents | None = None,
        overwrite: bool = False,
        row_group: int = ROW_GROUP,
    ) -> None:
        self.out = Path(out)
        self.overwrite = overwrite
        self.row_group = row_group
        self.info = DatasetInfo(
            name=name,
            source=source,
            users=0,
            items=0,
            events=0,
            context=context,
            feedback=feedback,
            item_features=item_features,
            grades=grades,
            pair_window=pair_window,
            has_oracle=has_oracle,
            negative=tuple(negative),
            derived=tuple(derived),
            utc_offset=utc_offset,
            params=params or {},
            positive=positive,
        )
        checked(Annotated[int, Between(1)], "row_group", row_group)
        refuse_existing(self.out, self.overwrite)
        self._directory: Path | None = None

    def __enter__(self) -> Self:
        self._whole = whole_directory(self.out, INFO, overwrite=self.overwrite)
        self._directory = self._whole.__enter__()
        try:
            self._begin(self._directory)
        except BaseException as error:
            self._whole.__exit__(type(error), error, error.__traceback__)
            raise
        return self

    def _begin(self, directory: Path) -> None:
        self._checker = EventChecker(self.out / EVENTS, self.info, None)
        self._events = _RowGroups(directory / EVENTS, event_schema(self.info), self.row_group)
        self._item_ids: list[np.ndarray] = []
        self._item_features: dict[str, list[np.ndarray]] = {name: [] for name in self.info.item_features}
        self._user_ids: list[np.ndarray] = []
        self._titles: list[pa.Array] = []
        self._labels: dict[str, list[str]] = {}
        self._items, self._counts = np.zeros(0, np.int32), np.zeros(0, np.int64)
        self._fingerprint = Fingerprint()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._events.close()
                self._finish()
            else:
                # The directory is removed anyway: a full disk must not hide the original error.
                with contextlib.suppress(Exception):
                    self._events.abandon()
        except BaseException as failure:
            self._whole.__exit__(type(failure), failure, failure.__traceback__)
            raise
        self._whole.__exit__(kind, error, trace)

    @property
    def directory(self) -> Path:
        """The hidden directory; further files put here become part of the data set."""
        if self._directory is None:
            raise RuntimeError("DatasetWriter is used outside its `with` block")
        return self._directory

    @property
    def rows(self) -> int:
        """Events written so far."""
        return self._checker.rows

    def write_events(self, columns: Mapping[str, Values]) -> None:
        """Append events; every column of the schema, equal lengths, values that fit its type.

        ValueError for other columns, DataError with column and row for other lengths, types or values.
        """
        schema = event_schema(self.info)
        _require_names("columns", columns, schema.names)
        file, first_row = self.out / EVENTS, self.rows + 1
        found = {one.name: typed(columns[one.name], one.type, file, one.name, first_row) for one in schema}
        for name, values in found.items():
            _require_length(values, found["user"], "user", file, name)
        self._checker.check(found)
        self._count(found["item"])
        self._fingerprint.update(schema, found)
        self._events.append(pa.table([pa.array(found[one.name], one.type) for one in schema], schema=schema))

    def write_users(self, user_ids: Values) -> None:
        """Append the original ids of the next users: integers of 64 bits or text, without duplicates."""
        first_row = sum(map(len, self._user_ids)) + 1
        self._user_ids.append(ids_from(user_ids, self.out / USERS, "user_id", first_row))

    def write_items(self, item_ids: Values, features: Mapping[str, Values], titles: Values | None = None) -> None:
        """Append the original ids (as for users), features (int32, -1 missing) and titles of the next items.

        titles: text, "" where an item has none; given in all calls or in none.
        """
        _require_names("features", features, self.info.item_features)
        file, first_row = self.out / ITEMS, sum(map(len, self._item_ids)) + 1
        ids = ids_from(item_ids, file, "item_id", first_row)
        found = {name: typed(features[name], pa.int32(), file, f"item_{name}", first_row) for name in features}
        for name, values in found.items():
            _require_length(values, ids, "item_id", file, f"item_{name}")
            require_range(values, -1, self.info.item_features[name] - 1, file, f"item_{name}", first_row)
        if titles is not None:
            self._titles.append(_texts(titles, len(ids), file, first_row))
        self._item_ids.append(ids)
        for name, values in found.items():
            self._item_features[name].append(values)

    def write_labels(self, labels: Mapping[str, Sequence[str]]) -> None:
        """Set the labels of the numbers of columns `item_<feature>`, `context_<name>`, `feedback_<name>`.

        ValueError for another column, or more labels than it has numbers.
        """
        info = self.info
        known = {f"item_{name}": count for name, count in info.item_features.items()}
        known |= {f"context_{name}": count for name, count in info.context.items()}
        known |= {f"feedback_{name}": one.classes for name, one in info.feedback.items()}
        for column, found in labels.items():
            if column not in known:
                raise ValueError(f"labels: expected one of {', '.join(known)}, found {column!r}")
            if len(found) > known[column]:
                raise ValueError(f"labels of {column}: expected at most {known[column]}, found {len(found)}")
            self._labels[column] = list(found)

    def _count(self, item: np.ndarray) -> None:
        """Count the events of each item, in memory of the distinct items: the catalogue size is not known yet."""
        numbers, counts = _counted(item)
        items = np.union1d(self._items, numbers)
        total = np.zeros(len(items), np.int64)
        total[np.searchsorted(items, self._items)] = self._counts
        total[np.searchsorted(items, numbers)] += counts
        self._items, self._counts = items, total

    def set_params(self, params: Mapping[str, Any]) -> None:
        """Replace the description's params, some of which are known only at the end."""
        self.info = replace(self.info, params=dict(params))

    def _finish(self) -> None:
        item_ids = joined(self._item_ids, self.out / ITEMS, "item_id")
        user_ids = joined(self._user_ids, self.out / USERS, "user_id")
        items, users, events = len(item_ids), len(user_ids), self._checker.rows
        self._checker.finish(items, self.out)
        if users != self._checker.user + 1:
            message = f"expected {self._checker.user + 1} users as in the events, found {users}"
            raise DataError(self.out / USERS, message)
        least = int(self._items[-1]) + 1
        if items < least:
            raise DataError(self.out / ITEMS, f"expected at least {least} items, found {items}")
        require_distinct(item_ids, self.out / ITEMS, "item_id")
        require_distinct(user_ids, self.out / USERS, "user_id")
        counts = np.zeros(items, np.int64)
        counts[self._items] = self._counts
        columns: dict[str, Any] = {"item": np.arange(items, dtype=np.int32), "item_id": item_ids}
        for name, chunks in self._item_features.items():
            columns[f"item_{name}"] = np.concatenate(chunks)
        if self._titles:
            columns[TITLE] = pa.concat_arrays(self._titles)
            _require_length(columns[TITLE], item_ids, "item_id", self.out / ITEMS, TITLE)
        pq.write_table(pa.table({**columns, "count": counts}), self.directory / ITEMS, write_page_checksum=True)
        user_columns = {"user": np.arange(users, dtype=np.int32), "user_id": user_ids}
        pq.write_table(pa.table(user_columns), self.directory / USERS, write_page_checksum=True)
        if self._labels:
            write_labels(self.directory / LABELS, self._labels)
        info = replace(self.info, users=users, items=items, events=events, fingerprint=self._fingerprint.text())
        (self.directory / INFO).write_text(info.to_json(), encoding="utf-8")


def _counted(item: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(the distinct numbers in rising order, the count of each)."""
    if len(item) and item.max() < 4 * len(item):
        # 5 times as fast as sorting, in memory proportional to the input.
        counts = np.bincount(item)
        numbers = np.flatnonzero(counts)
        return numbers, counts[numbers]
    return np.unique(item, return_counts=True)


def refuse_existing(out: Path, overwrite: bool) -> None:
    """Raises as `require_place` does where a data set can neither be created nor replaced at `out`."""
    require_place(out, INFO, overwrite=overwrite)


def _require_names(what: str, found: Mapping[str, Any], expected: Iterable[str]) -> None:
    missing, unknown = set(expected) - set(found), set(found) - set(expected)
    if missing or unknown:
        lists = [f"{word} {', '.join(sorted(map(str, names)))}"
                 for word, names in (("missing", missing), ("unknown", unknown)) if names]  # fmt: skip
        raise ValueError(f"{what}: {'; '.join(lists)}")


def _texts(titles: Values, length: int, file: Path, first_row: int) -> pa.Array:
    try:
        found = pa.array(titles, pa.string())
    except (pa.ArrowException, ValueError, TypeError) as error:
        raise DataError(file, f"expected text: {one_line(error)}", column=TITLE) from error
    require_values(file, TITLE, found, first_row)
    _require_length(found, range(length), "item_id", file, TITLE)
    return found


def _require_length(
    values: Sequence[Any] | np.ndarray, other: Sequence[Any] | np.ndarray, name: str, file: Path, column: str
) -> None:
    if len(values) != len(other):
        raise DataError(file, f"expected {len(other)} values as in {name}, found {len(values)}", column=column)


class _RowGroups:
    """A Parquet file whose row groups have a fixed size whatever the sizes of the appended tables."""

    def __init__(self, file: Path, schema: pa.Schema, rows: int) -> None:
        self._writer = pq.ParquetWriter(file, schema, compression="zstd", write_page_checksum=True)
        self._rows = rows
        self._pending: list[pa.Table] = []
        self._count = 0

    def append(self, table: pa.Table) -> None:
        self._pending.append(table)
        self._count += table.num_rows
        if self._count >= self._rows:
            joined = pa.concat_tables(self._pending)
            whole = self._count - self._count % self._rows
            for start in range(0, whole, self._rows):
                self._write(joined.slice(start, self._rows))
            self._pending = [joined.slice(whole)]
            self._count -= whole

    def _write(self, table: pa.Table) -> None:
        self._writer.write_table(table.combine_chunks(), row_group_size=self._rows)

    def close(self) -> None:
        if self._count:
            self._write(pa.concat_tables(self._pending))
        self.abandon()

    def abandon(self) -> None:
        self._pending, self._count = [], 0
        self._writer.close()
