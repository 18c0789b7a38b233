"""The backward Triton kernels of attention over packed histories, softmax and SiLU: scores are computed again.

`query_gradient_kernel`: one program a tile of queries, as forward. `key_gradient_kernel`: one program a tile of keys,
which walks the queries that see it, with the tile transposed, so that weights and score gradients are left operands
straight from registers. `table_gradient_kernel` stands in `triton_attention_tables`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from argus_kernels.attention.triton.tiles import (
    LOG2_E,
    add_biases,
    key_ranges,
    load_rows,
    position_bucket,
    shown,
    silu_slope,
    time_bucket,
)
from argus_kernels.core.triton_jit import kernel


@triton.jit
def score_gradients(
    query,
    d_out,
    key,
    value,
    place,
    key_place,
    limit,
    statistic,
    delta,
    query_time,
    key_time,
    position_bias,
    time_bias,
    upper_edges,
    length,
    window,
    scale,
    MASKED: tl.constexpr,
    SOFTMAX: tl.constexpr,
    WINDOWED: tl.constexpr,
    POSITIONS: tl.constexpr,
    BUCKETS: tl.constexpr,
):
    """A tile's weights and the gradients of its scores, [Q, K], which pairs are shown, and the buckets they read."""
    scores = tl.dot(query, tl.trans(key), input_precision="ieee") * scale
    d_weights = tl.dot(d_out, tl.trans(value), input_precision="ieee")
    positions = 0
    times = 0
    if position_bias is not None:
        positions = position_bucket(place[:, None], key_place[None, :], POSITIONS)
    if time_bias is not None:
        moment = tl.load(key_time + key_place, mask=key_place < length, other=0)
        times = time_bucket(query_time[:, None] - moment[None, :], upper_edges, BUCKETS)
    scores = add_biases(scores, positions, times, position_bias, time_bias, LOG2_E if SOFTMAX else 1.0)
    seen = (place < length)[:, None]
    if MASKED:
        seen = seen & shown(place[:, None], key_place[None, :], limit[:, None], window, WINDOWED)
    weights = 0.0
    if SOFTMAX:
        weights = tl.exp2(scores - statistic[:, None])
        if MASKED:
            weights = tl.where(seen, weights, 0.0)
        d_scores = weights * (d_weights - delta[:, None])
    else:
        d_scores = d_weights * silu_slope(scores)
        if MASKED:
            d_scores = tl.where(seen, d_scores, 0.0)
    return weights, d_scores, seen, positions, times


@triton.jit
def _gather_keys(
    total,
    weight_sum,
    query,
    d_out,
    place,
    limit,
    statistic,
    delta,
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
    EXACT: tl.constexpr,
    WINDOWED: tl.constexpr,
    POSITIONS: tl.constexpr,
    BUCKETS: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
    BLOCK_KEY: tl.constexpr,
):
    """Adds what the keys low … high − 1 give to the gradient of a query tile."""
    column = tl.arange(0, BLOCK_WIDTH)
    for first in range(low, high, BLOCK_KEY):
        key_place = first + tl.arange(0, BLOCK_KEY)
        key = load_rows(key_base, key_place, length, k_stride, column, k_column_stride, WIDTH, BLOCK_WIDTH)
        value = load_rows(value_base, key_place, length, v_stride, column, v_column_stride, WIDTH, BLOCK_WIDTH)
        weights, d_scores, _, _, _ = score_gradients(
            query, d_out, key, value, place, key_place, limit, statistic, delta, query_time, key_time,
            position_bias, time_bias, upper_edges, length, window, scale,
            MASKED, SOFTMAX, WINDOWED, POSITIONS, BUCKETS,
        )  # fmt: skip
        total = tl.dot(d_scores.to(key.dtype), key, total, input_precision="ieee")
        if EXACT:
            weight_sum += tl.sum(weights, axis=1)
    return total, weight_sum


