"""The forward Triton kernel of attention over packed histories, softmax and SiLU.

One program computes a tile of queries of one user and head. It loops over the user's keys, its own block first, so that
every query has seen itself before the running maximum is used; hidden blocks are skipped. Under the general mask rule
(`rule`) it loops over the blocks that its queries may see, and a query may see nothing. Scores are in units of ln 2,
and softmax is online. Rows whose sums hold a NaN are recomputed (`seen_rows`).
"""

from __future__ import annotations

import triton
import triton.language as tl

from argus_kernels.attention.triton.dropout import dropped
from argus_kernels.attention.triton.records import (
    as_column,
    key_rows,
    one_query,
    own_queries,
    own_tile,
    own_times,
    query_rows,
)
from argus_kernels.attention.triton.rule import (
    key_at,
    key_ranges,
    key_spans,
    least_position,
    past_own,
    row_keys,
    sees_any,
    shown,
)
from argus_kernels.attention.triton.seen_rows import any_of, attend_row, broken_rows, is_broken, statistic_of
from argus_kernels.attention.triton.tiles import add_tile_biases, load_block
from argus_kernels.core.triton_jit import kernel


@triton.jit
def _attend(
    total,
    largest,
    denominator,
    query,
    queries,
    nearest,
    k,
    v,
    key_box,
    value_box,
    low,
    high,
    spans,
    tile,
    biases,
    window,
    scale,
    MASKED: tl.constexpr,
    FIRST: tl.constexpr,
    BEHIND: tl.constexpr,
    SHAPE: tl.constexpr,
    BLOCK_KEY: tl.constexpr,
):
    """Adds the keys low … high − 1 to a query tile's sums. nearest: the least position of its queries.

    FIRST: a query may not have seen a key before. BEHIND: the keys are numbered as `past_own` says; under the general
    rule as `key_at` says for the spans.
    """
    for number in range(low, high, BLOCK_KEY):
        first = number
        if SHAPE.general:
            first = key_at(spans, number)
        elif BEHIND:
            first = past_own(number, tile, query.shape[0])
        key_place = first + tl.arange(0, BLOCK_KEY)
        key = load_block(k, key_box, tile.key_start, tile.key_head, first, key_place, tile.key_length, SHAPE)
        scores = tl.dot(query, tl.trans(key), input_precision="ieee") * scale
        key_time = own_times(biases.key_time, tile.key_start, tile.key_length, key_place)
        scores = add_tile_biases(
            scores, queries.position[:, None], key_place[None, :], nearest - first - BLOCK_KEY + 1,
            queries.time[:, None], key_time[None, :], tile, biases, SHAPE,
        )  # fmt: skip
        seen = shown(as_column(queries), key_place[None, :], tile.prefix, window, SHAPE)
        if SHAPE.softmax:
            if MASKED:
                scores = tl.where(seen, scores, -float("inf"))
            higher = tl.maximum(largest, tl.max(scores, axis=1))
            subtracted = higher
            if FIRST:
                # A query that has seen no key yet, not even itself: −∞ − −∞ would be NaN.
                subtracted = tl.where(higher == -float("inf"), 0.0, higher)
            weights = tl.exp2(scores - subtracted[:, None])
            shrink = tl.exp2(largest - subtracted)
            denominator = denominator * shrink + tl.sum(weights, axis=1)
            total = total * shrink[:, None]
            largest = higher
        else:
            weights = scores * tl.sigmoid(scores)
            if MASKED:
                weights = tl.where(seen, weights, 0.0)
        weights = dropped(weights, queries.position[:, None], key_place[None, :], tile.dropout, SHAPE)
        value = load_block(v, value_box, tile.key_start, tile.key_head, first, key_place, tile.key_length, SHAPE)
        total = tl.dot(weights.to(value.dtype), value, total, input_precision="ieee")
    return total, largest, denominator


