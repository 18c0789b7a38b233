"""The record of decode_attention."""

from __future__ import annotations

from itertools import pairwise
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
    offsets: Tensor | None = None
    """int32 [B + 1], or one event a user."""
    divisor: float | None = None
    """What SiLU's weights are divided by; None for softmax."""
    key_scales: Tensor | None = None
    """float32 [pages, page_size, Hk] beside int8 pages."""
    value_scales: Tensor | None = None

    @property
    def group(self) -> int:
        """Heads of q that share a head of the cache."""
        return self.q.shape[1] // self.key_pages.shape[2]


class Row(NamedTuple):
    """A row of q: its user, and how many events of theirs it may see, itself the last."""

    user: int
    length: int


def rows_of(given: Arguments) -> list[Row | None]:
    """The rows of q in order, None for padding and for a user without events; reads lengths and offsets."""
    lengths = given.lengths.tolist()
    if given.offsets is None:
        return [Row(user, length) if length > 0 else None for user, length in enumerate(lengths)]
    offsets = given.offsets.tolist()
    rows: list[Row | None] = [
        Row(user, lengths[user] - last + row + 1)
        for user, (first, last) in enumerate(pairwise(offsets))
        for row in range(first, last)
    ]
    return rows + [None] * (given.q.shape[0] - len(rows))
