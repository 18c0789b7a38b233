"""The backward Triton kernels of attention over packed histories, softmax and SiLU; scores are recomputed.

`query_gradient_kernel`: one program per tile of queries, as in forward. `key_gradient_kernel`: one program per tile of
keys. It loops over the queries that see the tile, with scores transposed, so that weights and score gradients are left
operands directly from registers. Rows whose sums hold a NaN are recomputed (`seen_rows`). `table_gradient_kernel` is in
`tables`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from argus_kernels.attention.triton.dropout import dropped
from argus_kernels.attention.triton.records import (
    as_column,
    as_row,
    entry,
    key_rows,
    of_member,
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
    query_range,
    row_keys,
    sees_any,
    sees_block,
    shown,
)
from argus_kernels.attention.triton.seen_rows import (
    any_of,
    broken_rows,
    is_broken,
    key_gradient_row,
    query_gradient_row,
)
from argus_kernels.attention.triton.tiles import LOG2_E, add_tile_biases, load_rows, slopes
from argus_kernels.core.triton_jit import kernel


@triton.jit
def score_gradients(
    query,
    d_out,
    key,
    value,
    queries,
    key_place,
    nearest,
    statistic,
    delta,
    tile,
    biases,
    window,
    scale,
    MASKED: tl.constexpr,
    SHAPE: tl.constexpr,
):
    """A tile's weights and the gradients of its scores, [Q, K], and which pairs are visible; nearest: see `tiles`."""
    scores = tl.dot(query, tl.trans(key), input_precision="ieee") * scale
    d_weights = tl.dot(d_out, tl.trans(value), input_precision="ieee")
    d_weights = dropped(d_weights, queries.position[:, None], key_place[None, :], tile.dropout, SHAPE)
    key_time = own_times(biases.key_time, tile.key_start, tile.key_length, key_place)
    scores = add_tile_biases(
        scores, queries.position[:, None], key_place[None, :], nearest, queries.time[:, None], key_time[None, :],
        tile, biases, SHAPE,
    )  # fmt: skip
    seen = (queries.place < tile.length)[:, None]
    if MASKED:
        seen = seen & shown(as_column(queries), key_place[None, :], tile.prefix, window, SHAPE)
    weights, d_scores = slopes(scores, d_weights, seen, statistic[:, None], delta[:, None], None, MASKED, SHAPE)
    return weights, d_scores, seen


