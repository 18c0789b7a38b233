"""Metrics as ratios of sums over users, so that intervals can be drawn over users.

A user's events depend on each other; users do not. Every metric here is sum(gains) / sum(weights) with one entry a
user, and drawing users anew gives its interval and that of a difference between two rows of the same users.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from python_model.data.schema import Dataset
from python_model.evaluation import metrics
from python_model.evaluation.predictions import Predictions

UserSums = tuple[np.ndarray, np.ndarray]
"""Gains and weights, float64 [users] each."""


class UserGains:
    """The evaluated events by user; `of` splits the metrics of one row.

    rows: int64 [n], rising, the evaluated events; next_items: bool [n], those whose item is to be predicted. unigram:
    the predictions of popularity, whose log loss normalises that of the next item; None leaves next_item_ne out.
    """

    def __init__(
        self, dataset: Dataset, rows: np.ndarray, next_items: np.ndarray, unigram: Predictions | None = None
    ) -> None:
        users, starts = np.unique(dataset.user[rows], return_index=True)
        self.users = len(users)
        self._offsets = np.append(starts, len(rows))
        self._owner = np.repeat(np.arange(len(users)), np.diff(self._offsets))
        self._next_items, self._unigram = next_items, unigram
        self._grade, self._time, self._window = dataset.grade[rows], dataset.time[rows], dataset.info.pair_window
        self._labels = {task: dataset.feedback(task)[rows].astype(np.int64) for task in dataset.info.feedback}

    def of(self, one: Predictions, k: Sequence[int], tasks: Sequence[str] = ()) -> dict[str, UserSums]:
        """Metric -> its sums by user, for what the row predicts. tasks: of the mean feedback_ne; none leaves it out."""
        out: dict[str, UserSums] = {}
        if one.next_item is not None:
            asked = self._sum(np.ones(len(self._owner)), self._next_items)
            rank = one.next_item.rank
            for cutoff in k:
                out[f"ndcg@{cutoff}"] = self._sum(metrics.ndcg_gains(rank, cutoff), self._next_items), asked
                out[f"recall@{cutoff}"] = self._sum(metrics.recall_gains(rank, cutoff), self._next_items), asked
            if self._unigram is not None and self._unigram.next_item is not None:
                base = self._sum(self._unigram.next_item.log_loss, self._next_items)
                out["next_item_ne"] = self._sum(one.next_item.log_loss, self._next_items), base
        if one.ranking is not None:
            pairs = metrics.count_pairs(one.ranking, self._grade, self._offsets, self._time, self._window)
            out["pairwise_accuracy"] = pairs.gains, pairs.pairs.astype(np.float64)
        if one.feedback and tasks:
            out["feedback_ne"] = self._feedback(one.feedback, tasks)
        return out

    def _feedback(self, found: Mapping[str, np.ndarray], tasks: Sequence[str]) -> UserSums:
        """The mean over tasks of log loss over entropy; the entropy is that of all evaluated events."""
        events = np.ones(len(self._owner))
        gains = np.zeros(self.users)
        for task in tasks:
            labels = self._labels[task]
            seen = labels >= 0
            base = metrics.entropy(labels[seen], found[task].shape[1]) * seen.sum()
            loss = -found[task][np.arange(len(labels)), np.maximum(labels, 0)]
            gains += self._sum(loss, seen) * (len(events) / (base * len(tasks)))
        return gains, self._sum(events, events > 0)

    def _sum(self, values: np.ndarray, chosen: np.ndarray) -> np.ndarray:
        return np.bincount(self._owner[chosen], weights=values[chosen], minlength=self.users)
