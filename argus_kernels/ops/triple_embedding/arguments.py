"""The record of triple_embedding."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Arguments(NamedTuple):
    """What `triple_embedding` hands to every backend, in the order of its schema."""

    ids: Tensor
    tables: list[Tensor]
    columns: list[int]
    weight: Tensor
    bias: Tensor | None
    sparse: bool
    check_ids: bool
