"""ARGUS: a causal transformer over interactions (context, item, feedback) with a next-item and a feedback head.

Two forms, one interface. Simplified: one vector per interaction; the heads predict event t from the state before it,
h_{t−1}, and the embedding of context_t (and of item_t for the feedback). Full: three tokens per interaction; the item
is predicted from the state at the context token, the feedback from the state at the item token.

The two-tower ranker of fine-tuning is built on top: the user vector of event t is read from a state that sees only
events at least `lag` seconds older than t; the score is its dot product with the item vector. docs/model.md shows that
no reading contains its own target.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from argus_kernels import Offsets
from argus_kernels.attention.relative_bias import time_buckets
from argus_kernels.core.varlen import local_positions
from python_model.config import FeatureSpec, ModelConfig
from python_model.data.batches import JaggedBatch
from python_model.model import candidates
from python_model.model.base import Readings, Recommender
from python_model.model.candidates import TOKENS, Candidates, StoredHistories
from python_model.model.hstu import HstuEncoder
from python_model.model.layers import (
    Encoder,
    Head,
    Layout,
    Tables,
    TripleEmbedding,
    events_before,
    hidden,
    next_times,
    rows_read,
    states_after,
)  # fmt: skip
from python_model.training.row_sharding import RowSharding

RANKING_KINDS = ("pair", "next_item", "feedback")
TEMPERATURE_RANGE = (0.01, 100.0)


class Argus(Recommender):
    """The reference model.

    item_columns: int [C, items], the rows of the item tables that make up each item: its own row (or its hashed
    rows), then one per item feature, −1 where missing; `item_columns_of` makes it from a data set.
    """

    def __init__(
        self, config: ModelConfig, features: FeatureSpec, item_columns: Tensor, sharding: RowSharding | None = None
    ) -> None:
        super().__init__(config, features, item_columns)
        hashed = ["item"] * max(config.item_hashes, 1)
        of_item = hashed + [f"item_{name}" for name in features.item_features]
        of_context = ["organic", "gap"] + [f"context_{name}" for name in features.context]
        of_feedback = [f"feedback_{name}" for name in features.feedback]
        if item_columns.shape != (len(of_item), features.items):
            raise ValueError(
                f"item_columns has shape {list(item_columns.shape)}, expected {[len(of_item), features.items]}"
            )
        self.tables = Tables(_table_shapes(config, features), sharding)

        def embedding(columns: list[str], width: int = config.width) -> TripleEmbedding:
            return TripleEmbedding(self.tables, columns, width, sparse=config.sparse)

        self.context_embedding = embedding(of_context)
        self.item_embedding = embedding(of_item)
        if config.form == "simplified":
            self.event_embedding = embedding(of_context + of_item + of_feedback)
            self.start = nn.Parameter(torch.zeros(config.width))
        else:
            self.feedback_embedding = embedding(of_feedback)
        self.encoder: Encoder = HstuEncoder(config) if config.encoder == "hstu" else Encoder(config)
        self.item_tower = embedding(of_item, config.vector_width)
        inputs = 2 if config.form == "simplified" else 1
        self.query_head = Head(inputs * config.width, config.width, config.vector_width)
        self.user_head = Head(inputs * config.width, config.width, config.vector_width)
        self._make_feedback_head((inputs + (inputs == 2)) * config.width)
        self.log_temperature = nn.Parameter(torch.tensor(float(np.log(config.temperature))))

    @classmethod
    def for_dataset(cls, config: ModelConfig, dataset: Any, sharding: RowSharding | None = None) -> Argus:
        """A new model for the catalogue and the features of a prepared data set; sharding: on several ranks."""
        features = FeatureSpec.of(dataset.info)
        return cls(config, features, item_columns_of(config, dataset), sharding)

    def encode(
        self, batch: JaggedBatch, *, lag: int | None = None, lag_items: bool = False, read: Tensor | None = None
    ) -> Tensor:
        """States of the encoder: [T, d] (simplified) or [3T, d] (full; tokens context, item, feedback).

        lag: the states are for readings with a lag. Full form: a context token sees only events at least `lag` seconds
        older than itself and stands right behind them, as in a request; item and feedback tokens stay causal, so that
        the visible states equal those that a server would have stored. lag_items: item tokens are candidates of that
        request, which see its context token and the same events.
        read: bool [T], or [3T] in the full form, the states that will be read; the others may be 0. None: all.
        Simplified form: with a lag, HSTU's time bias counts from the time of the event itself, as a server does not
        know the next event yet; without a lag, from the time of the next event, which is part of its known context.
        """
        if batch.max_length > self.config.max_events:
            raise ValueError(
                f"a history of {batch.max_length} events, expected at most max_events = {self.config.max_events}"
            )
        if self.config.form == "simplified":
            ids = torch.cat([self._context_ids(batch, None), *self._inputs(batch)])
            known_next = self.config.encoder == "hstu" and lag is None
            query_times = next_times(batch.time, batch.offsets) if known_next else None
            offsets = Offsets(batch.offsets, rows=len(batch), max_length=batch.max_length)
            rows = rows_read(read, batch.offsets)
            layout = Layout(offsets, batch.time, batch.max_length, query_times=query_times, rows=rows)
            return self.encoder(self.event_embedding(self.tables, ids), layout)
        layout, tokens = self.full_tokens(batch, lag)
        assert isinstance(layout.offsets, Offsets)
        layout = replace(layout, rows=rows_read(read, layout.offsets.tensor))
        return self.encoder(tokens, layout if lag is None else self.lagged(layout, batch, lag, lag_items))

    def full_tokens(self, batch: JaggedBatch, lag: int | None = None) -> tuple[Layout, Tensor]:
        """The tokens [3T, d] of the full form, context, item and feedback of every event, and their causal layout."""
        items, feedback = self._inputs(batch)
        tokens = torch.stack(
            [
                self.context_embedding(self.tables, self._context_ids(batch, lag)),
                self.item_embedding(self.tables, items),
                self.feedback_embedding(self.tables, feedback),
            ],
            dim=1,
        ).flatten(0, 1)
        offsets = Offsets(batch.offsets * 3, rows=3 * len(batch), max_length=3 * batch.max_length)
        return Layout(offsets, batch.time.repeat_interleave(3), 3 * batch.max_length), tokens

    def lagged(self, layout: Layout, batch: JaggedBatch, lag: int, lag_items: bool) -> Layout:
        """The layout where context tokens see events that are old enough and stand right behind them.

        lag_items: so do item tokens, as candidates of a request: in one group with the context token before them.
        """
        local = local_positions(batch.offsets, batch.time.shape[0]).clamp(min=0)
        history, place = TOKENS * events_before(batch.time, batch.offsets, lag), TOKENS * local

        def of_tokens(context: Tensor, item: Tensor, feedback: Tensor) -> Tensor:
            return torch.stack([context, item, feedback], dim=1).flatten().int()

        if not lag_items:
            return replace(
                layout,
                visible=of_tokens(history, place + 1, place + 2),
                position=of_tokens(history, place + 1, place + 2),
            )
        return replace(
            layout,
            visible=of_tokens(history, history, place + 2),
            position=of_tokens(history, history, place + 2),
            own=(of_tokens(place, place, place + 2), of_tokens(place + 1, place + 2, place + 3)),
        )

    @property
    def served_lag(self) -> int | None:
        """See `Recommender`; 0 in the simplified form, where HSTU's states else know the time of the next event."""
        return 0 if self.config.form == "simplified" else None

    def read_by_targets(self, batch: JaggedBatch, lags: Sequence[int | None]) -> Tensor:
        """See `Recommender`; in the full form the context and the item token of every target."""
        if self.config.form == "simplified":
            return super().read_by_targets(batch, lags)
        target = batch.is_target
        return torch.stack([target, target, torch.zeros_like(target)], 1).flatten()

    def read(self, batch: JaggedBatch, states: Tensor, lag: int | None = None) -> Readings:
        """Inputs of the heads from `encode(batch)`: states before each event; in simplified form at least `lag` old.

        lag None: all earlier events are visible, as in pre-training. The full form applies its lag in `encode`.
        """
        if self.config.form == "full":
            context, item, _ = states.view(-1, 3, states.shape[-1]).unbind(1)
            return Readings(context, item)
        before = states_after(states, self.start, batch.offsets, events_before(batch.time, batch.offsets, lag))
        context = self.context_embedding(self.tables, self._context_ids(batch, lag))
        item = self.item_embedding(self.tables, self.item_ids(batch.items))
        return Readings(torch.cat([before, context], -1), torch.cat([before, context, item], -1))

    def read_lagged(self, batch: JaggedBatch, states: Tensor | None = None, lag: int | None = None) -> Readings:
        """Inputs of ranking: only events at least `lag` seconds older than t are visible (None: the model's own lag).

        states: `encode(batch)`, where already computed; used where `shares_states`.
        """
        lag = self.config.lag if lag is None else lag
        if states is None or not self.shares_states:
            states = self.encode(batch, lag=lag, lag_items=True)
        return self.read(batch, states, lag)

    @property
    def shares_states(self) -> bool:
        """Whether readings with a lag can use the states of `encode(batch)`, so that one pass serves both."""
        return self.config.form == "simplified" and self.config.encoder == "transformer"

    def read_user(self, batch: JaggedBatch, states: Tensor | None = None, lag: int | None = None) -> Tensor:
        """Inputs of the user tower [T, ·]: as `read_lagged`, without the event's own item."""
        if self.config.form == "simplified":
            return self.read_lagged(batch, states, lag).item
        lag = self.config.lag if lag is None else lag
        return self.encode(batch, lag=lag).view(-1, 3, self.config.width)[:, 0]

    def queries(self, readings: Readings) -> Tensor:
        """Unit query vectors of the next-item head: float32 [T, D]."""
        return normalize(self.query_head(readings.item).float(), dim=-1)

    def item_vectors(self, items: Tensor) -> Tensor:
        """Unit vectors of the items [n] int64: float32 [n, D]."""
        return normalize(self.item_tower(self.tables, self.item_ids(items)).float(), dim=-1)

    @property
    def temperature(self) -> Tensor:
        """Factor on the cosine of query and item: exp(τ), clipped to [0.01, 100]."""
        return self.log_temperature.exp().clamp(*TEMPERATURE_RANGE)

    def user_vectors(self, batch: JaggedBatch, states: Tensor | None = None, lag: int | None = None) -> Tensor:
        """User vector of every event for ranking: float32 [T, D]; its dot product with an item vector is the score."""
        return self.vectors_for(self.read_user(batch, states, lag), "pair")

    def ranking_scores(
        self, batch: JaggedBatch, kind: str | None = None, states: Tensor | None = None, lag: int | None = None
    ) -> Tensor:
        """Score of every event's own item for ordering what a user was shown: [T].

        kind: "pair" (two towers, what fine-tuning trains), "next_item" (logit of the next-item head) or "feedback"
        (expected feedback: see `Recommender`). None takes "pair" for a fine-tuned model, "next_item" otherwise.
        states: `encode(batch)`, where already computed. lag: every kind reads states at least this many seconds old;
        None takes the model's own. Pairs are only comparable where it exceeds the pair window (docs/model.md).
        """
        kind = self._ranking_kind(kind)
        if kind == "feedback":
            return self.expected_feedback(self.read_lagged(batch, states, lag).feedback)
        return (self.vectors_for(self.read_user(batch, states, lag), kind) * self.item_vectors(batch.items)).sum(-1)

    def vectors_for(self, readings: Tensor, kind: str) -> Tensor:
        """Vectors [n, D] of readings of the user tower whose products with item vectors are the scores "pair" or
        "next_item".
        """
        if kind == "pair":
            return self.user_head(readings).float()
        return self.temperature * normalize(self.query_head(readings).float(), dim=-1)

    def store_histories(self, batch: JaggedBatch, kind: str | None = None, lag: int | None = None) -> StoredHistories:
        """Encodes the histories of a batch once, for any number of `score_candidates` of this kind.

        lag: as `ranking_scores` has it with the events of the histories themselves; all of a history is visible to its
        candidates. ValueError for an HSTU encoder in the simplified form, whose states depend on the time of the next
        event.
        """
        return candidates.store(self, batch, self._ranking_kind(kind), lag)

    def score_candidates(self, histories: StoredHistories, requests: Candidates, kind: str | None = None) -> Tensor:
        """Scores [N] of every user's candidates in one pass over them; kind: as of `ranking_scores`.

        The score of a candidate is `ranking_scores` of the history with this one event appended, whatever the other
        candidates and their order. Everything in a history is visible.
        """
        return candidates.score(self, histories, requests, self._ranking_kind(kind))

    def _ranking_kind(self, kind: str | None) -> str:
        kind = kind or ("pair" if self.stage == "finetune" else "next_item")
        if kind not in RANKING_KINDS:
            raise ValueError(f"kind is {kind!r}, expected one of {', '.join(RANKING_KINDS)}")
        return kind

    def rows_at_hand(self, batch: JaggedBatch, items: Tensor) -> AbstractContextManager[None]:
        """On several ranks, holds during the block the rows of sharded tables that a batch and these items [n] need.

        A collective call; without sharded tables nothing happens.
        """
        if self.exchange is None or not self.tables.spans:
            return nullcontext()
        wanted: dict[str, list[Tensor]] = {name: [] for name in self.tables.spans}
        for name, ids in zip(self.item_tower.column_names, self.item_ids(items), strict=True):
            if name in wanted:
                wanted[name].append(ids)
        for name, ids in zip(self.features.context, batch.context, strict=True):
            if f"context_{name}" in wanted:
                wanted[f"context_{name}"].append(ids)
        rows, weights = self.tables.rows, self.tables.weights
        return self.tables.at_hand(
            {name: self.exchange.read(weights[name], rows[name], torch.cat(ids)) for name, ids in wanted.items()}
        )

    def item_ids(self, items: Tensor) -> Tensor:
        """Rows of the item tables [C, n] int64; −1 everywhere for item −1 (unknown)."""
        ids = self.item_columns[:, items.clamp(min=0)].long()
        return torch.where(items >= 0, ids, -1)

    def feedback_ids(self, batch: JaggedBatch) -> Tensor:
        """Feedback columns [F, T] as the encoder sees them: −1 everywhere where `feedback_input` is false."""
        return batch.feedback.T if self.config.feedback_input else torch.full_like(batch.feedback.T, -1)

    def _inputs(self, batch: JaggedBatch) -> tuple[Tensor, Tensor]:
        """Item columns [C, T] and feedback columns [F, T] of the encoder's tokens; in training some are hidden."""
        items, feedback = self.item_ids(batch.items), self.feedback_ids(batch)
        if not self.training:
            return items, feedback
        return hidden(items, self.config.item_dropout), hidden(feedback, self.config.feedback_dropout)

    def _context_ids(self, batch: JaggedBatch, lag: int | None) -> Tensor:
        """Context columns [K, T]: organic, bucketed time since the newest visible event, the data's own columns."""
        seen = events_before(batch.time, batch.offsets, lag)
        newest = states_after(batch.time[:, None], batch.time.new_zeros(1), batch.offsets, seen)[:, 0]
        gap = torch.where(seen > 0, time_buckets(batch.time - newest, self.config.time_buckets), -1)
        return torch.cat([batch.organic.long()[None], gap[None], batch.context])


def item_columns_of(config: ModelConfig, dataset: Any) -> Tensor:
    """The `item_columns` of a prepared data set: own or hashed rows, then the item features."""
    items = np.arange(dataset.info.items, dtype=np.int64)
    own = items[None]
    if config.item_hashes:
        from argus_kernels.host import hash_ids

        own = hash_ids(items, config.item_hashes, config.hash_rows)
    features = [np.asarray(dataset.item_column(f"item_{name}"))[None] for name in dataset.info.item_features]
    return torch.from_numpy(np.concatenate([own, *features]).astype(np.int32))


def _table_shapes(config: ModelConfig, features: FeatureSpec) -> dict[str, tuple[int, int]]:
    small = config.feature_width
    shapes = {"item": (config.hash_rows or features.items, config.item_width)}
    shapes |= {f"item_{name}": (count, small) for name, count in features.item_features.items()}
    shapes |= {"organic": (2, small), "gap": (config.time_buckets, small)}
    shapes |= {f"context_{name}": (count, small) for name, count in features.context.items()}
    return shapes | {f"feedback_{name}": (one.classes, small) for name, one in features.feedback.items()}