@kernel
def query_gradient_kernel(
    q,
    k,
    v,
    out,
    d_out,
    d_statistic,
    log_sum_exp,
    delta,
    norm,
    d_q,
    schedule,
    visible,
    position_bias,
    time_bias,
    query_time,
    key_time,
    upper_edges,
    scale,
    factor,
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
    d_out_stride,
    d_out_head_stride,
    d_out_column_stride,
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
    own = head.to(tl.int64)
    key_base = k + start * k_stride + own * k_head_stride
    value_base = v + start * v_stride + own * v_head_stride
    query = load_rows(
        q + start * q_stride + own * q_head_stride,
        place, length, q_stride, column, q_column_stride, WIDTH, BLOCK_WIDTH,
    )  # fmt: skip
    above = load_rows(
        d_out + start * d_out_stride + own * d_out_head_stride,
        place, length, d_out_stride, column, d_out_column_stride, WIDTH, BLOCK_WIDTH,
    )  # fmt: skip
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
    statistic = tl.zeros([BLOCK_QUERY], tl.float32)
    own_delta = tl.zeros([BLOCK_QUERY], tl.float32)
    if SOFTMAX:
        row = own * rows + start + place
        statistic = tl.load(log_sum_exp + row, mask=real, other=float("inf")) * LOG2_E
        result = load_rows(
            out + start * heads * WIDTH + own * WIDTH, place, length, heads * WIDTH, column, 1, WIDTH, BLOCK_WIDTH
        )
        own_delta = tl.sum(above.to(tl.float32) * result.to(tl.float32), axis=1)
        own_delta -= tl.load(d_statistic + row, mask=real, other=0.0)
        tl.store(delta + row, own_delta, mask=real)
    low, inner, outer, high = key_ranges(
        first, limit, real, length, window, BLOCK_QUERY, BLOCK_KEY, visible is not None, WINDOWED
    )
    total = tl.zeros([BLOCK_QUERY, BLOCK_WIDTH], tl.float32)
    weight_sum = tl.zeros([BLOCK_QUERY], tl.float32)
    own_end = tl.minimum(first + BLOCK_QUERY, length)
    for part in tl.static_range(4):
        if (part == 0) or (part == 2) or (part == 1 and WINDOWED) or (part == 3 and visible is not None):
            begin = first if part == 0 else (low if part == 1 else (inner if part == 2 else outer))
            end = own_end if part == 0 else (inner if part == 1 else (outer if part == 2 else high))
            total, weight_sum = _gather_keys(
                total, weight_sum, query, above, place, limit, statistic, own_delta, moment,
                key_base, value_base, own_key_time, own_position_bias, own_time_bias, upper_edges,
                begin, end, length, window, scale, k_stride, k_column_stride, v_stride, v_column_stride,
                part != 2, SOFTMAX, norm is not None, WINDOWED, POSITIONS, BUCKETS, WIDTH, BLOCK_WIDTH, BLOCK_KEY,
            )  # fmt: skip
    if norm is not None:
        # float32: log_sum_exp's own rounding is an error of every weight in the row, which their sum shows.
        weight_sum = tl.where(real, weight_sum, 1.0)
        tl.store(norm + own * rows + start + place, 1.0 / weight_sum, mask=real)
        total = total / weight_sum[:, None]
    target = d_q + ((start + place) * heads + head)[:, None] * WIDTH + column[None, :]
    tl.store(target, (total * factor).to(d_q.dtype.element_ty), mask=real[:, None] & (column < WIDTH)[None, :])


@triton.jit
def _gather_queries(
    d_key,
    d_value,
    key,
    value,
    key_place,
    key_time,
    q_base,
    d_out_base,
    log_sum_exp,
    delta,
    norm,
    visible,
    query_time,
    position_bias,
    time_bias,
    upper_edges,
    key_first,
    low,
    high,
    length,
    window,
    scale,
    q_stride,
    q_column_stride,
    d_out_stride,
    d_out_column_stride,
    MASKED: tl.constexpr,
    OWN: tl.constexpr,
    SOFTMAX: tl.constexpr,
    WINDOWED: tl.constexpr,
    POSITIONS: tl.constexpr,
    BUCKETS: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
    BLOCK_QUERY: tl.constexpr,
):
    """Adds what the queries low … high − 1 give to the gradients of a key tile; OWN: the queries of its own block."""
    column = tl.arange(0, BLOCK_WIDTH)
    for first in range(low, high, BLOCK_QUERY):
        place = first + tl.arange(0, BLOCK_QUERY)
        real = place < length
        limit = place
        reached = True
        if visible is not None:
            limit = tl.load(visible + place, mask=real, other=0)
            if not OWN:
                # A block of queries that see none of these keys costs the look at its limits.
                reached = tl.max(limit, axis=0) > key_first
        if reached:
            query = load_rows(q_base, place, length, q_stride, column, q_column_stride, WIDTH, BLOCK_WIDTH)
            above = load_rows(d_out_base, place, length, d_out_stride, column, d_out_column_stride, WIDTH, BLOCK_WIDTH)
            scores = tl.dot(key, tl.trans(query), input_precision="ieee") * scale
            positions = 0
            times = 0
            if position_bias is not None:
                positions = position_bucket(place[None, :], key_place[:, None], POSITIONS)
            if time_bias is not None:
                moment = tl.load(query_time + place, mask=real, other=0)
                times = time_bucket(moment[None, :] - key_time[:, None], upper_edges, BUCKETS)
            scores = add_biases(scores, positions, times, position_bias, time_bias, LOG2_E if SOFTMAX else 1.0)
            seen = real[None, :]
            if MASKED:
                seen = seen & shown(place[None, :], key_place[:, None], limit[None, :], window, WINDOWED)
            d_weights = tl.dot(value, tl.trans(above), input_precision="ieee")
            if SOFTMAX:
                statistic = tl.load(log_sum_exp + place, mask=real, other=float("inf")) * LOG2_E
                weights = tl.exp2(scores - statistic[None, :])
                if norm is not None:
                    weights *= tl.load(norm + place, mask=real, other=0.0)[None, :]
                d_scores = weights * (d_weights - tl.load(delta + place, mask=real, other=0.0)[None, :])
            else:
                weights = scores * tl.sigmoid(scores)
                d_scores = d_weights * silu_slope(scores)
            if MASKED:
                weights = tl.where(seen, weights, 0.0)
                d_scores = tl.where(seen, d_scores, 0.0)
            d_value = tl.dot(weights.to(above.dtype), above, d_value, input_precision="ieee")
            d_key = tl.dot(d_scores.to(query.dtype), query, d_key, input_precision="ieee")
    return d_key, d_value


@kernel
def key_gradient_kernel(
    q,
    k,
    v,
    d_out,
    log_sum_exp,
    delta,
    norm,
    d_k,
    d_v,
    schedule,
    visible,
    position_bias,
    time_bias,
    query_time,
    key_time,
    upper_edges,
    scale,
    factor,
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
    d_out_stride,
    d_out_head_stride,
    d_out_column_stride,
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
    first = tl.load(tile + 2) * BLOCK_KEY
    if first >= length:
        return
    key_place = first + tl.arange(0, BLOCK_KEY)
    column = tl.arange(0, BLOCK_WIDTH)
    real = key_place < length
    own = head.to(tl.int64)
    q_base = q + start * q_stride + own * q_head_stride
    d_out_base = d_out + start * d_out_stride + own * d_out_head_stride
    key = load_rows(
        k + start * k_stride + own * k_head_stride,
        key_place, length, k_stride, column, k_column_stride, WIDTH, BLOCK_WIDTH,
    )  # fmt: skip
    value = load_rows(
        v + start * v_stride + own * v_head_stride,
        key_place, length, v_stride, column, v_column_stride, WIDTH, BLOCK_WIDTH,
    )  # fmt: skip
    own_visible = visible
    if visible is not None:
        own_visible = visible + start
    own_log_sum_exp = log_sum_exp
    own_delta = delta
    if SOFTMAX:
        own_log_sum_exp = log_sum_exp + own * rows + start
        own_delta = delta + own * rows + start
    own_norm = norm
    if norm is not None:
        own_norm = norm + own * rows + start
    moment = key_place
    own_query_time = query_time
    own_position_bias = position_bias
    own_time_bias = time_bias
    if position_bias is not None:
        own_position_bias = position_bias + head * position_stride
    if time_bias is not None:
        own_time_bias = time_bias + head * time_stride
        own_query_time = query_time + start
        moment = tl.load(key_time + start + key_place, mask=real, other=0)
    d_key = tl.zeros([BLOCK_KEY, BLOCK_WIDTH], tl.float32)
    d_value = tl.zeros([BLOCK_KEY, BLOCK_WIDTH], tl.float32)
    after = tl.minimum(first + BLOCK_KEY, length)
    high = length
    inner = length
    if WINDOWED:
        high = tl.minimum(length, first + BLOCK_KEY + window - 1)
        # Queries before `inner` have the tile's first key within their window.
        inner = tl.minimum(tl.maximum((first + window) // BLOCK_QUERY * BLOCK_QUERY, after), length)
    if visible is not None:
        inner = after
    for part in tl.static_range(3):
        if (part == 0) or (part == 1 and visible is None) or (part == 2 and (WINDOWED or visible is not None)):
            begin = first if part == 0 else (after if part == 1 else inner)
            end = after if part == 0 else (inner if part == 1 else high)
            d_key, d_value = _gather_queries(
                d_key, d_value, key, value, key_place, moment, q_base, d_out_base, own_log_sum_exp, own_delta,
                own_norm, own_visible, own_query_time, own_position_bias, own_time_bias, upper_edges, first, begin, end,
                length, window, scale, q_stride, q_column_stride, d_out_stride, d_out_column_stride,
                part != 1, part == 0, SOFTMAX, WINDOWED, POSITIONS, BUCKETS, WIDTH, BLOCK_WIDTH, BLOCK_QUERY,
            )  # fmt: skip
    target = ((start + key_place) * heads + head)[:, None] * WIDTH + column[None, :]
    mask = real[:, None] & (column < WIDTH)[None, :]
    tl.store(d_k + target, (d_key * factor).to(d_k.dtype.element_ty), mask=mask)
    tl.store(d_v + target, (d_value / divisor).to(d_v.dtype.element_ty), mask=mask)
