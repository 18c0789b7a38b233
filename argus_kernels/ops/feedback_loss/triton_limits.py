"""Which inputs the Triton kernels of feedback_loss take; it does not import triton."""

from __future__ import annotations

from argus_kernels.core.registry import Inputs
from argus_kernels.core.triton_support import device_problems, problems

MAX_TASKS = 32
"""The kernels are compiled with their tasks one after the other."""
MAX_LOGITS = 128
"""A program holds the logits of its rows in registers."""


def why_not(inputs: Inputs) -> list[str]:
    """Every reason why the kernels cannot serve these inputs."""
    found = problems(hidden=inputs.hidden, weight=inputs.weight, bias=inputs.bias)
    found += device_problems(targets=inputs.targets, task_weight=inputs.task_weight, row_weight=inputs.row_weight)
    tasks, columns = len(inputs.classes), inputs.weight.shape[1]
    if tasks > MAX_TASKS:
        found.append(f"classes has {tasks} tasks, expected at most {MAX_TASKS}")
    if columns > MAX_LOGITS:
        found.append(f"weight has {columns} columns, expected at most {MAX_LOGITS}")
    return found
