"""The error rule: a result is right if it is about as close to float64 truth as plain PyTorch in its own dtype is.

For a candidate c, the truth t (float64) and PyTorch's result p in the candidate's dtype, over all elements:

    max |c − t| ≤ 2 · max |p − t| + eps · max |t|
    rms(c − t)  ≤ 1.5 · rms(p − t) + ½ eps · rms(t)

eps is the dtype's machine epsilon: the slack is what rounding the right answer to the dtype costs, so that a
candidate is not failed because PyTorch happened to be exact. The first line catches a wrong element, the second a
small error everywhere. NaN never passes; an infinity passes only where the truth has the same one. Several draws of
one case are pooled, which keeps the luck of a single scalar out of the verdict.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

MAX_FACTOR = 2.0
RMS_FACTOR = 1.5


@dataclass(frozen=True)
class Comparison:
    """The figures behind a verdict. Errors are absolute; `passed` is the verdict, `sentence` says it in words."""

    name: str
    passed: bool
    max_error: float
    max_allowed: float
    rms_error: float
    rms_allowed: float
    problem: str = ""

    @property
    def sentence(self) -> str:
        """One line for a test's message or a benchmark's refusal."""
        if self.problem:
            return f"{self.name}: {self.problem}"
        verdict = "passes" if self.passed else "fails"
        return (
            f"{self.name} {verdict}: max error {self.max_error:.3e} (allowed {self.max_allowed:.3e}), "
            f"rms error {self.rms_error:.3e} (allowed {self.rms_allowed:.3e})"
        )


def compare(
    name: str,
    candidate: Tensor | Sequence[Tensor],
    truth: Tensor | Sequence[Tensor],
    torch_result: Tensor | Sequence[Tensor],
    *,
    further: Sequence[tuple[Tensor, Tensor]] = (),
) -> Comparison:
    """Judges `candidate` by the error rule; sequences are draws of one quantity, pooled.

    `further` draws (truth, PyTorch's result) count for the bounds alone: a quantity that is costly to draw and has few
    elements is judged by an error of PyTorch's that is no matter of luck.
    """
    candidates, truths, peers = (_sequence(value) for value in (candidate, truth, torch_result))
    problem = _mismatch(candidates, truths, peers)
    if problem:
        return Comparison(name, False, float("nan"), 0.0, float("nan"), 0.0, problem)
    epsilon = torch.finfo(candidates[0].dtype).eps if candidates[0].is_floating_point() else 0.0
    ours = _pool(candidates)
    exact = _pool(truths)
    theirs = _pool(peers)
    if ours.numel() == 0:
        return Comparison(name, True, 0.0, 0.0, 0.0, 0.0)
    finite = exact.isfinite()
    if not torch.equal(ours[~finite], exact[~finite]):
        return Comparison(name, False, float("nan"), 0.0, float("nan"), 0.0, "infinities differ from the truth's")
    ours, exact, theirs = ours[finite], exact[finite], theirs[finite]
    if not ours.isfinite().all():
        count = int((~ours.isfinite()).sum())
        return Comparison(name, False, float("nan"), 0.0, float("nan"), 0.0, f"{count} elements are not finite")
    max_error, rms_error = _max(ours - exact), _rms(ours - exact)
    for more_exact, more_theirs in ((_pool([one]), _pool([other])) for one, other in further):
        finite = more_exact.isfinite()
        exact, theirs = torch.cat([exact, more_exact[finite]]), torch.cat([theirs, more_theirs[finite]])
    if not theirs.isfinite().all():
        return Comparison(name, False, float("nan"), 0.0, float("nan"), 0.0, "PyTorch's own result is not finite")
    max_allowed = MAX_FACTOR * _max(theirs - exact) + epsilon * _max(exact)
    rms_allowed = RMS_FACTOR * _rms(theirs - exact) + 0.5 * epsilon * _rms(exact)
    passed = max_error <= max_allowed and rms_error <= rms_allowed
    return Comparison(name, passed, max_error, max_allowed, rms_error, rms_allowed)


def require_close(
    name: str,
    candidate: Tensor | Sequence[Tensor],
    truth: Tensor | Sequence[Tensor],
    torch_result: Tensor | Sequence[Tensor],
) -> Comparison:
    """`compare`, raising AssertionError with the figures where the candidate fails."""
    comparison = compare(name, candidate, truth, torch_result)
    if not comparison.passed:
        raise AssertionError(comparison.sentence)
    return comparison


def _mismatch(candidates: list[Tensor], truths: list[Tensor], peers: list[Tensor]) -> str:
    if not len(candidates) == len(truths) == len(peers):
        return f"{len(candidates)} results, {len(truths)} truths and {len(peers)} of PyTorch's cannot be paired"
    for ours, exact, theirs in zip(candidates, truths, peers, strict=True):
        if not ours.shape == exact.shape == theirs.shape:
            return f"shape {list(ours.shape)}, expected {list(exact.shape)} (PyTorch: {list(theirs.shape)})"
        if exact.is_floating_point() and exact.dtype != torch.float64:
            return f"the truth is {exact.dtype}, expected torch.float64"
        if ours.dtype != theirs.dtype:
            return f"dtype {ours.dtype}, expected {theirs.dtype} like PyTorch's"
    return ""


def _sequence(value: Tensor | Sequence[Tensor]) -> list[Tensor]:
    return [value] if isinstance(value, Tensor) else list(value)


def _pool(tensors: list[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().to("cpu", torch.float64).reshape(-1) for tensor in tensors])


def _max(values: Tensor) -> float:
    return float(values.abs().max()) if values.numel() else 0.0


def _rms(values: Tensor) -> float:
    return float(values.square().mean().sqrt()) if values.numel() else 0.0
