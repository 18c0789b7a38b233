"""What `argus evaluate --details` adds: discovery, calibration of the feedback heads, intervals over users.

Discovery is measured on one list per user, the catalogue ranked right before the first of their evaluated events. With
k the cut-off: `new_ndcg@k` and `new_recall@k` leave out of the list what the user has had before (the mode "unfamiliar"
of a service, in which only new items are recommended) and ask for the items of the evaluated events that are new to the
user, as means over the users that have one. `coverage@k` and `gini@k` are of the first k items of the lists of all
users, items that they know included.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from python_model.data.schema import Dataset
from python_model.evaluation import metrics
from python_model.evaluation.metrics_details import Calibration, bootstrap_intervals, calibration, coverage, gini
from python_model.evaluation.predictions import Predictions, Predictor
from python_model.evaluation.user_gains import UserGains
from python_model.evaluation.user_lists import ListPredictor, Requests, ideal_dcg, ranks_of

DISCOVERY = ("new_ndcg", "new_recall", "coverage", "gini")


def details_of(
    dataset: Dataset, rows: np.ndarray, next_items: np.ndarray, predictors: Mapping[str, Predictor],
    predictions: Mapping[str, Predictions], k: Sequence[int],
) -> dict[str, Any]:  # fmt: skip
    """JSON-ready: "discovery", "calibration" and "intervals", each by predictor.

    rows: int64 [n], rising, the evaluated events; next_items: bool [n], those whose item is to be predicted.
    discovery: metric -> value, None where it is not defined. calibration: feedback component -> its ECE ("error") and
    bins ("predicted", "observed", "events"); of a component of several classes it is that of the most probable one.
    intervals: metric -> [low, high], 95 % over bootstrap samples of users.
    """
    lists = Discovery(dataset, rows[next_items])
    return {
        "discovery": {name: lists.row(predictor, k) for name, predictor in predictors.items()},
        "calibration": {name: _calibrations(dataset, rows, one) for name, one in predictions.items() if one.feedback},
        "intervals": _intervals(dataset, rows, next_items, predictions, k),
    }


class Discovery:
    """One list per user and the new items that it should hold."""

    def __init__(self, dataset: Dataset, rows: np.ndarray) -> None:
        """rows: int64 [n], rising, the events whose items are to be predicted."""
        users, first = np.unique(dataset.user[rows], return_index=True)
        self._dataset, self._users = dataset, users.astype(np.int64)
        self._starts, self._ends = dataset.offsets[self._users].astype(np.int64), rows[first]
        bounds = np.append(first, len(rows))
        self._wanted = [
            np.setdiff1d(dataset.item[rows[low:high]], self._heard(n)) for n, (low, high) in enumerate(pairwise(bounds))
        ]

    def _heard(self, place: int) -> np.ndarray:
        return np.unique(self._dataset.item[self._starts[place] : self._ends[place]])

    def row(self, predictor: object, k: Sequence[int]) -> dict[str, float | None]:
        """The metrics DISCOVERY at every cut-off; None for a predictor that makes no lists."""
        names = [f"{metric}@{cutoff}" for cutoff in k for metric in DISCOVERY]
        # A user without any history has no list.
        known = np.flatnonzero(self._ends > self._starts)
        if not isinstance(predictor, ListPredictor) or len(known) == 0:
            return dict.fromkeys(names)
        shown = {cutoff: np.zeros(self._dataset.info.items, np.int64) for cutoff in k}
        ranks: list[np.ndarray] = []
        place = 0
        for scores in predictor.catalogue_scores(Requests(self._users[known], self._ends[known], 0)):
            for values in scores:
                best = values.topk(min(max(k), len(values))).indices.cpu().numpy()
                for cutoff in k:
                    shown[cutoff][best[:cutoff]] += 1
                values = values.clone()
                values[torch.from_numpy(self._heard(int(known[place])).astype(np.int64))] = -torch.inf
                wanted = torch.from_numpy(self._wanted[int(known[place])].astype(np.int64))
                ranks.append(ranks_of(values, wanted.to(values.device)))
                place += 1
        values_of = {}
        for cutoff in k:
            ndcg, recall = _means([one for one in ranks if len(one)], cutoff)
            values_of.update({
                f"new_ndcg@{cutoff}": ndcg, f"new_recall@{cutoff}": recall,
                f"coverage@{cutoff}": coverage(shown[cutoff]), f"gini@{cutoff}": gini(shown[cutoff]),
            })  # fmt: skip
        return {name: _defined(values_of[name]) for name in names}


def _means(ranks: Sequence[np.ndarray], k: int) -> tuple[float, float]:
    """Means over users of NDCG@k and recall@k, from the ranks of each one's relevant items."""
    if not ranks:
        return float("nan"), float("nan")
    ideal = ideal_dcg(np.array([len(one) for one in ranks]), k)
    dcg = np.array([metrics.ndcg_gains(one, k).sum() for one in ranks])
    return float((dcg / ideal).mean()), float(np.mean([metrics.recall_gains(one, k).mean() for one in ranks]))


def _calibrations(dataset: Dataset, rows: np.ndarray, prediction: Predictions) -> dict[str, Any]:
    out = {}
    for task, log_probabilities in prediction.feedback.items():
        labels = dataset.feedback(task)[rows].astype(np.int64)
        seen = labels >= 0
        found = calibration_of(log_probabilities[seen], labels[seen])
        out[task] = {
            "error": _defined(found.error), "predicted": found.predicted.tolist(), "observed": found.observed.tolist(),
            "events": found.events.tolist(),
        }  # fmt: skip
    return out


def calibration_of(log_probabilities: np.ndarray, labels: np.ndarray) -> Calibration:
    """Of "yes" for two classes, else of the most probable class; log_probabilities [n, C], labels int [n]."""
    probability = np.exp(log_probabilities)
    if probability.shape[1] == 2:
        return calibration(np.clip(probability[:, 1], 0, 1), labels == 1)
    guess = probability.argmax(axis=1)
    return calibration(np.clip(probability[np.arange(len(labels)), guess], 0, 1), labels == guess)


def _intervals(
    dataset: Dataset, rows: np.ndarray, next_items: np.ndarray, predictions: Mapping[str, Predictions], k: Sequence[int]
) -> dict[str, dict[str, list[float]]]:
    """Intervals of NDCG, recall and pairwise accuracy over the evaluated events."""
    by_user = UserGains(dataset, rows, next_items)
    keys, gains, weights = [], [], []
    for name, one in predictions.items():
        for metric, (gain, weight) in by_user.of(one, k).items():
            keys.append((name, metric))
            gains.append(gain)
            weights.append(weight)
    out: dict[str, dict[str, list[float]]] = {name: {} for name in predictions}
    if keys:
        for (name, metric), (low, high) in zip(
            keys, bootstrap_intervals(np.stack(gains, axis=1), np.stack(weights, axis=1)), strict=True
        ):
            if np.isfinite(low):
                out[name][metric] = [float(low), float(high)]
    return out


def _defined(value: float) -> float | None:
    return None if np.isnan(value) else value