@triton.jit
def _gather_keys(
    total,
    weight_sum,
    query,
    d_out,
    queries,
    nearest,
    statistic,
    delta,
    k,
    v,
    low,
    high,
    spans,
    tile,
    biases,
    window,
    scale,
    MASKED: tl.constexpr,
    EXACT: tl.constexpr,
    BEHIND: tl.constexpr,
    SHAPE: tl.constexpr,
    BLOCK_KEY: tl.constexpr,
):
    """Adds the terms of keys low … high − 1 to the gradient of a query tile; they are numbered as in `forward`."""
    for number in range(low, high, BLOCK_KEY):
        first = number
        if SHAPE.general:
            first = key_at(spans, number)
        elif BEHIND:
            first = past_own(number, tile, query.shape[0])
        key_place = first + tl.arange(0, BLOCK_KEY)
        key = load_rows(k, key_place, tile.key_length, SHAPE)
        value = load_rows(v, key_place, tile.key_length, SHAPE)
        weights, d_scores, _ = score_gradients(
            query, d_out, key, value, queries, key_place, nearest - first - BLOCK_KEY + 1, statistic, delta, tile,
            biases, window, scale, MASKED, SHAPE,
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
    statistics,
    d_q,
    schedule,
    rule,
    biases,
    scale,
    factor,
    window,
    rows,
    heads,
    SHAPE: tl.constexpr,
    BLOCK_QUERY: tl.constexpr,
    BLOCK_KEY: tl.constexpr,
):
    BLOCK_WIDTH: tl.constexpr = SHAPE.block_width
    EXACT: tl.constexpr = statistics.norm is not None
    LIMITED: tl.constexpr = rule.visible is not None
    tile = own_tile(schedule, heads, rule, BLOCK_QUERY, SHAPE, False)
    if tile.first >= tile.length:
        return
    place = tile.first + tl.arange(0, BLOCK_QUERY)
    column = tl.arange(0, BLOCK_WIDTH)
    real = place < tile.length
    q, k, v, d_out = query_rows(q, tile), key_rows(k, tile), key_rows(v, tile), query_rows(d_out, tile)
    query = load_rows(q, place, tile.length, SHAPE)
    above = load_rows(d_out, place, tile.length, SHAPE)
    queries = own_queries(rule, biases, tile, place, SHAPE)
    nearest = least_position(queries, tile, tile.first, SHAPE)
    statistic = tl.zeros([BLOCK_QUERY], tl.float32)
    delta = tl.zeros([BLOCK_QUERY], tl.float32)
    row = tile.head.to(tl.int64) * rows + tile.start
    begin = (tile.start * heads + tile.head) * SHAPE.width
    line = heads * SHAPE.width
    if SHAPE.softmax:
        statistic = tl.load(statistics.log_sum_exp + row + place, mask=real, other=float("inf")) * LOG2_E
        inside = real[:, None] & (column < SHAPE.width)[None, :]
        result = tl.load(out + begin + place.to(tl.int64)[:, None] * line + column[None, :], mask=inside, other=0.0)
        delta = tl.sum(above.to(tl.float32) * result.to(tl.float32), axis=1)
        delta -= tl.load(d_statistic + row + place, mask=real, other=0.0)
        tl.store(statistics.delta + row + place, delta, mask=real)
    total = tl.zeros([BLOCK_QUERY, BLOCK_WIDTH], tl.float32)
    weight_sum = tl.zeros([BLOCK_QUERY], tl.float32)
    low = tile.first * 0
    if SHAPE.general:
        spans = key_spans(queries, tile, window, SHAPE, BLOCK_KEY)
        total, weight_sum = _gather_keys(
            total, weight_sum, query, above, queries, nearest, statistic, delta, k, v, 0, spans.end, spans, tile,
            biases, window, scale, True, EXACT, False, SHAPE, BLOCK_KEY,
        )  # fmt: skip
    else:
        low, inner, outer, high = key_ranges(
            tile, queries.limit, window, LIMITED, SHAPE.windowed, BLOCK_QUERY, BLOCK_KEY
        )
        own_end = tl.minimum(tile.first + BLOCK_QUERY, tile.length)
        for part in tl.static_range(4):
            if (part == 0) or (part == 2) or (part == 1 and SHAPE.windowed) or (part == 3 and LIMITED):
                first = tile.first if part == 0 else (low if part == 1 else (inner if part == 2 else outer))
                end = own_end if part == 0 else (inner if part == 1 else (outer if part == 2 else high))
                total, weight_sum = _gather_keys(
                    total, weight_sum, query, above, queries, nearest, statistic, delta, k, v, first, end, None,
                    tile, biases, window, scale, part != 2, EXACT, part == 3, SHAPE, BLOCK_KEY,
                )  # fmt: skip
    broken = broken_rows(total, real)
    kept = real & (broken == 0)
    if EXACT:
        # float32: the rounding of log_sum_exp is an error of every weight in the row; the weights' sum corrects it.
        weighed = real
        if SHAPE.general:
            weighed = weighed & sees_any(queries, tile.prefix, window, SHAPE)
        weight_sum = tl.where(weighed, weight_sum, 1.0)
        tl.store(statistics.norm + row + place, 1.0 / weight_sum, mask=real)
        total = total / weight_sum[:, None]
    result = (total * factor).to(d_q.dtype.element_ty)
    pointers = d_q + begin + place.to(tl.int64)[:, None] * line + column[None, :]
    tl.store(pointers, result, mask=kept[:, None] & (column < SHAPE.width)[None, :])
    if any_of(broken):
        for number in range(tl.minimum(tile.length - tile.first, BLOCK_QUERY)):
            if is_broken(broken, number, BLOCK_QUERY):
                one = one_query(queries, tile.first, number, BLOCK_QUERY, SHAPE)
                row_low, row_high = row_keys(one, low, tile, rule, SHAPE)
                query_gradient_row(
                    q, d_out, k, v, d_q + begin + one.place.to(tl.int64) * line, one,
                    entry(statistic, number, BLOCK_QUERY), entry(delta, number, BLOCK_QUERY), row_low, row_high, tile,
                    biases, factor, window, scale, EXACT, SHAPE,
                )  # fmt: skip


