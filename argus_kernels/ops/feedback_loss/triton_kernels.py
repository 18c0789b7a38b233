"""feedback_loss in Triton.

A program holds the logits of 64 rows, padded to a power of two of columns, in registers: a product over pieces of
hidden and weight, then the tasks one after the other, each a mask over the columns. Backward turns the logits into
residuals in place, multiplies them by weight for d_hidden, and writes them to memory in float32; a second kernel
multiplies them by hidden for d_weight. Each of its programs keeps its sums in registers and loops over its share of the
rows. The number of shares depends on the sizes alone, and their sums are added in order, without atomics.

Residuals are products of small weights and stay float32: rounded to hidden's 16 bits they would cost accuracy, and in
float16 underflow.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from argus_kernels.core.triton_jit import kernel
from argus_kernels.core.triton_support import CompileCase, ceil_div, launch, next_power_of_two
from argus_kernels.ops.feedback_loss.arguments import Arguments

_ROWS = 64
_DEPTH = 64
# A float32 product is unrolled over its depth: 64 rows at a time spilled.
_WEIGHT_ROWS = 16
_WANTED_PROGRAMS = 528
"""Of the kernel behind d_weight: four for each multiprocessor of an H200."""


@triton.jit
def _log1p(u):
    """ln(1 + u) for u in [0, 1], to full relative accuracy: a factor corrects the rounding of 1 + u."""
    whole = 1.0 + u
    lost = tl.where(whole == 1.0, 1.0, whole - 1.0)
    return tl.where(whole == 1.0, u, tl.log(whole) * (u / lost))


@triton.jit
def _observe(targets, row_weight, row, real, task):
    """(weight, target) of the rows for one task: 0 and −1 if the task does not count."""
    target = tl.load(targets[0] + row * targets[1] + task * targets[2], mask=real, other=-1)
    if row_weight is None:
        weight = tl.where(target >= 0, 1.0, 0.0)
    else:
        given = tl.load(row_weight[0] + row * row_weight[1], mask=real, other=0.0)
        weight = tl.where(target >= 0, given, 0.0)
    return weight, tl.where(weight != 0.0, target, -1)


@triton.jit
def _counts(targets, row_weight, row, real, TASKS: tl.constexpr):
    """Whether a row counts for any task; other rows contribute nothing, whatever they hold."""
    counts = row < 0
    for task in tl.static_range(TASKS):
        _, target = _observe(targets, row_weight, row, real, task)
        counts = counts | (target >= 0)
    return counts


@triton.jit
def _project(
    hidden,
    weight,
    bias,
    row,
    counts,
    width,
    columns,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_DEPTH: tl.constexpr,
):
    """The logits [BLOCK_ROWS, BLOCK_COLUMNS] in float32."""
    column = tl.arange(0, BLOCK_COLUMNS)
    inside = column < columns
    logits = tl.zeros([BLOCK_ROWS, BLOCK_COLUMNS], tl.float32)
    for begin in range(0, width, BLOCK_DEPTH):
        d = begin + tl.arange(0, BLOCK_DEPTH)
        piece = tl.load(
            hidden[0] + row[:, None] * hidden[1] + d[None, :] * hidden[2],
            mask=counts[:, None] & (d < width)[None, :],
            other=0.0,
        )
        factor = tl.load(
            weight[0] + d.to(tl.int64)[:, None] * weight[1] + column[None, :] * weight[2],
            mask=(d < width)[:, None] & inside[None, :],
            other=0.0,
        )
        logits = tl.dot(piece, factor, logits, input_precision="ieee")
    return logits + tl.load(bias[0] + column * bias[1], mask=inside, other=0.0).to(tl.float32)[None, :]


@triton.jit
def _wrong(logit, target):
    """The logit with the sign for which σ gives the probability of the wrong class."""
    return tl.where(target > 0, -logit, logit)


@kernel
def forward_kernel(
    hidden,
    weight,
    bias,
    targets,
    row_weight,
    losses,
    rows,
    width,
    columns,
    CLASSES: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_DEPTH: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    real = row < rows
    counts = _counts(targets, row_weight, row, real, len(CLASSES))
    logits = _project(hidden, weight, bias, row, counts, width, columns, BLOCK_ROWS, BLOCK_COLUMNS, BLOCK_DEPTH)
    column = tl.arange(0, BLOCK_COLUMNS)[None, :]
    first = 0
    for task in tl.static_range(len(CLASSES)):
        given, target = _observe(targets, row_weight, row, real, task)
        if CLASSES[task] == 1:
            x = _wrong(tl.sum(tl.where(column == first, logits, 0.0), 1), target)
            loss = tl.where(x > 0, x, 0.0) + _log1p(tl.exp(-tl.abs(x)))
        else:
            own = (column >= first) & (column < first + CLASSES[task])
            most = tl.max(tl.where(own, logits, float("-inf")), 1)
            total = tl.sum(tl.where(own, tl.exp(logits - most[:, None]), 0.0), 1)
            hit = tl.sum(tl.where(column == first + target[:, None], logits, 0.0), 1)
            loss = (most - hit) + tl.log(total)
        weighed = tl.where(target >= 0, given * loss, 0.0).to(tl.float64)
        tl.store(losses + tl.program_id(0).to(tl.int64) * len(CLASSES) + task, tl.sum(weighed))
        first += CLASSES[task]


@kernel
def backward_kernel(
    hidden,
    weight,
    bias,
    targets,
    row_weight,
    factors,
    d_hidden,
    residuals,
    d_bias,
    rows,
    width,
    columns,
    CLASSES: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_DEPTH: tl.constexpr,
):
    column = tl.arange(0, BLOCK_COLUMNS)
    inside = column < columns
    row = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    real = row < rows
    counts = _counts(targets, row_weight, row, real, len(CLASSES))
    logits = _project(hidden, weight, bias, row, counts, width, columns, BLOCK_ROWS, BLOCK_COLUMNS, BLOCK_DEPTH)
    found = tl.zeros([BLOCK_ROWS, BLOCK_COLUMNS], tl.float32)
    first = 0
    for task in tl.static_range(len(CLASSES)):
        given, target = _observe(targets, row_weight, row, real, task)
        scale = (given * tl.load(factors + task))[:, None]
        seen = (target >= 0)[:, None]
        if CLASSES[task] == 1:
            own = column[None, :] == first
            x = _wrong(logits, target[:, None])
            decay = tl.exp(-tl.abs(x))
            wrong = tl.where(x > 0, 1.0, decay) / (1.0 + decay)
            residual = tl.where(target[:, None] > 0, -wrong, wrong)
        else:
            own = (column >= first) & (column < first + CLASSES[task])
            own = own[None, :]
            most = tl.max(tl.where(own, logits, float("-inf")), 1)
            powers = tl.where(own, tl.exp(logits - most[:, None]), 0.0)
            residual = powers / tl.sum(powers, 1)[:, None]
            residual -= tl.where(column[None, :] == first + target[:, None], 1.0, 0.0)
        found += tl.where(own & seen, residual * scale, 0.0)
        first += CLASSES[task]
    tl.store(residuals + row[:, None] * BLOCK_COLUMNS + column[None, :], found, mask=real[:, None])
    tl.store(d_bias + tl.program_id(0).to(tl.int64) * BLOCK_COLUMNS + column, tl.sum(found, 0))
    for begin in range(0, width, BLOCK_DEPTH):
        d = begin + tl.arange(0, BLOCK_DEPTH)
        deep = d < width
        factor = tl.load(
            weight[0] + d.to(tl.int64)[None, :] * weight[1] + column[:, None] * weight[2],
            mask=inside[:, None] & deep[None, :],
            other=0.0,
        ).to(tl.float32)
        gradient = tl.dot(found, factor, input_precision="ieee")
        place = row[:, None] * width + d[None, :]
        tl.store(d_hidden + place, gradient.to(d_hidden.dtype.element_ty), mask=real[:, None] & deep[None, :])


@kernel
def weight_gradient_kernel(
    hidden,
    residuals,
    d_weight,
    rows,
    split_rows,
    width,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_DEPTH: tl.constexpr,
):
    split = tl.program_id(1).to(tl.int64)
    column = tl.arange(0, BLOCK_COLUMNS)
    d = tl.program_id(0) * BLOCK_DEPTH + tl.arange(0, BLOCK_DEPTH)
    deep = d < width
    total = tl.zeros([BLOCK_DEPTH, BLOCK_COLUMNS], tl.float32)
    end = tl.minimum((split + 1) * split_rows, rows)
    for begin in range(split * split_rows, end, BLOCK_ROWS):
        row = begin + tl.arange(0, BLOCK_ROWS).to(tl.int64)
        real = row < end
        residual = tl.load(residuals + row[:, None] * BLOCK_COLUMNS + column[None, :], mask=real[:, None], other=0.0)
        # A row without a residual adds nothing, whatever its hidden state holds: 0 · NaN would be NaN.
        adds = tl.sum((residual != 0.0).to(tl.int32), 1) > 0
        piece = tl.load(
            hidden[0] + row[None, :] * hidden[1] + d[:, None] * hidden[2],
            mask=adds[None, :] & deep[:, None],
            other=0.0,
        ).to(tl.float32)
        total = tl.dot(piece, residual, total, input_precision="ieee")
    target = d_weight + (split * width + d)[:, None] * BLOCK_COLUMNS + column[None, :]
    tl.store(target, total, mask=deep[:, None])


def _arguments(given: Arguments) -> dict[str, Any]:
    """The arguments of both kernels."""
    return {
        "hidden": (given.hidden, *given.hidden.stride()),
        "weight": (given.weight, *given.weight.stride()),
        "bias": (given.bias, *given.bias.stride()),
        "targets": (given.targets, *given.targets.stride()),
        "row_weight": None if given.row_weight is None else (given.row_weight, *given.row_weight.stride()),
        "rows": given.hidden.shape[0],
        "width": given.hidden.shape[1],
        "columns": given.weight.shape[1],
        "CLASSES": tuple(given.classes),
        "BLOCK_ROWS": _ROWS,
        "BLOCK_COLUMNS": max(16, next_power_of_two(given.weight.shape[1])),
        "BLOCK_DEPTH": _DEPTH,
    }


def _scales(targets: Tensor, task_weight: Tensor | None, row_weight: Tensor | None) -> Tensor:
    """v_f / Σ w over the rows that observed task f, float64 [F]; 0 if none did."""
    weight = (targets >= 0).to(torch.float64)
    if row_weight is not None:
        weight = torch.where(targets >= 0, row_weight[:, None].to(torch.float64), 0)
    total = weight.sum(0)
    scale = torch.where(total > 0, 1 / total, 0)
    return scale if task_weight is None else scale * task_weight


def forward(given: Arguments) -> Tensor:
    """The losses [F] of hidden [N, D], weight [D, C], bias [C], targets [N, F]."""
    programs = ceil_div(given.hidden.shape[0], _ROWS)
    losses = given.hidden.new_empty(programs, len(given.classes), dtype=torch.float64)
    if given.classes:
        arguments = {**_arguments(given), "losses": losses}
        launch(forward_kernel, (programs,), arguments, stages=2)
    scale = _scales(given.targets, given.task_weight, given.row_weight)
    return torch.where(scale != 0, losses.sum(0) * scale, 0).to(torch.float32)


def backward(
    gradients: Sequence[Tensor],
    outputs: Sequence[Tensor],
    needs: dict[str, bool],
    given: Arguments,
) -> list[Tensor | None]:
    """Gradients of hidden, weight and bias from the gradient of the losses [F]; one pass gives all three."""
    rows, width = given.hidden.shape
    columns = given.weight.shape[1]
    if not given.classes:
        return [torch.zeros_like(given.hidden), torch.zeros_like(given.weight), torch.zeros_like(given.bias)]
    arguments = _arguments(given)
    tiles, block = ceil_div(rows, _ROWS), arguments["BLOCK_COLUMNS"]
    parts = {
        "d_hidden": given.hidden.new_empty(rows, width),
        "residuals": given.hidden.new_empty(rows, block, dtype=torch.float32),
        "d_bias": given.hidden.new_empty(tiles, block, dtype=torch.float32),
    }
    factors = (_scales(given.targets, given.task_weight, given.row_weight) * gradients[0]).to(torch.float32)
    # With 4 warps the float32 products spill on sm_80.
    warps = 8 if given.hidden.dtype == torch.float32 else 4
    launch(backward_kernel, (tiles,), {**arguments, **parts, "factors": factors}, warps=warps, stages=2)
    d_weight = _weight_gradient(arguments, parts["residuals"])[:, :columns] if needs["weight"] else None
    return [
        parts["d_hidden"] if needs["hidden"] else None,
        None if d_weight is None else d_weight.contiguous().to(given.weight.dtype),
        parts["d_bias"].sum(0)[:columns].to(given.bias.dtype) if needs["bias"] else None,
    ]


def _weight_gradient(arguments: dict[str, Any], residuals: Tensor) -> Tensor:
    """hiddenᵀ [D, N] · residuals [N, BLOCK_COLUMNS], float32."""
    rows, width = arguments["rows"], arguments["width"]
    depth_blocks, tiles = ceil_div(width, _DEPTH), ceil_div(rows, _ROWS)
    splits = max(1, min(tiles, ceil_div(_WANTED_PROGRAMS, max(depth_blocks, 1))))
    parts = residuals.new_empty(splits, width, residuals.shape[1])
    names = ("hidden", "rows", "width", "BLOCK_COLUMNS", "BLOCK_DEPTH")
    own = {
        "residuals": residuals,
        "d_weight": parts,
        "split_rows": ceil_div(tiles, splits) * _ROWS,
        "BLOCK_ROWS": _WEIGHT_ROWS,
    }
    shared = {name: arguments[name] for name in names}
    launch(weight_gradient_kernel, (depth_blocks, splits), shared | own, warps=4, stages=2)
    return parts.sum(0)


def compile_cases() -> list[CompileCase]:
    """The production tasks for every dtype, with and without weights of rows."""

    def case(dtype: torch.dtype, weighted: bool) -> CompileCase:
        classes = [1, 1, 1, 8]

        def call() -> None:
            with torch.device("meta"):
                hidden, weight = torch.empty(65_536, 256, dtype=dtype), torch.empty(256, 11, dtype=dtype)
                bias = torch.empty(11, dtype=dtype)
                targets, row_weight = torch.empty(65_536, 4, dtype=torch.int64), torch.empty(65_536)
            given = Arguments(hidden, weight, bias, targets, classes, None, row_weight if weighted else None)
            loss = forward(given)
            backward([loss], [loss], {"hidden": True, "weight": True, "bias": True}, given)

        name = str(dtype).removeprefix("torch.") + ("-weighted" if weighted else "")
        return CompileCase(name, call, twin=weighted or dtype == torch.float16)

    return [case(dtype, w) for dtype in (torch.float32, torch.bfloat16, torch.float16) for w in (False, True)]
