"""`argus score --joint`: the rows of one request scored in one pass against the stored history of their user.

Rows of equal user, known history, time and context are one request, as an impression list is. Its items are candidates
of `Argus.score_candidates`. So the full form is scored by time, whose states depend on the candidate, and "feedback"
is a score that can be served.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from python_model.data.batches import BatchBuilder, JaggedBatch, history_windows
from python_model.data.identity import identity_of
from python_model.data.schema import Dataset
from python_model.model.argus import Argus
from python_model.model.candidates import Candidates
from python_model.serving import towers
from python_model.serving.scorers import TimedScorer, distinct, read_rows, reasons, with_scores

TOKENS = 1 << 14
"""Events of histories that are encoded together at most, unless one history has more."""


class JointScorer(TimedScorer):
    """Scores the rows of each request jointly; see the module.

    window: newest events of a user that a score sees, at most. score: "pair", "next_item" or "feedback".
    """

    def __init__(
        self, model: Argus, dataset: Dataset, *, score: str | None = None, lag: int | None = None, window: int
    ) -> None:
        super().__init__(model, dataset, lag=lag, window=min(window, model.config.max_events - 1))
        self._kind = "feedback" if score == "feedback" else towers.kind_of(model, score)
        self._builder = BatchBuilder(dataset)

    @cached_property
    def identity(self) -> Mapping[str, Any]:
        """The model's weights and settings, the content of the data set, and the settings of scoring."""
        return {
            "kind": "joint", "model": towers.fingerprint(self._model), "data": identity_of(self._dataset),
            "score": self._kind, "lag": self.lag, "window": self.window,
        }  # fmt: skip

    @torch.inference_mode()
    def __call__(self, rows: pa.Table) -> pa.Table:
        """Rows in their order with their scores; see `RowScorer`."""
        user, item, time = read_rows(rows, self._users, self._items)
        missing = reasons(user, item, time)
        known = np.flatnonzero(missing < 0)
        time = time[known]
        newest = self._newest_known(user[known], time)
        context = self._context(rows, known, newest, time)
        first, request = distinct([newest, time, *context])
        order = np.argsort(request, kind="stable")
        counts = np.bincount(request, minlength=len(first))
        scores = torch.zeros(len(known))
        begins = np.concatenate([[0], np.cumsum(counts)])
        for chosen in self._chunks(newest[first]):
            mine = np.concatenate([order[begins[one] : begins[one + 1]] for one in chosen])
            asked = _requests(item[known][mine], counts[chosen], time[first[chosen]], context[:, first[chosen]])
            scores[torch.from_numpy(mine)] = self._scores(newest[first[chosen]], asked).float().cpu()
        return with_scores(rows, known, missing, scores, None)

    def _chunks(self, newest: np.ndarray) -> Iterator[np.ndarray]:
        """Requests int64 [n] that are scored together: of neighbouring histories, each of which is encoded once."""
        lengths = np.zeros(len(newest), np.int64)
        there = newest >= 0
        begin = self._dataset.offsets[self._dataset.user[newest[there]]]
        lengths[there] = np.minimum(newest[there] + 1 - begin, self.window)
        start = total = 0
        for place, length in enumerate(lengths.tolist()):
            if total + length > TOKENS and place > start:
                yield np.arange(start, place)
                start, total = place, 0
            total += length
        if start < len(newest):
            yield np.arange(start, len(newest))

    def _scores(self, newest: np.ndarray, asked: Candidates) -> Tensor:
        """Scores [N] of requests whose histories end with the events `newest` int64 [B], −1 for an empty one."""
        there = newest >= 0
        batch = self._builder.build(history_windows(self._dataset, newest[there], self.window))
        batch = _with_empty(batch, there).to(self._model.device)
        device = self._model.device
        asked = Candidates(
            asked.items.to(device), asked.offsets.to(device), asked.time.to(device), asked.organic.to(device),
            asked.context.to(device),
        )  # fmt: skip
        return self._model.score_candidates(self._model.store_histories(batch, self._kind, self.lag), asked, self._kind)


def _with_empty(batch: JaggedBatch, there: np.ndarray) -> JaggedBatch:
    """The batch with a user without events wherever `there` (bool [B]) is false."""
    lengths = torch.zeros(len(there), dtype=torch.int64)
    lengths[torch.from_numpy(there)] = (batch.offsets[1:] - batch.offsets[:-1]).long()
    offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]).int()
    users = torch.full((len(there),), -1, dtype=torch.int64)
    users[torch.from_numpy(there)] = batch.users
    return replace(batch, offsets=offsets, users=users)


def _requests(items: np.ndarray, counts: np.ndarray, time: np.ndarray, context: np.ndarray) -> Candidates:
    """Context int64 [K, B]: organic, gap (worked out again by the model) and the data's own columns."""
    return Candidates(
        torch.from_numpy(items.astype(np.int64)),
        torch.from_numpy(np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)),
        torch.from_numpy(time.astype(np.int64)),
        torch.from_numpy(context[0]),
        torch.from_numpy(context[2:]),
    )
