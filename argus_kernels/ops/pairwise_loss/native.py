"""The compiled backend of pairwise_loss: `cpp` (C++ on the CPU)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from argus_kernels.core import native
from argus_kernels.core.problems import FLOATING
from argus_kernels.core.registry import Inputs, needs_device, needs_dtype


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


def available_cpp() -> str | None:
    """Why the C++ backend cannot serve anything here, or None."""
    return native.why_not("cpu")


def why_not_cpp(inputs: Inputs) -> list[str]:
    """Every reason why the C++ backend cannot serve these inputs."""
    tensors = {name: getattr(inputs, name) for name in ("scores", "grades", "offsets", "times")}
    return [*needs_device("cpu", **tensors), *needs_dtype(FLOATING, scores=inputs.scores)]
