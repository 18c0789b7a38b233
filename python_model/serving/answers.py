"""Answers of a session: vectors after an event, and items with their scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Reading:
    """The answer of a session after an event.

    number: of the event, counted from 0 over all events of the user, for `Session.amend`. query float32 [D]: its dot
    products with item vectors order the next items. user_vector float32 [D]: the two-tower ranker's; None for a model
    that was not fine-tuned. Both are for the time at which they may use all events: see `Session.vector`.
    """

    number: int
    query: np.ndarray
    user_vector: np.ndarray | None


@dataclass(frozen=True)
class Scored:
    """An item, its score, and its title where it has one."""

    item_id: Any
    score: float
    title: str | None = None
