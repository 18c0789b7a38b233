"""Scorers of rows of (user, item, time), from stored user vectors or from stored states.

A scorer is a pure function of one table. It returns the same rows in the same order, with a column `score` (float32)
and a column `score_missing`, the reason for a null score. So tables may be cut anywhere and scored in any process.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from argus_kernels.attention.relative_bias import time_buckets
from python_model.data.identity import identity_of
from python_model.data.schema import Dataset
from python_model.data.times import LATEST, seconds_of
from python_model.io.errors import DataError
from python_model.io.integrity import content_of_arrays
from python_model.model.argus import Argus
from python_model.serving import towers
from python_model.serving.bundle import Export
from python_model.serving.id_files import find_ids
from python_model.serving.ids import IdTable
from python_model.serving.states import Progress, StateFiles, write_states

REASONS = ("unknown user", "unknown item", "no time", "before the user's vector")
"""Reasons why a row has no score, in the order in which they are checked."""

REQUIRED = ("user_id", "item_id", "time")
SCORE, MISSING, USER_VECTOR, ITEM_VECTOR = "score", "score_missing", "user_vector", "item_vector"
CONTEXT = "context_"
CHUNK = 1 << 13
NO_TIME = -1
ROWS = "rows"
"""Placeholder for the file in a table's errors; `python_model.serving.rows.located` replaces it."""


