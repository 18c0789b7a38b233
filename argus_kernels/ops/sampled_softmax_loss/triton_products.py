"""The matrix products behind the gradients of sampled_softmax_loss in Triton, and the rows' own products.

`product_kernel` is an ordinary tiled product with float32 sums; its epilogue either adds to the previous result (the
candidates' gradients, slab after slab) or adds a multiple of another row and scales (the queries' gradients).

A candidate that a row leaves out must not affect the row, whatever it holds, but 0 · NaN is NaN. So the score gradient
of such a pair is stored as −0. One kernel checks whether the queries or candidates hold a NaN or an infinity. If they
do, the pairs are added up one by one, without those stored as −0; otherwise nothing else changes.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from argus_kernels.core.triton_jit import kernel
from argus_kernels.core.triton_support import ceil_div, launch, loads_by_tma, next_power_of_two

NEGATIVE_ZERO = tl.constexpr(-(2**31))
"""The bits of −0 in float32."""
_PROGRAMS = 64
"""Programs that look for values that are not finite."""


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


@triton.jit
def marked(gradient, counts):
    """A tile of gradients with −0 exactly for the pairs that are left out."""
    zero = tl.zeros([1, 1], gradient.dtype)
    # A literal −0.0 becomes 0.0.
    return tl.where(counts, tl.where(gradient == zero, zero, gradient), (zero.to(tl.float32) * -1.0).to(gradient.dtype))


@triton.jit
def _wild(packed, rows, width, BLOCK_ROWS: tl.constexpr, BLOCK_WIDTH: tl.constexpr):
    """Whether one of a program's rows, every so many blocks apart, has a value that is not finite: 1 or 0."""
    found = tl.zeros([BLOCK_ROWS, BLOCK_WIDTH], tl.int32)
    for first in range(tl.program_id(0) * BLOCK_ROWS, rows, tl.num_programs(0) * BLOCK_ROWS):
        row = first + tl.arange(0, BLOCK_ROWS).to(tl.int64)
        for begin in range(0, width, BLOCK_WIDTH):
            column = begin + tl.arange(0, BLOCK_WIDTH)
            place = packed[0] + row[:, None] * packed[1] + column[None, :] * packed[2]
            value = tl.load(place, mask=(row < rows)[:, None] & (column < width)[None, :], other=0.0).to(tl.float32)
            found |= (tl.abs(value) < float("inf")).to(tl.int32) ^ 1
    return tl.max(tl.max(found, axis=1), axis=0)


@kernel
def wild_kernel(
    query, candidates, wild, rows, drawn, width, BLOCK_ROWS: tl.constexpr, BLOCK_WIDTH: tl.constexpr,
    PROGRAMS: tl.constexpr,
):  # fmt: skip
    if tl.program_id(1) == 0:
        tl.store(wild + tl.program_id(0), _wild(query, rows, width, BLOCK_ROWS, BLOCK_WIDTH))
    else:
        tl.store(wild + PROGRAMS + tl.program_id(0), _wild(candidates, drawn, width, BLOCK_ROWS, BLOCK_WIDTH))


