"""The compiled backends of sampled_softmax_loss: `cpp` (C++ on the CPU) and `cuda` (CUDA C++).

The scores are computed tile by tile in both passes and never stored; the forward pass leaves two numbers a row for the
backward pass. Sums run in an order that follows from the sizes alone, for any number of threads and on any GPU.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from argus_kernels.core import native
from argus_kernels.core.registry import Inputs, needs_device, needs_dtype

_STORED = (torch.float32, torch.bfloat16, torch.float16)


def forward(*arguments: object) -> tuple[Tensor, Tensor, Tensor]:
    """(loss [N], lse [N], statistics [2, N]) as `reference.forward`."""
    *tensors, form = arguments
    loss, lse, statistics = torch.ops.argus_native.sampled_softmax_loss(*tensors, form == "refined")
    return loss, lse, statistics


def backward(
    gradients: Sequence[Tensor], outputs: Sequence[Tensor], needs: dict[str, bool], *arguments: object
) -> list[Tensor | None]:
    """Gradients of query, positive, candidates and scale, None where not wanted."""
    *tensors, form = arguments
    wanted = [needs[name] for name in ("query", "positive", "candidates", "scale")]
    found = torch.ops.argus_native.sampled_softmax_loss_backward(
        gradients[0], gradients[1], outputs[2], *wanted, *tensors, form == "refined"
    )
    return [gradient if needed else None for gradient, needed in zip(found, wanted, strict=True)]


def available_cpp() -> str | None:
    """Why the C++ backend cannot serve anything here, or None."""
    return native.why_not("cpu")


def available_cuda() -> str | None:
    """Why the CUDA backend cannot serve anything here, or None."""
    return native.why_not("cuda")


def why_not_cpp(inputs: Inputs) -> list[str]:
    """Every reason why the C++ backend cannot serve these inputs."""
    return [*_tensors_on("cpu", inputs), *needs_dtype((*_STORED, torch.float64), query=inputs.query)]


def why_not_cuda(inputs: Inputs) -> list[str]:
    """Every reason why the CUDA backend cannot serve these inputs."""
    return [*_tensors_on("cuda", inputs), *needs_dtype(_STORED, query=inputs.query)]


def _tensors_on(kind: str, inputs: Inputs) -> list[str]:
    return needs_device(
        kind,
        query=inputs.query,
        positive=inputs.positive,
        candidates=inputs.candidates,
        positive_ids=inputs.positive_ids,
        candidate_ids=inputs.candidate_ids,
        log_q=inputs.log_q,
        scale=inputs.scale,
    )
