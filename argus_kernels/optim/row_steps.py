"""SGD, Adagrad and Adam on rows of a table, in place: the definition in plain PyTorch, and the compiled steps on a CPU.

table [V, d] of any floating dtype, states [V, d] float32 (float64 for a float64 table), rows [R] int64 where −1 is
skipped, row_gradients [R, d] in the table's dtype. Gradients of a row that is named more than once are summed first, in
the order given. Arithmetic is float32 (float64); the table is rounded once.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from argus_kernels.core import native
from argus_kernels.core.registry import default_backend


def sgd_(table: Tensor, rows: Tensor, row_gradients: Tensor, *, lr: float, weight_decay: float) -> None:
    """SGD: row ← row − lr · (g + weight_decay · row)."""
    if _compiled(table):
        native.op("row_sgd_")(table, rows, row_gradients, lr, weight_decay)
        return _written(table)
    touched, gradient, before = _touched(table, rows, row_gradients)
    _put(table, touched, before - lr * (gradient + weight_decay * before))


def adagrad_(
    table: Tensor, total: Tensor, rows: Tensor, row_gradients: Tensor, *, lr: float, eps: float, weight_decay: float
) -> None:
    """Adagrad: g ← g + weight_decay · row; total ← total + g²; row ← row − lr · g / (√total + eps)."""
    if _compiled(table, total):
        native.op("row_adagrad_")(table, total, rows, row_gradients, lr, eps, weight_decay)
        return _written(table, total)
    touched, gradient, before = _touched(table, rows, row_gradients)
    gradient = gradient + weight_decay * before
    squares = total[touched] + gradient.square()
    _put(total, touched, squares)
    _put(table, touched, before - lr * gradient / (squares.sqrt() + eps))


def adam_(
    table: Tensor,
    mean: Tensor,
    square: Tensor,
    rows: Tensor,
    row_gradients: Tensor,
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
) -> None:
    """Adam: m ← m + (1 − β₁)(g − m); v ← v + (1 − β₂)(g² − v); row ← row − lr · m / (√v + eps)."""
    if _compiled(table, mean, square):
        native.op("row_adam_")(table, mean, square, rows, row_gradients, lr, *betas, eps)
        return _written(table, mean, square)
    touched, gradient, before = _touched(table, rows, row_gradients)
    means = mean[touched] + (1 - betas[0]) * (gradient - mean[touched])
    squares = square[touched] + (1 - betas[1]) * (gradient.square() - square[touched])
    _put(mean, touched, means)
    _put(square, touched, squares)
    _put(table, touched, before - lr * means / (squares.sqrt() + eps))


def _compiled(table: Tensor, *states: Tensor) -> bool:
    """Whether the compiled step serves: on a CPU, rows dense in memory, states contiguous; as the default says."""
    if table.device.type != "cpu" or default_backend() not in ("auto", "cpp") or native.why_not("cpu") is not None:
        return False
    dense = table.shape[1] <= 1 or table.stride(1) == 1
    return dense and all(state.is_contiguous() and state.dtype == _wide(table) for state in states)


def _written(*tensors: Tensor) -> None:
    torch.autograd.graph.increment_version([one for one in tensors if not one.is_inference()])


def _wide(table: Tensor) -> torch.dtype:
    return torch.promote_types(table.dtype, torch.float32)


def _touched(table: Tensor, rows: Tensor, row_gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The rows that are named, each once and ascending; the sums of their gradients; the rows as they are."""
    present = rows >= 0
    touched, place = rows[present].unique(return_inverse=True)
    # Unlike index_add_ it adds in a fixed order on every device.
    add: Callable[..., Tensor] = torch.ops.aten.embedding_dense_backward
    gradient = add(row_gradients[present].to(_wide(table)), place, touched.shape[0], -1, False)
    return touched, gradient, table[touched].to(_wide(table))


def _put(to: Tensor, rows: Tensor, values: Tensor) -> None:
    to.index_copy_(0, rows, values.to(to.dtype))
