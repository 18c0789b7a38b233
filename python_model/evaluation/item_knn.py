"""Item-kNN: items that co-occur with the items of a user's history.

    similarity(i, j) = c_ij / (√(c_i c_j) + shrinkage),     i ≠ j

with c_i the number of users with item i in training and c_ij with both; the cosine of two binary columns, shrunk
towards 0 where few users support it (Deshpande & Karypis, 2004). Each item keeps its `neighbours` most similar items;
the score of an item is the sum of its similarities to the distinct items of the user's history.

Co-occurrences are counted from the pairs of each user's items, one block of items at a time, with at most PAIRS_AT_ONCE
counts per block. Time is the sum over users of their squared number of distinct items; memory is a block and the
neighbours.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from python_model.data.schema import Dataset
from python_model.evaluation.metrics import BLOCK_SCORES, Ranking, concatenate_rankings, rank_scores
from python_model.evaluation.predictions import Predictions
from python_model.evaluation.user_lists import Requests

PAIRS_AT_ONCE = 1 << 22


class ItemKnn:
    """Item-kNN as a predictor: the next item and the order of impressions, no feedback.

    training_rows: int64 or bool index of the training events. neighbours: kept for each item. shrinkage: in users.
    window: newest events of a history that count. Impressions are scored by events older than them by more than the
    data's pair window, as in every other row of a table.
    """

    def __init__(
        self, dataset: Dataset, training_rows: np.ndarray, *, neighbours: int = 100, shrinkage: float = 10.0,
        window: int = 128,
    ) -> None:  # fmt: skip
        if neighbours < 1 or window < 1 or not shrinkage >= 0:
            raise ValueError(
                f"item-kNN: expected neighbours and window of at least 1 and a shrinkage of at least 0, found "
                f"{neighbours}, {window} and {shrinkage}"
            )
        self._dataset, self._window = dataset, window
        self._items = dataset.info.items
        self._rows, self._kept, self._shrinkage = training_rows, min(neighbours, self._items), shrinkage

    @cached_property
    def _near(self) -> tuple[np.ndarray, np.ndarray]:
        """The result of `most_similar`, computed on first use."""
        user, item = (column[self._rows].astype(np.int64) for column in (self._dataset.user, self._dataset.item))
        pairs = np.unique(user * self._items + item)
        return most_similar(pairs // self._items, pairs % self._items, self._items, self._kept, self._shrinkage)

    def predict(self, rows: np.ndarray) -> Predictions:
        """Predictions for events `rows`; the log loss is not defined, since scores are not probabilities."""
        data = self._dataset
        lag = data.info.pair_window + 1
        parts, ranking = [], np.zeros(len(rows))
        block = max(1, BLOCK_SCORES // self._items)
        for start in range(0, len(rows), block):
            part = rows[start : start + block]
            targets = torch.from_numpy(data.item[part].astype(np.int64))
            found = rank_scores(self._scores(data.offsets[data.user[part]], part), targets)
            parts.append(Ranking(found.rank, np.full(len(part), np.nan)))
            lagged = self._scores(data.offsets[data.user[part]], self._known(part, lag))
            ranking[start : start + block] = lagged.gather(1, targets[:, None])[:, 0].numpy()
        return Predictions(next_item=concatenate_rankings(parts), ranking=ranking)

    def catalogue_scores(self, requests: Requests) -> Iterator[Tensor]:
        """Scores of the whole catalogue for each user: see `user_lists.ListPredictor`."""
        block = max(1, BLOCK_SCORES // self._items)
        starts = self._dataset.offsets[requests.users]
        for begin in range(0, len(starts), block):
            yield self._scores(starts[begin : begin + block], requests.ends[begin : begin + block])

    def _known(self, rows: np.ndarray, lag: int) -> np.ndarray:
        """For each row, one past the last event of its user that is at least `lag` seconds older."""
        time, starts = self._dataset.time, self._dataset.offsets[self._dataset.user[rows]]
        known = [
            start + np.searchsorted(time[start:row], time[row] - lag, side="right")
            for start, row in zip(starts.tolist(), rows.tolist(), strict=True)
        ]
        return np.array(known, np.int64)

    def _scores(self, starts: np.ndarray, ends: np.ndarray) -> Tensor:
        """float32 [n, V] from the newest events before rows ends[i], none before starts[i]."""
        neighbours, similarities = self._near
        scores = np.zeros((len(starts), self._items), np.float32)
        for place, (start, end) in enumerate(zip(starts.tolist(), ends.tolist(), strict=True)):
            history = np.unique(self._dataset.item[max(start, end - self._window) : end])
            near, similarity = neighbours[history], similarities[history]
            scores[place] = np.bincount(near.ravel(), weights=similarity.ravel(), minlength=self._items)
        return torch.from_numpy(scores)


def most_similar(
    user: np.ndarray, item: np.ndarray, items: int, neighbours: int, shrinkage: float
) -> tuple[np.ndarray, np.ndarray]:
    """The most similar items of each item and their similarities: int32 and float32 [items, neighbours].

    user, item: int64 [n], distinct pairs sorted by user. Rows with fewer neighbours are padded with similarity 0. Row i
    is looked up for an item i of the history and holds the items whose scores it raises.
    """
    counts = np.bincount(item, minlength=items).astype(np.float64)
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(np.bincount(user))]) if len(user) else np.zeros(1)
    near = np.zeros((items, neighbours), np.int32)
    similarity = np.zeros((items, neighbours), np.float32)
    order = np.argsort(item, kind="stable")
    block = max(1, PAIRS_AT_ONCE // max(items, 1))
    for first in range(0, items, block):
        last = min(first + block, items)
        low, high = np.searchsorted(item[order], [first, last])
        together = _together(user, item, offsets, order[low:high], first, last, items)
        rows = np.arange(first, last)
        together[rows - first, rows] = 0.0
        found = together / (np.sqrt(counts[first:last, None] * counts) + max(shrinkage, 1e-12))
        best = np.argpartition(found, items - neighbours, axis=1)[:, items - neighbours :]
        near[first:last] = best
        similarity[first:last] = np.take_along_axis(found, best, axis=1)
    return near, similarity


def _together(
    user: np.ndarray, item: np.ndarray, offsets: np.ndarray, chosen: np.ndarray, first: int, last: int, items: int
) -> np.ndarray:
    """float64 [last − first, items]: users who have both; `chosen`: indices of the pairs with the block's items."""
    together = np.zeros((last - first) * items)
    lengths = np.diff(offsets)[user[chosen]]
    ends = np.cumsum(lengths)
    begin = 0
    while begin < len(chosen):
        done = ends[begin - 1] if begin else 0
        stop = max(begin + 1, int(np.searchsorted(ends, done + PAIRS_AT_ONCE, side="right")))
        part, length = chosen[begin:stop], lengths[begin:stop]
        within = np.arange(length.sum()) - np.repeat(np.cumsum(length) - length, length)
        other = item[np.repeat(offsets[user[part]], length) + within]
        key = np.repeat(item[part] - first, length) * items + other
        together += np.bincount(key, minlength=len(together))
        begin = stop
    return together.reshape(last - first, items)