class RowScorer(Protocol):
    """Scores the rows of a table; `identity` is everything that the scores depend on besides the rows."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """JSON values; computed on first use, since it reads everything that the scores depend on."""
        ...

    def check(self, rows: pa.Table) -> None:
        """DataError where the rows break the contract; nothing is scored."""
        ...

    def __call__(self, rows: pa.Table) -> pa.Table:
        """The rows in their order, and `score` and `score_missing` beside their columns."""
        ...


class VectorScorer:
    """Scores with the users' newest vectors.

    A vector depends on all events of its user, so a row has a score only if it is at least `lag` seconds later than the
    newest of them; for an earlier row, the vector may contain its outcome, and the score is null. user_ids,
    user_vectors float32 [U, D], newest int64 [U] (time of each user's newest event); item_ids, item_vectors float32 [V,
    D]. vectors: adds both vectors as columns.
    """

    def __init__(
        self, user_ids: np.ndarray, user_vectors: np.ndarray, newest: np.ndarray, item_ids: np.ndarray,
        item_vectors: np.ndarray, *, lag: int, vectors: bool = False,
    ) -> None:  # fmt: skip
        self._users, self._items = IdTable(user_ids, "the users"), IdTable(item_ids, "the items")
        self._user_vectors, self._item_vectors = torch.from_numpy(user_vectors), torch.from_numpy(item_vectors)
        self._newest, self._lag = newest, lag
        self._known_from = newest + lag
        self._vectors = vectors

    @cached_property
    def identity(self) -> Mapping[str, Any]:
        """The vectors, and which columns are written."""
        users, items = self._user_vectors.numpy(), self._item_vectors.numpy()
        content = content_of_arrays(self._users.ids, users, self._newest, self._items.ids, items)
        return {"kind": "vectors", "content": content, "vectors": self._vectors, "lag": self._lag}

    def check(self, rows: pa.Table) -> None:
        """See `RowScorer`."""
        read_rows(rows, self._users, self._items)

    def __call__(self, rows: pa.Table) -> pa.Table:
        """Rows in their order with their scores; see `RowScorer`."""
        user, item, time = read_rows(rows, self._users, self._items)
        missing = reasons(user, item, time)
        early = (missing < 0) & (time < self._known_from[np.maximum(user, 0)])
        missing[early] = REASONS.index("before the user's vector")
        known = np.flatnonzero(missing < 0)
        one = torch.from_numpy(user[known])
        other = torch.from_numpy(item[known])
        scores = row_dots(self._user_vectors, one, self._item_vectors, other)
        found = (self._user_vectors[one], self._item_vectors[other]) if self._vectors else None
        return with_scores(rows, known, missing, scores, found)


class ExportScorer(VectorScorer):
    """Scores with the vectors of an export."""

    def __init__(self, export: Export, *, vectors: bool = False) -> None:
        super().__init__(
            export.user_ids.ids, export.user_vectors(), export.user_time, export.item_ids.ids, export.item_vectors(),
            lag=export.info.lag, vectors=vectors,
        )  # fmt: skip
        self._info = export.info

    @cached_property
    def identity(self) -> Mapping[str, Any]:
        """The same, and the model that made the vectors."""
        return {**super().identity, "kind": "export", "model": self._info.model, "score": self._info.score}


class TimedScorer:
    """What scorers share whose scores depend on what was known of a user at the time of each row.

    A row at time t uses the user's events that are at least `lag` seconds older than t. Context columns (`organic`,
    `context_…`) come from the rows where present, else from the newest of those events.
    """

    def __init__(self, model: Argus, dataset: Dataset, *, lag: int | None, window: int) -> None:
        self._model, self._dataset = model.eval(), dataset
        self.window = window
        if window < 1:
            raise ValueError(f"window is {window}, expected at least 1")
        if lag is not None and not 0 <= lag <= LATEST:
            raise ValueError(f"lag is {lag}, expected seconds from 0 to {LATEST}")
        self.lag = max(towers.lag_of(model) if lag is None else lag, 1)
        self._users = IdTable(dataset.user_ids, f"the users of {dataset.path}")
        self._items = IdTable(dataset.item_column("item_id"), f"the items of {dataset.path}")
        # Shift the users' times into one rising sequence, so that one search finds the position of every row.
        self._first = int(dataset.time.min())
        self._span = int(dataset.time.max()) - self._first + 2
        self._key = dataset.user.astype(np.int64) * self._span + (dataset.time - self._first)

    def check(self, rows: pa.Table) -> None:
        """See `RowScorer`."""
        read_rows(rows, self._users, self._items)
        none = np.zeros(0, np.int64)
        self._context(rows, none, none, none)

    def _newest_known(self, user: np.ndarray, time: np.ndarray) -> np.ndarray:
        """Row of the user's newest event that a score at `time` may use, −1 where there is none."""
        since = np.clip(time - self.lag - self._first, -1, self._span - 2)
        place = np.searchsorted(self._key, user * self._span + since, side="right") - 1
        return np.where((user >= 0) & (place >= self._dataset.offsets[np.maximum(user, 0)]), place, -1)

    def _context(self, rows: pa.Table, known: np.ndarray, newest: np.ndarray, time: np.ndarray) -> np.ndarray:
        """Context columns int64 [K, n] as the model reads them: organic, gap, the data's own."""
        data, config = self._dataset, self._model.config
        _require_known_context(rows, data.info.context)
        there = newest >= 0
        gap = time_buckets(torch.from_numpy(time - data.time[newest]), config.time_buckets).numpy()
        given = _given(rows, "organic", 2, known)
        columns = [np.where(there, data.organic[newest], 0) if given is None else given, np.where(there, gap, -1)]
        for name, count in data.info.context.items():
            given = _given(rows, CONTEXT + name, count, known)
            columns.append(np.where(there, data.context(name)[newest], -1) if given is None else given)
        return np.stack(columns).astype(np.int64)


