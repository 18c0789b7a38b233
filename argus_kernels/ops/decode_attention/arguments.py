"""The record of decode_attention."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Arguments(NamedTuple):
    """What `decode_attention` hands to every backend, in the order of its schema; the pages are the cache's."""

    q: Tensor
    key_pages: Tensor
    value_pages: Tensor
    time_pages: Tensor
    block_table: Tensor
    lengths: Tensor
    """int32."""
    k: Tensor | None
    v: Tensor | None
    position_bias: Tensor | None
    time_bias: Tensor | None
    query_time: Tensor | None
    key_time: Tensor | None
    scale: float
    window: int | None
