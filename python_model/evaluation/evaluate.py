"""Evaluation: predictions of models, baselines and the oracle for held-out events, and the table of their metrics.

Three protocols. "temporal": the events after a point in time, for all users at once; models are trained on earlier
events only. "leave-last-out": the last event of every user. "yambda": the last day of that benchmark's split; NDCG and
recall are then computed from one list per user (`user_lists`), next items are Listen+ events, feedback and pairs cover
the whole day. The history of an evaluated event is everything its user did before it, held-out events included, as in
serving.

Metrics are averages over the evaluated events (over pairs for the pairwise accuracy), not over users; standard errors
take users, not events, as independent.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from python_model.data.schema import Dataset
from python_model.data.splits import PROTOCOLS, events_to_predict, make_split
from python_model.evaluation import metrics
from python_model.evaluation.baselines import ItemAverage, Oracle, Popularity
from python_model.evaluation.details import details_of
from python_model.evaluation.item_knn import ItemKnn
from python_model.evaluation.predictions import Predictions, Predictor
from python_model.evaluation.user_gains import UserGains, UserSums
from python_model.evaluation.user_lists import DEFINITIONS, UserLists

__all__ = ["PROTOCOLS", "EvaluationResult", "evaluate", "make_split", "sample_users"]
Metrics = dict[str, float | None]


@dataclass(frozen=True)
class EvaluationResult:
    """Rows of metrics, and the counts of what they were measured on.

    rows: predictor -> metric -> value, None where it is not defined. standard_errors: the same shape, where known.
    feedback: predictor -> task -> {"normalized_entropy", "auc"}. counts: events, users, pairs. pair_window: seconds.
    details: where asked for, what `details.details_of` returns. by_user: where asked for, predictor -> metric -> gains
    and weights by user (`user_gains`), whose sums' ratio is the metric.
    """

    protocol: str
    dataset: str
    pair_window: int
    rows: dict[str, Metrics]
    standard_errors: dict[str, Metrics]
    feedback: dict[str, dict[str, Metrics]]
    counts: dict[str, int]
    notes: list[str] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)
    by_user: dict[str, dict[str, UserSums]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, without `by_user`; rows come first."""
        return {
            "rows": self.rows,
            "protocol": self.protocol,
            "dataset": self.dataset,
            "pair_window": self.pair_window,
            "counts": self.counts,
            "standard_errors": self.standard_errors,
            "feedback": self.feedback,
            "notes": self.notes,
            **({"details": self.details} if self.details else {}),
        }


def evaluate(
    models: Mapping[str, Predictor], dataset: Dataset, *, protocol: str = "temporal", part: str = "test",
    k: Sequence[int] = (10,), max_events: int | None = None, seed: int = 0, item_average: bool = False,
    item_knn: bool = False, oracle: bool = True, lists: str = "per-user", details: bool = False,
    by_user: bool = False,
) -> EvaluationResult:  # fmt: skip
    """Evaluate predictors beside popularity and, on synthetic data, the oracle.

    models: row name -> predictor. part: "test" or "validation" of the split. k: cut-offs of recall and NDCG.
    max_events: evaluate whole users, drawn by `seed`, until there are this many events. item_average, item_knn: add
    the rows of these names. oracle: false leaves the oracle out. lists: the definition of NDCG and recall under the
    protocol "yambda", one of `user_lists.DEFINITIONS`. details: fill `EvaluationResult.details`.
    by_user: fill `EvaluationResult.by_user`.
    """
    if lists not in DEFINITIONS or (lists != "per-user" and protocol != "yambda"):
        raise ValueError(
            f"metrics: expected per-user, or benchmark with the protocol yambda, found {lists} with {protocol}"
        )
    if any(cutoff < 1 for cutoff in k) or not k:
        raise ValueError(f"k: expected cut-offs of at least 1, found {list(k)}")
    split = make_split(dataset, protocol)
    rows = np.flatnonzero(split.test if part == "test" else split.validation)
    rows = sample_users(dataset, rows, max_events, seed)
    # The baselines count only events whose items are to be predicted.
    counted = events_to_predict(dataset, protocol)
    training_rows = np.flatnonzero(split.train & counted)
    predictors: dict[str, Predictor] = {"popularity": Popularity(dataset, training_rows)}
    if item_average:
        predictors["item_average"] = ItemAverage(dataset, training_rows)
    if item_knn:
        predictors["item_knn"] = ItemKnn(dataset, training_rows)
    predictors.update(models)
    if oracle and dataset.info.has_oracle:
        predictors["oracle"] = Oracle(dataset)
    predictions = {name: predictor.predict(rows) for name, predictor in predictors.items()}
    scorer = Scorer(dataset, rows, protocol, k, counted[rows])
    result = scorer.score(predictions)
    if protocol == "yambda":
        asked = UserLists(dataset, split, part, np.unique(dataset.user[rows]), lists)
        _replace_by_lists(result, asked, predictors, k, lists)
    if by_user:
        result.by_user.update(scorer.by_user(predictions))
    if details:
        result.details.update(details_of(dataset, rows, counted[rows], predictors, predictions, k))
    return result