class HistoryScorer(TimedScorer):
    """Scores with the state of each user at the time of each row, from stored states.

    A row uses the state after the user's newest event that it may use; without such an event, a known user has the
    start state. Only for the simplified form.
    """

    def __init__(
        self, model: Argus, dataset: Dataset, states: StateFiles | None, *, score: str | None = None,
        lag: int | None = None, window: int, vectors: bool = False,
    ) -> None:  # fmt: skip
        if model.config.form != "simplified":
            raise ValueError(
                f"scoring by time needs the simplified form, whose states are stored; this model's is "
                f"{model.config.form!r}: score with --joint, or from an export"
            )
        super().__init__(model, dataset, lag=lag, window=window)
        self.states = states
        self._kind, self._vectors = towers.kind_of(model, score), vectors
        with torch.inference_mode():
            self._item_vectors = model.item_matrix()

    @cached_property
    def identity(self) -> Mapping[str, Any]:
        """The model's weights and settings, the content of the data set, and the settings of scoring."""
        return {
            "kind": "history", "model": towers.fingerprint(self._model), "data": identity_of(self._dataset),
            "score": self._kind, "lag": self.lag, "window": self.window, "vectors": self._vectors,
        }  # fmt: skip

    @property
    def events(self) -> int:
        """Events of the data set."""
        return len(self._dataset)

    def compute_states(self, rows: np.ndarray, folder: Path, progress: Progress) -> None:
        """Computes the states after the events `rows` (int64 [n], rising) that a folder lacks, and opens them all."""
        self.states = write_states(
            self._model, self._dataset, rows, folder, window=self.window, lag=self.lag, progress=progress
        )

    def state_rows(self, rows: pa.Table) -> np.ndarray:
        """For each row the event whose state it uses, int64; −1 for the start state or a row without a score."""
        user, item, time = read_rows(rows, self._users, self._items)
        return np.where(reasons(user, item, time) < 0, self._newest_known(user, time), -1)

    @torch.inference_mode()
    def __call__(self, rows: pa.Table) -> pa.Table:
        """Rows in their order with their scores; see `RowScorer`."""
        user, item, time = read_rows(rows, self._users, self._items)
        missing = reasons(user, item, time)
        known = np.flatnonzero(missing < 0)
        newest = self._newest_known(user[known], time[known])
        context = self._context(rows, known, newest, time[known])
        # Rows with equal user, state and context, as in one impression list, share one user vector.
        first, place = distinct([newest, *context])
        vectors = self._user_vectors(newest[first], context[:, first])
        one, other = torch.from_numpy(place), torch.from_numpy(item[known])
        device = self._item_vectors.device
        scores = row_dots(vectors, one.to(device), self._item_vectors, other.to(device))
        found = (vectors[one], self._item_vectors[other]) if self._vectors else None
        return with_scores(rows, known, missing, scores, found)

    def _user_vectors(self, newest: np.ndarray, context: np.ndarray) -> Tensor:
        """float32 [n, D] of states and context columns."""
        model, device = self._model, self._model.device
        there = np.flatnonzero(newest >= 0)
        states = model.start.detach().float().expand(len(newest), -1).clone()
        if len(there):
            assert self.states is not None
            rows, place = np.unique(newest[there], return_inverse=True)
            states[torch.from_numpy(there).to(device)] = torch.from_numpy(self.states.after(rows)[place]).to(device)
        parts = []
        for start in range(0, len(newest), CHUNK):
            ids = torch.from_numpy(context[:, start : start + CHUNK]).to(device)
            embedded = model.context_embedding(model.tables, ids)
            readings = torch.cat([states[start : start + CHUNK].to(embedded.dtype), embedded], -1)
            parts.append(towers.vectors_of(model, readings, self._kind))
        return torch.cat(parts) if parts else self._item_vectors.new_zeros(0, self._item_vectors.shape[1])


