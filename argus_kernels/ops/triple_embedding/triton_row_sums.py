"""Sums of gradients by table row, in a fixed order and without atomics: the Triton kernels behind table gradients.

torch's stable sort brings the places that read one row together. The sorted places are cut into chunks; one program
walks a chunk, adding while the row stays the same. A run of equal rows inside a chunk is finished there. One that
crosses chunks leaves its pieces in memory (`tails` where it begins, `heads` where it goes on), and a second kernel adds
the pieces in order, so that a row read by every event takes no longer than its pieces.
"""

from __future__ import annotations

from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from argus_kernels.core.triton_jit import kernel
from argus_kernels.core.triton_support import ceil_div, launch, next_power_of_two

CHUNK = 32
PIECES = 16


@kernel
def sum_runs_kernel(
    sorted_rows,
    order,
    slots,
    d_gathered,
    d_table,
    heads,
    tails,
    count,
    events,
    height,
    width,
    table_rows,
    table_stride,
    table_column_stride,
    STARTS: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    chunk = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    begin = chunk * CHUNK
    end = min(begin + CHUNK, count)
    before = tl.load(sorted_rows + begin - 1, mask=begin > 0, other=-1)
    began_here = False
    total = tl.zeros([BLOCK], tl.float32)
    for position in range(begin, end):
        row = tl.load(sorted_rows + position)
        after = tl.load(sorted_rows + position + 1, mask=position + 1 < count, other=-1)
        place = tl.load(order + position)
        real = inside & (row >= 0) & (row < table_rows)
        start = tl.zeros([], tl.int64)
        for reader in tl.static_range(len(STARTS)):
            start = tl.where(place // events == reader, STARTS[reader], start)
        value = tl.load(d_gathered + (place % events) * height + start + column, mask=real, other=0.0)
        first = row != before
        total = tl.where(first, value, total + value)
        began_here = began_here | first
        last = row != after
        slot = tl.load(slots + position)
        target = d_table + slot * table_stride + column * table_column_stride
        tl.store(target, total.to(d_table.dtype.element_ty), mask=real & began_here & last)
        piece_ends = last | (position + 1 == end)
        tl.store(heads + chunk * width + column, total, mask=real & piece_ends & (began_here == 0))
        tl.store(tails + chunk * width + column, total, mask=real & began_here & (last == 0) & (position + 1 == end))
        before = row


@kernel
def join_pieces_kernel(
    sorted_rows,
    slots,
    d_table,
    heads,
    tails,
    count,
    width,
    table_rows,
    table_stride,
    table_column_stride,
    CHUNK: tl.constexpr,
    PIECES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    chunk = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    begin = chunk * CHUNK
    end = begin + CHUNK
    row = tl.load(sorted_rows + end - 1, mask=end < count, other=-1)
    before = tl.load(sorted_rows + begin - 1, mask=(begin > 0) & (end < count), other=-1)
    after = tl.load(sorted_rows + end, mask=end < count, other=-1)
    if (row >= 0) & (row < table_rows) & (row != before) & (row == after):
        total = tl.load(tails + chunk * width + column, mask=inside, other=0.0)
        piece = chunk + 1 + tl.arange(0, PIECES)
        more = True
        while more:
            belongs = tl.load(sorted_rows + piece * CHUNK, mask=piece * CHUNK < count, other=-1) == row
            values = heads + piece[:, None] * width + column[None, :]
            total += tl.sum(tl.load(values, mask=belongs[:, None] & inside[None, :], other=0.0), axis=0)
            piece += PIECES
            more = tl.min(belongs.to(tl.int32), axis=0) == 1
        target = d_table + tl.load(slots + end - 1) * table_stride + column * table_column_stride
        tl.store(target, total.to(d_table.dtype.element_ty), mask=inside)


def dense(ids: Tensor, readers: list[int], d_gathered: Tensor, starts: tuple[int, ...], table: Tensor) -> Tensor:
    """The gradient of a table [V, d] that the columns `readers` of ids [K, T] read.

    d_gathered: float32 [T, Σ d]; the column readers[i] has its part from starts[i] on.
    """
    d_table = torch.zeros_like(table)
    if readers:
        sorted_rows, order = torch.sort(torch.cat([ids[k] for k in readers]), stable=True)
        _sum(sorted_rows, order, sorted_rows, d_gathered, starts, ids.shape[1], table.shape[0], d_table)
    return d_table


def row_sparse(
    ids: Tensor, readers: list[int], d_gathered: Tensor, starts: tuple[int, ...], table: Tensor
) -> list[Tensor | None]:
    """The rows that were read, int64 [n], ascending, each once, and their gradients [n, d].

    How many they are decides the shape of the result: the one place where the host waits for the GPU.
    """
    if not readers:
        return [ids.new_empty(0), table.new_empty(0, table.shape[1])]
    sorted_rows, order = torch.sort(torch.cat([ids[k] for k in readers]), stable=True)
    leads = sorted_rows >= 0
    leads[1:] &= sorted_rows[1:] != sorted_rows[:-1]
    rows = sorted_rows[leads]
    d_rows = table.new_zeros(rows.shape[0], table.shape[1])
    _sum(sorted_rows, order, leads.cumsum(0) - 1, d_gathered, starts, ids.shape[1], table.shape[0], d_rows)
    return [rows, d_rows]


def _sum(
    sorted_rows: Tensor,
    order: Tensor,
    slots: Tensor,
    d_gathered: Tensor,
    starts: tuple[int, ...],
    events: int,
    table_rows: int,
    d_table: Tensor,
) -> None:
    count, width = sorted_rows.shape[0], d_table.shape[1]
    chunks = ceil_div(count, CHUNK)
    heads, tails = d_gathered.new_empty(chunks, width), d_gathered.new_empty(chunks, width)
    block = min(next_power_of_two(width), 256)
    shared: dict[str, Any] = {
        "sorted_rows": sorted_rows,
        "slots": slots,
        "d_table": d_table,
        "heads": heads,
        "tails": tails,
        "count": count,
        "width": width,
        "table_rows": table_rows,
        "table_stride": d_table.stride(0),
        "table_column_stride": d_table.stride(1),
        "CHUNK": CHUNK,
        "BLOCK": block,
    }
    places = {"order": order, "d_gathered": d_gathered, "events": events, "height": d_gathered.shape[1]}
    grid = (chunks, ceil_div(width, block))
    launch(sum_runs_kernel, grid, shared | places | {"STARTS": starts}, warps=max(1, block // 128), stages=3)
    launch(join_pieces_kernel, grid, shared | {"PIECES": PIECES}, warps=max(1, block // 64), stages=1)
