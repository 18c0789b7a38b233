"""decode_attention in Triton: a program per chunk of what a row sees and head, then one per row and head.

A chunk is read tile by tile with a running softmax: its largest score, its sum of weights and its weighted values go to
memory in float32, and the second kernel combines the chunks in order. SiLU has a sum of weighted values alone. New
events are read from k and v, and each is written to its slot by the program of its own row whose chunk holds it. A user
whose length or page is out of bounds gets NaN, and nothing is written for them. Chunks depend on the width of the block
table, not on the other users of the call.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from argus_kernels.attention.relative_bias import LOG_STEP, time_thresholds
from argus_kernels.core.triton_jit import kernel
from argus_kernels.core.triton_support import CompileCase, ceil_div, launch, next_power_of_two
from argus_kernels.core.tuning import Config, Tunable, configuration
from argus_kernels.core.varlen import user_of_row
from argus_kernels.ops.decode_attention.arguments import Arguments
from argus_kernels.ops.decode_attention.triton_append import append_int8, events_of_row

_KERNEL = "decode_attention/forward"
_CONFIGS: tuple[Config, ...] = (
    {"tile": 2048, "warps": 4, "stages": 2},
    {"tile": 2048, "warps": 8, "stages": 2},
    {"tile": 4096, "warps": 8, "stages": 1},
    {"tile": 1024, "warps": 2, "stages": 3},
)
TUNABLES = (Tunable(_KERNEL, "triton", _CONFIGS),)
_MIN_EVENTS, _MAX_EVENTS = 16, 64
_SHORTEST_CHUNK = 128
_MAX_CHUNKS = 64
_COMBINED_CHUNKS = 16
BUCKET_WIDTH = tl.constexpr(float(LOG_STEP))


@triton.jit
def time_bucket(distance, thresholds, buckets):
    """The bucket of |distance| seconds: a logarithm, lowered a little, then a comparison with the next integer edge."""
    largest: tl.constexpr = 0x7FFFFFFFFFFFFFFE
    distance = tl.abs(distance)
    # int64's minimum has no absolute value.
    distance = tl.where(distance < 0, largest, distance)
    distance = tl.minimum(tl.maximum(distance, 1), largest)
    estimate = (tl.log(distance.to(tl.float32)) / BUCKET_WIDTH - 1e-3).to(tl.int32)
    estimate = tl.minimum(tl.maximum(estimate, 0), buckets - 1)
    above = estimate + 1 < buckets
    edge = tl.load(thresholds + estimate + 1, mask=above, other=0)
    return tl.where(above & (distance >= edge), estimate + 1, estimate)


@kernel
def chunk_kernel(
    q,
    key_pages,
    value_pages,
    time_pages,
    key_scales,
    value_scales,
    block_table,
    lengths,
    offsets,
    user_of,
    k,
    v,
    position_bias,
    time_bias,
    thresholds,
    query_time,
    key_time,
    largest_of,
    sum_of,
    weighted_of,
    scale,
    divisor,
    users,
    heads,
    group,
    width,
    pages,
    page_size,
    block_table_width,
    chunk,
    window,
    position_buckets,
    time_buckets,
    q_strides,
    key_strides,
    value_strides,
    time_strides,
    key_scale_strides,
    value_scale_strides,
    block_table_stride,
    k_strides,
    v_strides,
    position_stride,
    time_bias_stride,
    BLOCK: tl.constexpr,
    WIDTH: tl.constexpr,
):
    pair = tl.program_id(0).to(tl.int64)
    row = pair // heads
    head = pair % heads
    kv_head = head // group
    place = pair * tl.num_programs(1) + tl.program_id(1)
    user, oldest_new, length, possible = events_of_row(
        row, offsets, user_of, lengths, users, block_table_width * page_size
    )
    seen = tl.maximum(length - window, 0)
    begin = (seen // chunk + tl.program_id(1)) * chunk
    end = tl.minimum(begin + chunk, length)
    if (begin < end) & possible:
        column = tl.arange(0, WIDTH)
        inside = column < width
        query = tl.load(
            q + row * q_strides[0] + head * q_strides[1] + column * q_strides[2], mask=inside, other=0.0
        ).to(tl.float32)
        query = query * scale
        largest = tl.full([], -float("inf"), tl.float32)
        total = tl.zeros([], tl.float32)
        weighted = tl.zeros([WIDTH], tl.float32)
        broken = tl.zeros([], tl.int32)
        table = block_table + user * block_table_stride
        for first in range(begin, end, BLOCK):
            event = first + tl.arange(0, BLOCK)
            counts = (event >= seen) & (event < end)
            page = tl.load(table + event // page_size, mask=counts, other=-1).to(tl.int64)
            there = counts & (page >= 0) & (page < pages)
            broken += tl.sum((counts & (page < 0)).to(tl.int32)) + tl.sum((counts & (page >= pages)).to(tl.int32))
            slot = (event % page_size).to(tl.int64)
            cached = there
            if k is not None:
                # Rows after this one may be writing the slots of the new events.
                fresh = there & (event >= oldest_new)
                own = there & (event == length - 1)
                cached = there & (event < oldest_new)
                source = row - (length - 1 - event)
            key_row = key_pages + page * key_strides[0] + slot * key_strides[1] + kv_head * key_strides[2]
            mask = cached[:, None] & inside[None, :]
            key = tl.load(key_row[:, None] + column[None, :] * key_strides[3], mask=mask, other=0.0).to(tl.float32)
            value_row = value_pages + page * value_strides[0] + slot * value_strides[1] + kv_head * value_strides[2]
            value = tl.load(value_row[:, None] + column[None, :] * value_strides[3], mask=mask, other=0.0)
            value = value.to(tl.float32)
            if key_scales is not None:
                place_of = page * key_scale_strides[0] + slot * key_scale_strides[1] + kv_head * key_scale_strides[2]
                key *= tl.load(key_scales + place_of, mask=there, other=0.0)[:, None]
                place_of = page * value_scale_strides[0] + slot * value_scale_strides[1]
                place_of += kv_head * value_scale_strides[2]
                value *= tl.load(value_scales + place_of, mask=there, other=0.0)[:, None]
            if k is not None:
                given_key = k + kv_head * k_strides[1] + column * k_strides[2]
                given_value = v + kv_head * v_strides[1] + column * v_strides[2]
                if offsets is None:
                    new_key = tl.load(given_key + row * k_strides[0], mask=inside, other=0.0)[None, :]
                    new_value = tl.load(given_value + row * v_strides[0], mask=inside, other=0.0)[None, :]
                else:
                    new = fresh[:, None] & inside[None, :]
                    new_key = tl.load(given_key[None, :] + source[:, None] * k_strides[0], mask=new, other=0.0)
                    new_value = tl.load(given_value[None, :] + source[:, None] * v_strides[0], mask=new, other=0.0)
                written = own[:, None] & inside[None, :] & (head % group == 0)
                tl.store(key_row[:, None] + column[None, :] * key_strides[3], new_key, mask=written)
                tl.store(value_row[:, None] + column[None, :] * value_strides[3], new_value, mask=written)
                key = tl.where(fresh[:, None], new_key.to(tl.float32), key)
                value = tl.where(fresh[:, None], new_value.to(tl.float32), value)
            score = tl.sum(key * query[None, :], 1)
            if position_bias is not None:
                bucket = tl.minimum(length - 1 - event, position_buckets - 1)
                bias = tl.load(position_bias + head * position_stride + bucket, mask=there, other=0.0)
                score += bias.to(tl.float32)
            time_slot = time_pages + page * time_strides[0] + slot * time_strides[1]
            if key_time is not None:
                new_time = tl.load(key_time + source, mask=fresh, other=0)
                tl.store(time_slot, new_time, mask=own & (head == 0))
            if time_bias is not None:
                if key_time is not None:
                    time = tl.where(fresh, new_time, tl.load(time_slot, mask=cached, other=0))
                else:
                    time = tl.load(time_slot, mask=there, other=0)
                bucket = time_bucket(tl.load(query_time + row) - time, thresholds, time_buckets)
                bias = tl.load(time_bias + head * time_bias_stride + bucket, mask=there, other=0.0)
                score += bias.to(tl.float32)
            if divisor is None:
                score = tl.where(there, score, -float("inf"))
                highest = tl.maximum(largest, tl.max(score, 0))
                # While the sum of weights is 0, −∞ − −∞ would be NaN.
                subtracted = tl.where(highest == -float("inf"), 0.0, highest)
                kept = tl.exp(largest - subtracted)
                weight = tl.exp(score - subtracted)
                total = total * kept + tl.sum(weight, 0)
                weighted = weighted * kept + tl.sum(weight[:, None] * value, 0)
                largest = highest
            else:
                weight = tl.where(there, score / (1.0 + tl.exp(-score)), 0.0)
                weighted += tl.sum(weight[:, None] * value, 0)
                # The chunks' sums then add up as they are.
                largest = tl.zeros([], tl.float32)
        largest = tl.where(broken > 0, float("nan"), largest)
        tl.store(largest_of + place, largest)
        tl.store(sum_of + place, total)
        tl.store(weighted_of + place * width + column, weighted, mask=inside)


@kernel
def combine_kernel(
    out,
    lengths,
    offsets,
    user_of,
    largest_of,
    sum_of,
    weighted_of,
    divisor,
    users,
    heads,
    width,
    chunks,
    capacity,
    chunk,
    window,
    BLOCK: tl.constexpr,
    WIDTH: tl.constexpr,
):
    pair = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, WIDTH)
    inside = column < width
    _, _, length, possible = events_of_row(pair // heads, offsets, user_of, lengths, users, capacity)
    begin = tl.maximum(length - window, 0) // chunk * chunk
    count = (length - begin + chunk - 1) // chunk
    count = tl.where(possible, count, 0)
    largest = tl.full([], -float("inf"), tl.float32)
    total = tl.zeros([], tl.float32)
    weighted = tl.zeros([WIDTH], tl.float32)
    broken = tl.zeros([], tl.int32)
    for first in range(0, count, BLOCK):
        index = first + tl.arange(0, BLOCK)
        there = index < count
        place = pair * chunks + index
        found = tl.load(largest_of + place, mask=there, other=-float("inf"))
        broken += tl.sum((found != found).to(tl.int32))
        highest = tl.maximum(largest, tl.max(found, 0))
        subtracted = tl.where(highest == -float("inf"), 0.0, highest)
        kept = tl.exp(largest - subtracted)
        weight = tl.exp(found - subtracted)
        total = total * kept + tl.sum(weight * tl.load(sum_of + place, mask=there, other=0.0), 0)
        mask = there[:, None] & inside[None, :]
        value = tl.load(weighted_of + place[:, None] * width + column[None, :], mask=mask, other=0.0)
        weighted = weighted * kept + tl.sum(weight[:, None] * value, 0)
        largest = highest
    if divisor is not None:
        total = tl.full([], 1.0, tl.float32) * divisor
    result = weighted / tl.where(count == 0, 1.0, total)
    result = tl.where(possible & (broken == 0), result, float("nan"))
    tl.store(out + pair * width + column, result.to(out.dtype.element_ty), mask=inside)


def forward(given: Arguments) -> Tensor:
    """Writes the new events to their slots and computes out [Tq, H, Dh]."""
    if given.key_scales is not None and given.k is not None:
        append_int8(given)
        given = given._replace(k=None, v=None, key_time=None)
    block_table, lengths = given.block_table.contiguous(), given.lengths.contiguous()
    rows, heads, width = given.q.shape
    out = given.q.new_empty(given.q.shape)
    capacity = block_table.shape[1] * given.key_pages.shape[1]
    config = configuration(
        _KERNEL, width=width, dtype=given.q.dtype, size=capacity, default=_CONFIGS[0], device=given.q.device
    )
    # A tile of keys and one of values are held in registers: 64 events of 128 columns fill them, 256 columns spill.
    padded_width = next_power_of_two(width)
    block = min(max(config["tile"] // padded_width, _MIN_EVENTS), _MAX_EVENTS)
    chunk, chunks = _chunks(capacity, given.window)
    users, offsets = lengths.shape[0], _contiguous(given.offsets)
    if out.numel() == 0 or users == 0:
        return out.zero_()
    largest = given.q.new_empty((rows * heads, chunks), dtype=torch.float32)
    total, weighted = torch.empty_like(largest), given.q.new_empty((*largest.shape, width), dtype=torch.float32)
    seen = capacity if given.window is None else min(given.window, capacity)
    shared = {
        "users": users,
        "heads": heads,
        "width": width,
        "chunk": chunk,
        "window": max(seen, 1),
        "lengths": lengths,
        "offsets": offsets,
        "user_of": None if offsets is None else user_of_row(offsets, rows),
        "divisor": given.divisor,
        "largest_of": largest,
        "sum_of": total,
        "weighted_of": weighted,
        "WIDTH": padded_width,
    }
    pairs = rows * heads
    of_chunks = {**shared, **_cache(given, block_table), **_biases(given), "BLOCK": block}
    launch(chunk_kernel, (pairs, chunks), of_chunks, warps=config["warps"], stages=config["stages"])
    combined = {**shared, "out": out, "chunks": chunks, "capacity": capacity, "BLOCK": _COMBINED_CHUNKS}
    launch(combine_kernel, (pairs,), combined, warps=4, stages=1)
    return out


def _cache(given: Arguments, block_table: Tensor) -> dict[str, Any]:
    """What `chunk_kernel` takes of the queries, the cache and the new events."""
    pages, page_size = given.key_pages.shape[:2]
    return {
        "q": given.q,
        "key_pages": given.key_pages,
        "value_pages": given.value_pages,
        "time_pages": given.time_pages,
        "key_scales": given.key_scales,
        "value_scales": given.value_scales,
        "block_table": block_table,
        "k": given.k,
        "v": given.v,
        "scale": given.scale,
        "group": given.group,
        "pages": pages,
        "page_size": page_size,
        "block_table_width": block_table.shape[1],
        "q_strides": given.q.stride(),
        "key_strides": given.key_pages.stride(),
        "value_strides": given.value_pages.stride(),
        "time_strides": given.time_pages.stride(),
        "key_scale_strides": _strides(given.key_scales),
        "value_scale_strides": _strides(given.value_scales),
        "block_table_stride": block_table.stride(0),
        "k_strides": _strides(given.k),
        "v_strides": _strides(given.v),
    }


def _biases(given: Arguments) -> dict[str, Any]:
    """What `chunk_kernel` takes of the tables and of times."""
    position_bias, time_bias = _contiguous(given.position_bias), _contiguous(given.time_bias)
    time_buckets = 0 if time_bias is None else time_bias.shape[1]
    return {
        "position_bias": position_bias,
        "time_bias": time_bias,
        "thresholds": None if time_bias is None else time_thresholds(time_buckets, given.q.device),
        "query_time": None if time_bias is None else _contiguous(given.query_time),
        "key_time": None if given.k is None else _contiguous(given.key_time),
        "position_buckets": 0 if position_bias is None else position_bias.shape[1],
        "time_buckets": time_buckets,
        "position_stride": 0 if position_bias is None else position_bias.stride(0),
        "time_bias_stride": 0 if time_bias is None else time_bias.stride(0),
    }


def _strides(tensor: Tensor | None) -> tuple[int, ...] | None:
    return None if tensor is None else tensor.stride()


def _contiguous(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


def _chunks(capacity: int, window: int | None) -> tuple[int, int]:
    """Events in a chunk, and the largest number of chunks of a history: at most 64 chunks of at least 128 events."""
    chunk = max(_SHORTEST_CHUNK, ceil_div(capacity, _MAX_CHUNKS * _SHORTEST_CHUNK) * _SHORTEST_CHUNK)
    chunks = ceil_div(capacity, chunk)
    return chunk, chunks if window is None else min(chunks, window // chunk + 2)


def compile_cases() -> list[CompileCase]:
    """Every dtype at the widths of use; with and without biases and a new event; several, by SiLU, in groups."""

    def case(dtype: torch.dtype, width: int, full: bool, twin: bool = False) -> CompileCase:
        def call() -> None:
            heads, events = 4, 8192
            with torch.device("meta"):
                q = torch.empty(64, heads, width, dtype=dtype)
                pages = torch.empty(8192, 64, heads, width, dtype=dtype)
                times = torch.empty(8192, 64, dtype=torch.int64)
                table, lengths = torch.empty(64, events // 64, dtype=torch.int32), torch.empty(64, dtype=torch.int32)
                bias, now = torch.empty(heads, 128), torch.empty(64, dtype=torch.int64)
            cache = (pages, torch.empty_like(pages), times, table, lengths)
            if full:
                forward(Arguments(q, *cache, q, q, bias, bias, now, now, width**-0.5, None))
            else:
                forward(Arguments(q, *cache, None, None, None, None, None, None, width**-0.5, 1000))

        name = f"{str(dtype).removeprefix('torch.')}-{width}{'' if full else '-read'}"
        return CompileCase(name, call, twin=twin)

    found = [case(torch.bfloat16, width, True) for width in (32, 64, 128, 256)]
    found += [case(torch.float32, width, True) for width in (64, 256)]
    found.append(case(torch.float16, 64, True, twin=True))
    return [*found, case(torch.bfloat16, 64, False), *_other_cases()]


def _other_cases() -> list[CompileCase]:
    return [
        CompileCase("bfloat16-64-several-silu", lambda: _several(torch.bfloat16)),
        CompileCase("int8-64-several-silu", lambda: _several(torch.int8)),
    ]


def _several(kept: torch.dtype) -> None:
    with torch.device("meta"):
        q, k = torch.empty(256, 8, 64, dtype=torch.bfloat16), torch.empty(256, 2, 64, dtype=torch.bfloat16)
        pages, times = torch.empty(8192, 64, 2, 64, dtype=kept), torch.empty(8192, 64, dtype=torch.int64)
        scales = torch.empty(8192, 64, 2) if kept == torch.int8 else None
        table, lengths = torch.empty(64, 128, dtype=torch.int32), torch.empty(64, dtype=torch.int32)
        bias, now = torch.empty(8, 128), torch.empty(256, dtype=torch.int64)
        offsets = torch.empty(65, dtype=torch.int32)
    cache = (pages, torch.empty_like(pages), times, table, lengths)
    forward(Arguments(q, *cache, k, k, bias, bias, now, now, 0.125, None, offsets, 8192.0, scales, scales))
