"""The trained baselines: SASRec and HSTU as complete recommenders over the sequence of items alone.

    x_t = √d · E[i_t] + P[t]                            item and learned absolute position
    h   = encoder(x)                                    causal
    s_t(j) = ⟨h_{t−1}, E[j]⟩                            SASRec (arXiv 1808.09781); the table is read at both ends
    s_t(j) = ⟨h_{t−1}, E[j]⟩ / (|h_{t−1}| |E[j]| 0.05)  HSTU (arXiv 2402.17152), its research code

Neither sees contexts, feedback or item features, which ARGUS adds. SASRec's blocks are this package's transformer
blocks without biases; HSTU's are `hstu.HstuBlock`, whose time bias uses the time of the predicted event. Neither has a
feedback head as published. For a comparison of feedback metrics, both get ARGUS' feedback head, a perceptron over
[h_{t−1}; E[i_t]], and are trained jointly with its loss.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from argus_kernels import Offsets
from argus_kernels.core.varlen import local_positions
from python_model.config import FeatureSpec, ModelConfig
from python_model.data.batches import JaggedBatch
from python_model.model.base import Readings, Recommender
from python_model.model.hstu import HstuEncoder
from python_model.model.layers import (
    Encoder,
    Layout,
    Tables,
    events_before,
    hidden,
    next_times,
    rows_read,
    states_after,
)

HSTU_TEMPERATURE = 0.05


class PlainEncoder(Encoder):
    """The transformer without biases: positions come with the input."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.position_bias = self.time_bias = None  # type: ignore[assignment]

    def biases(self) -> Iterator[tuple[None, None]]:
        """None in every layer."""
        return iter([(None, None)] * len(self.blocks))


class SequenceModel(Recommender):
    """SASRec or HSTU (`config.model`). The item table is as wide as the states: `item_width` equals `width`."""

    def __init__(self, config: ModelConfig, features: FeatureSpec, item_columns: Tensor) -> None:
        super().__init__(config, features, item_columns)
        width = config.width
        self.tables = Tables({"item": (features.items, width)})
        self.positions = nn.Parameter(torch.randn(config.max_events, width) * width**-0.5)
        self.encoder = HstuEncoder(config, norm=False) if config.model == "hstu" else PlainEncoder(config)
        self.start = nn.Parameter(torch.randn(width) * width**-0.5)
        self._make_feedback_head(2 * width)

    def encode(self, batch: JaggedBatch, *, lag: int | None = None, read: Tensor | None = None) -> Tensor:
        """States [T, d]; with a lag HSTU's time bias counts from each event itself, as in `Argus.encode`."""
        if batch.max_length > self.config.max_events:
            raise ValueError(
                f"a history of {batch.max_length} events, expected at most max_events = {self.config.max_events}"
            )
        place = local_positions(batch.offsets, len(batch)).clamp(0, self.config.max_events - 1)
        items = hidden(batch.items, self.config.item_dropout if self.training else 0.0)
        tokens = self._items(items) * self.config.width**0.5 + self.positions[place]
        query_times = next_times(batch.time, batch.offsets) if self.config.model == "hstu" and lag is None else None
        offsets = Offsets(batch.offsets, rows=len(batch), max_length=batch.max_length)
        rows = rows_read(read, batch.offsets)
        return self.encoder(tokens, Layout(offsets, batch.time, batch.max_length, query_times=query_times, rows=rows))

    def read(self, batch: JaggedBatch, states: Tensor, lag: int | None = None) -> Readings:
        """The state before each event, for the feedback with the event's item."""
        before = states_after(states, self.start, batch.offsets, events_before(batch.time, batch.offsets, lag))
        return Readings(before, torch.cat([before, self._items(batch.items) * self.config.width**0.5], -1))

    def read_lagged(self, batch: JaggedBatch, states: Tensor | None = None, lag: int | None = None) -> Readings:
        """The same from states at least `lag` seconds old; uses `states` where they do not depend on time."""
        lag = self.config.lag if lag is None else lag
        if states is None or self.config.model == "hstu":
            states = self.encode(batch, lag=lag)
        return self.read(batch, states, lag)

    def queries(self, readings: Readings) -> Tensor:
        """The states as they are, or of unit length (HSTU): float32 [T, d]."""
        return self._scaled(readings.item.float())

    def item_vectors(self, items: Tensor) -> Tensor:
        """Rows of the item table, as they are or of unit length: float32 [n, d]."""
        return self._scaled(self._items(items).float())

    @property
    def temperature(self) -> Tensor:
        """1, or 1 / 0.05 (HSTU); not learned."""
        return torch.tensor(1 / HSTU_TEMPERATURE if self.config.model == "hstu" else 1.0, device=self.device)

    def _scaled(self, vectors: Tensor) -> Tensor:
        return normalize(vectors, dim=-1) if self.config.model == "hstu" else vectors

    def _items(self, items: Tensor) -> Tensor:
        """Rows of the item table [n, d], 0 for an unknown item (−1)."""
        rows = nn.functional.embedding(items.clamp(min=0), self.tables["item"], sparse=self.config.sparse)
        return rows * (items >= 0)[:, None]