@triton.jit
def _gather_queries(
    d_key,
    d_value,
    key,
    value,
    key_place,
    key_time,
    q,
    d_out,
    statistics,
    row,
    rule,
    low,
    high,
    behind,
    tile,
    biases,
    window,
    scale,
    MASKED: tl.constexpr,
    OWN: tl.constexpr,
    SHAPE: tl.constexpr,
    BLOCK_QUERY: tl.constexpr,
):
    """Adds the terms of queries low … high − 1 to the gradients of a key tile; OWN: the queries of its own block.

    behind: None, or the number from which on they count on behind the own block; those below lie before it.
    """
    for number in range(low, high, BLOCK_QUERY):
        first = number
        if behind is not None:
            first = number - tl.where(number < behind, behind - tile.first, 0)
        place = first + tl.arange(0, BLOCK_QUERY)
        real = place < tile.length
        queries = own_queries(rule, biases, tile, place, SHAPE)
        reached = True
        # A block of queries that see none of these keys costs only the load of its numbers.
        if SHAPE.general:
            asked = sees_block(queries, tile.first, tile.prefix, window, key.shape[0], SHAPE)
            reached = tl.max(asked.to(tl.int32), axis=0) > 0
        elif rule.visible is not None and not OWN:
            reached = tl.max(queries.limit, axis=0) > tile.first
        if reached:
            query = load_rows(q, place, tile.length, SHAPE)
            above = load_rows(d_out, place, tile.length, SHAPE)
            scores = tl.dot(key, tl.trans(query), input_precision="ieee") * scale
            nearest = least_position(queries, tile, first, SHAPE) - tile.first - key.shape[0] + 1
            scores = add_tile_biases(
                scores, queries.position[None, :], key_place[:, None], nearest, queries.time[None, :],
                key_time[:, None], tile, biases, SHAPE,
            )  # fmt: skip
            seen = real[None, :]
            if MASKED:
                seen = seen & shown(as_row(queries), key_place[:, None], tile.prefix, window, SHAPE)
            d_weights = tl.dot(value, tl.trans(above), input_precision="ieee")
            d_weights = dropped(d_weights, queries.position[None, :], key_place[:, None], tile.dropout, SHAPE)
            if SHAPE.softmax:
                statistic = tl.load(statistics.log_sum_exp + row + place, mask=real, other=float("inf")) * LOG2_E
                delta = tl.load(statistics.delta + row + place, mask=real, other=0.0)
                norm = None
                if statistics.norm is not None:
                    norm = tl.load(statistics.norm + row + place, mask=real, other=0.0)[None, :]
                weights, d_scores = slopes(
                    scores, d_weights, seen, statistic[None, :], delta[None, :], norm, MASKED, SHAPE
                )
            else:
                weights, d_scores = slopes(scores, d_weights, seen, None, None, None, MASKED, SHAPE)
            weights = dropped(weights, queries.position[None, :], key_place[:, None], tile.dropout, SHAPE)
            d_value = tl.dot(weights.to(above.dtype), above, d_value, input_precision="ieee")
            d_key = tl.dot(d_scores.to(query.dtype), query, d_key, input_precision="ieee")
    return d_key, d_value


