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
from argus_kernels.core.registry import needs_device, needs_dtype
from argus_kernels.ops.pairwise_loss.arguments import Arguments
from argus_kernels.ops.pairwise_loss.time_order import time_order

_STORED = (torch.float32, torch.bfloat16, torch.float16)


def forward_cpp(given: Arguments) -> tuple[Tensor, Tensor, Tensor]:
    """(loss, pairs, concordant) of scores, grades, times [T] and offsets [B + 1]."""
    found: tuple[Tensor, Tensor, Tensor] = native.op("pairwise_loss")(*_int64_grades(given))
    return found


def backward_cpp(
    gradients: Sequence[Tensor],
    outputs: Sequence[Tensor],
    needs: dict[str, bool],
    given: Arguments,
) -> list[Tensor | None]:
    """Gradient of scores from that of the loss; the counts have none."""
    if not needs["scores"]:
        return [None]
    return [native.op("pairwise_loss_backward")(gradients[0], *_int64_grades(given))]


def _int64_grades(given: Arguments) -> Arguments:
    if given.grades.dtype == torch.int64:
        return given
    return given._replace(grades=given.grades.to(torch.int64))


def forward_cuda(given: Arguments) -> tuple[Tensor, Tensor, Tensor]:
    """The same on the GPU."""
    found: tuple[Tensor, Tensor, Tensor] = native.op("pairwise_loss_ordered")(*ordered_arguments(given), given.window)
    return found


def backward_cuda(
    gradients: Sequence[Tensor],
    outputs: Sequence[Tensor],
    needs: dict[str, bool],
    given: Arguments,
) -> list[Tensor | None]:
    """The same on the GPU."""
    if not needs["scores"]:
        return [None]
    return [native.op("pairwise_loss_ordered_backward")(gradients[0], *ordered_arguments(given), given.window)]


def ordered_arguments(given: Arguments) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, int]:
    """What the CUDA kernels take: scores and grades as given, the order of events, their users and times, B."""
    ordered = time_order(given.grades, given.offsets, given.times)
    users = given.offsets.shape[0] - 1
    return given.scores.contiguous(), given.grades.to(torch.int64).contiguous(), *ordered, users


def available_cpp() -> str | None:
    """Why the C++ backend cannot serve anything here, or None."""
    return native.why_not("cpu")


def available_cuda() -> str | None:
    """Why the CUDA backend cannot serve anything here, or None."""
    return native.why_not("cuda")


def why_not_cpp(given: Arguments) -> list[str]:
    """Every reason why the C++ backend cannot serve these arguments."""
    return [*_tensors_on("cpu", given), *needs_dtype(FLOATING, scores=given.scores)]


def why_not_cuda(given: Arguments) -> list[str]:
    """Every reason why the CUDA backend cannot serve these arguments."""
    return [*_tensors_on("cuda", given), *needs_dtype(_STORED, scores=given.scores)]


def _tensors_on(kind: str, given: Arguments) -> list[str]:
    return needs_device(kind, **{name: getattr(given, name) for name in ("scores", "grades", "offsets", "times")})
