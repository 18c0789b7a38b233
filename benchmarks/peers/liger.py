"""`liger`: Liger-Kernel's fused linear cross-entropy; Triton on CUDA."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from benchmarks.harness.cases import Case
from benchmarks.peers import softmax_by_matrix
from benchmarks.peers.base import Peer, first_reason, needs_cuda, not_installed


def why_not(case: Case) -> str | None:
    """Wrong device, not installed, or arguments it cannot take."""
    return first_reason(
        needs_cuda(case), softmax_by_matrix.why_not(case), not_installed("liger_kernel.transformers", "liger-kernel")
    )


def build(case: Case) -> Callable[[], Any]:
    """The case by Liger's loss."""
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    def loss(inputs: Tensor, matrix: Tensor, targets: Tensor, bias: Tensor | None, reduction: str) -> Tensor:
        found: Tensor = liger_fused_linear_cross_entropy(inputs, matrix, targets, bias, reduction=reduction)
        return found

    return softmax_by_matrix.build(case, loss)


PEER = Peer("liger", ("sampled_softmax_loss",), build, why_not)