@triton.jit
def _gather_head(
    d_key,
    d_value,
    key,
    value,
    key_place,
    key_time,
    q,
    d_out,
    statistics,
    rule,
    low,
    high,
    tile,
    biases,
    window,
    scale,
    rows,
    SHAPE: tl.constexpr,
    BLOCK_QUERY: tl.constexpr,
):
    """Adds the terms of the queries of the tile's head to the gradients of a key tile.

    low, high: as `query_range` gives them.
    """
    q, d_out = query_rows(q, tile), query_rows(d_out, tile)
    row = tile.head.to(tl.int64) * rows + tile.start
    first, length = tile.first, tile.key_length
    if SHAPE.general:
        d_key, d_value = _gather_queries(
            d_key, d_value, key, value, key_place, key_time, q, d_out, statistics, row, rule, low, high, None, tile,
            biases, window, scale, True, False, SHAPE, BLOCK_QUERY,
        )  # fmt: skip
    else:
        after = tl.minimum(first + key.shape[0], length)
        inner = length
        if SHAPE.windowed:
            # Queries before `inner` have the tile's first key within their window.
            inner = tl.minimum(tl.maximum((first + window) // BLOCK_QUERY * BLOCK_QUERY, after), length)
        behind = None
        if rule.visible is not None:
            # Queries before the own block may see it too.
            behind = after
            inner = after - (first - low)
        for part in tl.static_range(3):
            if (
                (part == 0)
                or (part == 1 and rule.visible is None)
                or (part == 2 and (SHAPE.windowed or rule.visible is not None))
            ):
                begin = first if part == 0 else (after if part == 1 else inner)
                end = after if part == 0 else (inner if part == 1 else high)
                d_key, d_value = _gather_queries(
                    d_key, d_value, key, value, key_place, key_time, q, d_out, statistics, row, rule, begin, end,
                    behind if part == 2 else None, tile, biases, window, scale, part != 1, part == 0, SHAPE,
                    BLOCK_QUERY,
                )  # fmt: skip
    return d_key, d_value


@kernel
def key_gradient_kernel(
    q,
    k,
    v,
    d_out,
    statistics,
    d_k,
    d_v,
    schedule,
    rule,
    biases,
    scale,
    factor,
    divisor,
    window,
    rows,
    heads,
    SHAPE: tl.constexpr,
    BLOCK_QUERY: tl.constexpr,
    BLOCK_KEY: tl.constexpr,
):
    BLOCK_WIDTH: tl.constexpr = SHAPE.block_width
    tile = own_tile(schedule, heads, rule, BLOCK_KEY, SHAPE, True)
    first, length = tile.first, tile.key_length
    if first >= length:
        return
    key_place = first + tl.arange(0, BLOCK_KEY)
    real = key_place < length
    k, v = key_rows(k, tile), key_rows(v, tile)
    key = load_rows(k, key_place, length, SHAPE)
    value = load_rows(v, key_place, length, SHAPE)
    key_time = own_times(biases.key_time, tile.key_start, length, key_place)
    d_key = tl.zeros([BLOCK_KEY, BLOCK_WIDTH], tl.float32)
    d_value = tl.zeros([BLOCK_KEY, BLOCK_WIDTH], tl.float32)
    low, high = query_range(rule, biases, tile, window, SHAPE, BLOCK_QUERY, BLOCK_KEY)
    if SHAPE.group == 1:
        d_key, d_value = _gather_head(
            d_key, d_value, key, value, key_place, key_time, q, d_out, statistics, rule, low, high, tile, biases,
            window, scale, rows, SHAPE, BLOCK_QUERY,
        )  # fmt: skip
    else:
        for member in tl.range(0, SHAPE.group, num_stages=1):
            d_key, d_value = _gather_head(
                d_key, d_value, key, value, key_place, key_time, q, d_out, statistics, rule, low, high,
                of_member(tile, rule, member, SHAPE), biases, window, scale, rows, SHAPE, BLOCK_QUERY,
            )  # fmt: skip
    broken = tl.maximum(broken_rows(d_key, real), broken_rows(d_value, real))
    column = tl.arange(0, BLOCK_WIDTH)
    inside = column < SHAPE.width
    target = (tile.key_start * heads + tile.key_head) * SHAPE.width
    line = heads * SHAPE.width
    pointers = target + key_place.to(tl.int64)[:, None] * line + column[None, :]
    kept = (real & (broken == 0))[:, None] & inside[None, :]
    tl.store(d_k + pointers, (d_key * factor).to(d_k.dtype.element_ty), mask=kept)
    tl.store(d_v + pointers, (d_value / divisor).to(d_v.dtype.element_ty), mask=kept)
    if any_of(broken):
        for number in range(tl.minimum(length - first, BLOCK_KEY)):
            if is_broken(broken, number, BLOCK_KEY):
                one = first + number
                own = target + one.to(tl.int64) * line
                row_low = low
                if not SHAPE.general:
                    # A block of its own at the latest: the sums keep their order whoever else sees the tile.
                    row_low = one if rule.visible is None else tl.where(low < first, low, one)
                key_gradient_row(
                    q, d_out, k, v, d_k + own, d_v + own, one, statistics, rows, rule, row_low, high, tile, biases,
                    factor, divisor, window, scale, SHAPE,
                )  # fmt: skip
