"""The model, the batches and the training step that the end-to-end benchmarks time.

Histories are drawn, not read: log-normal lengths, items skewed as in real catalogues, sessions of a few minutes, 44 %
of the events shown by a recommender. The numbers of rows and columns are those of a music service; the values of the
events do not change the cost of a step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Protocol

import torch
from torch import Tensor

from python_model.config import FeatureSpec, TrainConfig, preset
from python_model.data.batches import JaggedBatch
from python_model.data.feedback import BINARY, categorical
from python_model.model.argus import Argus
from python_model.model.losses import PretrainLoss
from python_model.model.optim import Optimisers

SIGMA = 1.394
"""Spread of the logarithm of history lengths, as in the attention samples."""
IMPRESSIONS = 0.44
"""Share of events that a recommender showed."""


@dataclass(frozen=True)
class Size:
    """The size of a step: events of all users, the longest history, the catalogue, negatives of either kind."""

    events: int
    longest: int
    items: int
    negatives: int

    def features(self) -> FeatureSpec:
        """The vocabulary of a music service with this catalogue."""
        return FeatureSpec(
            self.items,
            context={"surface": 8, "hour": 24, "device": 50},
            feedback={"like": BINARY, "dislike": BINARY, "skip": BINARY, "listened": categorical(8)},
            item_features={"artist": max(self.items // 10, 1), "genre": 168},
        )


SIZES = {
    "cpu": Size(events=2048, longest=1024, items=100_000, negatives=2048),
    "cuda": Size(events=32_768, longest=8192, items=1_000_000, negatives=8192),
    "rehearsal": Size(events=96, longest=48, items=500, negatives=32),
}


def make_model(name: str, size: Size, device: str, seed: int = 0, **changes: Any) -> Argus:
    """A new model of a preset with these changes, with row-sparse table gradients, on `device`."""
    torch.manual_seed(seed)
    features = size.features()
    draw = torch.Generator().manual_seed(seed)
    columns = [torch.arange(size.items)]
    columns += [torch.randint(0, count, (size.items,), generator=draw) for count in features.item_features.values()]
    with torch.device(device):
        return Argus(preset(name, sparse=True, **changes), features, torch.stack(columns)).to(device)


def lognormal_lengths(events: int, longest: int) -> list[int]:
    """Lengths of histories, ascending: quantiles of a log-normal distribution, cut at `longest`, `events` in total."""
    for users in range(1, events + 1):
        quantiles = [NormalDist().inv_cdf((index + 0.5) / users) for index in range(users)]
        top = quantiles[-1]
        lengths = [max(round(longest * math.exp(SIGMA * (value - top))), 1) for value in quantiles]
        if sum(lengths) >= events:
            return _trim(lengths, events)
    return [1] * events


def _trim(lengths: list[int], events: int) -> list[int]:
    """Removes the surplus from the middle-sized histories, so that the longest one keeps its length."""
    surplus = sum(lengths) - events
    for index in range(len(lengths) - 1, -1, -1):
        keep_longest = index == len(lengths) - 1 and len(lengths) > 1
        if keep_longest:
            continue
        cut = min(surplus, lengths[index] - 1)
        lengths[index] -= cut
        surplus -= cut
    lengths[-1] -= surplus
    return sorted(lengths)


def make_batch(lengths: Sequence[int], features: FeatureSpec, device: str, seed: int = 0) -> JaggedBatch:
    """One batch of users with these histories, every event a target."""
    draw = torch.Generator().manual_seed(seed)
    total = sum(lengths)

    def below(high: int, *shape: int) -> Tensor:
        return torch.randint(0, high, shape, generator=draw)

    skewed = (torch.rand(total, generator=draw).pow(3) * features.items).long()
    gaps = torch.rand(total, generator=draw, dtype=torch.float64).mul(9).exp().long()
    offsets = torch.tensor([0, *lengths]).cumsum(0).int()
    organic = torch.rand(total, generator=draw) >= IMPRESSIONS
    context = [below(count, total) for count in features.context.values()]
    feedback = [below(one.classes, total) for one in features.feedback.values()]
    return JaggedBatch(
        offsets=offsets,
        max_length=max(lengths, default=0),
        users=torch.arange(len(lengths)),
        rows=torch.arange(total),
        items=skewed.clamp(max=features.items - 1),
        time=1_700_000_000 + gaps.cumsum(0),
        organic=organic,
        grade=torch.where(organic, -1, below(3, total)),
        context=torch.stack(context),
        feedback=torch.stack(feedback, dim=1),
        is_target=torch.ones(total, dtype=torch.bool),
    ).to(device)


class Loss(Protocol):
    """The interface of `PretrainLoss` and its stock twin."""

    def __call__(self, batch: JaggedBatch, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The joint loss and its parts."""
        ...


