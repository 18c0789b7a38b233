"""The forward Triton kernel of attention over packed histories, softmax and SiLU.

One program computes a tile of queries of one user and head. It walks the user's keys, its own block first, so that
every query has seen itself before the running maximum is used; blocks that the mask hides are never visited. Scores are
in the base-2 logarithm's units, and softmax is the online one.
"""

from __future__ import annotations

import triton
import triton.language as tl

from argus_kernels.attention.triton.tiles import (
    LN_2,
    LOG2_E,
    add_biases,
    key_ranges,
    load_rows,
    position_bucket,
    shown,
    time_bucket,
)
from argus_kernels.core.triton_jit import kernel


@triton.jit
def _attend(
    total,
    largest,
    denominator,
    query,
    place,
    limit,
    query_time,
    key_base,
    value_base,
    key_time,
    position_bias,
    time_bias,
    upper_edges,
    low,
    high,
    length,
    window,
    scale,
    k_stride,
    k_column_stride,
    v_stride,
    v_column_stride,
    MASKED: tl.constexpr,
    SOFTMAX: tl.constexpr,
    WINDOWED: tl.constexpr,
    POSITIONS: tl.constexpr,
    BUCKETS: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
    BLOCK_KEY: tl.constexpr,
):
    """Adds the keys low … high − 1 to a query tile's sums."""
    column = tl.arange(0, BLOCK_WIDTH)
    for first in range(low, high, BLOCK_KEY):
        key_place = first + tl.arange(0, BLOCK_KEY)
        key = load_rows(key_base, key_place, length, k_stride, column, k_column_stride, WIDTH, BLOCK_WIDTH)
        scores = tl.dot(query, tl.trans(key), input_precision="ieee") * scale
        positions = 0
        times = 0
        if position_bias is not None:
            positions = position_bucket(place[:, None], key_place[None, :], POSITIONS)
        if time_bias is not None:
            moment = tl.load(key_time + key_place, mask=key_place < length, other=0)
            times = time_bucket(query_time[:, None] - moment[None, :], upper_edges, BUCKETS)
        scores = add_biases(scores, positions, times, position_bias, time_bias, LOG2_E if SOFTMAX else 1.0)
        if SOFTMAX:
            if MASKED:
                seen = shown(place[:, None], key_place[None, :], limit[:, None], window, WINDOWED)
                scores = tl.where(seen, scores, -float("inf"))
            higher = tl.maximum(largest, tl.max(scores, axis=1))
            weights = tl.exp2(scores - higher[:, None])
            shrink = tl.exp2(largest - higher)
            denominator = denominator * shrink + tl.sum(weights, axis=1)
            total = total * shrink[:, None]
            largest = higher
        else:
            weights = scores * tl.sigmoid(scores)
            if MASKED:
                seen = shown(place[:, None], key_place[None, :], limit[:, None], window, WINDOWED)
                weights = tl.where(seen, weights, 0.0)
        value = load_rows(value_base, key_place, length, v_stride, column, v_column_stride, WIDTH, BLOCK_WIDTH)
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
    position_bias,
    time_bias,
    query_time,
    key_time,
    upper_edges,
    scale,
    divisor,
    window,
    rows,
    heads,
    q_stride,
    q_head_stride,
    q_column_stride,
    k_stride,
    k_head_stride,
    k_column_stride,
    v_stride,
    v_head_stride,
    v_column_stride,
    position_stride,
    time_stride,
    SOFTMAX: tl.constexpr,
    WINDOWED: tl.constexpr,
    POSITIONS: tl.constexpr,
    BUCKETS: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
    BLOCK_QUERY: tl.constexpr,
    BLOCK_KEY: tl.constexpr,
):
    head = tl.program_id(0) % heads
    tile = schedule + tl.program_id(0) // heads * 3
    start = tl.load(tile).to(tl.int64)
    length = tl.load(tile + 1)
    first = tl.load(tile + 2) * BLOCK_QUERY
    if first >= length:
        return
    place = first + tl.arange(0, BLOCK_QUERY)
    column = tl.arange(0, BLOCK_WIDTH)
    real = place < length
    q_base = q + start * q_stride + head.to(tl.int64) * q_head_stride
    key_base = k + start * k_stride + head.to(tl.int64) * k_head_stride
    value_base = v + start * v_stride + head.to(tl.int64) * v_head_stride
    query = load_rows(q_base, place, length, q_stride, column, q_column_stride, WIDTH, BLOCK_WIDTH)
    limit = place
    if visible is not None:
        limit = tl.load(visible + start + place, mask=real, other=0)
    moment = place
    own_key_time = key_time
    own_position_bias = position_bias
    own_time_bias = time_bias
    if position_bias is not None:
        own_position_bias = position_bias + head * position_stride
    if time_bias is not None:
        own_time_bias = time_bias + head * time_stride
        own_key_time = key_time + start
        moment = tl.load(query_time + start + place, mask=real, other=0)
    low, inner, outer, high = key_ranges(
        first, limit, real, length, window, BLOCK_QUERY, BLOCK_KEY, visible is not None, WINDOWED
    )
    total = tl.zeros([BLOCK_QUERY, BLOCK_WIDTH], tl.float32)
    largest = tl.full([BLOCK_QUERY], -float("inf"), tl.float32)
    denominator = tl.zeros([BLOCK_QUERY], tl.float32)
    own_end = tl.minimum(first + BLOCK_QUERY, length)
    for part in tl.static_range(4):
        # Its own block, then the keys that a window cuts, those that every query sees, and those that a limit cuts.
        if (part == 0) or (part == 2) or (part == 1 and WINDOWED) or (part == 3 and visible is not None):
            begin = first if part == 0 else (low if part == 1 else (inner if part == 2 else outer))
            end = own_end if part == 0 else (inner if part == 1 else (outer if part == 2 else high))
            total, largest, denominator = _attend(
                total,
                largest,
                denominator,
                query,
                place,
                limit,
                moment,
                key_base,
                value_base,
                own_key_time,
                own_position_bias,
                own_time_bias,
                upper_edges,
                begin,
                end,
                length,
                window,
                scale,
                k_stride,
                k_column_stride,
                v_stride,
                v_column_stride,
                part != 2,
                SOFTMAX,
                WINDOWED,
                POSITIONS,
                BUCKETS,
                WIDTH,
                BLOCK_WIDTH,
                BLOCK_KEY,
            )
    if SOFTMAX:
        total = total / denominator[:, None]
        statistic = (largest + tl.log2(denominator)) * LN_2
        tl.store(log_sum_exp + head.to(tl.int64) * rows + start + place, statistic, mask=real)
    else:
        total = total / divisor
    target = out + ((start + place) * heads + head)[:, None] * WIDTH + column[None, :]
    tl.store(target, total.to(out.dtype.element_ty), mask=real[:, None] & (column < WIDTH)[None, :])
