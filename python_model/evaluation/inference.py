"""Runs a trained model over histories: predictions for evaluated events, one pass per window of history."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from python_model.data.batches import BatchBuilder, JaggedBatch, evaluation_batches, history_windows
from python_model.data.feedback import FeedbackComponent
from python_model.data.schema import Dataset
from python_model.evaluation.metrics import BLOCK_SCORES, Ranking, concatenate_rankings, rank_catalogue
from python_model.evaluation.predictions import Predictions
from python_model.evaluation.recommend import append_next_event
from python_model.evaluation.user_lists import Requests
from python_model.model.base import Recommender


@dataclass(frozen=True)
class BatchPredictions:
    """Predictions for n targets: their ranks, feedback logits [n, C], ranking scores [n] or None."""

    next_item: Ranking
    feedback: Tensor
    ranking: Tensor | None


def joined(parts: Sequence[BatchPredictions], components: Mapping[str, FeedbackComponent]) -> Predictions:
    """The predictions of consecutive batches; components: of the feedback."""
    ranking = [part.ranking for part in parts if part.ranking is not None]
    return Predictions(
        next_item=concatenate_rankings([part.next_item for part in parts]),
        feedback=feedback_log_probabilities(torch.cat([one.feedback for one in parts]), components) if parts else {},
        ranking=torch.cat(ranking).numpy() if ranking else None,
    )


class ModelPredictor:
    """A model as a predictor of events.

    window: events of a user that one pass sees at most; every evaluated event has at least window // 2 events of
    history, or all that its user has. The encoder runs once over a window for all its evaluated events and both heads.
    ranking_kind: which score orders impressions (`ranking_scores`); None takes the one of the model's stage.
    The score of an impression uses only events older than it by more than the data's pair window: see `pair_lag`. `lag`
    (seconds) overrides this, for studies of the inflated figures of a smaller lag.
    """

    def __init__(
        self, model: Recommender, dataset: Dataset, *, window: int, device: str | torch.device = "cpu",
        token_budget: int = 8192, ranking_kind: str | None = None, lag: int | None = None,
    ) -> None:  # fmt: skip
        self._device = torch.device(device)
        self.model = (model if model.device == self._device else model.to(self._device)).eval()
        self._dataset = dataset
        self._window = min(window, model.config.max_events)
        self._token_budget = max(token_budget, self._window)
        self._ranking_kind = ranking_kind
        self._lag = pair_lag(model, dataset) if lag is None else lag

    @torch.inference_mode()
    def predict(self, rows: np.ndarray) -> Predictions:
        """Predictions for events `rows` (int64 [n], rising)."""
        items, scale = self.model.item_matrix(), float(self.model.temperature)
        return joined(
            [self.of_batch(batch, items, scale) for batch in self.batches(rows)], self.model.features.feedback
        )

    def of_batch(self, batch: JaggedBatch, items: Tensor, scale: float, *, ranked: bool = True) -> BatchPredictions:
        """Predictions for the target events of a batch; items: [V, D] of the catalogue. ranked: with ranking scores."""
        target = batch.is_target
        lags = [None, self._lag] if ranked else [None]
        states = self.model.encode(batch, read=self.model.read_by_targets(batch, lags))
        readings = self.model.read(batch, states)
        queries = self.model.queries(readings)[target]
        ranking = rank_catalogue(queries, items, batch.items[target], scale)
        logits = self.model.feedback_logits_of(readings)[target].cpu()
        if not ranked:
            return BatchPredictions(ranking, logits, None)
        scores = self.model.ranking_scores(batch, self._ranking_kind, states, lag=self._lag)
        return BatchPredictions(ranking, logits, scores[target].float().cpu())

    @torch.inference_mode()
    def catalogue_scores(self, requests: Requests) -> Iterator[Tensor]:
        """Cosines [n, V] of each user's query and every item: see `user_lists.ListPredictor`."""
        items = self.model.item_matrix()
        builder = BatchBuilder(self._dataset)
        # The placeholder of the predicted event takes one position of the window.
        windows = history_windows(self._dataset, requests.ends - 1, self._window - 1)
        users = max(1, min(self._token_budget // self._window, BLOCK_SCORES // max(1, len(items))))
        for start in range(0, len(windows), users):
            batch = append_next_event(builder.build(windows.take(slice(start, start + users))))
            asked = torch.where(batch.is_target, batch.time.clamp(min=requests.time), batch.time)
            batch = replace(batch, time=asked).to(self._device)
            yield self.model.target_queries(batch) @ items.T

    def batches(self, rows: np.ndarray) -> Iterator[JaggedBatch]:
        """Batches whose targets are the events `rows`, on the model's device."""
        targets = np.zeros(len(self._dataset), bool)
        targets[rows] = True
        for batch in evaluation_batches(self._dataset, targets, self._token_budget, self._window):
            yield batch.to(self._device)


def pair_lag(model: Recommender, dataset: Dataset) -> int:
    """Age in seconds of the states behind pairwise scores: the model's lag, but always more than the pair window.

    Only pairs of different grades count. A score that knows the earlier event's feedback can order pairs without
    knowing any taste: after a top grade, the later event of every counted pair has the lower grade. On KuaiRand,
    scoring by minus the mean grade of the last day orders .72 of the pairs of a day correctly.
    """
    return max(model.config.lag, dataset.info.pair_window + 1)


def feedback_log_probabilities(logits: Tensor, components: Mapping[str, FeedbackComponent]) -> dict[str, np.ndarray]:
    """Log-probabilities of the classes of every component from its logits: float64 [n, classes].

    logits: [n, sum of their logits].
    """
    parts = logits.double().split([component.logits for component in components.values()], dim=1)
    out = {}
    for (task, component), part in zip(components.items(), parts, strict=True):
        binary = component.is_binary
        log_p = torch.cat([logsigmoid(-part), logsigmoid(part)], dim=1) if binary else part.log_softmax(dim=1)
        out[task] = log_p.cpu().numpy()
    return out
