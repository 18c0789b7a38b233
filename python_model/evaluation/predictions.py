"""The common form of all predictions for evaluated events: of a trained model, popularity or the oracle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from python_model.evaluation.metrics import Ranking


@dataclass(frozen=True)
class Predictions:
    """Predictions for n events; a part that a predictor does not offer is None (or missing from the mapping)."""

    next_item: Ranking | None = None
    """The rank of each event's item in the catalogue, predicted before the event."""
    feedback: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Task -> float64 [n, C] log-probabilities of its classes."""
    ranking: np.ndarray | None = None
    """float [n]: score by which the impressions of a user are ordered, higher is better."""


class Predictor(Protocol):
    """Anything that can be evaluated."""

    def predict(self, rows: np.ndarray) -> Predictions:
        """Predictions for the events `rows` (int64 [n], rising row numbers of the data set)."""
        ...