@kernel
def product_kernel(
    left, right, described_left, described_right, wild, out, depth_factor, row_term, other, factor, rows, columns,
    depth, ACCUMULATE: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr, BLOCK_DEPTH: tl.constexpr,
    PROGRAMS: tl.constexpr, DESCRIBED: tl.constexpr, TURNED: tl.constexpr,
):  # fmt: skip
    tiles = tl.cdiv(columns, BLOCK_COLUMNS)
    row = (tl.program_id(0) // tiles).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    column = (tl.program_id(0) % tiles) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    real = row < rows
    inside = column < columns
    total = tl.zeros([BLOCK_ROWS, BLOCK_COLUMNS], tl.float32)
    exact = tl.max(tl.load(wild + tl.arange(0, PROGRAMS)), axis=0) > 0
    for begin in range(0, tl.where(exact, 0, depth), BLOCK_DEPTH):
        if DESCRIBED:
            # Past the last row and column a descriptor reads zeros, too.
            first_row, first_column = tl.program_id(0) // tiles * BLOCK_ROWS, tl.program_id(0) % tiles * BLOCK_COLUMNS
            if TURNED:
                a = tl.trans(described_left.load([begin, first_row]))
            else:
                a = described_left.load([first_row, begin])
            b = described_right.load([begin, first_column])
        else:
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
    for begin in range(0, tl.where(exact, depth, 0)):
        place = tl.cast(begin, tl.int64)
        a = tl.load(left[0] + row[:, None] * left[1] + place * left[2], mask=real[:, None], other=0.0).to(tl.float32)
        b = tl.load(right[0] + place * right[1] + column[None, :] * right[2], mask=inside[None, :], other=0.0)
        left_out = a.to(tl.int32, bitcast=True) == NEGATIVE_ZERO
        if depth_factor is not None:
            a *= tl.load(depth_factor + place)
        total += tl.where(left_out, 0.0, a * b.to(tl.float32))
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


def wild_parts(query: Tensor, candidates: Tensor) -> Tensor:
    """int32 [2, 64]: a row, of `query` [N, D] and of `candidates` [M, D], is 0 where all values are finite."""
    (rows, width), drawn = query.shape, candidates.shape[0]
    wild = query.new_zeros((2, _PROGRAMS), dtype=torch.int32)
    arguments = {
        "query": (query, *query.stride()),
        "candidates": (candidates, *candidates.stride()),
        "wild": wild,
        "rows": rows,
        "drawn": drawn,
        "width": width,
        "BLOCK_ROWS": 16,
        "BLOCK_WIDTH": min(256, next_power_of_two(width)),
        "PROGRAMS": _PROGRAMS,
    }
    launch(wild_kernel, (min(_PROGRAMS, ceil_div(max(rows, drawn), 16)), 2), arguments, warps=4)
    return wild


def write_query_gradient(
    d_score: Tensor,
    candidates: Tensor,
    wild: Tensor,
    d_query: Tensor,
    row_term: Tensor,
    positive: Tensor,
    factor: Tensor,
) -> None:
    """d_query [R, D] = factor · (d_score [R, M] · candidates [M, D] + row_term [R] · positive [R, D])."""
    other = (positive, *positive.stride())
    epilogue = {"row_term": row_term, "other": other, "factor": factor, "ACCUMULATE": False}
    _product(d_score, candidates, wild, d_query, epilogue | {"depth_factor": None})


def add_candidate_gradient(sums: Tensor, d_score: Tensor, query: Tensor, wild: Tensor, exact: Tensor) -> None:
    """Sums += (exact · d_score)ᵀ · query: float32 [M, D], [R], [R, M], [R, D].

    exact: the correction of each row's shares. The rounding of 16-bit values is larger than that.
    """
    epilogue = {"row_term": None, "other": None, "factor": None, "ACCUMULATE": True}
    depth_factor = exact.float() if d_score.dtype == torch.float32 else None
    _product(d_score.T, query, wild, sums, epilogue | {"depth_factor": depth_factor})


def _product(left: Tensor, right: Tensor, wild: Tensor, out: Tensor, epilogue: dict[str, Any]) -> None:
    (rows, depth), columns = left.shape, right.shape[1]
    half = left.dtype != torch.float32
    block_rows = 128 if half else 64
    block_columns = max(16, min(128 if half else 64, next_power_of_two(columns)))
    block_depth = 64 if half else 16
    turned = left.stride(1) != 1
    rowwise = left.T if turned else left
    described = loads_by_tma(rowwise, right)
    left_box = [block_depth, block_rows] if turned else [block_rows, block_depth]
    arguments = epilogue | {
        "described_left": TensorDescriptor.from_tensor(rowwise, left_box) if described else None,
        "described_right": TensorDescriptor.from_tensor(right, [block_depth, block_columns]) if described else None,
        "DESCRIBED": described,
        "TURNED": turned,
        "left": (left, *left.stride()),
        "right": (right, *right.stride()),
        "wild": wild,
        "out": (out, *out.stride()),
        "rows": rows,
        "columns": columns,
        "depth": depth,
        "BLOCK_ROWS": block_rows,
        "BLOCK_COLUMNS": block_columns,
        "BLOCK_DEPTH": block_depth,
        "PROGRAMS": _PROGRAMS,
    }
    grid = (ceil_div(rows, block_rows) * ceil_div(columns, block_columns),)
    launch(product_kernel, grid, arguments, warps=8 if half else 4, stages=3)