def _replace_by_lists(
    result: EvaluationResult, lists: UserLists, predictors: Mapping[str, Predictor], k: Sequence[int], definition: str
) -> None:
    for name, predictor in predictors.items():
        row, error = lists.row(predictor, k)
        result.rows[name].update(row)
        result.standard_errors[name].update(error)
    result.counts["lists"] = len(lists)
    text = f"NDCG and recall are means over {len(lists):,} users, one list each from before the held-out day"
    if definition == "benchmark":
        text += "; by the benchmark's definitions: mean DCG ÷ mean ideal DCG, repeated listens count"
    result.notes.append(text)


def sample_users(dataset: Dataset, rows: np.ndarray, max_events: int | None, seed: int) -> np.ndarray:
    """Keep the rows of randomly drawn users until `max_events` rows are reached; None keeps all. Rows stay in order.

    A single user with more rows keeps the first `max_events` of them.
    """
    if max_events is None or len(rows) <= max_events:
        return rows
    if max_events < 1:
        raise ValueError(f"max_events: expected at least 1, found {max_events}")
    users, counts = np.unique(dataset.user[rows], return_counts=True)
    order = np.random.default_rng(seed).permutation(len(users))
    taken = int(np.searchsorted(np.cumsum(counts[order]), max_events)) + 1
    position = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    return rows[np.isin(dataset.user[rows], users[order[:taken]]) & (position < max_events)]


