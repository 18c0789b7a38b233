"""The two losses: joint pre-training (next item + feedback) and pairwise fine-tuning.

Negatives of the next-item loss are mixed: items of the batch, which follow the stream's frequencies, and items drawn
uniformly from the catalogue. A negative's logit is corrected by log of how often it is expected among the M drawn,

    M · Q(j),   Q(j) = w · frequency(j) + (1 − w) / N,   w = in-batch share of the negatives, N = items,

so that the sum over the negatives estimates the sum over the catalogue. Frequencies come from a count-min sketch that
is updated while the stream flows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from argus_kernels import feedback_loss, pairwise_loss, sampled_softmax_loss
from argus_kernels.core.varlen import user_of_row
from argus_kernels.host import FrequencySketch
from python_model.config import TrainConfig
from python_model.data.batches import JaggedBatch
from python_model.model import Argus, Readings

UNIFORM_OWNER = -1
"""Owner of a negative that comes from no user of the batch."""


@dataclass(frozen=True)
class Negatives:
    """M candidates: items int64 [M], owner int64 [M] (user of the batch, UNIFORM_OWNER), log_q float32 [M].

    mix: how many of the M came from the batch and how many from the catalogue.
    """

    items: Tensor
    owner: Tensor
    log_q: Tensor
    mix: tuple[int, int]


class NegativeSampler:
    """Draws the negatives of a step; a function of (seed, step) and of the sketch, which is all its state."""

    def __init__(self, config: TrainConfig, items: int) -> None:
        self.config, self.items = config, items
        self.sketch = FrequencySketch(config.sketch_width, config.sketch_depth, config.seed)

    def draw(self, step: int, items: np.ndarray, owner: np.ndarray) -> Negatives:
        """Negatives for a batch with the given items [n] and their owners [n]; the sketch takes the items in first."""
        self.sketch.update(items)
        random = np.random.default_rng([self.config.seed, step])
        in_batch = min(self.config.negatives_in_batch, len(items))
        uniform = min(self.config.negatives_uniform, self.items)
        rows = random.choice(len(items), in_batch, replace=False, shuffle=False)
        drawn = random.choice(self.items, uniform, replace=False, shuffle=False)
        chosen = np.concatenate([items[rows], drawn])
        owners = np.concatenate([owner[rows], np.full(uniform, UNIFORM_OWNER, np.int64)])
        mix = (in_batch, uniform)
        return Negatives(torch.from_numpy(chosen), torch.from_numpy(owners), self.log_q(chosen, mix), mix)

    def log_q(self, items: np.ndarray, mix: tuple[int, int]) -> Tensor:
        """What the op wants of items [n] drawn in this mix: log(M · Q), or log Q for the refined form; float32 [n].

        log(M · Q) is 0 where every item of the catalogue is drawn once: the loss is then the full softmax.
        """
        in_batch, uniform = mix
        expected = np.full(len(items), uniform / self.items)
        if in_batch:
            expected += in_batch * np.exp(self.sketch.log_q(items).astype(np.float64))
        draws = sum(mix) if self.config.softmax_form == "refined" else 1
        return torch.from_numpy(np.log(expected / draws).astype(np.float32))


class PretrainLoss:
    """Sampled softmax over the next item plus the weighted feedback losses, as one number and its parts."""

    def __init__(self, config: TrainConfig, model: Argus) -> None:
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
        next_item = self._next_item(batch, step, readings, weight)
        feedback = self._feedback(batch, readings, weight)
        total = self.config.next_item_weight * next_item + (self.weights.to(feedback.device) * feedback).sum()
        parts = {f"feedback_{name}": loss for name, loss in zip(self.names, feedback.detach(), strict=True)}
        return total, {"next_item": next_item.detach()} | parts

    def _next_item(self, batch: JaggedBatch, step: int, readings: Readings, weight: Tensor) -> Tensor:
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
        if model.config.lag <= self.window:
            raise ValueError(
                f"lag is {model.config.lag} s, expected more than the pair window of {self.window} s: the grades of a "
                "pair differ, so a score that knew one of them would know the order of the pair"
            )
        self.pretrain = PretrainLoss(config, model)

    def __call__(self, batch: JaggedBatch, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and its parts; the pairs are those of graded target events (grade ≥ 0)."""
        regularised = self.config.pretrain_weight > 0
        states = self.model.encode(batch) if regularised or self.model.config.form == "simplified" else None
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
