"""Predictors without a model: popularity, item averages, and the oracle of the synthetic service.

The counts are over the training events, the same that the models are trained on.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from python_model.data.schema import Dataset
from python_model.data.synthetic import OracleScores
from python_model.evaluation.metrics import BLOCK_SCORES, Ranking, concatenate_rankings, rank_scores
from python_model.evaluation.predictions import Predictions
from python_model.evaluation.user_lists import Requests


class Popularity:
    """Popularity: the same prediction for every user.

    Next item: frequency in training, P(v) = (count + 1) / (N + V), which is never zero. Feedback: the training
    frequency of each class, with one event of every class added. Pairs: the more popular item first.
    """

    def __init__(self, dataset: Dataset, training_rows: np.ndarray) -> None:
        """training_rows: int64 or bool index of the training events."""
        self._dataset = dataset
        self.counts = np.bincount(dataset.item[training_rows], minlength=dataset.info.items)
        total = self.counts.sum() + dataset.info.items
        self.log_probability = np.log((self.counts + 1.0) / total)
        # Rank of an item: the items at least as frequent as itself, ties against it.
        self._rank = len(self.counts) - np.searchsorted(np.sort(self.counts), self.counts, side="left")
        self._feedback = {task: _log_frequencies(dataset, task, training_rows) for task in dataset.info.feedback}

    def predict(self, rows: np.ndarray) -> Predictions:
        """Predictions for events `rows`."""
        item = self._dataset.item[rows]
        return Predictions(
            next_item=Ranking(self._rank[item], -self.log_probability[item]),
            feedback={task: np.tile(values, (len(rows), 1)) for task, values in self._feedback.items()},
            ranking=self.counts[item].astype(np.float64),
        )

    def catalogue_scores(self, requests: Requests) -> Iterator[torch.Tensor]:
        """The counts, the same for every user: see `user_lists.ListPredictor`."""
        scores = torch.from_numpy(self.counts.astype(np.float64))
        for _ in requests.users:
            yield scores[None]


class ItemAverage:
    """The mean feedback of each item: the strongest prediction that is the same for every user.

    Next item: popularity. Feedback and pairs: the item's mean in training, shrunk towards the mean of all items with
    the weight of `prior` events.
    """

    def __init__(self, dataset: Dataset, training_rows: np.ndarray, prior: float = 10.0) -> None:
        self._dataset = dataset
        self._popularity = Popularity(dataset, training_rows)
        items = dataset.item[training_rows]
        self._feedback = {}
        for task, component in dataset.info.feedback.items():
            labels = dataset.feedback(task)[training_rows]
            share = np.exp(_log_frequencies(dataset, task, training_rows))
            seen = np.stack([_count(items[labels == c], dataset) for c in range(component.classes)], axis=1)
            mean = (seen + prior * share) / (seen.sum(axis=1, keepdims=True) + prior)
            self._feedback[task] = np.log(mean)
        grade = dataset.grade[training_rows].astype(np.float64)
        graded = grade >= 0
        mean_grade = grade[graded].mean() if graded.any() else 0.0
        total = np.bincount(items[graded], weights=grade[graded], minlength=dataset.info.items)
        self.mean_grade = (total + prior * mean_grade) / (_count(items[graded], dataset) + prior)

    def predict(self, rows: np.ndarray) -> Predictions:
        """Predictions for events `rows`."""
        item = self._dataset.item[rows]
        return Predictions(
            next_item=self._popularity.predict(rows).next_item,
            feedback={task: values[item] for task, values in self._feedback.items()},
            ranking=self.mean_grade[item],
        )

    def catalogue_scores(self, requests: Requests) -> Iterator[torch.Tensor]:
        """Those of popularity."""
        return self._popularity.catalogue_scores(requests)


class Oracle:
    """The true probabilities from which the synthetic service draws its events: no model can do better.

    context: restricts the oracle to so many events of the past (`OracleScores`).
    """

    def __init__(self, dataset: Dataset, context: int | None = None) -> None:
        """ValueError where the data set is not a synthetic one."""
        self._dataset = dataset
        self._scores = OracleScores(dataset.path, context)

    def predict(self, rows: np.ndarray) -> Predictions:
        """Predictions for events `rows`."""
        return Predictions(
            next_item=self._rank(rows),
            feedback={task: self._log_probabilities(task, rows) for task in self._dataset.info.feedback},
            ranking=self._scores.utility(rows),
        )

    def _rank(self, rows: np.ndarray) -> Ranking:
        block = max(1, BLOCK_SCORES // self._dataset.info.items)
        parts = []
        for start in range(0, len(rows), block):
            part = rows[start : start + block]
            targets = torch.from_numpy(self._dataset.item[part].astype(np.int64))
            parts.append(rank_scores(torch.from_numpy(self._scores.next_item_scores(part)), targets))
        return concatenate_rankings(parts)

    def _log_probabilities(self, task: str, rows: np.ndarray) -> np.ndarray:
        probability = self._scores.feedback_probabilities(task, rows).astype(np.float64)
        if probability.ndim == 1:
            probability = np.stack([1.0 - probability, probability], axis=1)
        with np.errstate(divide="ignore"):
            return np.log(probability)


def _count(items: np.ndarray, dataset: Dataset) -> np.ndarray:
    return np.bincount(items, minlength=dataset.info.items).astype(np.float64)


def _log_frequencies(dataset: Dataset, task: str, training_rows: np.ndarray) -> np.ndarray:
    """float64 [C]: log of the smoothed frequency of each class among the observed training events."""
    classes = dataset.info.feedback[task].classes
    labels = dataset.feedback(task)[training_rows]
    counts = np.bincount(labels[labels >= 0], minlength=classes) + 1.0
    return np.log(counts / counts.sum())
