"""Recomputes single rows of attention's results so that a hidden pair adds nothing, whatever it holds.

A matrix product multiplies hidden pairs by 0, and 0 · NaN and 0 · ∞ are NaN: an event that is not finite would affect
events of its user that do not see it. Such an error becomes NaN in a tile's sums and stays NaN. So the kernels check
for NaN at the end of a tile and recompute those rows here: one row at a time against blocks of the other side, with
sums of `where` instead of products. Rows without a NaN keep the results of the products.

The functions work on small blocks, so that they take no registers from the kernels' products; a row costs many times
its share of a tile. If ptxas would still take more registers, or spill to take fewer, `launch` sets a limit.
`attend_row` is called, not inlined: inlined, float32's forward kernel spills 8 bytes at 64 registers. The gradients'
functions are inlined: called, the key gradient of head width 128 spills 8 bytes on sm_100.
"""

from __future__ import annotations

import triton
import triton.language as tl

from argus_kernels.attention.triton.dropout import dropped
from argus_kernels.attention.triton.records import of_member, own_queries, own_times, query_rows
from argus_kernels.attention.triton.rule import sees_any, shown
from argus_kernels.attention.triton.tiles import LN_2, LOG2_E, add_biases, load_rows, slopes

ENTRIES = tl.constexpr(512)
"""Of a block of rows: few, for the same reason."""


@triton.jit
def broken_rows(total, real):
    """Which rows of a tile's sums, padding excluded, hold a NaN: int32 [rows]."""
    return tl.max(((total != total) & real[:, None]).to(tl.int32), axis=1)


@triton.jit
def any_of(broken):
    """Whether a row holds a NaN. A matrix of one row: on sm_100 Triton 3.6 cannot reduce a vector after a product."""
    return tl.max(broken[None, :], axis=1).item() > 0


@triton.jit
def is_broken(broken, number, BLOCK: tl.constexpr):
    """Whether row `number` holds a NaN."""
    own = tl.arange(0, BLOCK) == number
    return tl.max(tl.where(own, broken, 0)[None, :], axis=1).item() > 0


@triton.jit
def load_row(rows, place, SHAPE: tl.constexpr):
    """One row in float32, [block_width]; zero past the head's width."""
    column = tl.arange(0, SHAPE.block_width)
    pointers = rows.data + place.to(tl.int64) * rows.row + column * rows.column
    return tl.load(pointers, mask=column < SHAPE.width, other=0.0).to(tl.float32)


@triton.jit
def _add_seen(total, factors, seen, rows):
    """Total + Σ_j factors[j] · rows[j] over the visible rows."""
    return total + tl.sum(tl.where(seen[:, None], factors[:, None] * rows, 0.0), axis=0)


@triton.jit
def _scores(row, rows, queries, key_place, key_time, tile, biases, scale, SHAPE: tl.constexpr):
    """The scores of one row [block_width] with the rows of the other side [N, block_width]."""
    scores = tl.sum(rows * row[None, :], axis=1) * scale
    return add_biases(scores, queries.position, key_place, queries.time, key_time, tile, biases, SHAPE)[0]


