"""`linear_cross_entropy`: torch's own linear + cross-entropy, which works through the logits in chunks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.harness.cases import Case
from benchmarks.peers import softmax_by_matrix
from benchmarks.peers.base import Peer, first_reason


def why_not(case: Case) -> str | None:
    """A torch without it, or arguments it cannot take."""
    missing = not hasattr(F, "linear_cross_entropy")
    return first_reason(
        f"torch {torch.__version__} has no linear_cross_entropy" if missing else None, softmax_by_matrix.why_not(case)
    )


def build(case: Case) -> Callable[[], Any]:
    """The case by torch's loss."""

    def loss(inputs: Tensor, matrix: Tensor, targets: Tensor, bias: Tensor | None, reduction: str) -> Tensor:
        found: Tensor = F.linear_cross_entropy(inputs, matrix, targets, linear_bias=bias, reduction=reduction)
        return found

    return softmax_by_matrix.build(case, loss)


PEER = Peer("linear_cross_entropy", ("sampled_softmax_loss",), build, why_not)
