"""Writes a prepared data set: streamed record batches, one atomic rename at the end, nothing half-written.

Rows are collected into row groups of a fixed size, so the bytes of the files do not depend on the sizes of the chunks
that came in.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from typing_extensions import Self

from python_model.data.checks import EventChecker
from python_model.data.description import EVENTS, INFO, ITEMS, USERS, DatasetInfo, Fingerprint, event_schema
from python_model.data.errors import DataError
from python_model.io.publish import require_place, whole_directory

ROW_GROUP = 1 << 17


class DatasetWriter:
    """Context manager that makes one prepared data set.

    Everything goes to a hidden directory beside `out`; leaving the block without an exception checks the whole and
    renames it to `out`, leaving it by any exception (Ctrl-C included) removes it. Write events in order of (user,
    time), users in order, items once or in chunks:

        with DatasetWriter(out, name="...", source="...", context={"hour": 24}, feedback={"like": 1}, ...) as writer:
            writer.write_events({"user": ..., "item": ..., ...})
            writer.write_users(user_ids)
            writer.write_items(item_ids, {"artist": ...})

    Raises FileExistsError where `out` exists and is not an empty directory, unless overwrite=True; DataError where
    rows break the contract or there are none; WriteError where the disk is full.
    """

    def __init__(
        self,
        out: str | Path,
        *,
        name: str,
        source: str,
        context: Mapping[str, int],
        feedback: Mapping[str, int],
        item_features: Mapping[str, int],
        grades: str,
        pair_window: int,
        has_oracle: bool = False,
        params: Mapping[str, Any] | None = None,
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
            context=dict(context),
            feedback=dict(feedback),
            item_features=dict(item_features),
            grades=grades,
            pair_window=pair_window,
            has_oracle=has_oracle,
            params=dict(params or {}),
        )
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
        self._counts = np.zeros(0, np.int64)
        self._fingerprint = Fingerprint()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._events.close()
                self._finish()
            else:
                # The directory goes away: a full disk must not hide the error that brought us here.
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

    def write_events(self, columns: Mapping[str, np.ndarray]) -> None:
        """Append events; every column of the schema, equal lengths, values that fit its type."""
        schema = event_schema(self.info)
        if set(columns) != set(schema.names):
            raise ValueError(f"columns: expected {sorted(schema.names)}, found {sorted(columns)}")
        self._checker.check(columns)
        seen = np.bincount(columns["item"], minlength=len(self._counts)).astype(np.int64)
        seen[: len(self._counts)] += self._counts
        self._counts = seen
        self._fingerprint.update(schema, columns)
        self._events.append(pa.table([pa.array(columns[f.name], f.type) for f in schema], schema=schema))

    def write_users(self, user_ids: np.ndarray | Sequence[Any]) -> None:
        """Append the original ids of the next users (int64 or string)."""
        self._user_ids.append(np.asarray(user_ids))

    def write_items(self, item_ids: np.ndarray | Sequence[Any], features: Mapping[str, np.ndarray]) -> None:
        """Append the original ids (int64 or string) and the features (int32, -1 missing) of the next items."""
        if set(features) != set(self.info.item_features):
            raise ValueError(f"features: expected {sorted(self.info.item_features)}, found {sorted(features)}")
        self._item_ids.append(np.asarray(item_ids))
        for name, values in features.items():
            self._item_features[name].append(np.asarray(values, np.int32))

    def set_params(self, params: Mapping[str, Any]) -> None:
        """Replace the description's params, as far as they are known only at the end."""
        self.info = replace(self.info, params=dict(params))

    def _finish(self) -> None:
        items, users = sum(map(len, self._item_ids)), sum(map(len, self._user_ids))
        events = self._checker.rows
        if events == 0:
            raise DataError(self.out / EVENTS, "the data set is empty: no event was written")
        if users != self._checker.user + 1:
            message = f"expected {self._checker.user + 1} users as in the events, found {users}"
            raise DataError(self.out / USERS, message)
        if items < len(self._counts):
            raise DataError(self.out / ITEMS, f"expected at least {len(self._counts)} items, found {items}")
        counts = np.zeros(items, np.int64)
        counts[: len(self._counts)] = self._counts
        columns = {"item": np.arange(items, dtype=np.int32), "item_id": np.concatenate(self._item_ids)}
        for name, chunks in self._item_features.items():
            columns[f"item_{name}"] = np.concatenate(chunks)
        pq.write_table(pa.table({**columns, "count": counts}), self.directory / ITEMS, write_page_checksum=True)
        user_columns = {"user": np.arange(users, dtype=np.int32), "user_id": np.concatenate(self._user_ids)}
        pq.write_table(pa.table(user_columns), self.directory / USERS, write_page_checksum=True)
        info = replace(self.info, users=users, items=items, events=events, fingerprint=self._fingerprint.text())
        (self.directory / INFO).write_text(info.to_json(), encoding="utf-8")


def refuse_existing(out: Path, overwrite: bool) -> None:
    """Raises as `require_place` where a data set can neither be made nor replaced at `out`."""
    require_place(out, INFO, overwrite=overwrite)


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
