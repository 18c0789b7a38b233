"""The two losses: joint pre-training (next item + feedback) and pairwise fine-tuning.

A loss is a mean over the targets (the observations, the pairs) of a step. Where a step has several batches, in sequence
or on several ranks, each batch's sum is divided by the counts of the whole step, so that the results add up to the loss
of the step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from argus_kernels import feedback_loss, pairwise_loss, sampled_softmax_loss
from argus_kernels.core.varlen import user_of_row
from python_model.config import TrainConfig
from python_model.data.batches import JaggedBatch
from python_model.data.feedback import PositiveEvents
from python_model.model.argus import Argus
from python_model.model.base import Readings, Recommender
from python_model.model.negatives import Negatives, NegativeSampler
from python_model.training.process_group import sum_over_ranks


@dataclass(frozen=True)
class StepShare:
    """What a batch needs from the other batches of its step.

    totals: float64 [1 + F + 1] over all batches and ranks: next items to predict, observed targets of each feedback
    component, pairs. negatives: the candidates of the step, with owners relative to this batch; None without any.
    """

    totals: Tensor
    negatives: Negatives | None


class Objective(nn.Module):
    """A loss as a module that contains its model; FSDP wraps it, so all weights are gathered during the loss."""

    def __init__(self, model: Recommender, loss: PretrainLoss | FinetuneLoss) -> None:
        super().__init__()
        self.model = model
        self._loss = loss

    def forward(
        self, batch: JaggedBatch | None = None, step: int = 0, share: StepShare | None = None,
        work: Callable[[], Any] | None = None,
    ) -> Any:  # fmt: skip
        """The loss of a batch and its parts; share None: the batch is the whole step.

        work: is run instead, with the weights at hand, and its result returned.
        """
        if work is not None:
            return work()
        assert batch is not None
        if share is None:
            return self._loss(batch, step)
        with self.model.rows_at_hand(batch, self._loss.items_read(batch, step, share)):
            return self._loss(batch, step, share=share)


class PretrainLoss:
    """Sampled softmax over the next item plus the weighted feedback losses, as one number and its parts.

    targets: the events that are next items to predict, None for all of them.
    """

    def __init__(self, config: TrainConfig, model: Recommender, targets: PositiveEvents | None = None) -> None:
        self.config, self.model, self.targets = config, model, targets
        self.sampler = NegativeSampler(config, model.features.items)
        names = list(model.features.feedback)
        unknown = sorted(set(config.feedback_weights) - set(names))
        if unknown:
            raise ValueError(f"feedback_weights names {', '.join(unknown)}; the data has {', '.join(names)}")
        self.names = names
        self.weights = torch.tensor([float(config.feedback_weights.get(name, 1.0)) for name in names])

    def shares(self, batches: Sequence[JaggedBatch], step: int) -> list[StepShare]:
        """The `StepShare` of each of this rank's batches; a collective call, with equally many batches on each rank."""
        totals = sum_over_ranks(torch.stack([self.counts(batch) for batch in batches]).sum(0))
        return [StepShare(totals, negatives) for negatives in self.draw(batches, step)]

    def counts(self, batch: JaggedBatch) -> Tensor:
        """Counts by which the parts of a batch's loss are divided: float64 [1 + F + 1], see `StepShare`; no pairs."""
        observed = ((batch.feedback >= 0) & batch.is_target[:, None]).sum(0)
        next_items = (batch.is_target * self._is_next_item(batch)).sum()[None]
        return torch.cat([next_items, observed, observed.new_zeros(1)]).double()

    def draw(self, batches: Sequence[JaggedBatch], step: int) -> Sequence[Negatives | None]:
        """The negatives of a step, once for each of this rank's batches; the binary loss draws its own."""
        if self.config.next_item_loss == "bce":
            return [None] * len(batches)
        return self.sampler.draw_for_batches(step, [owned_items(batch) for batch in batches])

    def __call__(
        self, batch: JaggedBatch, step: int, states: Tensor | None = None, *, share: StepShare | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and its parts for the target events; `states`, where the encoder has already run.

        share: None where the batch is the whole step.
        """
        if states is None:
            states = self.model.encode(batch, read=self.model.read_by_targets(batch, [None]))
        readings = self.model.read(batch, states)
        weight = batch.is_target.float()
        next_item = self._next_item(batch, step, readings, weight * self._is_next_item(batch), share)
        feedback = self._feedback(batch, readings, weight, share)
        total = self.config.next_item_weight * next_item + (self.weights.to(feedback.device) * feedback).sum()
        parts = {f"feedback_{name}": loss for name, loss in zip(self.names, feedback.detach(), strict=True)}
        return total, {"next_item": next_item.detach()} | parts

    def items_read(self, batch: JaggedBatch, step: int, share: StepShare) -> Tensor:
        """The items [n] whose rows the loss of a batch reads: its own items and the negatives."""
        if share.negatives is None and self.config.next_item_loss == "bce":
            return torch.cat([batch.items, self._unseen(batch, step)])
        others = [] if share.negatives is None else [share.negatives.items.to(batch.items.device)]
        return torch.cat([batch.items, *others])

    def _next_item(
        self, batch: JaggedBatch, step: int, readings: Readings, weight: Tensor, share: StepShare | None
    ) -> Tensor:
        targets = weight.sum() if share is None else share.totals[0].to(weight)
        if self.config.next_item_loss == "bce":
            return self._binary(batch, step, readings, weight).sum() / targets.clamp(min=1)
        owner = user_of_row(batch.offsets, len(batch))
        device = batch.items.device
        negatives = None if share is None else share.negatives
        if negatives is None:
            negatives = self.sampler.draw(step, *owned_items(batch))
        negative_items, negative_owner = negatives.items.to(device), negatives.owner.to(device)
        positives = batch.items.clamp(min=0)
        positive_log_q = None
        if self.config.softmax_form == "refined":
            positive_log_q = self.sampler.log_q(positives.cpu().numpy(), negatives.mix).to(device)
        # Each distinct item goes through the tower once.
        distinct, place = torch.unique(torch.cat([positives, negative_items]), return_inverse=True)
        vectors = self.model.item_vectors(distinct).index_select(0, place)
        loss, _ = sampled_softmax_loss(
            self.model.queries(readings), vectors[: len(batch)], vectors[len(batch) :], positives, negative_items,
            negatives.log_q.to(device), positive_log_q=positive_log_q, scale=self.model.temperature,
            row_weight=weight, query_owner=owner, candidate_owner=negative_owner, form=self.config.softmax_form,
            reduction="sum",
        )  # fmt: skip
        return loss / targets.clamp(min=1)

    def _binary(self, batch: JaggedBatch, step: int, readings: Readings, weight: Tensor) -> Tensor:
        """−log σ(s⁺) − log σ(−s⁻) with one item that is not in the user's window, drawn uniformly: [T]."""
        queries = self.model.queries(readings)
        scores = [
            self.model.temperature * (queries * self.model.item_vectors(items)).sum(-1)
            for items in (batch.items.clamp(min=0), self._unseen(batch, step))
        ]
        return (softplus(-scores[0]) + softplus(scores[1])) * weight

    def _unseen(self, batch: JaggedBatch, step: int) -> Tensor:
        owner = user_of_row(batch.offsets, len(batch))
        drawn = self.sampler.draw_unseen(step, batch.items.cpu().numpy(), owner.cpu().numpy())
        return drawn.to(batch.items.device)

    def _is_next_item(self, batch: JaggedBatch) -> Tensor | float:
        """Which events are next items to predict."""
        if self.targets is None:
            return 1.0
        return batch.feedback[:, self.names.index(self.targets.feedback)] >= self.targets.at_least

    def _feedback(self, batch: JaggedBatch, readings: Readings, weight: Tensor, share: StepShare | None) -> Tensor:
        hidden = self.model.feedback_features(readings)
        # The op divides by the observations of this batch; scaling by their share of the step gives the step's mean.
        own = None if share is None else self.counts(batch)[1:-1] / share.totals[1:-1].clamp(min=1)
        return feedback_loss(
            hidden, self.model.feedback_weight.to(hidden.dtype), self.model.feedback_bias.to(hidden.dtype),
            batch.feedback, self.model.features.logits, task_weight=own, row_weight=weight,
        )  # fmt: skip


class FinetuneLoss:
    """Mean of −log σ(s_a − s_b) over the pairs of a user's impressions, plus the joint loss as a regulariser."""

    def __init__(
        self, config: TrainConfig, model: Argus, pair_window: int, targets: PositiveEvents | None = None
    ) -> None:
        self.config, self.model = config, model
        self.window = pair_window if config.pair_window is None else config.pair_window
        if config.lag_pairs and model.config.lag <= self.window:
            raise ValueError(
                f"lag is {model.config.lag} s, expected more than the pair window of {self.window} s: the grades of a "
                "pair differ, so a score that knew one of them would know the order of the pair"
            )
        self.pretrain = PretrainLoss(config, model, targets)

    def shares(self, batches: Sequence[JaggedBatch], step: int) -> list[StepShare]:
        """See `PretrainLoss`; negatives are drawn where the regulariser needs them."""
        totals = sum_over_ranks(torch.stack([self.counts(batch) for batch in batches]).sum(0))
        drawn = self.pretrain.draw(batches, step) if self.config.pretrain_weight > 0 else [None] * len(batches)
        return [StepShare(totals, negatives) for negatives in drawn]

    def counts(self, batch: JaggedBatch) -> Tensor:
        """See `PretrainLoss`; includes the number of pairs, which does not depend on the scores."""
        rows, offsets = rated_rows(batch)
        nothing = torch.zeros(len(rows), device=rows.device)
        _, pairs, _ = pairwise_loss(nothing, batch.grade[rows], offsets, batch.time[rows], self.window)
        counts = self.pretrain.counts(batch)
        counts[-1] = pairs
        return counts

    def items_read(self, batch: JaggedBatch, step: int, share: StepShare) -> Tensor:
        """See `PretrainLoss`."""
        return self.pretrain.items_read(batch, step, share)

    def __call__(
        self, batch: JaggedBatch, step: int, *, share: StepShare | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and its parts; the pairs are those of graded target events (grade ≥ 0).

        share: None where the batch is the whole step.
        """
        regularised = self.config.pretrain_weight > 0
        states = None
        if regularised or self.model.shares_states:
            lags = [self.model.config.lag] * self.model.shares_states + [None] * regularised
            states = self.model.encode(batch, read=self.model.read_by_targets(batch, lags))
        scores = self.model.ranking_scores(batch, "pair", states)
        rows, offsets = rated_rows(batch)
        summed, pairs, concordant = pairwise_loss(
            scores[rows], batch.grade[rows], offsets, batch.time[rows], self.window
        )
        count = (pairs if share is None else share.totals[-1].to(summed)).clamp(min=1)
        pair = summed / count
        parts = {"pair": pair.detach(), "pairs": pairs, "pairwise_accuracy": concordant / count}
        if not regularised:
            return pair, parts
        joint, of_joint = self.pretrain(batch, step, states, share=share)
        return pair + self.config.pretrain_weight * joint, parts | of_joint


def owned_items(batch: JaggedBatch) -> tuple[np.ndarray, np.ndarray]:
    """The items of the batch's events, int64 [n], and their users; padding and unknown items are left out."""
    owner = user_of_row(batch.offsets, len(batch))
    real = ((owner < batch.offsets.shape[0] - 1) & (batch.items >= 0)).cpu().numpy()
    return batch.items.cpu().numpy()[real], owner.cpu().numpy()[real]


def rated_rows(batch: JaggedBatch) -> tuple[Tensor, Tensor]:
    """Rows of the target events that take part in pairs (int64 [n]) and their offsets per user (int32 [B + 1])."""
    owner = user_of_row(batch.offsets, len(batch))
    users = batch.offsets.shape[0] - 1
    rows = ((batch.grade >= 0) & batch.is_target & (owner < users)).nonzero()[:, 0]
    counts = torch.bincount(owner[rows], minlength=users)[:users]
    return rows, torch.cat([counts.new_zeros(1), counts.cumsum(0)]).int()
