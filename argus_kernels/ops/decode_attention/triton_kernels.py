"""decode_attention in Triton: a program per chunk of a user's history and head, then one per user and head.

A chunk is read tile by tile with a running softmax: its largest score, its sum of weights and its weighted values go to
memory in float32, and the second kernel combines the chunks in order. The new event is read from k and v, and written
to its slot by the program whose chunk holds it. A user whose length or page is out of bounds gets NaN, and nothing is
written for them. Chunks depend on the width of the block table, not on the other users of the call.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from argus_kernels.attention.relative_bias import LOG_STEP, time_thresholds
from argus_kernels.core.triton_jit import kernel
from argus_kernels.core.triton_support import CompileCase, ceil_div, launch, next_power_of_two
from argus_kernels.core.tuning import Config, Tunable, configuration
from argus_kernels.ops.decode_attention.arguments import Arguments

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
    block_table,
    lengths,
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
    heads,
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
    block_table_stride,
    k_strides,
    v_strides,
    position_stride,
    time_bias_stride,
    BLOCK: tl.constexpr,
    WIDTH: tl.constexpr,
):
    pair = tl.program_id(0).to(tl.int64)
    user = pair // heads
    head = pair % heads
    place = pair * tl.num_programs(1) + tl.program_id(1)
    length = tl.load(lengths + user)
    seen = tl.maximum(length - window, 0)
    begin = (seen // chunk + tl.program_id(1)) * chunk
    end = tl.minimum(begin + chunk, length)
    possible = (length >= 0) & (length <= block_table_width * page_size)
    if (begin < end) & possible:
        column = tl.arange(0, WIDTH)
        inside = column < width
        query = tl.load(
            q + user * q_strides[0] + head * q_strides[1] + column * q_strides[2], mask=inside, other=0.0
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
                cached = there & (event != length - 1)
            key_row = key_pages + page * key_strides[0] + slot * key_strides[1] + head * key_strides[2]
            mask = cached[:, None] & inside[None, :]
            key = tl.load(key_row[:, None] + column[None, :] * key_strides[3], mask=mask, other=0.0).to(tl.float32)
            value_row = value_pages + page * value_strides[0] + slot * value_strides[1] + head * value_strides[2]
            value = tl.load(value_row[:, None] + column[None, :] * value_strides[3], mask=mask, other=0.0)
            value = value.to(tl.float32)
            if k is not None:
                newest = there & (event == length - 1)
                given = tl.load(
                    k + user * k_strides[0] + head * k_strides[1] + column * k_strides[2], mask=inside, other=0.0
                )
                written = newest[:, None] & inside[None, :]
                tl.store(key_row[:, None] + column[None, :] * key_strides[3], given[None, :], mask=written)
                key = tl.where(newest[:, None], given[None, :].to(tl.float32), key)
                given = tl.load(
                    v + user * v_strides[0] + head * v_strides[1] + column * v_strides[2], mask=inside, other=0.0
                )
                tl.store(value_row[:, None] + column[None, :] * value_strides[3], given[None, :], mask=written)
                value = tl.where(newest[:, None], given[None, :].to(tl.float32), value)
            score = tl.sum(key * query[None, :], 1)
            if position_bias is not None:
                bucket = tl.minimum(length - 1 - event, position_buckets - 1)
                bias = tl.load(position_bias + head * position_stride + bucket, mask=there, other=0.0)
                score += bias.to(tl.float32)
            time_slot = time_pages + page * time_strides[0] + slot * time_strides[1]
            if key_time is not None:
                now = tl.load(key_time + user)
                tl.store(time_slot, now, mask=newest & (head == 0))
            if time_bias is not None:
                if key_time is not None:
                    time = tl.load(time_slot, mask=cached, other=0)
                    time = tl.where(newest, tl.load(key_time + user), time)
                else:
                    time = tl.load(time_slot, mask=there, other=0)
                bucket = time_bucket(tl.load(query_time + user) - time, thresholds, time_buckets)
                bias = tl.load(time_bias + head * time_bias_stride + bucket, mask=there, other=0.0)
                score += bias.to(tl.float32)
            score = tl.where(there, score, -float("inf"))
            highest = tl.maximum(largest, tl.max(score, 0))
            # While the sum of weights is 0, −∞ − −∞ would be NaN.
            subtracted = tl.where(highest == -float("inf"), 0.0, highest)
            kept = tl.exp(largest - subtracted)
            weight = tl.exp(score - subtracted)
            total = total * kept + tl.sum(weight, 0)
            weighted = weighted * kept + tl.sum(weight[:, None] * value, 0)
            largest = highest
        largest = tl.where(broken > 0, float("nan"), largest)
        tl.store(largest_of + place, largest)
        tl.store(sum_of + place, total)
        tl.store(weighted_of + place * width + column, weighted, mask=inside)


@kernel
def combine_kernel(
    out,
    lengths,
    largest_of,
    sum_of,
    weighted_of,
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
    length = tl.load(lengths + pair // heads)
    begin = tl.maximum(length - window, 0) // chunk * chunk
    count = (length - begin + chunk - 1) // chunk
    possible = (length >= 0) & (length <= capacity)
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
    result = weighted / tl.where(count == 0, 1.0, total)
    result = tl.where(possible & (broken == 0), result, float("nan"))
    tl.store(out + pair * width + column, result.to(out.dtype.element_ty), mask=inside)


def forward(given: Arguments) -> Tensor:
    """Writes the new events to their slots and computes out [B, H, Dh]."""
    block_table, lengths = given.block_table.contiguous(), given.lengths.contiguous()
    position_bias, time_bias = _contiguous(given.position_bias), _contiguous(given.time_bias)
    query_time, key_time = _contiguous(given.query_time), _contiguous(given.key_time)
    users, heads, width = given.q.shape
    out = given.q.new_empty(given.q.shape)
    pages, page_size = given.key_pages.shape[:2]
    capacity = block_table.shape[1] * page_size
    default = _CONFIGS[0]
    config = configuration(
        _KERNEL, width=width, dtype=given.q.dtype, size=capacity, default=default, device=given.q.device
    )
    # A tile of keys and one of values are held in registers: 64 events of 128 columns fill them, 256 columns spill.
    padded_width = next_power_of_two(width)
    block = min(max(config["tile"] // padded_width, _MIN_EVENTS), _MAX_EVENTS)
    chunk, chunks = _chunks(capacity, given.window)
    if out.numel() == 0:
        return out
    largest = given.q.new_empty((users * heads, chunks), dtype=torch.float32)
    total, weighted = torch.empty_like(largest), given.q.new_empty((*largest.shape, width), dtype=torch.float32)
    seen = capacity if given.window is None else min(given.window, capacity)
    sizes = {"heads": heads, "width": width, "chunk": chunk, "window": max(seen, 1)}
    results = {"largest_of": largest, "sum_of": total, "weighted_of": weighted, "lengths": lengths}
    time_buckets = 0 if time_bias is None else time_bias.shape[1]
    arguments = {
        **results,
        **sizes,
        "q": given.q,
        "key_pages": given.key_pages,
        "value_pages": given.value_pages,
        "time_pages": given.time_pages,
        "block_table": block_table,
        "k": given.k,
        "v": given.v,
        "position_bias": position_bias,
        "time_bias": time_bias,
        "thresholds": None if time_bias is None else time_thresholds(time_buckets, given.q.device),
        "query_time": None if time_bias is None else query_time,
        "key_time": None if given.k is None else key_time,
        "scale": given.scale,
        "pages": pages,
        "page_size": page_size,
        "block_table_width": block_table.shape[1],
        "position_buckets": 0 if position_bias is None else position_bias.shape[1],
        "time_buckets": time_buckets,
        "q_strides": given.q.stride(),
        "key_strides": given.key_pages.stride(),
        "value_strides": given.value_pages.stride(),
        "time_strides": given.time_pages.stride(),
        "block_table_stride": block_table.stride(0),
        "k_strides": None if given.k is None else given.k.stride(),
        "v_strides": None if given.v is None else given.v.stride(),
        "position_stride": 0 if position_bias is None else position_bias.stride(0),
        "time_bias_stride": 0 if time_bias is None else time_bias.stride(0),
        "BLOCK": block,
        "WIDTH": padded_width,
    }
    pairs = users * heads
    launch(chunk_kernel, (pairs, chunks), arguments, warps=config["warps"], stages=config["stages"])
    combined = {**results, **sizes, "out": out, "chunks": chunks, "capacity": capacity}
    combined |= {"BLOCK": _COMBINED_CHUNKS, "WIDTH": padded_width}
    launch(combine_kernel, (pairs,), combined, warps=4, stages=1)
    return out


def _contiguous(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


def _chunks(capacity: int, window: int | None) -> tuple[int, int]:
    """Events in a chunk, and the largest number of chunks of a history: at most 64 chunks of at least 128 events."""
    chunk = max(_SHORTEST_CHUNK, ceil_div(capacity, _MAX_CHUNKS * _SHORTEST_CHUNK) * _SHORTEST_CHUNK)
    chunks = ceil_div(capacity, chunk)
    return chunk, chunks if window is None else min(chunks, window // chunk + 2)


def compile_cases() -> list[CompileCase]:
    """Every dtype at the widths of use; with and without biases and a new event."""

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
    return [*found, case(torch.bfloat16, 64, False)]