def read_rows(rows: pa.Table, users: IdTable, items: IdTable) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(user, item, time) int64 of the columns user_id, item_id, time: −1 where null or unknown.

    DataError (of the file ROWS) for a column that is missing or of another type, and for an invalid time.
    """
    columns = {}
    for name in REQUIRED:
        if name not in rows.column_names:
            has = f"they have {', '.join(rows.column_names)}" if rows.column_names else "they have none"
            raise DataError(ROWS, f"this column is missing; {has}", column=name)
        columns[name] = rows.column(name).combine_chunks()
    for name in (SCORE, MISSING, USER_VECTOR, ITEM_VECTOR):
        if name in rows.column_names:
            raise DataError(ROWS, "this column is what scoring adds: leave it out or rename it", column=name)
    user, item = (
        find_ids(table, columns[name], ROWS, name) for table, name in ((users, "user_id"), (items, "item_id"))
    )
    return user, item, _times(columns["time"])


def _times(column: pa.Array) -> np.ndarray:
    """Seconds int64 [n] of a column of times, NO_TIME where null."""
    missing = np.asarray(column.is_null())
    if missing.any() and (pa.types.is_integer(column.type) or pa.types.is_timestamp(column.type)):
        column = column.fill_null(pa.scalar(0).cast(column.type))
    return np.where(missing, NO_TIME, seconds_of(column, ROWS, "time"))


def reasons(user: np.ndarray, item: np.ndarray, time: np.ndarray) -> np.ndarray:
    """int8 [n]: index in REASONS of why a row has no score, −1 where it has one."""
    missing = np.full(len(user), -1, np.int8)
    for name, bad in (("no time", time == NO_TIME), ("unknown item", item < 0), ("unknown user", user < 0)):
        missing[bad] = REASONS.index(name)
    return missing


def row_dots(one: Tensor, rows_of_one: Tensor, other: Tensor, rows_of_other: Tensor) -> Tensor:
    """Dot products float32 [n] of row rows_of_one[i] of one [·, D] with row rows_of_other[i] of the other."""
    out = torch.empty(len(rows_of_one), dtype=torch.float32, device=one.device)
    for start in range(0, len(out), CHUNK):
        rows = slice(start, start + CHUNK)
        torch.sum(
            one.index_select(0, rows_of_one[rows]).mul_(other.index_select(0, rows_of_other[rows])), 1, out=out[rows]
        )
    return out


def distinct(columns: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """(first [m], place [n]) of the distinct rows of int64 columns (values ≥ −1): row i equals row first[place[i]]."""
    key = np.zeros(len(columns[0]), np.int64)
    most = 1
    for column in columns:
        width = int(column.max(initial=-1)) + 2
        if most * width >= 1 << 62:
            _, key = np.unique(key, return_inverse=True)
            most = int(key.max(initial=0)) + 1
        key, most = key * width + (column + 1), most * width
    _, first, place = np.unique(key, return_index=True, return_inverse=True)
    return first, place


def with_scores(
    rows: pa.Table, known: np.ndarray, missing: np.ndarray, scores: Tensor, vectors: tuple[Tensor, Tensor] | None
) -> pa.Table:
    """The rows with the columns of scoring; scores and vectors are those of the rows `known`, in order."""
    values = np.zeros(len(rows), np.float32)
    values[known] = scores.cpu().numpy()
    out = rows.append_column(SCORE, pa.array(values, mask=missing >= 0))
    codes = pa.array(np.maximum(missing, 0), pa.int8(), mask=missing < 0)
    out = out.append_column(MISSING, pa.DictionaryArray.from_arrays(codes, pa.array(REASONS)))
    for name, found in zip((USER_VECTOR, ITEM_VECTOR), vectors or (), strict=False):
        out = out.append_column(name, _vector_column(found.cpu().numpy(), known, len(rows)))
    return out


def _vector_column(vectors: np.ndarray, known: np.ndarray, rows: int) -> pa.Array:
    width = vectors.shape[1]
    flat = np.zeros((rows, width), np.float32)
    flat[known] = vectors
    unknown = np.ones(rows, bool)
    unknown[known] = False
    return pa.FixedSizeListArray.from_arrays(pa.array(flat.ravel()), width, mask=pa.array(unknown))


def _require_known_context(rows: pa.Table, known: Mapping[str, int]) -> None:
    """DataError for a context column that the data set does not have: ignoring it silently would change scores."""
    for name in rows.column_names:
        if name.startswith(CONTEXT) and name.removeprefix(CONTEXT) not in known:
            has = ", ".join(CONTEXT + one for one in known) or "none"
            raise DataError(ROWS, f"expected a context column of the data set ({has}): rename or drop it", column=name)


def _given(rows: pa.Table, name: str, count: int, known: np.ndarray) -> np.ndarray | None:
    """A context column of the rows `known`, nulls as −1; None where the table does not have it."""
    if name not in rows.column_names:
        return None
    values = rows.column(name).combine_chunks()
    if not (pa.types.is_integer(values.type) or pa.types.is_boolean(values.type)):
        raise DataError(ROWS, f"expected integers, found {values.type}", column=name)
    missing = np.asarray(values.is_null())
    if pa.types.is_boolean(values.type):
        values = values.cast(pa.int8())
    array: np.ndarray = values.fill_null(0).to_numpy(zero_copy_only=False)
    wrong = (array < -1) | (array >= count)
    if wrong.any():
        at = int(np.argmax(wrong))
        raise DataError(ROWS, f"expected a value in [-1, {count - 1}], found {array[at]}", column=name, row=at + 1)
    return np.where(missing, -1, array.astype(np.int64))[known]
