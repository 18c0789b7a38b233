"""rowwise_adagrad_ in Triton.

torch's stable sort brings the repetitions of a row together in input order. The sorted positions are cut into chunks. A
run of equal rows that fills no whole chunk, and so has at most 2 · CHUNK − 2 gradients, is summed in order by the
program at its first position, which updates the row; the other programs exit. A longer run is summed a chunk at a time,
each piece to memory, and `join_kernel` adds the pieces in order, PIECES at a time, and updates the row: a row repeated
50,000 times is 32 additions in a row and then 25 steps (at 64 columns), not 50,000.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from argus_kernels.core.triton_jit import kernel
from argus_kernels.core.triton_support import CompileCase, ceil_div, launch, next_power_of_two
from argus_kernels.ops.rowwise_adagrad.arguments import Arguments
from argus_kernels.ops.rowwise_adagrad.native import kept_apart

CHUNK = 32
PIECE_ELEMENTS = 4096
"""What `join_kernel` loads at a time, in all columns together."""


@triton.jit
def _row_at(sorted_rows, position, count):
    """The row at a sorted position; −1 outside them, for which nothing is updated."""
    return tl.load(sorted_rows + position, mask=(position >= 0) & (position < count), other=-1)


@triton.jit
def _sum_range(order, row_gradients, begin, end, width, BLOCK: tl.constexpr):
    """The sum of the gradients at the sorted positions begin … end − 1, in order, float32 [BLOCK]."""
    column = tl.arange(0, BLOCK).to(tl.int64)
    total = tl.zeros([BLOCK], tl.float32)
    for position in range(begin, end):
        given = row_gradients[0] + tl.load(order + position) * row_gradients[1]
        total += tl.load(given + column * row_gradients[2], mask=column < width, other=0.0).to(tl.float32)
    return total


@triton.jit
def _update_row(table, state, row, gradient, lr, eps, weight_decay, width, BLOCK: tl.constexpr):
    """One step of row-wise Adagrad on a row, by the sum of its gradients."""
    column = tl.arange(0, BLOCK).to(tl.int64)
    inside = column < width
    place = table[0] + row * table[1] + column * table[2]
    value = tl.load(place, mask=inside, other=0.0).to(tl.float32)
    # A decay of 0 leaves the table out of the sum, even its infinities.
    gradient += tl.where(weight_decay == 0, 0.0, weight_decay * value)
    second_moment = tl.load(state[0] + row * state[1]) + tl.sum(gradient * gradient) / width
    step = lr * gradient / (tl.sqrt_rn(second_moment) + eps)
    tl.store(place, (value - step).to(table[0].dtype.element_ty), mask=inside)
    tl.store(state[0] + row * state[1], second_moment)


@kernel
def update_kernel(
    table, state, sorted_rows, order, row_gradients, lr, eps, weight_decay, count, table_rows, width,
    CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    position = tl.program_id(0).to(tl.int64)
    row = _row_at(sorted_rows, position, count)
    first = row != _row_at(sorted_rows, position - 1, count)
    # A run that fills a chunk fills the first that begins in it.
    long = row == _row_at(sorted_rows, (position + CHUNK - 1) // CHUNK * CHUNK + CHUNK - 1, count)
    if first & (row >= 0) & (row < table_rows) & (long == 0):
        end = position + 1
        while _row_at(sorted_rows, end, count) == row:
            end += 1
        gradient = _sum_range(order, row_gradients, position, end, width, BLOCK)
        _update_row(table, state, row, gradient, lr, eps, weight_decay, width, BLOCK)


@kernel
def piece_kernel(
    sorted_rows, order, row_gradients, heads, tails, count, width, CHUNK: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    chunk = tl.program_id(0).to(tl.int64)
    begin = chunk * CHUNK
    end = tl.minimum(begin + CHUNK, count)
    column = tl.arange(0, BLOCK)
    first_row = _row_at(sorted_rows, begin, count)
    last_row = _row_at(sorted_rows, begin + CHUNK - 1, count)
    # The run at the chunk's beginning, if it fills this chunk or the previous one.
    fills = (first_row == last_row) | (first_row == _row_at(sorted_rows, begin - CHUNK, count))
    if fills & (first_row >= 0):
        stop = begin + 1
        while (stop < end) & (_row_at(sorted_rows, stop, end) == first_row):
            stop += 1
        total = _sum_range(order, row_gradients, begin, stop, width, BLOCK)
        tl.store(heads + chunk * width + column, total, mask=column < width)
    # The run at its end, if it fills the next chunk.
    fills_next = last_row == _row_at(sorted_rows, begin + 2 * CHUNK - 1, count)
    if fills_next & (first_row != last_row) & (last_row >= 0):
        start = end - 1
        while _row_at(sorted_rows, start - 1, count) == last_row:
            start -= 1
        total = _sum_range(order, row_gradients, start, end, width, BLOCK)
        tl.store(tails + chunk * width + column, total, mask=column < width)


@kernel
def join_kernel(
    table, state, sorted_rows, heads, tails, lr, eps, weight_decay, count, table_rows, width,
    CHUNK: tl.constexpr, PIECES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    chunk = tl.program_id(0).to(tl.int64)
    begin = chunk * CHUNK
    row = _row_at(sorted_rows, begin + CHUNK - 1, count)
    fills = row == _row_at(sorted_rows, begin, count)
    # The run at the chunk's end begins in this chunk, and fills it or the next.
    begins = row != _row_at(sorted_rows, begin - 1, count)
    long = fills | (row == _row_at(sorted_rows, begin + 2 * CHUNK - 1, count))
    if begins & long & (row >= 0) & (row < table_rows):
        column = tl.arange(0, BLOCK)
        inside = column < width
        gradient = tl.load(tails + chunk * width + column, mask=inside & (fills == 0), other=0.0)
        piece = tl.where(fills, chunk, chunk + 1) + tl.arange(0, PIECES)
        more = True
        while more:
            belongs = _row_at(sorted_rows, piece * CHUNK, count) == row
            values = tl.load(
                heads + piece[:, None] * width + column[None, :], mask=belongs[:, None] & inside[None, :], other=0.0
            )
            gradient += tl.sum(values, axis=0)
            piece += PIECES
            more = tl.min(belongs.to(tl.int32), axis=0) == 1
        _update_row(table, state, row, gradient, lr, eps, weight_decay, width, BLOCK)


def forward(given: Arguments) -> None:
    """Updates table [V, d] and state [V] in place at rows [R], by row_gradients [R, d]."""
    if given.table.shape[1] == 0:
        return  # no gradient, so nothing to add to the state
    row_gradients = kept_apart(given.row_gradients, given.table, given.state)
    sorted_rows, order = torch.sort(given.rows, stable=True)
    count, width = row_gradients.shape
    block = next_power_of_two(width)
    chunks = ceil_div(count, CHUNK)
    # A row of 128 columns is 4 elements per thread of one warp: no block-wide barrier, many rows in flight.
    warps = max(1, min(block // 256, 8))
    sorted_places: dict[str, Any] = {"sorted_rows": sorted_rows, "count": count, "width": max(width, 1)}
    ordered_gradients = {"order": order, "row_gradients": (row_gradients, *row_gradients.stride())}
    step = {
        "table": (given.table, *given.table.stride()),
        "state": (given.state, *given.state.stride()),
        "lr": given.lr,
        "eps": given.eps,
        "weight_decay": given.weight_decay,
        "table_rows": given.table.shape[0],
    }
    tile = {"CHUNK": CHUNK, "BLOCK": block}
    launch(update_kernel, (count,), sorted_places | ordered_gradients | step | tile, warps=warps, stages=1)
    if count < CHUNK:
        return
    heads, tails = (row_gradients.new_empty(chunks, max(width, 1), dtype=torch.float32) for _ in range(2))
    pieces = {"heads": heads, "tails": tails}
    launch(piece_kernel, (chunks,), sorted_places | ordered_gradients | pieces | tile, warps=warps, stages=1)
    tile["PIECES"] = max(1, min(64, PIECE_ELEMENTS // block))
    launch(join_kernel, (chunks,), sorted_places | step | pieces | tile, warps=max(warps, 4), stages=1)


def compile_cases() -> list[CompileCase]:
    """Every dtype of table and gradients at the widths of use."""

    def case(table: torch.dtype, gradient: torch.dtype, width: int) -> CompileCase:
        def call() -> None:
            with torch.device("meta"):
                values = torch.empty(1_000_000, width, dtype=table), torch.empty(1_000_000)
                rows, gradients = torch.empty(32_768, dtype=torch.int64), torch.empty(32_768, width, dtype=gradient)
            forward(Arguments(*values, rows, gradients, 0.1, 1e-8, 0.0))

        return CompileCase(f"{table}-{gradient}-{width}".replace("torch.", ""), call)

    half = (torch.bfloat16, torch.float16)
    pairs = [(torch.float32, torch.float32), *((one, other) for one in half for other in (one, torch.float32))]
    return [case(*pair, 64) for pair in pairs] + [case(torch.float32, torch.float32, 1024)]
