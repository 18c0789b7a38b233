"""Evaluates a model under training on some users of the validation part, at a bounded share of the training time.

The users are a function of settings and data, not of clocks or ranks, so a resumed run sees the same ones. On several
ranks each takes its share of the batches, and every rank gets the metrics of all.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from argus_kernels import pairwise_loss
from python_model.config import TrainConfig
from python_model.data.batches import empty_batch
from python_model.data.schema import Dataset
from python_model.data.splits import events_to_predict, make_split
from python_model.evaluation.baselines import Popularity
from python_model.evaluation.evaluate import Metrics, Scorer, sample_users
from python_model.evaluation.inference import ModelPredictor, joined
from python_model.evaluation.metrics import NaNScores
from python_model.evaluation.predictions import Predictions
from python_model.model.base import Recommender
from python_model.training import process_group
from python_model.training.watch import Validation

SHARE = 0.025
"""Of the arithmetic of training, that evaluations take at most, by the estimate of `Costs`: with the best checkpoint,
whose writing takes 2 % for the demo's model, 5 % of the time."""
LEAST, MOST = 200, 20_000
"""Evaluated events: at least, whatever they cost, and at most."""
CATALOGUE_CHUNK = 1 << 14
"""Items whose rows of sharded tables are read together."""
K = 10


@dataclass(frozen=True)
class Costs:
    """Estimated FLOP: of training with an event, of encoding an event, of ranking the catalogue for a target, and of
    the vectors of the catalogue.

    Ranking is bound by memory, not by arithmetic; it counts twice. The tables are not read in full and do not count.
    """

    training: float
    token: float
    target: float
    catalogue: float

    @classmethod
    def of(cls, model: Recommender, config: TrainConfig, batch_events: int) -> Costs:
        """For a model and the settings of its training."""
        tables = {id(one) for one in model.tables.parameters()}
        dense = sum(one.numel() for one in model.parameters() if id(one) not in tables)
        width = model.config.vector_width if model.config.model == "argus" else model.config.width
        items = model.features.items
        negatives = min(config.negatives_in_batch, batch_events) + min(config.negatives_uniform, items)
        if config.stage == "finetune" and config.pretrain_weight == 0:
            negatives = 0
        return cls(
            training=6 * dense + 6 * negatives * width,
            token=2 * dense,
            target=4 * items * width,
            catalogue=2 * items * width * model.config.item_width,
        )


class Validator:
    """Evaluates one model on the same users each time; `rows`: the evaluated events."""

    def __init__(self, dataset: Dataset, model: Recommender, config: TrainConfig) -> None:
        """ValueError where the protocol holds no events out."""
        split = make_split(dataset, config.protocol)
        counted = events_to_predict(dataset, config.protocol)
        window = min(config.window, model.config.max_events)
        held_out = np.flatnonzero(split.validation)
        if config.validate_events is not None:
            self.rows = sample_users(dataset, held_out, config.validate_events, 0)
        else:
            step_events = config.batch_events * (config.batches_per_step or 1)
            costs = Costs.of(model, config, step_events)
            budget = SHARE * config.validate_every * min(step_events, int(split.train.sum())) * costs.training
            self.rows = affordable_rows(dataset, held_out, window, costs, budget)
        self._scorer = Scorer(dataset, self.rows, config.protocol, (K,), counted[self.rows])
        self._popularity = Popularity(dataset, np.flatnonzero(split.train & counted)).predict(self.rows)
        ranked = config.stage == "finetune" or config.best_metric in ("pairwise_accuracy", "pair_loss")
        self._predictor = RanksPredictor(model, dataset, window, config, ranked=ranked)
        self._model, self._dataset = model, dataset

    def evaluate(self, step: int, run: Callable[[Callable[[], Any]], Any]) -> Validation:
        """The metrics now, the same on every rank; run: runs work with the weights at hand, without gradients.

        A model whose scores are NaN has no metrics. A collective call.
        """
        self._model.eval()
        try:
            found: Predictions | None = run(lambda: self._predictor.predict(self.rows))
        finally:
            self._model.train()
        return process_group.on_first(lambda: self._validation(step, found))

    def _validation(self, step: int, found: Predictions | None) -> Validation:
        predictions = {"popularity": self._popularity} | ({} if found is None else {"model": found})
        rows = self._scorer.score(predictions).rows
        metrics = _defined(rows.get("model", {}))
        if found is not None and found.ranking is not None and (loss := self._pair_loss(found.ranking)) is not None:
            metrics["pair_loss"] = loss
        baseline = {name: value for name, value in _defined(rows["popularity"]).items() if name in metrics}
        return Validation(step, metrics, baseline)

    def _pair_loss(self, scores: np.ndarray) -> float | None:
        """Mean of −log σ(s_a − s_b) over the pairs of the evaluated events, as fine-tuning has it; None without any."""
        rated = np.flatnonzero(self._dataset.grade[self.rows] >= 0)
        rows = self.rows[rated]
        counts = np.bincount(np.searchsorted(self._scorer.offsets, rated, side="right"))
        offsets = np.concatenate([np.zeros(1), np.cumsum(counts[1:])]).astype(np.int32)
        columns = (self._dataset.grade[rows].astype(np.int64), offsets, self._dataset.time[rows])
        grade, bounds, times = (torch.from_numpy(column) for column in columns)
        window = self._dataset.info.pair_window
        total, pairs, _ = pairwise_loss(torch.from_numpy(scores[rated]), grade, bounds, times, window)
        return float(total / pairs) if pairs else None


