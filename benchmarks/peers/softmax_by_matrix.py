"""Shared by the fused linear + cross-entropy peers: the sampled softmax expressed by one matrix and one target.

They take inputs [N, D], a matrix [M, D], a bias [M] and a target index per row, and return log Σ_m e^{x·c_m + b_m} −
(x·c_t + b_t). This is the full softmax. In the sampled form the positive is not among the candidates: the row's target
is candidate 0, whose score is added back to get the sum over the candidates, and the positive's score is added outside
the peer. Accidental hits are kept: none of the peers can leave out single pairs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness.cases import Case

MatrixLoss = Callable[[Tensor, Tensor, Tensor, Tensor | None, str], Tensor]
"""(inputs [N, D], matrix [M, D], targets [N], bias [M] or None, reduction) → negative log-likelihood, [N] or one."""

UNUSED = ("positive_log_q", "row_weight", "query_owner", "candidate_owner")


def why_not(case: Case) -> str | None:
    """The reason: arguments that these peers do not support."""
    given = [name for name in UNUSED if case.arguments.get(name) is not None]
    if case.arguments["form"] != "standard":
        given.append("the refined form")
    return f"has no counterpart of {', '.join(given)}" if given else None


def is_full_softmax(case: Case) -> bool:
    """Whether the candidates are the whole catalogue in order, without a correction."""
    given = case.arguments
    ids = given["candidate_ids"]
    ordered = torch.equal(ids, torch.arange(ids.shape[0], device=ids.device))
    return ordered and not bool(given["log_q"].any()) and int(given["positive_ids"].max()) < ids.shape[0]


def build(case: Case, loss: MatrixLoss) -> Callable[[], Any]:
    """The case by a peer's loss."""
    given = case.arguments
    query, candidates, scale = given["query"], given["candidates"], given["scale"]
    reduction = given["reduction"]
    if is_full_softmax(case):
        return lambda: loss(_scaled(query, scale), candidates, given["positive_ids"], None, reduction)
    bias = -given["log_q"].to(query.dtype)
    first = torch.zeros_like(given["positive_ids"])

    def sampled() -> Tensor:
        inputs = _scaled(query, scale)
        likelihood = loss(inputs, candidates, first, bias, "none").float()
        negatives = likelihood + (inputs.float() @ candidates[0].float() + bias[0].float())
        own = (inputs.float() * given["positive"].float()).sum(1)
        rows = torch.logaddexp(own, negatives) - own
        return rows if reduction == "none" else rows.mean() if reduction == "mean" else rows.sum()

    return sampled


def _scaled(query: Tensor, scale: Tensor) -> Tensor:
    return query * scale.to(query.dtype)
