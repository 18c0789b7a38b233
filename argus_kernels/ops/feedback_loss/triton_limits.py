"""Which arguments the Triton kernels of feedback_loss take; it does not import triton."""

from __future__ import annotations

from argus_kernels.core.triton_support import device_problems, problems
from argus_kernels.ops.feedback_loss.arguments import Arguments

MAX_TASKS = 32
"""The kernels are compiled with their tasks one after the other."""
MAX_LOGITS = 128
"""A program holds the logits of its rows in registers."""


def why_not(given: Arguments) -> list[str]:
    """Every reason why the kernels cannot serve these arguments."""
    found = problems(hidden=given.hidden, weight=given.weight, bias=given.bias)
    found += device_problems(targets=given.targets, task_weight=given.task_weight, row_weight=given.row_weight)
    tasks, columns = len(given.classes), given.weight.shape[1]
    if tasks > MAX_TASKS:
        found.append(f"classes has {tasks} tasks, expected at most {MAX_TASKS}")
    if columns > MAX_LOGITS:
        found.append(f"weight has {columns} columns, expected at most {MAX_LOGITS}")
    return found
