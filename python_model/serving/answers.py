"""What a session answers: vectors after an event, and items with their scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Reading:
    """What a session says after an event.

    number: of the event, counted from 0 over the user's life, for `Session.amend`. query float32 [D]: its dot products
    with item vectors order what comes next. user_vector float32 [D]: the two-tower ranker's; None of a model that was
    not fine-tuned. Both speak of the moment in which they may know all events: see `Session.vector`.
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
