"""The forward Triton kernel of attention over packed histories, softmax and SiLU.

One program computes a tile of queries of one user and head. It loops over the user's keys, its own block first, so that
every query has seen itself before the running maximum is used; hidden blocks are skipped. Scores are in units of ln 2,
and softmax is online. Rows whose sums hold a NaN are recomputed (`seen_rows`).
"""

from __future__ import annotations

import triton
import triton.language as tl

from argus_kernels.attention.triton.records import own_queries, own_rows, own_tile, own_times
from argus_kernels.attention.triton.seen_rows import any_of, attend_row, broken_rows, entry, is_broken
from argus_kernels.attention.triton.tiles import LN_2, add_tile_biases, key_ranges, load_rows, shown
from argus_kernels.core.triton_jit import kernel


@triton.jit
def _attend(
    total,
    largest,
    denominator,
    query,
    queries,
    k,
    v,
    low,
    high,
    tile,
    biases,
    window,
    scale,
    MASKED: tl.constexpr,
    OWN: tl.constexpr,
    SHAPE: tl.constexpr,
    BLOCK_KEY: tl.constexpr,
):
    """Adds the keys low … high − 1 to a query tile's sums; OWN: they are the tile's own block, the first of all."""
    for first in range(low, high, BLOCK_KEY):
        key_place = first + tl.arange(0, BLOCK_KEY)
        key = load_rows(k, key_place, tile.length, SHAPE)
        scores = tl.dot(query, tl.trans(key), input_precision="ieee") * scale
        key_time = own_times(biases.key_time, tile, key_place)
        scores = add_tile_biases(
            scores, queries.place[:, None], key_place[None, :], tile.first - first - BLOCK_KEY + 1,
            queries.time[:, None], key_time[None, :], tile, biases, SHAPE,
        )  # fmt: skip
        seen = shown(queries.place[:, None], key_place[None, :], queries.limit[:, None], window, SHAPE.windowed)
        if SHAPE.softmax:
            if MASKED:
                scores = tl.where(seen, scores, -float("inf"))
            higher = tl.maximum(largest, tl.max(scores, axis=1))
            subtracted = higher
            if OWN:
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
        value = load_rows(v, key_place, tile.length, SHAPE)
        total = tl.dot(weights.to(value.dtype), value, total, input_precision="ieee")
    return total, largest, denominator


@kernel
def forward_kernel(
    q,
    k,
    v,
    out,
    log_sum_exp,
    schedule,
    visible,
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
    tile = own_tile(schedule, heads, BLOCK_QUERY)
    if tile.first >= tile.length:
        return
    length = tile.length
    place = tile.first + tl.arange(0, BLOCK_QUERY)
    real = place < length
    q, k, v = own_rows(q, tile), own_rows(k, tile), own_rows(v, tile)
    query = load_rows(q, place, length, SHAPE)
    queries = own_queries(visible, biases, tile, place)
    low, inner, outer, high = key_ranges(
        tile, queries.limit, window, visible is not None, SHAPE.windowed, BLOCK_QUERY, BLOCK_KEY
    )
    total = tl.zeros([BLOCK_QUERY, BLOCK_WIDTH], tl.float32)
    largest = tl.full([BLOCK_QUERY], -float("inf"), tl.float32)
    denominator = tl.zeros([BLOCK_QUERY], tl.float32)
    own_end = tl.minimum(tile.first + BLOCK_QUERY, length)
    for part in tl.static_range(4):
        # Its own block, then the keys cut by the window, those that every query sees, and those cut by a limit.
        if (part == 0) or (part == 2) or (part == 1 and SHAPE.windowed) or (part == 3 and visible is not None):
            begin = tile.first if part == 0 else (low if part == 1 else (inner if part == 2 else outer))
            end = own_end if part == 0 else (inner if part == 1 else (outer if part == 2 else high))
            total, largest, denominator = _attend(
                total, largest, denominator, query, queries, k, v, begin, end, tile, biases, window, scale,
                part != 2, part == 0, SHAPE, BLOCK_KEY,
            )  # fmt: skip
    broken = broken_rows(total, real)
    row = tile.head.to(tl.int64) * rows + tile.start
    target = out + (tile.start * heads + tile.head) * SHAPE.width
    line = heads * SHAPE.width
    kept = real & (broken == 0)
    if SHAPE.softmax:
        total = total / denominator[:, None]
        tl.store(log_sum_exp + row + place, (largest + tl.log2(denominator)) * LN_2, mask=kept)
    else:
        total = total / divisor
    column = tl.arange(0, BLOCK_WIDTH)
    pointers = target + place.to(tl.int64)[:, None] * line + column[None, :]
    tl.store(pointers, total.to(out.dtype.element_ty), mask=kept[:, None] & (column < SHAPE.width)[None, :])
    if any_of(broken):
        for number in range(tl.minimum(length - tile.first, BLOCK_QUERY)):
            if is_broken(broken, number, BLOCK_QUERY):
                one = tile.first + number
                attend_row(
                    q, k, v, target + one.to(tl.int64) * line, log_sum_exp + row + one if SHAPE.softmax else None, one,
                    entry(queries.limit, number, BLOCK_QUERY), entry(queries.time, number, BLOCK_QUERY),
                    low, tile, biases, divisor, window, scale, SHAPE,
                )  # fmt: skip
