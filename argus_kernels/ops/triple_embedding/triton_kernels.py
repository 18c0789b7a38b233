"""triple_embedding in Triton: forward, and the products of the backward pass.

Forward: one program per tile [events, width] of the output. For each column it gathers the tile's rows straight from
the column's table as the left operand of tl.dot; the concatenation is never in global memory. The bias is the epilogue.

Backward: d_gathered = g · weightᵀ goes to memory in float32, [T, Σ d], because its rows of width d_k are sorted
(`triton_order`) and summed by table row (`triton_row_sums`), instead of the wider rows of g. d_weight takes one launch
per column: every split of the events has its own partial sum in memory, added in order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from argus_kernels.core.triton_jit import kernel
from argus_kernels.core.triton_support import CompileCase, ceil_div, launch, next_power_of_two, processors
from argus_kernels.core.tuning import Config, Tunable, configuration
from argus_kernels.ops.triple_embedding import triton_order, triton_row_sums
from argus_kernels.ops.triple_embedding.arguments import Arguments

_FORWARD = "triple_embedding/forward"
_WEIGHT = "triple_embedding/weight_gradient"
_GATHERED = "triple_embedding/gathered_gradient"

# 16-bit tiles fill a Hopper warp group's wgmma; float32 products are fused multiply-adds, bound by registers.
_TILES: dict[str, tuple[Config, ...]] = {
    _FORWARD: (
        {"block_events": 128, "block_width": 128, "warps": 8},
        {"block_events": 64, "block_width": 256, "warps": 8},
        {"block_events": 64, "block_width": 128, "warps": 4},
    ),
    _WEIGHT: (
        {"block_events": 64, "block_width": 128, "warps": 4, "stages": 3},
        {"block_events": 64, "block_width": 64, "warps": 4, "stages": 4},
    ),
    _GATHERED: (
        {"block_events": 128, "block_width": 64, "warps": 4, "stages": 3},
        {"block_events": 128, "block_width": 128, "warps": 8, "stages": 3},
    ),
}
_FLOAT32_TILE: Config = {"block_events": 64, "block_width": 64, "warps": 4, "stages": 2}
# A deeper float32 product, fully unrolled, spilled kilobytes.
_FLOAT32_DEPTH = 16
# Rows that are rounded on load need registers for both types: 128 events spill on sm_80.
_ROUNDING_TILE: Config = {"block_events": 64, "block_width": 128, "warps": 8}
TUNABLES = tuple(Tunable(name, "triton", configs, backward=name != _FORWARD) for name, configs in _TILES.items())


@kernel
def forward_kernel(
    ids,
    tables,
    weight,
    bias,
    out,
    events,
    width,
    table_rows,
    table_strides,
    table_column_strides,
    ids_stride,
    ids_event_stride,
    WIDTHS: tl.constexpr,
    DEPTHS: tl.constexpr,
    BLOCK_EVENTS: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
):
    # The tiles of the same events are neighbours in the grid, so that all but the first find the rows in cache.
    tiles = tl.cdiv(width, BLOCK_WIDTH)
    event = (tl.program_id(0) // tiles).to(tl.int64) * BLOCK_EVENTS + tl.arange(0, BLOCK_EVENTS)
    column = (tl.program_id(0) % tiles) * BLOCK_WIDTH + tl.arange(0, BLOCK_WIDTH)
    real = event < events
    inside = column < width
    total = tl.zeros([BLOCK_EVENTS, BLOCK_WIDTH], tl.float32)
    first = 0
    for k in tl.static_range(len(WIDTHS)):
        row = tl.load(ids + k * ids_stride + event * ids_event_stride, mask=real, other=-1)
        present = (row >= 0) & (row < table_rows[k])
        start = tables[k] + row * table_strides[k]
        for begin in range(0, WIDTHS[k], DEPTHS[k]):
            part = begin + tl.arange(0, DEPTHS[k])
            real_part = part < WIDTHS[k]
            rows = tl.load(
                start[:, None] + part[None, :] * table_column_strides[k],
                mask=present[:, None] & real_part[None, :],
                other=0.0,
            ).to(weight[0].dtype.element_ty)
            place = (first + part).to(tl.int64)[:, None] * weight[1] + column[None, :] * weight[2]
            factor = tl.load(weight[0] + place, mask=real_part[:, None] & inside[None, :], other=0.0)
            total = tl.dot(rows, factor, total, input_precision="ieee")
        first += WIDTHS[k]
    if bias is not None:
        total += tl.load(bias[0] + column * bias[1], mask=inside, other=0.0).to(tl.float32)[None, :]
    place = event[:, None] * width + column[None, :]
    tl.store(out + place, total.to(out.dtype.element_ty), mask=real[:, None] & inside[None, :])


@kernel
def gathered_gradient_kernel(
    gradient,
    weight,
    d_gathered,
    events,
    width,
    height,
    BLOCK_EVENTS: tl.constexpr,
    BLOCK_HEIGHT: tl.constexpr,
    BLOCK_DEPTH: tl.constexpr,
):
    tiles = tl.cdiv(height, BLOCK_HEIGHT)
    event = (tl.program_id(0) // tiles).to(tl.int64) * BLOCK_EVENTS + tl.arange(0, BLOCK_EVENTS)
    line = (tl.program_id(0) % tiles).to(tl.int64) * BLOCK_HEIGHT + tl.arange(0, BLOCK_HEIGHT)
    real = event < events
    inside = line < height
    total = tl.zeros([BLOCK_EVENTS, BLOCK_HEIGHT], tl.float32)
    for begin in range(0, width, BLOCK_DEPTH):
        column = begin + tl.arange(0, BLOCK_DEPTH)
        real_column = column < width
        left = tl.load(
            gradient[0] + event[:, None] * gradient[1] + column[None, :] * gradient[2],
            mask=real[:, None] & real_column[None, :],
            other=0.0,
        )
        right = tl.load(
            weight[0] + line[None, :] * weight[1] + column[:, None] * weight[2],
            mask=inside[None, :] & real_column[:, None],
            other=0.0,
        )
        total = tl.dot(left, right, total, input_precision="ieee")
    tl.store(d_gathered + event[:, None] * height + line[None, :], total, mask=real[:, None] & inside[None, :])


@kernel
def weight_gradient_kernel(
    ids,
    table,
    gradient,
    partial,
    events,
    width,
    table_rows,
    table_width,
    split_events,
    reader,
    ids_stride,
    ids_event_stride,
    BLOCK_EVENTS: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
    BLOCK_HEIGHT: tl.constexpr,
):
    split = tl.program_id(2).to(tl.int64)
    column = tl.program_id(0) * BLOCK_WIDTH + tl.arange(0, BLOCK_WIDTH)
    line = tl.program_id(1) * BLOCK_HEIGHT + tl.arange(0, BLOCK_HEIGHT)
    inside = column < width
    real_line = line < table_width
    total = tl.zeros([BLOCK_WIDTH, BLOCK_HEIGHT], tl.float32)
    own_ids = ids + reader.to(tl.int64) * ids_stride
    end = min((split + 1) * split_events, events)
    for begin in range(split * split_events, end, BLOCK_EVENTS):
        event = begin + tl.arange(0, BLOCK_EVENTS).to(tl.int64)
        real = event < end
        row = tl.load(own_ids + event * ids_event_stride, mask=real, other=-1)
        present = (row >= 0) & (row < table_rows)
        rows = tl.load(
            table[0] + row[:, None] * table[1] + line[None, :] * table[2],
            mask=present[:, None] & real_line[None, :],
            other=0.0,
        ).to(gradient[0].dtype.element_ty)
        # The output's columns are the product's rows: a table may be 16 wide, and wgmma takes 64 rows or more.
        left = tl.load(
            gradient[0] + event[None, :] * gradient[1] + column[:, None] * gradient[2],
            mask=real[None, :] & inside[:, None],
            other=0.0,
        )
        total = tl.dot(left, rows, total, input_precision="ieee")
    place = (split * table_width + line)[None, :] * width + column[:, None]
    tl.store(partial + place, total, mask=inside[:, None] & real_line[None, :])


def forward(given: Arguments) -> Tensor:
    """Ids [K, T], tables [V_j, d_j], weight [Σ d, D], bias [D] → [T, D]."""
    events, width = given.ids.shape[1], given.weight.shape[1]
    out = given.weight.new_empty(events, width)
    read = tuple(given.tables[column] for column in given.columns)
    depth = _FLOAT32_DEPTH if given.weight.dtype == torch.float32 else 64
    rounding = bool(read) and read[0].dtype != given.weight.dtype
    config = _config(_FORWARD, given.weight, events, _ROUNDING_TILE if rounding else None)
    arguments: dict[str, Any] = {
        "ids": given.ids,
        "tables": read,
        "weight": (given.weight, *given.weight.stride()),
        "bias": None if given.bias is None else (given.bias, *given.bias.stride()),
        "out": out,
        "events": events,
        "width": width,
        "table_rows": tuple(table.shape[0] for table in read),
        "table_strides": tuple(table.stride(0) for table in read),
        "table_column_strides": tuple(table.stride(1) for table in read),
        "ids_stride": given.ids.stride(0),
        "ids_event_stride": given.ids.stride(1),
        "WIDTHS": tuple(table.shape[1] for table in read),
        "DEPTHS": tuple(min(max(next_power_of_two(table.shape[1]), 16), depth) for table in read),
        "BLOCK_EVENTS": config["block_events"],
        "BLOCK_WIDTH": _block(config["block_width"], width),
    }
    grid = ceil_div(events, config["block_events"]) * ceil_div(width, arguments["BLOCK_WIDTH"])
    launch(forward_kernel, (grid,), arguments, warps=config["warps"], stages=2)
    return out


def backward(
    gradients: Sequence[Tensor],
    outputs: Sequence[Tensor],
    needs: dict[str, bool],
    given: Arguments,
) -> list[list[Tensor | None] | Tensor | None]:
    """Gradients of the tables (dense, or row numbers and rows where `sparse`), weight and bias."""
    gradient = gradients[0]
    d_tables: list[Tensor | None] = [None] * (2 * len(given.tables) if given.sparse else len(given.tables))
    d_weight = d_bias = None
    if needs["tables"]:
        d_gathered = _gathered_gradient(gradient, given.weight)
        starts = _starts(given.tables, given.columns)
        d_tables = []
        places = triton_order.order_places(given.ids, [table.shape[0] for table in given.tables], given.columns)
        for index, (table, own) in enumerate(zip(given.tables, places, strict=True)):
            parts = d_gathered, tuple(starts[k] for k, column in enumerate(given.columns) if column == index)
            if given.sparse:
                d_tables += triton_row_sums.row_sparse(own, *parts, table)
            else:
                d_tables.append(triton_row_sums.dense(own, *parts, table))
    if needs["weight"]:
        d_weight = torch.empty_like(given.weight, memory_format=torch.contiguous_format)
        for k, start in enumerate(_starts(given.tables, given.columns)):
            table = given.tables[given.columns[k]]
            _weight_gradient(given.ids, k, table, gradient, d_weight[start : start + table.shape[1]])
    if needs["bias"] and given.bias is not None:
        d_bias = gradient.sum(0, dtype=torch.float32).to(given.weight.dtype)
    return [d_tables, d_weight, d_bias]


def _gathered_gradient(gradient: Tensor, weight: Tensor) -> Tensor:
    """G [T, D] · weightᵀ [D, Σ d] → float32 [T, Σ d]."""
    (events, width), height = gradient.shape, weight.shape[0]
    d_gathered = gradient.new_empty(events, height, dtype=torch.float32)
    config = _config(_GATHERED, weight, events)
    arguments: dict[str, Any] = {
        "gradient": (gradient, *gradient.stride()),
        "weight": (weight, *weight.stride()),
        "d_gathered": d_gathered,
        "events": events,
        "width": width,
        "height": height,
        "BLOCK_EVENTS": config["block_events"],
        "BLOCK_HEIGHT": _block(config["block_width"], height),
        "BLOCK_DEPTH": _FLOAT32_DEPTH if weight.dtype == torch.float32 else 64,
    }
    grid = ceil_div(events, config["block_events"]) * ceil_div(height, arguments["BLOCK_HEIGHT"])
    launch(gathered_gradient_kernel, (grid,), arguments, warps=config["warps"], stages=config["stages"])
    return d_gathered


def _weight_gradient(ids: Tensor, reader: int, table: Tensor, gradient: Tensor, d_weight: Tensor) -> None:
    """Σ_t row_t ᵀ · g_t for the column `reader` of ids [K, T], into d_weight [d, D]."""
    (events, width), table_width = gradient.shape, table.shape[1]
    config = _config(_WEIGHT, gradient, events)
    block_width = _block(config["block_width"], width)
    block_height = min(max(next_power_of_two(table_width), 16), 64)
    tiles = ceil_div(width, block_width) * ceil_div(table_width, block_height)
    wanted = ceil_div(2 * processors(gradient.device), max(tiles, 1))
    splits = max(1, min(wanted, ceil_div(events, 8 * config["block_events"])))
    partial = gradient.new_empty(splits, table_width, width, dtype=torch.float32)
    arguments: dict[str, Any] = {
        "ids": ids,
        "table": (table, *table.stride()),
        "gradient": (gradient, *gradient.stride()),
        "partial": partial,
        "events": events,
        "width": width,
        "table_rows": table.shape[0],
        "table_width": table_width,
        "split_events": ceil_div(events, splits),
        "reader": reader,
        "ids_stride": ids.stride(0),
        "ids_event_stride": ids.stride(1),
        "BLOCK_EVENTS": config["block_events"],
        "BLOCK_WIDTH": block_width,
        "BLOCK_HEIGHT": block_height,
    }
    grid = (ceil_div(width, block_width), ceil_div(table_width, block_height), splits)
    launch(weight_gradient_kernel, grid, arguments, warps=config["warps"], stages=config["stages"])
    d_weight.copy_(partial.sum(0))


def _starts(tables: Sequence[Tensor], columns: Sequence[int]) -> list[int]:
    """The first row of weight for each column."""
    starts, first = [], 0
    for column in columns:
        starts.append(first)
        first += tables[column].shape[1]
    return starts


def _config(kernel: str, like: Tensor, events: int, tile: Config | None = None) -> Config:
    default = tile or (_FLOAT32_TILE if like.dtype == torch.float32 else _TILES[kernel][0])
    return configuration(
        kernel, width=like.shape[1], dtype=like.dtype, size=events, default=default, device=like.device
    )


def _block(wanted: int, width: int) -> int:
    """A tile's columns: no more than needed, and at least the 16 that tl.dot requires."""
    return max(16, min(wanted, next_power_of_two(width)))


def compile_cases() -> list[CompileCase]:
    """The production columns with dense table gradients, for every dtype and 16-bit weights over float32 tables."""

    def case(weight_dtype: torch.dtype, table_dtype: torch.dtype) -> CompileCase:
        shapes, columns = ((1_000_000, 64), (100_000, 64), (900, 16)), [0, 0, 1, 2, 2]

        def call() -> None:
            with torch.device("meta"):
                ids = torch.empty(len(columns), 16_384, dtype=torch.int64)
                tables = [torch.empty(*shape, dtype=table_dtype) for shape in shapes]
                weight = torch.empty(sum(shapes[column][1] for column in columns), 256, dtype=weight_dtype)
                bias = torch.empty(256, dtype=weight_dtype)
            given = Arguments(ids, tables, columns, weight, bias, False, True)
            out = forward(given)
            backward([out], [out], {"tables": True, "weight": True, "bias": True}, given)

        name = f"{weight_dtype}-{table_dtype}".replace("torch.", "")
        return CompileCase(name, call, twin=weight_dtype == torch.float16)

    same = (torch.float32, torch.bfloat16, torch.float16)
    return [*(case(dtype, dtype) for dtype in same), case(torch.bfloat16, torch.float32)]
