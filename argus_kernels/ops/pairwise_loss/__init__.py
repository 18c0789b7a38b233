"""Pairwise ranking loss over the events of a user that lie near in time, without pair lists, as one op."""

from __future__ import annotations

import torch
from torch import Tensor

from argus_kernels.core import Backend, Op, Problems
from argus_kernels.core.offsets import Offsets, opened
from argus_kernels.core.problems import FLOATING
from argus_kernels.core.triton_support import triton_backend
from argus_kernels.core.varlen import as_int32, check_offsets, offsets_problems
from argus_kernels.ops.pairwise_loss import native, reference, triton_limits
from argus_kernels.ops.pairwise_loss.arguments import Arguments
from argus_kernels.ops.pairwise_loss.samples import drawn, samples, tiles

INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def pairwise_loss(
    scores: Tensor,
    grades: Tensor,
    offsets: Tensor | Offsets,
    times: Tensor,
    window: int,
    *,
    backend: str | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The ranking loss of all pairs of one user's events with |t_a − t_b| ≤ window and grade_a > grade_b.

        loss = Σ −log σ(s_a − s_b),   pairs = their number,   concordant = how many of them have s_a > s_b

    loss / pairs is the mean loss, concordant / pairs the pairwise accuracy (a tie counts as wrong); without any pair
    all three are 0.

    Args:
        scores: [T], float32, bfloat16, float16 or float64.
        grades: [T] integers: the order of preference. An event with a negative grade takes part in no pair.
        offsets: [B + 1] int32 or int64: user b owns rows offsets[b] to offsets[b + 1] − 1; rows past offsets[B] are
            padding and take part in nothing. Or an `argus_kernels.Offsets` of T rows, validated once for all calls.
        times: [T] int64, in any order, in the unit of `window`; those of one user less than 2⁶³ apart.
        window: the longest distance in time within a pair, at least 0; an event has distance 0 from one of its own
            time.
        backend: which backend computes; None for the default.

    Returns:
        (loss, pairs, concordant), tensors of no dimension; loss in float32 (float64 for float64 scores),
        differentiable in scores, not divided by the number of pairs; the counts int64.

    Raises:
        ValueError: a shape, dtype, layout or device does not fit, window is negative or no integer; on the CPU also
            offsets that fall or pass the last row. On a GPU that is a device-side assertion.
        RuntimeError: forward-mode derivatives, and gradients of its gradients, which backend "eager" has.

    The pairwise stage of ARGUS is in arXiv 2507.15994; the loss is RankNet's (Burges et al. 2005). Pairs within a
    window of time are this package's choice.
    """
    given = Arguments(scores, grades, opened(OP.name, offsets, None, scores)[0], times, window)
    return OP(given, backend=backend, prepare=_prepare)


def _prepare(given: Arguments) -> Arguments:
    problems = Problems("pairwise_loss")
    scores = given.scores
    if not problems.tensor("scores", scores, shape=(None,), dtype=FLOATING):
        problems.raise_if_any()
    total = scores.shape[0]
    problems.tensor("grades", given.grades, shape=(total,), dtype=INTEGERS, device=scores.device, like="scores")
    problems.tensor("times", given.times, shape=(total,), dtype=torch.int64, device=scores.device, like="scores")
    offsets_problems(problems, given.offsets, scores.device)
    window = problems.integer("window", given.window, least=0)
    problems.raise_if_any()
    return given._replace(offsets=as_int32(given.offsets), window=window)


def _check_values(given: Arguments) -> None:
    check_offsets("pairwise_loss", given.offsets, given.scores.shape[0])


def _fake(given: Arguments) -> tuple[Tensor, Tensor, Tensor]:
    scores, grades = given.scores, given.grades
    loss = scores.new_empty((), dtype=torch.promote_types(scores.dtype, torch.float32))
    return loss, grades.new_empty((), dtype=torch.int64), grades.new_empty((), dtype=torch.int64)


BACKENDS = (
    Backend(
        "cuda", native.forward_cuda, native.backward_cuda, why_not=native.why_not_cuda, available=native.available_cuda
    ),
    triton_backend("argus_kernels.ops.pairwise_loss.triton_kernels", triton_limits.why_not),
    Backend(
        "cpp",
        native.forward_cpp,
        native.backward_cpp,
        why_not=native.why_not_cpp,
        available=native.available_cpp,
        checks_values=lambda given: True,
    ),
    Backend("reference", reference.forward, reference.backward),
)

OP = Op(
    "pairwise_loss",
    arguments=Arguments,
    returns="(Tensor, Tensor, Tensor)",
    fake=_fake,
    backends=BACKENDS,
    differentiable=("scores",),
    check=_check_values,
    samples=samples,
    tiles=tiles,
    drawn=drawn,
)
