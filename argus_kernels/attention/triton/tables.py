"""The Triton kernel behind the gradients of attention's bias tables: sums of score gradients by bucket, no atomics.

One program per tile of queries of one user and head loops over the keys like `query_gradient_kernel`, recomputes the
scores' gradients in small tiles, and adds them to its own sums, bucket by bucket, from the tile's lowest bucket to its
highest. A tile far from the diagonal has one or two: buckets grow with the logarithm of the distance. The launcher adds
the programs' sums in order.
"""

from __future__ import annotations

import triton.language as tl

from argus_kernels.attention.triton.backward import score_gradients
from argus_kernels.attention.triton.records import key_rows, own_queries, own_tile, own_times, query_rows
from argus_kernels.attention.triton.rule import key_at, key_spans, largest_position, least_position
from argus_kernels.attention.triton.tiles import LOG2_E, add_to_histogram, load_rows, position_bucket, time_bucket
from argus_kernels.core.triton_jit import kernel


@kernel
def table_gradient_kernel(
    q,
    k,
    v,
    d_out,
    statistics,
    position_sums,
    time_sums,
    schedule,
    rule,
    biases,
    scale,
    window,
    rows,
    heads,
    SHAPE: tl.constexpr,
    POSITION_SUMS: tl.constexpr,
    TIME_SUMS: tl.constexpr,
    BLOCK_QUERY: tl.constexpr,
    BLOCK_KEY: tl.constexpr,
):
    tile = own_tile(schedule, heads, rule, BLOCK_QUERY, SHAPE, False)
    first, length = tile.first, tile.length
    if first >= length:
        return
    place = first + tl.arange(0, BLOCK_QUERY)
    real = place < length
    q, k, v, d_out = query_rows(q, tile), key_rows(k, tile), key_rows(v, tile), query_rows(d_out, tile)
    query = load_rows(q, place, length, SHAPE)
    above = load_rows(d_out, place, length, SHAPE)
    queries = own_queries(rule, biases, tile, place, SHAPE)
    nearest = least_position(queries, tile, first, SHAPE)
    farthest = largest_position(queries, tile, first, SHAPE)
    statistic = tl.zeros([BLOCK_QUERY], tl.float32)
    delta = tl.zeros([BLOCK_QUERY], tl.float32)
    norm = None
    if SHAPE.softmax:
        row = tile.head.to(tl.int64) * rows + tile.start
        statistic = tl.load(statistics.log_sum_exp + row + place, mask=real, other=float("inf")) * LOG2_E
        delta = tl.load(statistics.delta + row + place, mask=real, other=0.0)
        if statistics.norm is not None:
            norm = tl.load(statistics.norm + row + place, mask=real, other=0.0)[:, None]
    # Tiles of 16 or 32 rows use mma.sync on every GPU: the histograms need the result in registers, not in tensor
    # memory.
    own_position_sums = tl.zeros([1 if POSITION_SUMS is None else POSITION_SUMS], tl.float32)
    own_time_sums = tl.zeros([1 if TIME_SUMS is None else TIME_SUMS], tl.float32)
    low = first * 0
    reach = tl.max(tl.where(real, queries.limit, 0), axis=0)
    end = tl.minimum(first + BLOCK_QUERY, length)
    if SHAPE.general:
        spans = key_spans(queries, tile, window, SHAPE, BLOCK_KEY)
        end = spans.end
    else:
        if SHAPE.windowed:
            low = tl.maximum(first - window + 1, 0) // BLOCK_KEY * BLOCK_KEY
        if rule.visible is not None:
            end = tl.maximum(end, tl.minimum(reach, length))
    for number in range(low, end, BLOCK_KEY):
        begin = number
        asked = True
        if SHAPE.general:
            begin = key_at(spans, number)
        else:
            asked = (begin < reach) | (begin >= first)
        if asked:
            key_place = begin + tl.arange(0, BLOCK_KEY)
            key = load_rows(k, key_place, tile.key_length, SHAPE)
            value = load_rows(v, key_place, tile.key_length, SHAPE)
            _, d_scores, seen = score_gradients(
                query, above, key, value, queries, key_place, nearest - begin - BLOCK_KEY + 1, statistic, delta, tile,
                biases, window, scale, True, SHAPE,
            )  # fmt: skip
            if norm is not None:
                d_scores *= norm
            # Hidden pairs have weight 0, and 0 · NaN and 0 · ∞ are NaN.
            d_scores = tl.where(seen, d_scores, 0.0)
            if POSITION_SUMS is not None:
                positions = position_bucket(queries.position[:, None], key_place[None, :], SHAPE.positions)
                lowest = tl.minimum(tl.maximum(nearest - begin - BLOCK_KEY + 1, 0), SHAPE.positions - 1)
                highest = tl.minimum(tl.maximum(farthest - begin, 0), SHAPE.positions - 1)
                own_position_sums = add_to_histogram(
                    own_position_sums, positions, d_scores, lowest, highest, POSITION_SUMS
                )
            if TIME_SUMS is not None:
                key_time = own_times(biases.key_time, tile.key_start, tile.key_length, key_place)
                difference = queries.time[:, None] - key_time[None, :]
                times = time_bucket(difference, biases.upper_edges, SHAPE.buckets)
                lowest = tl.min(tl.min(tl.where(seen, times, SHAPE.buckets), axis=1), axis=0)
                highest = tl.max(tl.max(tl.where(seen, times, -1), axis=1), axis=0)
                own_time_sums = add_to_histogram(own_time_sums, times, d_scores, lowest, highest, TIME_SUMS)
    program = tl.program_id(0).to(tl.int64)
    if POSITION_SUMS is not None:
        tl.store(position_sums + program * POSITION_SUMS + tl.arange(0, POSITION_SUMS), own_position_sums)
    if TIME_SUMS is not None:
        tl.store(time_sums + program * TIME_SUMS + tl.arange(0, TIME_SUMS), own_time_sums)
