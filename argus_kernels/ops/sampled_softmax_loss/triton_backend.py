"""The `triton` backend of sampled_softmax_loss: what it takes. The kernels are imported when first called."""

from __future__ import annotations

from typing import Any

from argus_kernels.core.registry import Inputs
from argus_kernels.core.triton_support import device_problems, problems, triton_backend


def why_not(inputs: Inputs) -> list[str]:
    """Every reason why the kernels cannot serve these inputs."""
    found = problems(query=inputs.query, positive=inputs.positive, candidates=inputs.candidates)
    names = ("positive_ids", "candidate_ids", "log_q", "positive_log_q", "scale", "row_weight", "query_owner")
    return found + device_problems(**{name: getattr(inputs, name) for name in (*names, "candidate_owner")})


def forward(*arguments: Any) -> Any:
    """The op's outputs; arguments in schema order."""
    from argus_kernels.ops.sampled_softmax_loss import triton_kernels

    return triton_kernels.forward(*arguments)


def backward(*arguments: Any) -> Any:
    """The gradients of query, positive, candidates and scale."""
    from argus_kernels.ops.sampled_softmax_loss import triton_kernels

    return triton_kernels.backward(*arguments)


BACKEND = triton_backend(forward, why_not, backward)
