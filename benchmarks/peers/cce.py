"""`cce`: Apple's cut cross-entropy, fed −log_q as a bias; Triton on CUDA, its torch.compile form on the CPU.

Releases without a bias argument get it as one more column of the matrices.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.harness.cases import Case
from benchmarks.peers import softmax_by_matrix
from benchmarks.peers.base import Peer, first_reason, not_installed


def why_not(case: Case) -> str | None:
    """The reason: not installed, or an argument or dtype that it does not support."""
    on_gpu = case.device == "cuda"
    return first_reason(
        softmax_by_matrix.why_not(case),
        "its CUDA kernel takes 16-bit dtypes only" if on_gpu and case.dtype == torch.float32 else None,
        not_installed("cut_cross_entropy", "cut-cross-entropy"),
    )


def build(case: Case) -> Callable[[], Any]:
    """The case by cut cross-entropy."""
    from cut_cross_entropy import linear_cross_entropy

    implementation = "cce" if case.device == "cuda" else "torch_compile"
    takes_bias = "bias" in inspect.signature(linear_cross_entropy).parameters

    def loss(inputs: Tensor, matrix: Tensor, targets: Tensor, bias: Tensor | None, reduction: str) -> Tensor:
        extra = {}
        if bias is not None and takes_bias:
            extra["bias"] = bias
        elif bias is not None:
            inputs, matrix = _with_bias_column(inputs, matrix, bias)
        found: Tensor = linear_cross_entropy(inputs, matrix, targets, reduction=reduction, impl=implementation, **extra)
        return found

    return softmax_by_matrix.build(case, loss)


def _with_bias_column(inputs: Tensor, matrix: Tensor, bias: Tensor, multiple: int = 16) -> tuple[Tensor, Tensor]:
    """The bias as a column of ones and one of biases, padded with zeros to a width that suits the kernels."""
    rest = multiple - 1 - inputs.shape[1] % multiple
    ones = inputs.new_ones(inputs.shape[0], 1)
    return (
        F.pad(torch.cat([inputs, ones], 1), (0, rest)),
        F.pad(torch.cat([matrix, bias[:, None]], 1), (0, rest)),
    )


PEER = Peer("cce", ("sampled_softmax_loss",), build, why_not, compiles=True)
