"""Which events a row sees, and the new events of an int8 cache, in Triton."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from argus_kernels.core.triton_jit import kernel
from argus_kernels.core.triton_support import launch, next_power_of_two
from argus_kernels.core.varlen import user_of_row
from argus_kernels.ops.decode_attention.arguments import Arguments


@triton.jit
def events_of_row(row, offsets, user_of, lengths, users, capacity):
    """(user, their first new event, events up to the row's own, whether there can be so many); padding has none."""
    if offsets is None:
        user = row
        length = tl.load(lengths + user)
        oldest_new = length - 1
        possible = (length >= 0) & (length <= capacity)
    else:
        found = tl.load(user_of + row)
        real = found < users
        user = tl.minimum(found, users - 1)
        total = tl.load(lengths + user)
        first = tl.load(offsets + user)
        oldest_new = total - (tl.load(offsets + user + 1) - first)
        length = tl.where(real, oldest_new + (row - first).to(tl.int32) + 1, 0)
        possible = ((total <= capacity) & (oldest_new >= 0)) | (found >= users)
    return user, oldest_new, length, possible


@triton.jit
def quantised(row, inside):
    """Codes and scale of a row of an int8 cache, as `int8_rows.quantize` has them."""
    magnitude = tl.where(inside, tl.abs(row), 0.0)
    broken = tl.sum((magnitude != magnitude).to(tl.int32), 0) > 0
    scale = tl.div_rn(tl.where(broken, float("nan"), tl.max(magnitude, 0)), 127.0)
    usable = (scale > 0.0) & (scale < float("inf"))
    code = tl.div_rn(row, tl.where(usable, scale, 1.0))
    # Adding 1.5 · 2²³ leaves the nearest integer in the low bits, ties to even.
    code = (tl.minimum(tl.maximum(tl.where(usable, code, 0.0), -127.0), 127.0) + 12582912.0) - 12582912.0
    return code.to(tl.int8), scale


@triton.jit
def append_row(given, given_strides, pages, strides, scales, scale_strides, row, page, slot, head, column, inside):
    """A row of k or v, as codes and a scale, to its slot of the cache."""
    place = given + row * given_strides[0] + head * given_strides[1] + column * given_strides[2]
    code, scale = quantised(tl.load(place, mask=inside, other=0.0).to(tl.float32), inside)
    to = pages + page * strides[0] + slot * strides[1] + head * strides[2]
    tl.store(to + column * strides[3], code, mask=inside)
    tl.store(scales + page * scale_strides[0] + slot * scale_strides[1] + head * scale_strides[2], scale)


@kernel
def append_int8_kernel(
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
    key_time,
    users,
    kv_heads,
    width,
    pages,
    page_size,
    block_table_width,
    key_strides,
    value_strides,
    time_strides,
    key_scale_strides,
    value_scale_strides,
    block_table_stride,
    k_strides,
    v_strides,
    WIDTH: tl.constexpr,
):
    pair = tl.program_id(0).to(tl.int64)
    row = pair // kv_heads
    head = pair % kv_heads
    user, _, length, possible = events_of_row(row, offsets, user_of, lengths, users, block_table_width * page_size)
    event = length - 1
    possible = possible & (length > 0)
    page = tl.load(block_table + user * block_table_stride + event // page_size, mask=possible, other=-1).to(tl.int64)
    if possible & (page >= 0) & (page < pages):
        slot = (event % page_size).to(tl.int64)
        column = tl.arange(0, WIDTH)
        inside = column < width
        append_row(
            k, k_strides, key_pages, key_strides, key_scales, key_scale_strides, row, page, slot, head, column, inside
        )
        append_row(
            v, v_strides, value_pages, value_strides, value_scales, value_scale_strides, row, page, slot, head, column,
            inside,
        )  # fmt: skip
        if key_time is not None:
            to = time_pages + page * time_strides[0] + slot * time_strides[1]
            tl.store(to, tl.load(key_time + row), mask=head == 0)


def append_int8(given: Arguments) -> None:
    """The new events of an int8 cache, before anything reads it."""
    assert given.k is not None
    if given.k.numel() == 0 or given.lengths.shape[0] == 0:
        return
    rows, kv_heads, width = given.k.shape
    arguments = {**rows_of(given), **of_cache(given), "kv_heads": kv_heads, "width": width}
    arguments["WIDTH"] = next_power_of_two(width)
    launch(append_int8_kernel, (rows * kv_heads,), arguments, warps=1, stages=1)


def rows_of(given: Arguments) -> dict[str, Any]:
    """The kernels' arguments that say whose row it is, by `events_of_row`."""
    offsets = contiguous(given.offsets)
    return {
        "lengths": given.lengths.contiguous(),
        "offsets": offsets,
        "user_of": None if offsets is None else user_of_row(offsets, given.q.shape[0]),
        "users": given.lengths.shape[0],
    }


def of_cache(given: Arguments) -> dict[str, Any]:
    """The kernels' arguments of the cache and the new events."""
    block_table = given.block_table.contiguous()
    return {
        "key_pages": given.key_pages,
        "value_pages": given.value_pages,
        "time_pages": given.time_pages,
        "key_scales": given.key_scales,
        "value_scales": given.value_scales,
        "block_table": block_table,
        "k": given.k,
        "v": given.v,
        "key_time": None if given.k is None else contiguous(given.key_time),
        "pages": given.key_pages.shape[0],
        "page_size": given.key_pages.shape[1],
        "block_table_width": block_table.shape[1],
        "key_strides": given.key_pages.stride(),
        "value_strides": given.value_pages.stride(),
        "time_strides": given.time_pages.stride(),
        "key_scale_strides": _strides(given.key_scales),
        "value_scale_strides": _strides(given.value_scales),
        "block_table_stride": block_table.stride(0),
        "k_strides": _strides(given.k),
        "v_strides": _strides(given.v),
    }


def contiguous(tensor: Tensor | None) -> Tensor | None:
    """The tensor with plain strides, as the kernels read it."""
    return None if tensor is None else tensor.contiguous()


def _strides(tensor: Tensor | None) -> tuple[int, ...] | None:
    return None if tensor is None else tensor.stride()