class StepOptimisers(Protocol):
    """The interface of `Optimisers` and its stock twin."""

    def zero_grad(self) -> None:
        """Forget the gradients."""
        ...

    def step(self, step: int) -> Any:
        """One update."""
        ...


@dataclass
class PretrainStep:
    """One optimiser step of pre-training, always on the same batch; calling it runs the step."""

    batch: JaggedBatch
    loss: Loss
    optimisers: StepOptimisers
    precision: str
    steps: int = 0

    def __call__(self) -> Tensor:
        """The loss before the update."""
        self.optimisers.zero_grad()
        with autocast(self.precision, self.batch.items.device.type):
            loss, _ = self.loss(self.batch, self.steps)
        loss.backward()
        self.optimisers.step(self.steps)
        self.steps += 1
        return loss.detach()


def train_config(size: Size, precision: str) -> TrainConfig:
    """The settings of the step: half the negatives from the batch, half from the catalogue."""
    return TrainConfig(
        batch_events=max(size.events, size.longest),
        window=size.longest,
        negatives_in_batch=size.negatives,
        negatives_uniform=size.negatives,
        precision=precision,
        warmup_steps=0,
        learning_rate=1e-4,
        table_learning_rate=1e-3,
    )


def pretrain_step(model: Argus, batch: JaggedBatch, config: TrainConfig) -> PretrainStep:
    """The package's own step."""
    return PretrainStep(batch, PretrainLoss(config, model), Optimisers(model, config), config.precision)


def autocast(precision: str, device: str) -> AbstractContextManager[Any]:
    """bfloat16 autocast, or nothing in float32."""
    return nullcontext() if precision == "float32" else torch.autocast(device, dtype=torch.bfloat16)


def step_flops(model: Argus, batch: JaggedBatch, negatives: int) -> int:
    """Useful FLOPs of a step on a model of the simplified form: three times those of its forward pass's products.

    A product is counted once forward and twice backward; recomputed, masked and padded terms do not count. negatives:
    candidates of the softmax. Each distinct item goes through the item tower once: the batch's items and at most
    `negatives` more are counted.
    """
    config, events = model.config, len(batch)
    lengths = batch.offsets.diff().double()
    pairs = int((lengths * (lengths + 1) / 2).sum())
    attention = config.layers * 4 * config.width * pairs
    blocks = config.layers * (4 + 2 * config.feed_forward) * config.width**2
    per_event = blocks + sum(_linear_weights(module) for module in _read_per_event(model))
    per_event += model.feedback_weight.numel() + config.vector_width * (negatives + 1)
    distinct = min(int(batch.items.unique().numel()) + negatives, model.features.items)
    return 3 * (attention + 2 * events * per_event + 2 * distinct * model.item_tower.weight.numel())


def _read_per_event(model: Argus) -> list[torch.nn.Module]:
    return [
        model.event_embedding, model.context_embedding, model.item_embedding, model.query_head, model.feedback_hidden,
    ]  # fmt: skip


def _linear_weights(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters() if parameter.dim() == 2)
