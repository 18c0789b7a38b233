"""The target of a CUDA toolkit tool: one call of an op on one sample, forward, and backward if asked."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from benchmarks.gpu_session.context import Context
from benchmarks.gpu_session.steps.timing import spec_of
from benchmarks.harness.cases import Case


def run(context: Context, op: str, backend: str, sample: str, part: str) -> None:
    """Runs it twice, the second time between the profiler's start and stop marks; sample "tiles" is the first of
    several tiles.

    part: "forward", "backward" (the marks are around the backward pass alone), or "both".
    """
    spec = spec_of(op, None if sample == "tiles" else sample, "bf16")
    case = spec.draw(0, context.device)
    for marked in (False, True):
        if part == "forward" or not case.leaves:
            with torch.no_grad():
                _between_marks(case.call(backend), marked)
        elif part == "both":
            _between_marks(lambda: _backward(case, case.call(backend)()), marked)
        else:
            _between_marks(partial(_backward, case, case.call(backend)()), marked)


def _backward(case: Case, returned: Any) -> None:
    out = case.result(returned)
    torch.autograd.grad(out, case.leaves, torch.ones_like(out), allow_unused=True)


def _between_marks(call: Callable[[], Any], marked: bool) -> None:
    if not torch.cuda.is_available():
        call()
        return
    torch.cuda.synchronize()
    if marked:
        torch.cuda.profiler.start()
    call()
    torch.cuda.synchronize()
    if marked:
        torch.cuda.profiler.stop()
