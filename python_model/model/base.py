"""The common interface of all models for losses, evaluation and serving, and the code that they share.

A model encodes histories into states, `read`s from them the inputs of the heads at each event, and has two heads: query
vectors whose products with item vectors order the catalogue, and the feedback head. `Argus` and the baselines of
`sequential` implement these parts; this module holds the rest.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from argus_kernels.core.varlen import user_of_row
from python_model.config import FeatureSpec, ModelConfig
from python_model.data.batches import JaggedBatch
from python_model.model.layers import Encoder, Tables, events_before
from python_model.training.row_sharding import RowExchange


@dataclass(frozen=True)
class Readings:
    """Inputs of the heads at each event: `item` [T, ·] includes the context, `feedback` [T, ·] also the item."""

    item: Tensor
    feedback: Tensor


class Outputs(NamedTuple):
    """Query vectors [T, D] and feedback logits [T, C] of every event; vectors of the requested items [n, D], float32.

    temperature * queries @ item_vectors.T are the logits of the next item.
    """

    queries: Tensor
    item_vectors: Tensor
    feedback_logits: Tensor
    temperature: Tensor


class Recommender(nn.Module):
    """A model of the next item and of the feedback. `stage` is the last stage of training.

    stage: "new", "pretrain" or "finetune". item_columns: int [C, items], the rows of the item tables of each item.
    feedback_width: width of `Readings.feedback`.
    """

    encoder: Encoder
    tables: Tables
    item_columns: Tensor

    def __init__(self, config: ModelConfig, features: FeatureSpec, item_columns: Tensor) -> None:
        super().__init__()
        self.config, self.features, self.stage = config, features, "new"
        self.exchange: RowExchange | None = None
        self.register_buffer("item_columns", item_columns.to(torch.int32))

    def _make_feedback_head(self, feedback_width: int) -> None:
        width, logits = self.config.width, sum(self.features.logits)
        self.feedback_hidden = nn.Linear(feedback_width, width)
        self.feedback_weight = nn.Parameter(torch.randn(width, logits) * width**-0.5)
        self.feedback_bias = nn.Parameter(torch.zeros(logits))

    @abstractmethod
    def encode(self, batch: JaggedBatch, *, lag: int | None = None, read: Tensor | None = None) -> Tensor:
        """States of the encoder; lag: for readings at least `lag` seconds old.

        read: bool, which states will be read; the last layer may leave the others out, as 0. None: all of them.
        """

    def read_by_targets(self, batch: JaggedBatch, lags: Sequence[int | None]) -> Tensor:
        """Which states the readings of the target events need that are taken with these lags: bool, for `encode`."""
        found = torch.zeros(len(batch) + 1, dtype=torch.bool, device=batch.items.device)
        start = batch.offsets.long()[user_of_row(batch.offsets, len(batch)).clamp(max=batch.offsets.shape[0] - 1)]
        for lag in lags:
            seen = events_before(batch.time, batch.offsets, lag)
            # Place 0 stands for the start state, which no token has.
            found[torch.where(batch.is_target & (seen > 0), start + seen, 0)] = True
        return found[1:]

    @abstractmethod
    def read(self, batch: JaggedBatch, states: Tensor, lag: int | None = None) -> Readings:
        """Inputs of the heads from `encode(batch)`; of the event itself, only context and, for feedback, the item."""

    @abstractmethod
    def read_lagged(self, batch: JaggedBatch, states: Tensor | None = None, lag: int | None = None) -> Readings:
        """The same, with only events at least `lag` seconds older visible (None: the model's own lag)."""

    @abstractmethod
    def queries(self, readings: Readings) -> Tensor:
        """Query vectors of the next-item head: float32 [T, D]."""

    @abstractmethod
    def item_vectors(self, items: Tensor) -> Tensor:
        """Vectors of the items [n] int64: float32 [n, D]."""

    @property
    @abstractmethod
    def temperature(self) -> Tensor:
        """Factor on the product of query and item."""

    def rows_at_hand(self, batch: JaggedBatch, items: Tensor) -> AbstractContextManager[None]:
        """On several ranks, holds during the block the rows of sharded tables that a batch and these items [n] need.

        A collective call. This default does nothing; a model with sharded tables overrides it.
        """
        return nullcontext()

    def forward(self, batch: JaggedBatch, items: Tensor | None = None) -> Outputs:
        """Outputs for a loss of next items and feedback; items int64 [n], None: those of the batch.

        For DistributedDataParallel, torch.compile and custom training loops. DistributedDataParallel needs
        find_unused_parameters=True, as the user tower is not used. The package's own losses call the parts directly.
        """
        readings = self.read(batch, self.encode(batch))
        vectors = self.item_vectors(batch.items if items is None else items)
        return Outputs(self.queries(readings), vectors, self.feedback_logits_of(readings), self.temperature)

    def feedback_features(self, readings: Readings) -> Tensor:
        """Hidden layer of the feedback head [T, d], which `feedback_loss` projects to logits."""
        return gelu(self.feedback_hidden(readings.feedback))

    def feedback_logits_of(self, readings: Readings) -> Tensor:
        """Logits of every feedback component [T, C] from the heads' inputs."""
        return self._feedback_logits(readings.feedback)

    def _feedback_logits(self, reading: Tensor) -> Tensor:
        hidden = gelu(self.feedback_hidden(reading))
        return (hidden @ self.feedback_weight.to(hidden.dtype)).float() + self.feedback_bias

    def feedback_logits(self, batch: JaggedBatch) -> Tensor:
        """Logits of every feedback component at every event: [T, C]; `features.logits` says how many each has."""
        return self.feedback_logits_of(self.read(batch, self.encode(batch)))

    def feedback_probabilities(self, batch: JaggedBatch) -> dict[str, Tensor]:
        """p(component) per event: [T] for a binary component, [T, classes] for the others."""
        return self._probabilities(self.feedback_logits(batch))

    def next_item_queries(self, batch: JaggedBatch) -> Tensor:
        """Query vectors for the item of every event: [T, D]."""
        return self.queries(self.read(batch, self.encode(batch)))

    def target_queries(self, batch: JaggedBatch, *, as_served: bool = False) -> Tensor:
        """Query vectors for the items of the target events alone: [n, D].

        as_served: of states as a server keeps them, final when their event comes: `served_lag`.
        """
        lag = self.served_lag if as_served else None
        states = self.encode(batch, lag=lag, read=self.read_by_targets(batch, [None]))
        return self.queries(self.read(batch, states))[batch.is_target]

    @property
    def served_lag(self) -> int | None:
        """The lag of `encode` whose states do not depend on later events, as a server keeps them."""
        return None

    def next_item_scores(self, queries: Tensor, items: Tensor) -> Tensor:
        """Logits [n, V] of item vectors [V, D] for queries [n, D]; their softmax is p(item | past, context)."""
        return self.temperature * (queries @ items.T)

    def ranking_scores(
        self, batch: JaggedBatch, kind: str | None = None, states: Tensor | None = None, lag: int | None = None
    ) -> Tensor:
        """Score of every event's own item for ordering what a user was shown: [T].

        kind: "next_item" (logit of the next-item head, None) or "feedback" (expected feedback: what `features.negative`
        names counts against an item).
        states: `encode(batch)`, where already computed. lag: every kind reads states at least this many seconds old;
        None takes the model's own. Pairs are only comparable where it exceeds the pair window (docs/model.md).
        """
        kind = kind or "next_item"
        if kind not in ("next_item", "feedback"):
            raise ValueError(
                f"kind is {kind!r}, expected next_item or feedback: {self.config.model} has no other score"
            )
        readings = self.read_lagged(batch, states, lag)
        if kind == "feedback":
            return self.expected_feedback(readings.feedback)
        return self.temperature * (self.queries(readings) * self.item_vectors(batch.items)).sum(-1)

    def item_matrix(self, chunk: int = 1 << 16) -> Tensor:
        """Vectors of the whole catalogue: [V, D]."""
        items = torch.arange(self.features.items, device=self.device)
        return torch.cat([self.item_vectors(part) for part in items.split(chunk)])

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        return self.item_columns.device

    def _probabilities(self, logits: Tensor) -> dict[str, Tensor]:
        parts = logits.split(self.features.logits, dim=-1)
        return {
            name: part.sigmoid().squeeze(-1) if component.is_binary else part.softmax(-1)
            for (name, component), part in zip(self.features.feedback.items(), parts, strict=True)
        }

    def expected_feedback(self, reading: Tensor) -> Tensor:
        """The score "feedback" [n] from inputs of the feedback head [n, ·]."""
        logits = self._feedback_logits(reading)
        total = logits.new_zeros(logits.shape[0])
        for name, p in self._probabilities(logits).items():
            level = p if p.dim() == 1 else p @ torch.linspace(0, 1, p.shape[1], device=p.device)
            total = total - level if name in (self.features.negative or ()) else total + level
        return total
