"""The Triton kernel behind the gradients of attention's bias tables: sums of score gradients by bucket, no atomics.

One program a tile of queries of one user and head walks the keys like `query_gradient_kernel`, computes the scores'
gradients again in small tiles and adds them to its own sums, bucket after bucket, between the lowest and the highest
that the tile has. A tile far from the diagonal has one or two: buckets grow with the logarithm of the distance. The
launcher adds the programs' sums in order.
"""

from __future__ import annotations

import triton.language as tl

from argus_kernels.attention.triton.backward import score_gradients
from argus_kernels.attention.triton.tiles import LOG2_E, add_to_histogram, load_rows
from argus_kernels.core.triton_jit import kernel


@kernel
def table_gradient_kernel(
    q,
    k,
    v,
    d_out,
    log_sum_exp,
    delta,
    norm,
    position_sums,
    time_sums,
    schedule,
    visible,
    position_bias,
    time_bias,
    query_time,
    key_time,
    upper_edges,
    scale,
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
    POSITION_SUMS: tl.constexpr,
    TIME_SUMS: tl.constexpr,
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
        own_delta = tl.load(delta + row, mask=real, other=0.0)
    own_norm = norm
    if norm is not None:
        own_norm = tl.load(norm + own * rows + start + place, mask=real, other=0.0)
    # Sixteen or thirty-two rows stay with mma.sync on every chip: the histograms read what tensor memory would hold.
    own_position_sums = tl.zeros([1 if POSITION_SUMS is None else POSITION_SUMS], tl.float32)
    own_time_sums = tl.zeros([1 if TIME_SUMS is None else TIME_SUMS], tl.float32)
    low = first * 0
    if WINDOWED:
        low = tl.maximum(first - window + 1, 0) // BLOCK_KEY * BLOCK_KEY
    reach = tl.max(tl.where(real, limit, 0), axis=0)
    for begin in range(low, tl.minimum(first + BLOCK_QUERY, length), BLOCK_KEY):
        if (begin < reach) | (begin >= first):
            key_place = begin + tl.arange(0, BLOCK_KEY)
            key = load_rows(key_base, key_place, length, k_stride, column, k_column_stride, WIDTH, BLOCK_WIDTH)
            value = load_rows(value_base, key_place, length, v_stride, column, v_column_stride, WIDTH, BLOCK_WIDTH)
            _, d_scores, seen, positions, times = score_gradients(
                query, above, key, value, place, key_place, limit, statistic, own_delta, moment, own_key_time,
                own_position_bias, own_time_bias, upper_edges, length, window, scale,
                True, SOFTMAX, WINDOWED, POSITIONS, BUCKETS,
            )  # fmt: skip
            if own_norm is not None:
                d_scores *= own_norm[:, None]
            if POSITION_SUMS is not None:
                lowest = tl.minimum(tl.maximum(first - begin - BLOCK_KEY + 1, 0), POSITIONS - 1)
                highest = tl.minimum(first + BLOCK_QUERY, length) - 1 - begin
                highest = tl.minimum(tl.maximum(highest, 0), POSITIONS - 1)
                own_position_sums = add_to_histogram(
                    own_position_sums, positions, d_scores, lowest, highest, POSITION_SUMS
                )
            if TIME_SUMS is not None:
                lowest = tl.min(tl.min(tl.where(seen, times, BUCKETS), axis=1), axis=0)
                highest = tl.max(tl.max(tl.where(seen, times, -1), axis=1), axis=0)
                own_time_sums = add_to_histogram(own_time_sums, times, d_scores, lowest, highest, TIME_SUMS)
    program = tl.program_id(0).to(tl.int64)
    if POSITION_SUMS is not None:
        tl.store(position_sums + program * POSITION_SUMS + tl.arange(0, POSITION_SUMS), own_position_sums)
    if TIME_SUMS is not None:
        tl.store(time_sums + program * TIME_SUMS + tl.arange(0, TIME_SUMS), own_time_sums)
