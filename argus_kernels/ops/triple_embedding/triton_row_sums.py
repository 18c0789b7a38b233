"""Sums of gradients by table row, in a fixed order and without atomics: the Triton kernels behind table gradients.

The reads of each row are ordered by column, then event (`triton_order`). The ordered reads are cut into chunks; one
program loops over a chunk and adds while the row stays the same. A run of equal rows inside a chunk is finished there.
A run that crosses chunks stores its pieces in memory (`tails` where it begins, `heads` where it continues), and a
second kernel adds the pieces in order, so that the sum of a row read by every event is split over its pieces.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from argus_kernels.core.triton_jit import kernel
from argus_kernels.core.triton_support import ceil_div, launch, next_power_of_two
from argus_kernels.ops.triple_embedding.triton_order import Places

CHUNK = 32
PIECES = 16


@triton.jit
def _row_at(keys, position, base, table_rows):
    """The row of an ordered read; −1 if it reads none."""
    row = tl.load(keys + position).to(tl.int64) - base
    return tl.where(row < table_rows, row, -1)


@kernel
def sum_runs_kernel(
    keys, order, slots, d_gathered, d_table, heads, tails, base, first, count, events, height, width, table_rows,
    STARTS: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    # The table's own part of the ordered reads.
    keys += first
    chunk = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    begin = chunk * CHUNK
    end = min(begin + CHUNK, count)
    before = tl.full([], -2, tl.int64)
    if begin > 0:
        before = _row_at(keys, begin - 1, base, table_rows)
    began_here = False
    total = tl.zeros([BLOCK], tl.float32)
    for position in range(begin, end):
        row = _row_at(keys, position, base, table_rows)
        after = tl.full([], -2, tl.int64)
        if position + 1 < count:
            after = _row_at(keys, position + 1, base, table_rows)
        place = tl.load(order + first + position) - first
        real = inside & (row >= 0)
        start = tl.zeros([], tl.int64)
        for reader in tl.static_range(len(STARTS)):
            start = tl.where(place // events == reader, STARTS[reader], start)
        value = tl.load(d_gathered + (place % events) * height + start + column, mask=real, other=0.0)
        starts_run = row != before
        total = tl.where(starts_run, value, total + value)
        began_here = began_here | starts_run
        last = row != after
        slot = row
        if slots is not None:
            slot = tl.load(slots + position).to(tl.int64)
        target = d_table[0] + slot * d_table[1] + column * d_table[2]
        tl.store(target, total.to(d_table[0].dtype.element_ty), mask=real & began_here & last)
        piece_ends = last | (position + 1 == end)
        tl.store(heads + chunk * width + column, total, mask=real & piece_ends & (began_here == 0))
        tl.store(tails + chunk * width + column, total, mask=real & began_here & (last == 0) & (position + 1 == end))
        before = row


@kernel
def join_pieces_kernel(
    keys, slots, d_table, heads, tails, base, first, count, width, table_rows,
    CHUNK: tl.constexpr, PIECES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    keys += first
    chunk = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    begin = chunk * CHUNK
    end = begin + CHUNK
    crosses = end < count
    row = tl.load(keys + end - 1, mask=crosses, other=-1).to(tl.int64) - base
    before = tl.load(keys + begin - 1, mask=(begin > 0) & crosses, other=-1).to(tl.int64) - base
    after = tl.load(keys + end, mask=crosses, other=-1).to(tl.int64) - base
    if crosses & (row < table_rows) & ((row != before) | (begin == 0)) & (row == after):
        total = tl.load(tails + chunk * width + column, mask=inside, other=0.0)
        piece = chunk + 1 + tl.arange(0, PIECES)
        more = True
        while more:
            belongs = piece * CHUNK < count
            belongs = belongs & (tl.load(keys + piece * CHUNK, mask=belongs, other=0).to(tl.int64) - base == row)
            values = heads + piece[:, None] * width + column[None, :]
            total += tl.sum(tl.load(values, mask=belongs[:, None] & inside[None, :], other=0.0), axis=0)
            piece += PIECES
            more = tl.min(belongs.to(tl.int32), axis=0) == 1
        slot = row
        if slots is not None:
            slot = tl.load(slots + end - 1).to(tl.int64)
        target = d_table[0] + slot * d_table[1] + column * d_table[2]
        tl.store(target, total.to(d_table[0].dtype.element_ty), mask=inside)


def dense(places: Places, d_gathered: Tensor, starts: tuple[int, ...], table: Tensor) -> Tensor:
    """The gradient of a table [V, d], from its ordered reads.

    d_gathered: float32 [T, Σ d]; the table's i-th reader has its part from starts[i] on.
    """
    d_table = torch.zeros_like(table)
    _sum(places, None, d_gathered, starts, table.shape[0], d_table)
    return d_table


def row_sparse(places: Places, d_gathered: Tensor, starts: tuple[int, ...], table: Tensor) -> list[Tensor | None]:
    """The rows that were read, int64 [n], ascending, each once, and their gradients [n, d].

    The number of rows decides the shape of the result: the only point where the host waits for the GPU.
    """
    ordered = places.keys[places.first : places.first + places.count].long() - places.base
    leads = ordered < table.shape[0]
    leads[1:] &= ordered[1:] != ordered[:-1]
    rows = ordered[leads]
    d_rows = table.new_zeros(rows.shape[0], table.shape[1])
    _sum(places, leads.cumsum(0) - 1, d_gathered, starts, table.shape[0], d_rows)
    return [rows, d_rows]


def _sum(
    places: Places,
    slots: Tensor | None,
    d_gathered: Tensor,
    starts: tuple[int, ...],
    table_rows: int,
    d_table: Tensor,
) -> None:
    """Writes the sum of every row's gradients to row slots[position], int64, of d_table; if None, to its own row."""
    width = d_table.shape[1]
    chunks = ceil_div(places.count, CHUNK)
    heads, tails = d_gathered.new_empty(chunks, width), d_gathered.new_empty(chunks, width)
    block = min(next_power_of_two(width), 256)
    shared: dict[str, Any] = {
        "keys": places.keys,
        "slots": slots,
        "d_table": (d_table, *d_table.stride()),
        "heads": heads,
        "tails": tails,
        "base": places.base,
        "first": places.first,
        "count": places.count,
        "width": width,
        "table_rows": table_rows,
        "CHUNK": CHUNK,
        "BLOCK": block,
    }
    reads = {
        "order": places.order,
        "d_gathered": d_gathered,
        "events": d_gathered.shape[0],
        "height": d_gathered.shape[1],
        "STARTS": starts,
    }
    grid = (chunks, ceil_div(width, block))
    launch(sum_runs_kernel, grid, shared | reads, warps=max(1, block // 128), stages=3)
    launch(join_pieces_kernel, grid, shared | {"PIECES": PIECES}, warps=max(1, block // 64), stages=1)
