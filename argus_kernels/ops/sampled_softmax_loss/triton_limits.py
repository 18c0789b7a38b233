"""Which arguments the Triton kernels of sampled_softmax_loss take; it does not import triton."""

from __future__ import annotations

from argus_kernels.core.triton_support import device_problems, problems
from argus_kernels.ops.sampled_softmax_loss.arguments import Arguments


def why_not(given: Arguments) -> list[str]:
    """Every reason why the kernels cannot serve these arguments."""
    found = problems(query=given.query, positive=given.positive, candidates=given.candidates)
    names = ("positive_ids", "candidate_ids", "log_q", "positive_log_q", "scale", "row_weight", "query_owner")
    return found + device_problems(**{name: getattr(given, name) for name in (*names, "candidate_owner")})
