"""The compiled backends of feedback_loss: `cpp` (C++ on the CPU) and `cuda` (CUDA C++)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from argus_kernels.core import native
from argus_kernels.core.problems import FLOATING
from argus_kernels.core.registry import needs_device, needs_dtype
from argus_kernels.ops.feedback_loss.arguments import Arguments

_STORED = (torch.float32, torch.bfloat16, torch.float16)
MAX_TASKS = 32
"""Of the CUDA kernels, whose arguments carry the classes."""
MAX_LOGITS = 128
"""Of the CUDA kernels, which hold a tile's logits in shared memory."""


def forward(given: Arguments) -> Tensor:
    """The losses [F] of hidden [N, D], weight [D, C], bias [C], targets [N, F]."""
    losses: Tensor = native.op("feedback_loss")(*given)
    return losses


def backward(
    gradients: Sequence[Tensor],
    outputs: Sequence[Tensor],
    needs: dict[str, bool],
    given: Arguments,
) -> list[Tensor | None]:
    """Gradients of hidden, weight and bias from the gradient of the losses [F]; one pass gives all three."""
    found = native.op("feedback_loss_backward")(gradients[0], *given)
    wanted = (needs["hidden"], needs["weight"], needs["bias"])
    return [gradient if wants else None for gradient, wants in zip(found, wanted, strict=True)]


def available_cpp() -> str | None:
    """Why the C++ backend cannot serve anything here, or None."""
    return native.why_not("cpu")


def available_cuda() -> str | None:
    """Why the CUDA backend cannot serve anything here, or None."""
    return native.why_not("cuda")


def why_not_cpp(given: Arguments) -> list[str]:
    """Every reason why the C++ backend cannot serve these arguments."""
    return [*_tensors_on("cpu", given), *needs_dtype(FLOATING, hidden=given.hidden)]


def why_not_cuda(given: Arguments) -> list[str]:
    """Every reason why the CUDA backend cannot serve these arguments."""
    problems = [*_tensors_on("cuda", given), *needs_dtype(_STORED, hidden=given.hidden)]
    tasks, columns = len(given.classes), given.weight.shape[1]
    if tasks > MAX_TASKS:
        problems.append(f"classes has {tasks} tasks, expected at most {MAX_TASKS}")
    if columns > MAX_LOGITS:
        problems.append(f"weight has {columns} columns, expected at most {MAX_LOGITS}")
    return problems


def _tensors_on(kind: str, given: Arguments) -> list[str]:
    names = ("hidden", "weight", "bias", "targets", "task_weight", "row_weight")
    return needs_device(kind, **{name: getattr(given, name) for name in names})
