"""The Triton kernels of feedback_loss over several tiles: shares of rows, blocks of width, rows that hold NaN."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from argus_kernels import feedback_loss
from argus_kernels.core.triton_support import available
from argus_kernels.testing import require_close

pytestmark = pytest.mark.skipif(available() is not None, reason=str(available()))
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CLASSES = [1, 3, 1]


def gradients(backend: str, rows: int, width: int, dtype: torch.dtype) -> list[Tensor]:
    """Losses, and the gradients of hidden, weight and bias; every seventh row has no observation and holds NaN."""
    generator = torch.Generator().manual_seed(0)
    drawn: dict[str, Any] = {
        "hidden": torch.randn(rows, width, generator=generator),
        "weight": torch.randn(width, sum(CLASSES), generator=generator) / width**0.5,
        "bias": torch.randn(sum(CLASSES), generator=generator),
    }
    targets = torch.stack([torch.randint(-1, max(count, 2), (rows,), generator=generator) for count in CLASSES], 1)
    targets[::7] = -1
    drawn["hidden"][::7] = float("nan")
    leaves = {name: value.to(DEVICE, dtype).requires_grad_() for name, value in drawn.items()}
    losses = feedback_loss(**leaves, targets=targets.to(DEVICE), classes=CLASSES, backend=backend)
    return [losses.detach(), *torch.autograd.grad(losses.sum(), list(leaves.values()))]


@pytest.mark.parametrize(("rows", "width"), [(300, 70), (129, 5)])
def test_shares_of_several_tiles(rows: int, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two programs for the gradient of weight: each walks two tiles and more, the last of them not full."""
    from argus_kernels.ops.feedback_loss import triton_kernels

    monkeypatch.setattr(triton_kernels, "_WANTED_PROGRAMS", 4)
    ours, truth, theirs = (
        gradients(backend, rows, width, dtype)
        for backend, dtype in (("triton", torch.float32), ("reference", torch.float64), ("reference", torch.float32))
    )
    for name, found, exact, plain in zip(("loss", "hidden", "weight", "bias"), ours, truth, theirs, strict=True):
        require_close(name, found, exact, plain)
    for found, again in zip(ours, gradients("triton", rows, width, torch.float32), strict=True):
        assert torch.equal(found, again)
