"""The one mask rule of the attention ops: which keys a query sees.

Queries and keys of a user are numbered from 0. a = key_length − query_length + i is the place of query i among its
user's keys where both end together; i itself where queries and keys are the same events. Query i sees key j where

    (j < visible[i]  and  (position[i] − j < window  or  j < prefix[user]))   or   own_begin[i] ≤ j < own_end[i]

visible and position are a where they are not given, the query's own keys are [a, a + 1), window is no limit and
prefix 0. Every backend takes the rule from here.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from argus_kernels.core.varlen import user_of_row

MOST_PLACES = 2**30
"""The largest |position|: distances between positions then fit int32."""


class Queries(NamedTuple):
    """What the rule knows of queries, integers of any shape [..., Lq], each None where it limits nothing."""

    position: Tensor
    visible: Tensor
    own_begin: Tensor
    own_end: Tensor
    prefix: Tensor | None
    key_length: Tensor | None


def causal_queries(place: Tensor) -> Queries:
    """Queries that are their user's keys, under the default rule, at their places."""
    return Queries(place, place, place, place + 1, None, None)


def packed_queries(
    offsets: Tensor,
    rows: int,
    *,
    key_offsets: Tensor | None = None,
    visible: Tensor | None = None,
    position: Tensor | None = None,
    own_begin: Tensor | None = None,
    own_end: Tensor | None = None,
    prefix: Tensor | None = None,
) -> Queries:
    """The numbers of every packed query row, int64 [rows]; a padding row has key length 0 and sees nothing."""
    user = user_of_row(offsets, rows)
    keys = offsets if key_offsets is None else key_offsets
    # Past the last user: a user without events, which padding rows belong to.
    begin, end, key_begin, key_end = (
        torch.cat([bounds, offsets.new_zeros(1)]).long()[user]
        for bounds in (offsets[:-1], offsets[1:], keys[:-1], keys[1:])
    )
    key_length = key_end - key_begin
    place = key_length - (end - begin) + torch.arange(rows, device=offsets.device) - begin
    return Queries(
        place if position is None else position.long(),
        place if visible is None else visible.long(),
        place if own_begin is None else own_begin.long(),
        place + 1 if own_end is None else own_end.long(),
        None if prefix is None else torch.cat([prefix, prefix.new_zeros(1)]).long()[user],
        key_length,
    )


def seen_keys(queries: Queries, key_place: Tensor, window: int | None) -> Tensor:
    """The rule: bool [..., Lq, Lk] for keys at places j [Lk]."""
    position, visible, own_begin, own_end = (number[..., None] for number in queries[:4])
    seen = key_place < visible
    if window is not None:
        near = position - key_place < window
        seen = seen & (near if queries.prefix is None else near | (key_place < queries.prefix[..., None]))
    seen = seen | ((own_begin <= key_place) & (key_place < own_end))
    return seen if queries.key_length is None else seen & (key_place < queries.key_length[..., None])


def visible_pairs(queries: Queries, window: int | None) -> int:
    """How many (query, key) pairs the rule shows, over packed queries: what an attention op has to compute.

    Counted from the bounds: [0, prefix) ∪ [position − window + 1, ∞), cut at `visible`, and the query's own keys.
    """
    assert queries.key_length is not None
    most = queries.key_length
    nothing = torch.zeros_like(most)
    end = torch.minimum(queries.visible.clamp(min=0), most)
    begin = nothing if window is None else (queries.position - window + 1).clamp(min=0)
    spans = [(torch.minimum(begin, end), end)]
    if queries.prefix is not None:
        first = torch.minimum(torch.minimum(queries.prefix, spans[0][0]), end)
        spans.append((nothing, first))
    own_begin = torch.minimum(queries.own_begin.clamp(min=0), most)
    own_end = torch.maximum(torch.minimum(queries.own_end, most), own_begin)
    total = own_end - own_begin
    for one, other in spans:
        shared = torch.minimum(other, own_end) - torch.maximum(one, own_begin)
        total = total + (other - one) - shared.clamp(min=0)
    return int(total.sum())
