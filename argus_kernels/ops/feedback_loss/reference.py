"""feedback_loss in plain PyTorch: the definition, and the gradients written out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from argus_kernels.ops.feedback_loss.arguments import Arguments


def forward(given: Arguments) -> Tensor:
    """The losses [F] of hidden [N, D], weight [D, C], bias [C], targets [N, F]."""
    observed, share = _shares(given.hidden, given.targets, given.task_weight, given.row_weight)
    logits = _logits(given.hidden, given.weight, given.bias, observed)
    losses = []
    for task, first, last in _tasks(given.classes):
        seen = observed[:, task]
        target = torch.where(seen, given.targets[:, task], 0)
        if last - first == 1:
            # Not torch's binary cross-entropy, which is inf − inf for an infinite logit of the right class.
            row_loss = -F.logsigmoid(torch.where(target > 0, logits[:, first], -logits[:, first]))
        else:
            row_loss = F.cross_entropy(logits[:, first:last], target, reduction="none")
        losses.append(torch.where(seen, row_loss * share[:, task], 0).sum())
    return torch.stack(losses) if losses else logits.new_zeros(0)


def backward(
    gradients: Sequence[Tensor],
    outputs: Sequence[Tensor],
    needs: dict[str, bool],
    given: Arguments,
) -> list[Tensor | None]:
    """Gradients of hidden, weight and bias from the gradient of the losses [F]."""
    observed, share = _shares(given.hidden, given.targets, given.task_weight, given.row_weight)
    logits = _logits(given.hidden, given.weight, given.bias, observed)
    d_logits = torch.zeros_like(logits)
    for task, first, last in _tasks(given.classes):
        seen = observed[:, task : task + 1]
        target = torch.where(seen, given.targets[:, task : task + 1], 0)
        if last - first == 1:
            residual = logits[:, first:last].sigmoid() - target
        else:
            residual = logits[:, first:last].softmax(1) - F.one_hot(target[:, 0], last - first)
        scaled = residual * (share[:, task : task + 1] * gradients[0][task])
        d_logits[:, first:last] = torch.where(seen, scaled, 0)
    kept = _kept(given.hidden, observed).to(logits.dtype)
    return [
        (d_logits @ given.weight.to(logits.dtype).T).to(given.hidden.dtype) if needs["hidden"] else None,
        (kept.T @ d_logits).to(given.weight.dtype) if needs["weight"] else None,
        d_logits.sum(0).to(given.bias.dtype) if needs["bias"] else None,
    ]


def _tasks(classes: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """(task, its first logit, past its last logit)."""
    first = 0
    for task, count in enumerate(classes):
        yield task, first, first + count
        first += count


def _shares(
    hidden: Tensor, targets: Tensor, task_weight: Tensor | None, row_weight: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Which (row, task) pairs count, and what each one's loss is multiplied by: v_f · w_n / Σ w of the observed."""
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    observed = targets >= 0
    weights = torch.ones_like(targets[:, :1], dtype=dtype)
    if row_weight is not None:
        observed = observed & (row_weight != 0)[:, None]
        weights = row_weight.to(dtype)[:, None]
    weights = torch.where(observed, weights, 0)
    total = weights.sum(0)
    share = weights / torch.where(total > 0, total, 1)
    return observed, share if task_weight is None else share * task_weight.to(dtype)


def _kept(hidden: Tensor, observed: Tensor) -> Tensor:
    """The rows of hidden, with those that count for no task set to zero, so that garbage in them reaches no product."""
    return torch.where(observed.any(1, keepdim=True), hidden, 0)


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor, observed: Tensor) -> Tensor:
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    return _kept(hidden, observed).to(dtype) @ weight.to(dtype) + bias.to(dtype)