class RanksPredictor(ModelPredictor):
    """The predictions of a model under training: each rank computes its share of the batches and gets all."""

    def __init__(self, model: Recommender, dataset: Dataset, window: int, config: TrainConfig, *, ranked: bool) -> None:
        super().__init__(
            model, dataset, window=window, device=model.device, token_budget=config.batch_events,
            ranking_kind="pair" if config.stage == "finetune" else "next_item",
        )  # fmt: skip
        self._ranked, self._nothing = ranked, empty_batch(dataset.info).to(model.device)

    def predict(self, rows: np.ndarray) -> Predictions | None:  # type: ignore[override]
        """Predictions for the events; None where scores are NaN. A collective call, under `torch.no_grad`."""
        items, scale = self._catalogue(), float(self.model.temperature)
        batches = list(self.batches(rows))
        parts, failed = {}, False
        for number in process_group.numbers_of(len(batches)):
            batch = batches[number] if number < len(batches) else self._nothing
            with self.model.rows_at_hand(batch, batch.items):
                try:
                    parts[number] = self.of_batch(batch, items, scale, ranked=self._ranked)
                except NaNScores:
                    failed = True
        if process_group.any_rank(failed):
            return None
        of_all = {number: part for rank in process_group.gathered(parts) for number, part in rank.items()}
        return joined([of_all[number] for number in range(len(batches))], self.model.features.feedback)

    def _catalogue(self) -> Tensor:
        """Vectors [V, D] of all items, on every rank."""
        items = torch.arange(self.model.features.items, device=self.model.device)
        nothing, vectors = self._nothing, []
        for part in items.split(CATALOGUE_CHUNK):
            with self.model.rows_at_hand(nothing, part):
                vectors.append(self.model.item_vectors(part))
        return torch.cat(vectors)


def affordable_rows(dataset: Dataset, rows: np.ndarray, window: int, costs: Costs, budget: float) -> np.ndarray:
    """The rows of users drawn at random whose evaluation costs at most `budget` FLOP, at least LEAST rows; rising.

    rows: int64 [n], rising. A user's first `window` rows are taken at most.
    """
    users, starts, counts = np.unique(dataset.user[rows], return_index=True, return_counts=True)
    taken = np.minimum(counts, window)
    known = rows[starts] - dataset.offsets[users]
    span = rows[starts + taken - 1] - rows[starts] + 1
    # As `evaluation_batches` cuts windows: each but the first has half a window of new events.
    room = window - np.minimum(known, window // 2)
    windows = 1 + np.ceil(np.maximum(span - room, 0) / (window - window // 2))
    cost = windows * np.minimum(window, known + span) * costs.token + taken * costs.target
    order = np.random.default_rng(0).permutation(len(users))
    total, events = np.cumsum(cost[order]), np.cumsum(taken[order])
    affordable = np.searchsorted(total, budget - costs.catalogue, side="right")
    least, most = np.searchsorted(events, [LEAST, MOST]) + 1
    chosen = order[: int(min(max(affordable, least), most))]
    position = np.arange(len(rows)) - np.repeat(starts, counts)
    return rows[np.isin(dataset.user[rows], users[chosen]) & (position < window)]


def _defined(row: Metrics) -> dict[str, float]:
    return {name: value for name, value in row.items() if value is not None and math.isfinite(value)}