@kernel
def forward_kernel(
    q,
    k,
    v,
    query_box,
    key_box,
    value_box,
    out,
    log_sum_exp,
    schedule,
    rule,
    biases,
    scale,
    divisor,
    window,
    rows,
    heads,
    SHAPE: tl.constexpr,
    BLOCK_QUERY: tl.constexpr,
    BLOCK_KEY: tl.constexpr,
):
    BLOCK_WIDTH: tl.constexpr = SHAPE.block_width
    LIMITED: tl.constexpr = rule.visible is not None
    tile = own_tile(schedule, heads, rule, BLOCK_QUERY, SHAPE, False)
    if tile.first >= tile.length:
        return
    length = tile.length
    place = tile.first + tl.arange(0, BLOCK_QUERY)
    real = place < length
    q, k, v = query_rows(q, tile), key_rows(k, tile), key_rows(v, tile)
    query = load_block(q, query_box, tile.start, tile.head, tile.first, place, length, SHAPE)
    queries = own_queries(rule, biases, tile, place, SHAPE)
    nearest = least_position(queries, tile, tile.first, SHAPE)
    total = tl.zeros([BLOCK_QUERY, BLOCK_WIDTH], tl.float32)
    largest = tl.full([BLOCK_QUERY], -float("inf"), tl.float32)
    denominator = tl.zeros([BLOCK_QUERY], tl.float32)
    low = tile.first * 0
    if SHAPE.general:
        spans = key_spans(queries, tile, window, SHAPE, BLOCK_KEY)
        total, largest, denominator = _attend(
            total, largest, denominator, query, queries, nearest, k, v, key_box, value_box, 0, spans.end, spans,
            tile, biases, window, scale, True, True, False, SHAPE, BLOCK_KEY,
        )  # fmt: skip
    else:
        low, inner, outer, high = key_ranges(
            tile, queries.limit, window, LIMITED, SHAPE.windowed, BLOCK_QUERY, BLOCK_KEY
        )
        own_end = tl.minimum(tile.first + BLOCK_QUERY, length)
        for part in tl.static_range(4):
            # Its own block, then the keys cut by the window, those that every query sees, and those cut by a limit.
            if (part == 0) or (part == 2) or (part == 1 and SHAPE.windowed) or (part == 3 and LIMITED):
                begin = tile.first if part == 0 else (low if part == 1 else (inner if part == 2 else outer))
                end = own_end if part == 0 else (inner if part == 1 else (outer if part == 2 else high))
                total, largest, denominator = _attend(
                    total, largest, denominator, query, queries, nearest, k, v, key_box, value_box, begin, end, None,
                    tile, biases, window, scale, part != 2, part == 0, part == 3, SHAPE, BLOCK_KEY,
                )  # fmt: skip
    broken = broken_rows(total, real)
    row = tile.head.to(tl.int64) * rows + tile.start
    target = out + (tile.start * heads + tile.head) * SHAPE.width
    line = heads * SHAPE.width
    kept = real & (broken == 0)
    if SHAPE.softmax:
        if SHAPE.general:
            # A query that sees nothing has result 0 and log_sum_exp −∞.
            denominator = tl.where(sees_any(queries, tile.prefix, window, SHAPE), denominator, 1.0)
        total = total / denominator[:, None]
        tl.store(log_sum_exp + row + place, statistic_of(largest, denominator), mask=kept)
    else:
        total = total / divisor
    column = tl.arange(0, BLOCK_WIDTH)
    pointers = target + place.to(tl.int64)[:, None] * line + column[None, :]
    tl.store(pointers, total.to(out.dtype.element_ty), mask=kept[:, None] & (column < SHAPE.width)[None, :])
    if any_of(broken):
        for number in range(tl.minimum(length - tile.first, BLOCK_QUERY)):
            if is_broken(broken, number, BLOCK_QUERY):
                one = one_query(queries, tile.first, number, BLOCK_QUERY, SHAPE)
                begin, end = row_keys(one, low, tile, rule, SHAPE)
                attend_row(
                    q, k, v, target + one.place.to(tl.int64) * line,
                    log_sum_exp + row + one.place if SHAPE.softmax else None, one, begin, end, tile, biases, divisor,
                    window, scale, SHAPE,
                )  # fmt: skip
