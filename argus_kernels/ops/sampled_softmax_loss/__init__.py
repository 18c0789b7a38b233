"""Sampled softmax with logQ correction: the next-item loss against thousands of drawn negatives, as one op."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor

from argus_kernels.core import Backend, Op, Problems, autocast
from argus_kernels.core.eager import is_quiet
from argus_kernels.core.problems import FLOATING
from argus_kernels.core.torch_op import autocast_is_on, constant
from argus_kernels.core.triton_support import triton_backend
from argus_kernels.core.varlen import require_values
from argus_kernels.ops.sampled_softmax_loss import native, reference, triton_limits
from argus_kernels.ops.sampled_softmax_loss.arguments import Arguments
from argus_kernels.ops.sampled_softmax_loss.reduced import DIFFERENTIABLE, as_registered, total, with_reduced
from argus_kernels.ops.sampled_softmax_loss.samples import drawn, grows, samples, tiles

FORMS = ("standard", "refined")
REDUCTIONS = ("none", "sum", "mean")


def sampled_softmax_loss(
    query: Tensor,
    positive: Tensor,
    candidates: Tensor,
    positive_ids: Tensor,
    candidate_ids: Tensor,
    log_q: Tensor,
    *,
    positive_log_q: Tensor | None = None,
    scale: float | Tensor = 1.0,
    row_weight: Tensor | None = None,
    query_owner: Tensor | None = None,
    candidate_owner: Tensor | None = None,
    form: str = "standard",
    reduction: str = "none",
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """The softmax loss of N positives against M sampled candidates, corrected for how often each is drawn.

    With s⁺ = scale·⟨query_n, positive_n⟩ and s_nm = scale·⟨query_n, candidate_m⟩ − log_q[m], the sums running over
    the candidates that are not left out:

        standard:  lse = log(e^{s⁺ − positive_log_q} + Σ_m e^{s_nm}),  loss = w_n · (lse − s⁺)
        refined:   lse = log((1 − Q⁺)/K · Σ_m e^{s_nm}),  loss = w_n · (1 − P̂) · (lse − s⁺)
                   Q⁺ = e^{positive_log_q}, K candidates not left out, P̂ = e^{s⁺}/(e^{s⁺} + e^{lse}) held constant

    A candidate is left out where its id is the positive's (an accidental hit) and, with owners, where it comes from
    the row's own owner. With the whole catalogue as candidates and log_q = 0 the standard form is the full softmax.

    Args:
        query: [N, D], float32, bfloat16, float16 or float64.
        positive: [N, D], dtype like query.
        candidates: [M, D], dtype like query.
        positive_ids: [N] int64.
        candidate_ids: [M] int64; compared as integers.
        log_q: [M] floating point, finite. Standard form: log of how often the candidate is expected among the M, so
            log(M · Q) for M draws from Q. Refined form: log of Q, its probability in one draw. No gradient.
        positive_log_q: [N] floating point, log_q's counterpart for the positives, finite; no gradient. Standard: None
            counts the positive once, which is unbiased where candidates are drawn independently of it; given, the
            positive weighs in the denominator as a drawn candidate does. Refined: required, below 0.
        scale: inverse temperature, positive: a number, or a tensor of no dimension, which gets a gradient.
        row_weight: [N] floating point, at least 0; no gradient. A row of weight 0 is left out entirely: its loss and
            lse are 0 and whatever its query and positive hold, NaN included, reaches no gradient.
        query_owner: [N] int64, such as the user of the row; together with `candidate_owner`, or None.
        candidate_owner: [M] int64; a negative owner is nobody's.
        form: "standard" or "refined".
        reduction: "none" gives a loss a row. "sum" adds them up; "mean" divides the sum by that of row_weight (by N
            without it), 0 where that is 0. The gradients of one number are computed in the forward pass, in three
            matrix products instead of four, where query and candidates require gradients and are not float16.
        backend: which backend computes; None for the default.

    Returns:
        (loss [N], lse [N]), float32 (float64 for float64 inputs), both differentiable in query, positive, candidates
        and scale; with a reduction loss has no dimension and lse no gradient. A row with no candidate left: standard,
        loss −positive_log_q (0 without it); refined, loss 0 and lse −∞, with zero gradients.

    Raises:
        ValueError: a shape, dtype, layout or device does not fit, one owner without the other, the refined form without
            positive_log_q; on the CPU also log_q or positive_log_q that is not finite, a negative weight, a scale that
            is not positive, with position and value. On a GPU values are device-side assertions.

    Under autocast query, positive and candidates are cast to its dtype; scores and losses stay float32. Sources:
    logQ correction, Bengio and Senécal 2008; the refined form, arXiv 2507.09331.
    """
    given = Arguments._make(
        (
            query,
            positive,
            candidates,
            positive_ids,
            candidate_ids,
            log_q,
            positive_log_q,
            _temperature(scale, query),
            row_weight,
            query_owner,
            candidate_owner,
            form,
            _computes_gradients(reduction, query, candidates),
        )
    )
    loss, lse, *_ = OP(given, backend=backend, prepare=_prepare)
    if reduction == "none":
        return loss, lse
    loss = loss if given.reduced else total(loss)
    return loss / _divisor(loss, lse, row_weight) if reduction == "mean" else loss, lse.detach()


def _computes_gradients(reduction: str, query: Any, candidates: Any) -> bool:
    """Whether the forward pass computes the gradients: of one number, and where two of three products are for them.

    Not in float16, where a gradient must be multiplied by the loss scale before it is rounded.
    """
    if reduction == "none":
        return False
    problems = Problems("sampled_softmax_loss")
    problems.choice("reduction", reduction, REDUCTIONS)
    problems.raise_if_any()
    wanted = [isinstance(one, Tensor) and one.requires_grad for one in (query, candidates)]
    if not torch.is_grad_enabled() or not all(wanted):
        return False
    kind = query.device.type
    dtype = torch.get_autocast_dtype(kind) if autocast_is_on(kind) else query.dtype
    return dtype != torch.float16


def _divisor(loss: Tensor, lse: Tensor, row_weight: Tensor | None) -> Tensor | int:
    """What "mean" divides by, in the dtype of the loss: weights of another one may not hold their own sum."""
    if row_weight is None:
        return max(lse.shape[0], 1)
    whole = total(row_weight.detach().to(loss.dtype))
    return torch.where(whole > 0, whole, torch.ones_like(whole))


def _temperature(scale: Any, query: Any) -> Any:
    """A number as the tensor that backends take; anything else as it is, for the checks to refuse."""
    if type(scale) is not float or not isinstance(query, Tensor):
        return scale
    statistics = _STATISTICS.get(query.dtype)
    if statistics is None or not 0 < scale <= torch.finfo(statistics).max:
        return scale
    if torch.compiler.is_compiling():
        # A free number that is multiplied stays free; one that fills a tensor becomes a constant of the graph.
        return (torch.ones((), dtype=torch.float64) * scale).to(query.device, statistics)
    if query.is_cpu and is_quiet():
        return _number(scale, statistics)
    return torch.full((), scale, dtype=statistics, device=query.device)


_STATISTICS = {dtype: torch.promote_types(dtype, torch.float32) for dtype in FLOATING}
"""The dtype of the statistics by that of query."""


@functools.lru_cache(maxsize=64)
def _number(value: float, dtype: torch.dtype) -> Tensor:
    """A number as a tensor on the CPU, which nothing writes: making one takes 2 µs.

    Not on a GPU, where memory belongs to a stream or to the CUDA graph in which it was taken.
    """
    # A tensor made in inference mode could not be saved for a backward pass.
    with torch.inference_mode(False):
        return torch.full((), value, dtype=dtype)


def _prepare(given: Arguments) -> Arguments:
    query, positive, candidates = autocast(given.query, given.positive, given.candidates)
    problems = Problems("sampled_softmax_loss")
    if not problems.tensor("query", query, shape=(None, None), dtype=FLOATING):
        problems.raise_if_any()
    statistics = torch.promote_types(query.dtype, torch.float32)
    scale: Any = given.scale
    if not isinstance(scale, Tensor):
        scale, highest = problems.number("scale", scale, above=0), torch.finfo(statistics).max
        if isinstance(scale, float) and highest < scale < math.inf:
            problems.found.append(f"scale is {scale}, expected at most {highest:.8g}, the largest {statistics}")
            problems.raise_if_any()
        scale = torch.full((), scale, dtype=statistics, device=query.device)
    given = given._replace(query=query, positive=positive, candidates=candidates, scale=scale)
    _check_arguments(problems, given)
    return given._replace(
        log_q=constant(given.log_q, statistics),
        positive_log_q=constant(given.positive_log_q, statistics),
        scale=scale.to(statistics),
        row_weight=constant(given.row_weight, statistics),
    )


def _check_arguments(problems: Problems, given: Arguments) -> None:
    query, candidates = given.query, given.candidates
    rows, width = query.shape
    device = query.device
    problems.tensor("positive", given.positive, shape=(rows, width), dtype=query.dtype, device=device, like="query")
    if not problems.tensor(
        "candidates", candidates, shape=(None, width), dtype=query.dtype, device=device, like="query"
    ):
        problems.raise_if_any()
    drawn = candidates.shape[0]
    sizes = {"positive": rows, "query": rows, "candidate": drawn}
    for name, value in (
        ("positive_ids", given.positive_ids),
        ("candidate_ids", given.candidate_ids),
        ("query_owner", given.query_owner),
        ("candidate_owner", given.candidate_owner),
    ):
        if value is not None or name.endswith("ids"):
            problems.tensor(name, value, shape=(sizes[name.split("_")[0]],), dtype=torch.int64, device=device)
    for name, value, size in (
        ("log_q", given.log_q, drawn),
        ("positive_log_q", given.positive_log_q, rows),
        ("row_weight", given.row_weight, rows),
    ):
        if value is not None or name == "log_q":
            problems.tensor(name, value, shape=(size,), dtype=FLOATING, device=device)
    problems.tensor("scale", given.scale, shape=(), dtype=FLOATING, device=device)
    problems.choice("form", given.form, FORMS)
    if isinstance(given.form, str) and given.form == "refined" and given.positive_log_q is None:
        problems.found.append("positive_log_q is None, expected [N] values: the refined form needs them")
    if (given.query_owner is None) != (given.candidate_owner is None):
        problems.found.append("one of query_owner and candidate_owner is None, expected both or neither")
    problems.raise_if_any()


def _check_values(given: Arguments) -> None:
    if given.scale.device.type == "cpu" and _plainly_right(given):
        return
    _require("scale", given.scale[None], _positive(given.scale[None]), "a finite value above 0")
    _require("log_q", given.log_q, given.log_q.isfinite(), "a finite value")
    ignored = torch.zeros_like(given.positive_ids, dtype=torch.bool)
    if given.row_weight is not None:
        weight = given.row_weight
        _require("row_weight", weight, (weight >= 0) & weight.isfinite(), "a finite value ≥ 0")
        ignored = weight == 0
    if given.positive_log_q is not None:
        value = given.positive_log_q
        holds, expected = value.isfinite(), "a finite value"
        if given.form == "refined":
            holds, expected = holds & (value < 0), "a finite value below 0, the logarithm of a probability"
        _require("positive_log_q", value, holds | ignored, expected)


def _plainly_right(given: Arguments) -> bool:
    """Whether values on the CPU hold, by one sum a tensor, finite only where all are; False where a sum overflows."""
    if not 0 < given.scale.item() < math.inf or not math.isfinite(given.log_q.sum().item()):
        return False
    weight, value = given.row_weight, given.positive_log_q
    if given.positive_ids.numel() == 0:
        return True
    if weight is not None and not (weight.min().item() >= 0 and math.isfinite(weight.sum().item())):
        return False
    if value is None:
        return True
    return math.isfinite(value.sum().item()) and (given.form != "refined" or value.max().item() < 0)


def _positive(value: Tensor) -> Tensor:
    return (value > 0) & value.isfinite()


def _require(name: str, value: Tensor, holds: Tensor, expected: str) -> None:
    if value.device.type != "cpu":
        require_values(holds, f"sampled_softmax_loss: {name} does not hold {expected}")
    elif not bool(holds.all()):
        position = int((~holds).nonzero()[0])
        place = name if name == "scale" else f"{name}[{position}]"
        raise ValueError(f"sampled_softmax_loss: {place} is {float(value[position])}, expected {expected}")


def _fake(given: Arguments) -> tuple[Tensor, ...]:
    rows, statistics = given.query.shape[0], given.log_q.dtype
    differentiable = [getattr(given, name) for name in DIFFERENTIABLE]
    return (
        given.query.new_empty(() if given.reduced else rows, dtype=statistics),
        given.query.new_empty(rows, dtype=statistics),
        given.query.new_empty(0 if given.reduced else (2, rows), dtype=statistics),
        *(tensor.new_empty(tensor.shape if given.reduced else 0) for tensor in differentiable),
    )


BACKENDS = (
    with_reduced(
        Backend(
            "cuda",
            native.forward,
            native.backward,
            why_not=native.why_not_cuda,
            available=native.available_cuda,
            kernels=native.kernels_cuda,
        ),
        native.both,
    ),
    with_reduced(
        Backend(
            "cpp",
            native.forward,
            native.backward,
            why_not=native.why_not_cpp,
            available=native.available_cpp,
            checks_values=lambda given: True,
        ),
        native.both,
    ),
    with_reduced(triton_backend("argus_kernels.ops.sampled_softmax_loss.triton_kernels", triton_limits.why_not)),
    with_reduced(Backend("reference", reference.forward, reference.backward)),
)

OP = Op(
    "sampled_softmax_loss",
    arguments=Arguments,
    returns="(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    fake=_fake,
    as_registered=as_registered,
    backends=BACKENDS,
    differentiable=DIFFERENTIABLE,
    check=_check_values,
    samples=samples,
    tiles=tiles,
    drawn=drawn,
    grows=grows,
)
