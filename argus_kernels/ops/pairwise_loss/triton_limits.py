"""Which arguments the Triton kernels of pairwise_loss take; it does not import triton."""

from __future__ import annotations

from argus_kernels.core.triton_support import device_problems, problems
from argus_kernels.ops.pairwise_loss.arguments import Arguments


def why_not(given: Arguments) -> list[str]:
    """Every reason why the kernels cannot serve these arguments."""
    others = device_problems(grades=given.grades, offsets=given.offsets, times=given.times)
    return problems(scores=given.scores) + others
