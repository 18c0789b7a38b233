"""The record of pairwise_loss."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Arguments(NamedTuple):
    """What `pairwise_loss` hands to every backend, in the order of its schema."""

    scores: Tensor
    grades: Tensor
    offsets: Tensor
    """int32."""
    times: Tensor
    window: int
