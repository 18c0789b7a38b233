"""Which inputs the Triton kernels of pairwise_loss take; it does not import triton."""

from __future__ import annotations

from argus_kernels.core.registry import Inputs
from argus_kernels.core.triton_support import device_problems, problems


def why_not(inputs: Inputs) -> list[str]:
    """Every reason why the kernels cannot serve these inputs."""
    others = device_problems(grades=inputs.grades, offsets=inputs.offsets, times=inputs.times)
    return problems(scores=inputs.scores) + others
