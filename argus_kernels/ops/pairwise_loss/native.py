"""The compiled backends of pairwise_loss: `cpp` (C++ on the CPU) and `cuda` (CUDA C++).

The CPU brings each user into the order of time itself; on the GPU torch's stable sorts precede the kernels, without a
host synchronisation, so that the whole is safe in a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from argus_kernels.core import native
from argus_kernels.core.problems import FLOATING
from argus_kernels.core.registry import Inputs, needs_device, needs_dtype
from argus_kernels.ops.pairwise_loss.time_order import time_order

_STORED = (torch.float32, torch.bfloat16, torch.float16)


def forward_cpp(
    scores: Tensor, grades: Tensor, offsets: Tensor, times: Tensor, window: int
) -> tuple[Tensor, Tensor, Tensor]:
    """(loss, pairs, concordant) of scores, grades, times [T] and offsets [B + 1]."""
    found: tuple[Tensor, Tensor, Tensor] = torch.ops.argus_native.pairwise_loss(
        scores, grades.to(torch.int64), offsets, times, window
    )
    return found


def backward_cpp(
    gradients: Sequence[Tensor],
    outputs: Sequence[Tensor],
    needs: dict[str, bool],
    scores: Tensor,
    grades: Tensor,
    offsets: Tensor,
    times: Tensor,
    window: int,
) -> list[Tensor | None]:
    """Gradient of scores from that of the loss; the counts have none."""
    if not needs["scores"]:
        return [None]
    return [
        torch.ops.argus_native.pairwise_loss_backward(
            gradients[0], scores, grades.to(torch.int64), offsets, times, window
        )
    ]


def forward_cuda(
    scores: Tensor, grades: Tensor, offsets: Tensor, times: Tensor, window: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The same on the GPU."""
    found: tuple[Tensor, Tensor, Tensor] = torch.ops.argus_native.pairwise_loss_ordered(
        *ordered_arguments(scores, grades, offsets, times), window
    )
    return found


def backward_cuda(
    gradients: Sequence[Tensor],
    outputs: Sequence[Tensor],
    needs: dict[str, bool],
    scores: Tensor,
    grades: Tensor,
    offsets: Tensor,
    times: Tensor,
    window: int,
) -> list[Tensor | None]:
    """The same on the GPU."""
    if not needs["scores"]:
        return [None]
    return [
        torch.ops.argus_native.pairwise_loss_ordered_backward(
            gradients[0], *ordered_arguments(scores, grades, offsets, times), window
        )
    ]


def ordered_arguments(
    scores: Tensor, grades: Tensor, offsets: Tensor, times: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, int]:
    """What the CUDA kernels take: scores and grades as given, the order of events, their users and times, B."""
    ordered = time_order(grades, offsets, times)
    users = offsets.shape[0] - 1
    return scores.contiguous(), grades.to(torch.int64).contiguous(), *ordered, users


def available_cpp() -> str | None:
    """Why the C++ backend cannot serve anything here, or None."""
    return native.why_not("cpu")


def available_cuda() -> str | None:
    """Why the CUDA backend cannot serve anything here, or None."""
    return native.why_not("cuda")


def why_not_cpp(inputs: Inputs) -> list[str]:
    """Every reason why the C++ backend cannot serve these inputs."""
    return [*_tensors_on("cpu", inputs), *needs_dtype(FLOATING, scores=inputs.scores)]


def why_not_cuda(inputs: Inputs) -> list[str]:
    """Every reason why the CUDA backend cannot serve these inputs."""
    return [*_tensors_on("cuda", inputs), *needs_dtype(_STORED, scores=inputs.scores)]


def _tensors_on(kind: str, inputs: Inputs) -> list[str]:
    return needs_device(kind, **{name: getattr(inputs, name) for name in ("scores", "grades", "offsets", "times")})