class Scorer:
    """Turns predictions for the same events into one table."""

    def __init__(
        self, dataset: Dataset, rows: np.ndarray, protocol: str, k: Sequence[int], next_items: np.ndarray
    ) -> None:
        """next_items: bool [rows], the events whose item is to be predicted."""
        self.dataset, self.rows, self.protocol, self.k, self.next_items = dataset, rows, protocol, k, next_items
        users, starts = np.unique(dataset.user[rows], return_index=True)
        self.offsets = np.append(starts, len(rows))
        self.cluster = np.repeat(np.arange(len(users)), np.diff(self.offsets))
        self.labels = {task: dataset.feedback(task)[rows].astype(np.int64) for task in dataset.info.feedback}

    def score(self, predictions: Mapping[str, Predictions]) -> EvaluationResult:
        pairs = {name: self._pairs(p) for name, p in predictions.items() if p.ranking is not None}
        feedback = {name: self._feedback(p) for name, p in predictions.items()}
        tasks = self._shared_tasks(feedback)
        base = predictions["popularity"].next_item
        assert base is not None
        unigram = _mean_of(base.log_loss[self.next_items])
        rows, errors = {}, {}
        for name, prediction in predictions.items():
            row, error = self._next_item(prediction, unigram)
            found = pairs.get(name)
            row["pairwise_accuracy"] = _defined(found.accuracy) if found else None
            error["pairwise_accuracy"] = _defined(_pairs_error(found)) if found else None
            row["feedback_ne"] = _mean(feedback[name], "normalized_entropy", tasks)
            row["feedback_auc"] = _mean(feedback[name], "auc", tasks)
            rows[name], errors[name] = _in_order(row, self.k), error
        counts = {
            "events": len(self.rows),
            "users": len(self.offsets) - 1,
            "pairs": next(iter(pairs.values())).total if pairs else 0,
        }
        info = self.dataset.info
        return EvaluationResult(
            self.protocol, info.name, info.pair_window, rows, errors, feedback, counts, self._notes(tasks, counts)
        )

    def by_user(self, predictions: Mapping[str, Predictions]) -> dict[str, dict[str, UserSums]]:
        """The metrics of every row as sums by user; NDCG and recall of lists (protocol "yambda") are none."""
        tasks = self._shared_tasks({name: self._feedback(p) for name, p in predictions.items()})
        gains = UserGains(self.dataset, self.rows, self.next_items, predictions["popularity"])
        k = () if self.protocol == "yambda" else self.k
        return {name: gains.of(prediction, k, tasks) for name, prediction in predictions.items()}

    def _next_item(self, prediction: Predictions, unigram: float) -> tuple[Metrics, Metrics]:
        row: Metrics = {}
        error: Metrics = {}
        ranking = prediction.next_item
        for cutoff in self.k:
            for metric, gains_of in (("ndcg", metrics.ndcg_gains), ("recall", metrics.recall_gains)):
                gains = gains_of(ranking.rank[self.next_items], cutoff) if ranking is not None else None
                row[f"{metric}@{cutoff}"] = None if gains is None else _defined(_mean_of(gains))
                error[f"{metric}@{cutoff}"] = None if gains is None else _defined(self._error(gains))
        loss = math.nan if ranking is None else _mean_of(ranking.log_loss[self.next_items])
        # With a single item the unigram loss is 0, and the normalised loss is not defined.
        row["next_item_ne"] = _defined(loss / unigram) if unigram else None
        return row, error

    def _pairs(self, prediction: Predictions) -> metrics.Pairs:
        assert prediction.ranking is not None
        time, grade = self.dataset.time[self.rows], self.dataset.grade[self.rows]
        return metrics.count_pairs(prediction.ranking, grade, self.offsets, time, self.dataset.info.pair_window)

    def _feedback(self, prediction: Predictions) -> dict[str, Metrics]:
        out: dict[str, Metrics] = {}
        for task, log_probabilities in prediction.feedback.items():
            seen = self.labels[task] >= 0
            labels, log_p = self.labels[task][seen], log_probabilities[seen]
            auc = metrics.auc(log_p[:, 1], labels) if self.dataset.info.feedback[task].is_binary else math.nan
            entropy = metrics.normalized_entropy(log_p, labels)
            out[task] = {"normalized_entropy": _defined(entropy), "auc": _defined(auc)}
        return out

    def _shared_tasks(self, feedback: Mapping[str, Mapping[str, Metrics]]) -> list[str]:
        """Tasks defined for every predictor of feedback: only averages over these are comparable."""
        return [
            task
            for task in self.dataset.info.feedback
            if all(found.get(task, {}).get("normalized_entropy") is not None for found in feedback.values() if found)
        ]

    def _notes(self, tasks: list[str], counts: Mapping[str, int]) -> list[str]:
        notes = []
        left_out = [task for task in self.dataset.info.feedback if task not in tasks]
        if left_out:
            notes.append(
                f"feedback averages leave out {', '.join(left_out)}: one class only among the evaluated events"
            )
        if counts["pairs"] == 0:
            notes.append("no pairs of different grade within the window: pairwise accuracy is not defined")
        return notes

    def _error(self, gains: np.ndarray) -> float:
        clusters = len(self.offsets) - 1
        cluster = self.cluster[self.next_items]
        total = np.bincount(cluster, weights=gains, minlength=clusters)
        return metrics.clustered_standard_error(total, np.bincount(cluster, minlength=clusters).astype(np.float64))


def _pairs_error(pairs: metrics.Pairs) -> float:
    return metrics.clustered_standard_error(pairs.gains, pairs.pairs.astype(np.float64))


def _mean_of(values: np.ndarray) -> float:
    """The mean; NaN (not defined) without values."""
    return float(values.mean()) if len(values) else math.nan


def _in_order(row: Metrics, k: Sequence[int]) -> Metrics:
    names = [f"{metric}@{cutoff}" for cutoff in k for metric in ("ndcg", "recall")]
    names += ["pairwise_accuracy", "next_item_ne", "feedback_ne", "feedback_auc"]
    return {name: row[name] for name in names}


def _mean(found: Mapping[str, Metrics], key: str, tasks: Sequence[str]) -> float | None:
    values = [value for task in tasks if (value := found.get(task, {}).get(key)) is not None]
    return float(np.mean(values)) if values else None


def _defined(value: float) -> float | None:
    return None if math.isnan(value) else value
