"""The matrix products behind the gradients of sampled_softmax_loss in Triton, and the rows' own products.

`product_kernel` is an ordinary tiled product with float32 sums; its epilogue either adds to what is there (the
candidates' gradients, slab after slab) or adds a multiple of another row and scales (the queries' gradients).
"""

from __future__ import annotations

from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from argus_kernels.core.triton_jit import kernel
from argus_kernels.core.triton_support import ceil_div, launch, next_power_of_two


@kernel
def dot_rows_kernel(
    left, right, out, rows, width, BLOCK_ROWS: tl.constexpr, BLOCK_WIDTH: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    total = tl.zeros([BLOCK_ROWS, BLOCK_WIDTH], tl.float32)
    for begin in range(0, width, BLOCK_WIDTH):
        column = begin + tl.arange(0, BLOCK_WIDTH)
        mask = (row < rows)[:, None] & (column < width)[None, :]
        one = tl.load(left[0] + row[:, None] * left[1] + column[None, :] * left[2], mask=mask, other=0.0)
        other = right[0] + row[:, None] * right[1] + column[None, :] * right[2]
        total += one.to(tl.float32) * tl.load(other, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + row, tl.sum(total, axis=1), mask=row < rows)


@kernel
def product_kernel(
    left, right, out, depth_factor, row_term, other, factor, rows, columns, depth,
    ACCUMULATE: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr, BLOCK_DEPTH: tl.constexpr,
):  # fmt: skip
    tiles = tl.cdiv(columns, BLOCK_COLUMNS)
    row = (tl.program_id(0) // tiles).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    column = (tl.program_id(0) % tiles) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    real = row < rows
    inside = column < columns
    total = tl.zeros([BLOCK_ROWS, BLOCK_COLUMNS], tl.float32)
    for begin in range(0, depth, BLOCK_DEPTH):
        place = begin + tl.arange(0, BLOCK_DEPTH).to(tl.int64)
        there = place < depth
        a = tl.load(
            left[0] + row[:, None] * left[1] + place[None, :] * left[2],
            mask=real[:, None] & there[None, :],
            other=0.0,
        )
        if depth_factor is not None:
            a *= tl.load(depth_factor + place, mask=there, other=0.0)[None, :]
        b = tl.load(
            right[0] + place[:, None] * right[1] + column[None, :] * right[2],
            mask=there[:, None] & inside[None, :],
            other=0.0,
        )
        total = tl.dot(a, b, total, input_precision="ieee")
    mask = real[:, None] & inside[None, :]
    target = out[0] + row[:, None] * out[1] + column[None, :] * out[2]
    if ACCUMULATE:
        total += tl.load(target, mask=mask, other=0.0)
    else:
        beside = other[0] + row[:, None] * other[1] + column[None, :] * other[2]
        term = tl.load(row_term + row, mask=real, other=0.0)[:, None]
        total = (total + term * tl.load(beside, mask=mask, other=0.0).to(tl.float32)) * tl.load(factor)
    tl.store(target, total.to(out[0].dtype.element_ty), mask=mask)


def dot_rows(left: Tensor, right: Tensor) -> Tensor:
    """⟨left_n, right_n⟩ of every row, float32 [N]."""
    rows, width = left.shape
    out = left.new_empty(rows, dtype=torch.float32)
    arguments = {
        "left": (left, *left.stride()),
        "right": (right, *right.stride()),
        "out": out,
        "rows": rows,
        "width": width,
        "BLOCK_ROWS": 16,
        "BLOCK_WIDTH": min(256, next_power_of_two(width)),
    }
    launch(dot_rows_kernel, (ceil_div(rows, 16),), arguments, warps=4)
    return out


def write_query_gradient(
    d_score: Tensor, candidates: Tensor, d_query: Tensor, row_term: Tensor, positive: Tensor, factor: Tensor
) -> None:
    """d_query [R, D] = factor · (d_score [R, M] · candidates [M, D] + row_term [R] · positive [R, D])."""
    other = (positive, *positive.stride())
    epilogue = {"row_term": row_term, "other": other, "factor": factor, "ACCUMULATE": False}
    _product(d_score, candidates, d_query, epilogue | {"depth_factor": None})


def add_candidate_gradient(sums: Tensor, d_score: Tensor, query: Tensor, exact: Tensor) -> None:
    """Sums += (exact · d_score)ᵀ · query: float32 [M, D], [R], [R, M], [R, D].

    exact: by how much the shares of each row were off together. What 16 bits round is more than that.
    """
    epilogue = {"row_term": None, "other": None, "factor": None, "ACCUMULATE": True}
    depth_factor = exact.float() if d_score.dtype == torch.float32 else None
    _product(d_score.T, query, sums, epilogue | {"depth_factor": depth_factor})


def _product(left: Tensor, right: Tensor, out: Tensor, epilogue: dict[str, Any]) -> None:
    (rows, depth), columns = left.shape, right.shape[1]
    half = left.dtype != torch.float32
    block_rows = 128 if half else 64
    block_columns = max(16, min(128 if half else 64, next_power_of_two(columns)))
    arguments = epilogue | {
        "left": (left, *left.stride()),
        "right": (right, *right.stride()),
        "out": (out, *out.stride()),
        "rows": rows,
        "columns": columns,
        "depth": depth,
        "BLOCK_ROWS": block_rows,
        "BLOCK_COLUMNS": block_columns,
        "BLOCK_DEPTH": 64 if half else 16,
    }
    grid = (ceil_div(rows, block_rows) * ceil_div(columns, block_columns),)
    launch(product_kernel, grid, arguments, warps=8 if half else 4, stages=3 if half else 2)
