"""The mask rule in the Triton attention kernels: which pairs are seen, and which blocks hold one.

Under the causal rule and with `visible` alone (not SHAPE.general) a query's own key is at its own place. The general
rule has the numbers of `argus_kernels.attention.mask_rule`; the blocks of a tile's queries follow from the least and
the largest of these.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from argus_kernels.attention.triton.records import own_queries

SCAN = tl.constexpr(512)
"""How many queries a tile of keys asks at once whether they see it."""


class Spans(NamedTuple):
    """Four runs of whole key blocks, in order and apart, numbered through from 0 to `end`.

    A run ends at before_own, before_window, after_window and end; shift: what leads from a number to the key.
    """

    before_own: Any
    before_window: Any
    after_window: Any
    end: Any
    own_shift: Any
    window_shift: Any
    last_shift: Any


@triton.jit
def shown(queries, key_place, prefix, window, SHAPE: tl.constexpr):
    """The mask rule, of queries and keys whose shapes broadcast."""
    if SHAPE.general:
        seen = key_place < queries.limit
        if SHAPE.windowed:
            seen = seen & ((queries.position - key_place < window) | (key_place < prefix))
        seen = seen | ((queries.own_begin <= key_place) & (key_place < queries.own_end))
    else:
        seen = (key_place < queries.limit) | (key_place == queries.place)
        if SHAPE.windowed:
            seen = seen & (queries.place - key_place < window)
    return seen


@triton.jit
def sees_any(queries, prefix, window, SHAPE: tl.constexpr):
    """Whether the general rule shows a query any key: the last of the visible ones is the nearest to its position."""
    seen = queries.limit > 0
    if SHAPE.windowed:
        seen = seen & ((queries.position - queries.limit + 1 < window) | (prefix > 0))
    return seen | (queries.own_begin < queries.own_end)


@triton.jit
def sees_block(queries, first, prefix, window, BLOCK_KEY: tl.constexpr, SHAPE: tl.constexpr):
    """Whether the general rule shows a query a key of first … first + BLOCK_KEY − 1."""
    seen = queries.limit > first
    if SHAPE.windowed:
        last = tl.minimum(first + BLOCK_KEY, queries.limit) - 1
        seen = seen & ((queries.position - last < window) | (first < prefix))
    own = (queries.own_begin < queries.own_end) & (queries.own_begin < first + BLOCK_KEY) & (queries.own_end > first)
    return seen | own


@triton.jit
def key_spans(queries, tile, window, SHAPE: tl.constexpr, BLOCK_KEY: tl.constexpr):
    """The key blocks that queries [Q] may see under the general rule: the prefix, the window, and their own keys."""
    high = tl.maximum(tl.max(queries.limit, axis=0), 0)
    low = high * 0
    before = high * 0
    if SHAPE.windowed:
        begin = tl.maximum(queries.position - window + 1, 0)
        low = tl.min(tl.where(begin < queries.limit, begin, high), axis=0) // BLOCK_KEY * BLOCK_KEY
        before = tl.minimum(tl.cdiv(tl.maximum(tl.minimum(tile.prefix, high), 0), BLOCK_KEY) * BLOCK_KEY, low)
    high = tl.maximum(tl.cdiv(high, BLOCK_KEY) * BLOCK_KEY, low)
    own = queries.own_begin < queries.own_end
    own_low = tl.min(tl.where(own, queries.own_begin, tile.key_length), axis=0) // BLOCK_KEY * BLOCK_KEY
    own_high = tl.cdiv(tl.max(tl.where(own, queries.own_end, 0), axis=0), BLOCK_KEY) * BLOCK_KEY
    between = tl.maximum(own_low, before)
    behind = tl.maximum(own_low, high)
    before_window = before + tl.maximum(tl.minimum(own_high, low) - between, 0)
    after_window = before_window + high - low
    return Spans(
        before, before_window, after_window, after_window + tl.maximum(own_high - behind, 0),
        between - before, low - before_window, behind - after_window,
    )  # fmt: skip


@triton.jit
def key_at(spans, number):
    """The key that a number of the runs stands for."""
    shift = tl.where(number < spans.after_window, spans.window_shift, spans.last_shift)
    shift = tl.where(number < spans.before_window, spans.own_shift, shift)
    return number + tl.where(number < spans.before_own, 0, shift)


@triton.jit
def seeing_queries(rule, biases, tile, end, window, SHAPE: tl.constexpr, BLOCK_KEY: tl.constexpr):
    """The first of queries 0 … end − 1 that sees a key of a tile, and the one after the last; `end` and 0 for none."""
    lowest = tl.zeros([SCAN], tl.int32) + end
    highest = tl.zeros([SCAN], tl.int32)
    for first in range(0, end, SCAN):
        place = first + tl.arange(0, SCAN)
        queries = own_queries(rule, biases, tile, place, SHAPE)
        if SHAPE.general:
            seen = sees_block(queries, tile.first, tile.prefix, window, BLOCK_KEY, SHAPE)
        else:
            seen = queries.limit > tile.first
        seen = seen & (place < end)
        lowest = tl.where(seen, tl.minimum(lowest, place), lowest)
        highest = tl.where(seen, place + 1, highest)
    return tl.min(lowest, axis=0), tl.max(highest, axis=0)


@triton.jit
def query_range(
    rule,
    biases,
    tile,
    window,
    SHAPE: tl.constexpr,
    BLOCK_QUERY: tl.constexpr,
    BLOCK_KEY: tl.constexpr,
):
    """The queries low … high − 1 among which are all that see a tile of keys; `low` is where a block begins."""
    low = tile.first
    high = tile.length
    if SHAPE.general:
        low, high = seeing_queries(rule, biases, tile, tile.length, window, SHAPE, BLOCK_KEY)
        low = low // BLOCK_QUERY * BLOCK_QUERY
    else:
        if SHAPE.windowed:
            high = tl.minimum(tile.length, tile.first + BLOCK_KEY + window - 1)
        if rule.visible is not None:
            low, _ = seeing_queries(rule, biases, tile, tile.first, window, SHAPE, BLOCK_KEY)
            low = low // BLOCK_QUERY * BLOCK_QUERY
    return low, high


@triton.jit
def key_ranges(
    tile,
    limit,
    window,
    LIMITED: tl.constexpr,
    WINDOWED: tl.constexpr,
    BLOCK_QUERY: tl.constexpr,
    BLOCK_KEY: tl.constexpr,
):
    """Keys outside a query tile's own block: [low, inner) masked, [inner, outer) seen by all, [outer, high) masked.

    All but `high` are multiples of BLOCK_KEY, as `first` is. The last run goes on behind the own block: its numbers
    from `first` on stand for the keys that lie BLOCK_QUERY behind them (`past_own`).
    """
    first = tile.first
    real = first + tl.arange(0, BLOCK_QUERY) < tile.length
    low = first * 0
    inner = first * 0
    outer = first
    high = first
    before = first
    if LIMITED:
        reach = tl.minimum(tl.max(tl.where(real, limit, 0), axis=0), tile.length)
        before = tl.minimum(first, reach)
        high = tl.maximum(before, reach - BLOCK_QUERY)
        outer = tl.minimum(first, tl.min(tl.where(real, limit, first), axis=0)) // BLOCK_KEY * BLOCK_KEY
    if WINDOWED:
        low = tl.maximum(first - window + 1, 0) // BLOCK_KEY * BLOCK_KEY
        last = tl.minimum(first + BLOCK_QUERY, tile.length) - 1
        inner = tl.maximum(last - window + BLOCK_KEY, 0) // BLOCK_KEY * BLOCK_KEY
        inner = tl.minimum(tl.maximum(inner, low), tl.cdiv(before, BLOCK_KEY) * BLOCK_KEY)
        inner = tl.maximum(inner, low)
        outer = tl.maximum(outer, inner)
    return low, inner, outer, high


@triton.jit
def past_own(number, tile, BLOCK_QUERY: tl.constexpr):
    """The key that a number of the last run of `key_ranges` stands for."""
    return number + tl.where(number < tile.first, 0, BLOCK_QUERY)


@triton.jit
def least_position(queries, tile, first, SHAPE: tl.constexpr):
    """The least position of the real queries of a block that begins at `first`."""
    least = first
    if SHAPE.general:
        least = tl.min(tl.where(queries.place < tile.length, queries.position, 2**30), axis=0)
    return least


@triton.jit
def largest_position(queries, tile, first, SHAPE: tl.constexpr):
    """The largest position of the real queries of a block that begins at `first`."""
    BLOCK: tl.constexpr = queries.place.shape[0]
    largest = tl.minimum(first + BLOCK, tile.length) - 1
    if SHAPE.general:
        largest = tl.max(tl.where(queries.place < tile.length, queries.position, -(2**30)), axis=0)
    return largest


@triton.jit
def row_keys(query, low, tile, rule, SHAPE: tl.constexpr):
    """The keys among which are those that one query sees; low: where its tile's begin."""
    begin = low
    end = query.place + 1
    if SHAPE.general:
        begin = low * 0
        end = tile.key_length
    elif rule.visible is not None:
        end = tl.minimum(tl.maximum(end, query.limit), tile.length)
    return begin, end