@triton.jit
def _key_scores(row, query, k, first, tile, biases, window, scale, SHAPE: tl.constexpr):
    """Keys from `first` on, which of them the query sees, their scores, and their positions."""
    key_place = first + tl.arange(0, ENTRIES // SHAPE.block_width)
    key_time = own_times(biases.key_time, tile.key_start, tile.key_length, key_place)
    key = load_rows(k, key_place, tile.key_length, SHAPE).to(tl.float32)
    seen = shown(query, key_place, tile.prefix, window, SHAPE)
    return key, seen, _scores(row, key, query, key_place, key_time, tile, biases, scale, SHAPE), key_place


@triton.jit
def _store_row(target, row, SHAPE: tl.constexpr):
    column = tl.arange(0, SHAPE.block_width)
    tl.store(target + column, row.to(target.dtype.element_ty), mask=column < SHAPE.width)


@triton.jit
def statistic_of(largest, denominator):
    """log_sum_exp, of scores in units of ln 2; NaN, as the result is, where all seen scores are −∞."""
    return tl.where(denominator == 0.0, float("nan"), (largest + tl.log2(denominator)) * LN_2)


@triton.jit(noinline=True)
def attend_row(
    q, k, v, out, log_sum_exp, query, low, high, tile, biases, divisor, window, scale, SHAPE: tl.constexpr
):  # fmt: skip
    """Writes a query's result to `out`, and its log_sum_exp for softmax; low, high: it sees no key outside."""
    BLOCK_WIDTH: tl.constexpr = SHAPE.block_width
    block: tl.constexpr = ENTRIES // BLOCK_WIDTH
    row = load_row(q, query.place, SHAPE)
    total = tl.zeros([BLOCK_WIDTH], tl.float32)
    largest = tl.full([], -float("inf"), tl.float32)
    denominator = tl.zeros([], tl.float32)
    subtracted = tl.zeros([], tl.float32)
    if SHAPE.softmax:
        for first in tl.range(low, high, block, num_stages=1):
            _, seen, scores, _ = _key_scores(row, query, k, first, tile, biases, window, scale, SHAPE)
            largest = tl.maximum(largest, tl.max(tl.where(seen, scores, -float("inf")), axis=0))
        # If every score is −∞, −∞ − −∞ would be NaN.
        subtracted = tl.where(largest == -float("inf"), 0.0, largest)
    for first in tl.range(low, high, block, num_stages=1):
        _, seen, scores, key_place = _key_scores(row, query, k, first, tile, biases, window, scale, SHAPE)
        if SHAPE.softmax:
            weights = tl.exp2(scores - subtracted)
            denominator += tl.sum(tl.where(seen, weights, 0.0), axis=0)
        else:
            weights = scores * tl.sigmoid(scores)
        weights = dropped(weights, query.position, key_place, tile.dropout, SHAPE)
        value = load_rows(v, key_place, tile.key_length, SHAPE).to(tl.float32)
        total = _add_seen(total, weights, seen, value)
    if SHAPE.softmax:
        if SHAPE.general:
            denominator = tl.where(sees_any(query, tile.prefix, window, SHAPE), denominator, 1.0)
        tl.store(log_sum_exp, statistic_of(largest, denominator))
        divisor = denominator
    _store_row(out, total / divisor, SHAPE)


@triton.jit
def query_gradient_row(
    q, d_out, k, v, d_q, query, statistic, delta, low, high, tile, biases, factor, window, scale,
    EXACT: tl.constexpr, SHAPE: tl.constexpr,
):  # fmt: skip
    """Writes a query's gradient to `d_q`; statistic: log_sum_exp in units of log₂; low, high: as for `attend_row`."""
    BLOCK_WIDTH: tl.constexpr = SHAPE.block_width
    block: tl.constexpr = ENTRIES // BLOCK_WIDTH
    row = load_row(q, query.place, SHAPE)
    above = load_row(d_out, query.place, SHAPE)
    total = tl.zeros([BLOCK_WIDTH], tl.float32)
    weight_sum = tl.zeros([], tl.float32)
    for first in tl.range(low, high, block, num_stages=1):
        key, seen, scores, key_place = _key_scores(row, query, k, first, tile, biases, window, scale, SHAPE)
        value = load_rows(v, key_place, tile.key_length, SHAPE).to(tl.float32)
        d_weights = tl.sum(value * above[None, :], axis=1)
        d_weights = dropped(d_weights, query.position, key_place, tile.dropout, SHAPE)
        weights, d_scores = slopes(scores, d_weights, seen, statistic, delta, None, True, SHAPE)
        total = _add_seen(total, d_scores, seen, key)
        weight_sum += tl.sum(weights, axis=0)
    if EXACT:
        if SHAPE.general:
            weight_sum = tl.where(sees_any(query, tile.prefix, window, SHAPE), weight_sum, 1.0)
        total = total / weight_sum
    _store_row(d_q, total * factor, SHAPE)


@triton.jit
def key_gradient_row(
    q, d_out, k, v, d_k, d_v, place, statistics, rows, rule, low, high, tile, biases, factor, divisor, window, scale,
    SHAPE: tl.constexpr,
):  # fmt: skip
    """Writes the gradients of a key and its value to `d_k` and `d_v`; low, high: no query outside sees it."""
    BLOCK_WIDTH: tl.constexpr = SHAPE.block_width
    key = load_row(k, place, SHAPE)
    value = load_row(v, place, SHAPE)
    key_time = own_times(biases.key_time, tile.key_start, tile.key_length, place)
    d_key = tl.zeros([BLOCK_WIDTH], tl.float32)
    d_value = tl.zeros([BLOCK_WIDTH], tl.float32)
    if SHAPE.group == 1:
        d_key, d_value = _gather_row(
            d_key, d_value, key, value, key_time, q, d_out, place, statistics, rows, rule, low, high, tile, biases,
            window, scale, SHAPE,
        )  # fmt: skip
    else:
        for member in tl.range(0, SHAPE.group, num_stages=1):
            d_key, d_value = _gather_row(
                d_key, d_value, key, value, key_time, q, d_out, place, statistics, rows, rule, low, high,
                of_member(tile, rule, member, SHAPE), biases, window, scale, SHAPE,
            )  # fmt: skip
    _store_row(d_k, d_key * factor, SHAPE)
    _store_row(d_v, d_value / divisor, SHAPE)


@triton.jit
def _gather_row(
    d_key, d_value, key, value, key_time, q, d_out, place, statistics, rows, rule, low, high, tile, biases,
    window, scale, SHAPE: tl.constexpr,
):  # fmt: skip
    """Adds the terms of queries low … high − 1 of the tile's head to the gradients of one key and value."""
    block: tl.constexpr = ENTRIES // SHAPE.block_width
    q, d_out = query_rows(q, tile), query_rows(d_out, tile)
    row = tile.head.to(tl.int64) * rows + tile.start
    for first in tl.range(low, high, block, num_stages=1):
        query_place = first + tl.arange(0, block)
        real = query_place < tile.length
        queries = own_queries(rule, biases, tile, query_place, SHAPE)
        query = load_rows(q, query_place, tile.length, SHAPE).to(tl.float32)
        above = load_rows(d_out, query_place, tile.length, SHAPE).to(tl.float32)
        scores = _scores(key, query, queries, place, key_time, tile, biases, scale, SHAPE)
        d_weights = tl.sum(above * value[None, :], axis=1)
        d_weights = dropped(d_weights, queries.position, place, tile.dropout, SHAPE)
        seen = shown(queries, place, tile.prefix, window, SHAPE) & real
        if SHAPE.softmax:
            statistic = tl.load(statistics.log_sum_exp + row + query_place, mask=real, other=float("inf")) * LOG2_E
            delta = tl.load(statistics.delta + row + query_place, mask=real, other=0.0)
            norm = None
            if statistics.norm is not None:
                norm = tl.load(statistics.norm + row + query_place, mask=real, other=0.0)
            weights, d_scores = slopes(scores, d_weights, seen, statistic, delta, norm, True, SHAPE)
        else:
            weights, d_scores = slopes(scores, d_weights, seen, None, None, None, True, SHAPE)
        weights = dropped(weights, queries.position, place, tile.dropout, SHAPE)
        d_value = _add_seen(d_value, weights, seen, above)
        d_key = _add_seen(d_key, d_scores, seen, query)
    return d_key, d_value
