"""The record of rowwise_adagrad_."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Arguments(NamedTuple):
    """What `rowwise_adagrad_` hands to every backend, in the order of its schema."""

    table: Tensor
    state: Tensor
    rows: Tensor
    row_gradients: Tensor
    lr: float
    eps: float
    weight_decay: float
