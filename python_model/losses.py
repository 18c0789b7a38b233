"""The two losses: joint pre-training (next item + feedback) and pairwise fine-tuning."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import softplus

from argus_kernels import feedback_loss, pairwise_loss, sampled_softmax_loss
from argus_kernels.core.varlen import user_of_row
from python_model.config import TrainConfig
from python_model.data.batches import JaggedBatch
from python_model.data.yambda import LISTEN_PLUS_SHARE
from python_model.model import Argus
from python_model.negatives import NegativeSampler
from python_model.recommender import Readings, Recommender


class PretrainLoss:
    """Sampled softmax over the next item plus the weighted feedback losses, as one number and its parts."""

    def __init__(self, config: TrainConfig, model: Recommender) -> None:
        self.config, self.model = config, model
        self.sampler = NegativeSampler(config, model.features.items)
        names = list(model.features.feedback)
        unknown = sorted(set(config.feedback_weights) - set(names))
        if unknown:
            raise ValueError(f"feedback_weights names {', '.join(unknown)}; the data has {', '.join(names)}")
        self.names = names
        self.weights = torch.tensor([float(config.feedback_weights.get(name, 1.0)) for name in names])

    def __call__(self, batch: JaggedBatch, step: int, states: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and its parts for the events that are targets; `states` where the encoder has run already."""
        states = self.model.encode(batch) if states is None else states
        readings = self.model.read(batch, states)
        weight = batch.is_target.float()
        next_item = self._next_item(batch, step, readings, weight * self._is_next_item(batch))
        feedback = self._feedback(batch, readings, weight)
        total = self.config.next_item_weight * next_item + (self.weights.to(feedback.device) * feedback).sum()
        parts = {f"feedback_{name}": loss for name, loss in zip(self.names, feedback.detach(), strict=True)}
        return total, {"next_item": next_item.detach()} | parts

    def _next_item(self, batch: JaggedBatch, step: int, readings: Readings, weight: Tensor) -> Tensor:
        if self.config.next_item_loss == "bce":
            return self._binary(batch, step, readings, weight)
        owner = user_of_row(batch.offsets, len(batch))
        real = ((owner < batch.offsets.shape[0] - 1) & (batch.items >= 0)).cpu().numpy()
        device = batch.items.device
        negatives = self.sampler.draw(step, batch.items.cpu().numpy()[real], owner.cpu().numpy()[real])
        negative_items, negative_owner = negatives.items.to(device), negatives.owner.to(device)
        positives = batch.items.clamp(min=0)
        positive_log_q = None
        if self.config.softmax_form == "refined":
            positive_log_q = self.sampler.log_q(positives.cpu().numpy(), negatives.mix).to(device)
        # Each different item goes through the tower once.
        distinct, place = torch.unique(torch.cat([positives, negative_items]), return_inverse=True)
        vectors = self.model.item_vectors(distinct).index_select(0, place)
        loss, _ = sampled_softmax_loss(
            self.model.queries(readings), vectors[: len(batch)], vectors[len(batch) :], positives, negative_items,
            negatives.log_q.to(device), positive_log_q=positive_log_q, scale=self.model.temperature,
            row_weight=weight, query_owner=owner, candidate_owner=negative_owner, form=self.config.softmax_form,
        )  # fmt: skip
        return loss.sum() / weight.sum().clamp(min=1)

    def _binary(self, batch: JaggedBatch, step: int, readings: Readings, weight: Tensor) -> Tensor:
        """−log σ(s⁺) − log σ(−s⁻) with one item that is not in the user's window, drawn uniformly, for every event."""
        owner = user_of_row(batch.offsets, len(batch))
        drawn = self.sampler.draw_unseen(step, batch.items.cpu().numpy(), owner.cpu().numpy())
        queries = self.model.queries(readings)
        scores = [
            self.model.temperature * (queries * self.model.item_vectors(items)).sum(-1)
            for items in (batch.items.clamp(min=0), drawn.to(batch.items.device))
        ]
        loss = (softplus(-scores[0]) + softplus(scores[1])) * weight
        return loss.sum() / weight.sum().clamp(min=1)

    def _is_next_item(self, batch: JaggedBatch) -> Tensor | float:
        """Which events are next items to predict: all of them, under the Yambda protocol those that are Listen+."""
        if self.config.protocol != "yambda":
            return 1.0
        return batch.feedback[:, self.names.index("share")] >= LISTEN_PLUS_SHARE

    def _feedback(self, batch: JaggedBatch, readings: Readings, weight: Tensor) -> Tensor:
        hidden = self.model.feedback_features(readings)
        return feedback_loss(
            hidden, self.model.feedback_weight.to(hidden.dtype), self.model.feedback_bias.to(hidden.dtype),
            batch.feedback, self.model.features.classes, row_weight=weight,
        )  # fmt: skip


class FinetuneLoss:
    """Mean of −log σ(s_a − s_b) over the pairs of a user's impressions, plus the joint loss as a regulariser."""

    def __init__(self, config: TrainConfig, model: Argus, pair_window: int) -> None:
        self.config, self.model = config, model
        self.window = pair_window if config.pair_window is None else config.pair_window
        if config.lag_pairs and model.config.lag <= self.window:
            raise ValueError(
                f"lag is {model.config.lag} s, expected more than the pair window of {self.window} s: the grades of a "
                "pair differ, so a score that knew one of them would know the order of the pair"
            )
        self.pretrain = PretrainLoss(config, model)

    def __call__(self, batch: JaggedBatch, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and its parts; the pairs are those of graded target events (grade ≥ 0)."""
        regularised = self.config.pretrain_weight > 0
        states = self.model.encode(batch) if regularised or self.model.shares_states else None
        scores = self.model.ranking_scores(batch, "pair", states)
        rows, offsets = rated_rows(batch)
        summed, pairs, concordant = pairwise_loss(
            scores[rows], batch.grade[rows], offsets, batch.time[rows], self.window
        )
        count = pairs.clamp(min=1)
        pair = summed / count
        parts = {"pair": pair.detach(), "pairs": pairs, "pairwise_accuracy": concordant / count}
        if not regularised:
            return pair, parts
        joint, of_joint = self.pretrain(batch, step, states)
        return pair + self.config.pretrain_weight * joint, parts | of_joint


def rated_rows(batch: JaggedBatch) -> tuple[Tensor, Tensor]:
    """Rows of the target events that take part in pairs (int64 [n]) and their offsets per user (int32 [B + 1])."""
    owner = user_of_row(batch.offsets, len(batch))
    users = batch.offsets.shape[0] - 1
    rows = ((batch.grade >= 0) & batch.is_target & (owner < users)).nonzero()[:, 0]
    counts = torch.bincount(owner[rows], minlength=users)[:users]
    return rows, torch.cat([counts.new_zeros(1), counts.cumsum(0)]).int()
