"""Which inputs the Triton kernels of sampled_softmax_loss take; it does not import triton."""

from __future__ import annotations

from argus_kernels.core.registry import Inputs
from argus_kernels.core.triton_support import device_problems, problems


def why_not(inputs: Inputs) -> list[str]:
    """Every reason why the kernels cannot serve these inputs."""
    found = problems(query=inputs.query, positive=inputs.positive, candidates=inputs.candidates)
    names = ("positive_ids", "candidate_ids", "log_q", "positive_log_q", "scale", "row_weight", "query_owner")
    return found + device_problems(**{name: getattr(inputs, name) for name in (*names, "candidate_owner")})
