"""The `triton` backend of pairwise_loss: what it takes. The kernels are imported when first called."""

from __future__ import annotations

from typing import Any

from argus_kernels.core.registry import Inputs
from argus_kernels.core.triton_support import device_problems, problems, triton_backend


def why_not(inputs: Inputs) -> list[str]:
    """Every reason why the kernels cannot serve these inputs."""
    others = device_problems(grades=inputs.grades, offsets=inputs.offsets, times=inputs.times)
    return problems(scores=inputs.scores) + others


def forward(*arguments: Any) -> Any:
    """(loss, pairs, concordant); arguments in schema order."""
    from argus_kernels.ops.pairwise_loss import triton_kernels

    return triton_kernels.forward(*arguments)


def backward(*arguments: Any) -> Any:
    """The gradient of the scores."""
    from argus_kernels.ops.pairwise_loss import triton_kernels

    return triton_kernels.backward(*arguments)


BACKEND = triton_backend(forward, why_not, backward)
