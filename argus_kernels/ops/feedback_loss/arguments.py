"""The record of feedback_loss."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Arguments(NamedTuple):
    """What `feedback_loss` hands to every backend, in the order of its schema.

    task_weight and row_weight are float32 (float64 for a float64 hidden).
    """

    hidden: Tensor
    weight: Tensor
    bias: Tensor
    targets: Tensor
    classes: list[int]
    task_weight: Tensor | None
    row_weight: Tensor | None
