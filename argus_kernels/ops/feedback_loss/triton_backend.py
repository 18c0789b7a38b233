"""The `triton` backend of feedback_loss: what it takes. The kernels are imported when first called."""

from __future__ import annotations

from typing import Any

from argus_kernels.core.registry import Inputs
from argus_kernels.core.triton_support import device_problems, problems, triton_backend

MOST_TASKS = 32
"""The kernels are compiled with their tasks one after the other."""
MOST_LOGITS = 128
"""A program holds the logits of its rows in registers."""


def why_not(inputs: Inputs) -> list[str]:
    """Every reason why the kernels cannot serve these inputs."""
    found = problems(hidden=inputs.hidden, weight=inputs.weight, bias=inputs.bias)
    found += device_problems(targets=inputs.targets, task_weight=inputs.task_weight, row_weight=inputs.row_weight)
    tasks, columns = len(inputs.classes), inputs.weight.shape[1]
    if tasks > MOST_TASKS:
        found.append(f"classes has {tasks} tasks, expected at most {MOST_TASKS}")
    if columns > MOST_LOGITS:
        found.append(f"weight has {columns} columns, expected at most {MOST_LOGITS}")
    return found


def forward(*arguments: Any) -> Any:
    """The losses; arguments in schema order."""
    from argus_kernels.ops.feedback_loss import triton_kernels

    return triton_kernels.forward(*arguments)


def backward(*arguments: Any) -> Any:
    """The gradients of hidden, weight and bias."""
    from argus_kernels.ops.feedback_loss import triton_kernels

    return triton_kernels.backward(*arguments)


BACKEND = triton_backend(forward, why_not, backward)
