"""sampled_softmax_loss in plain PyTorch: the definition, with all [N, M] scores, and the gradients written out.

Every score is taken relative to the row's positive, s_nm − s⁺: a common offset of the scores cancels before it can
round anything away.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from argus_kernels.core.masked_products import all_finite, over_seen
from argus_kernels.ops.sampled_softmax_loss.arguments import Arguments


class Relative(NamedTuple):
    """What both passes need of the scores; N rows, M candidates, all relative to the positive's score."""

    query: Tensor
    """[N, D], zero in rows that are left out."""
    positive: Tensor
    """[N, D], zero in rows that are left out."""
    positive_product: Tensor
    """[N]: ⟨query, positive⟩."""
    product: Tensor
    """[N, M]: ⟨query, candidate⟩ − ⟨query, positive⟩."""
    score: Tensor
    """[N, M]: s_nm − s⁺; −∞ where the candidate is left out."""
    own: Tensor | None
    """[N]: the positive's own term in the denominator, −positive_log_q; None in the refined form, which has none."""
    negatives: Tensor
    """[N]: log-sum-exp of the candidates' scores alone; −∞ where all are left out."""
    log_sum_exp: Tensor
    """[N]: log of the loss's denominator."""
    left_out: Tensor
    """[N, M] bool."""


def forward(given: Arguments) -> tuple[Tensor, Tensor, Tensor]:
    """(loss [N], lse [N], statistics [2, N]).

    statistics, for backward passes that compute the scores again: log of the loss's denominator, and log of the sum
    that the candidates' shares are shares of, both relative to the positive's score; 0 in rows that are left out.
    """
    relative = _relative(given)
    weight = _row_weight(given, relative.product)
    empty = relative.log_sum_exp == -torch.inf
    loss = torch.where(empty, 0, relative.log_sum_exp)
    if given.form == "refined":
        loss = loss * _negative_share(relative.log_sum_exp).detach()
    lse = torch.where(empty, -torch.inf, relative.log_sum_exp + given.scale * relative.positive_product)
    whole = relative.negatives if given.form == "refined" else relative.log_sum_exp
    statistics = torch.where(weight != 0, torch.stack([relative.log_sum_exp, whole]).detach(), 0)
    return torch.where(weight != 0, weight * loss, 0), torch.where(weight != 0, lse, 0), statistics


def backward(
    gradients: Sequence[Tensor], outputs: Sequence[Tensor], needs: dict[str, bool], given: Arguments
) -> list[Tensor | None]:
    """Gradients of query, positive, candidates and scale from those of (loss, lse); statistics have none."""
    relative = _relative(given)
    weight = _row_weight(given, relative.product)
    kept, empty = weight != 0, relative.log_sum_exp == -torch.inf
    d_lse = torch.where(kept & ~empty, gradients[1], 0)
    if given.form == "refined":
        weight = weight * _negative_share(relative.log_sum_exp)
    share = _share(relative.score, relative.own)
    counts = ~relative.left_out & kept[:, None]
    d_score = torch.where(counts, share * (weight * gradients[0] + d_lse)[:, None], 0)
    d_positive_score = d_lse - d_score.sum(1)
    candidates = given.candidates.to(relative.query.dtype)
    finite = all_finite(candidates, relative.query)
    d_query = d_positive = d_candidates = d_scale = None
    if needs["query"]:
        d_query = over_seen(d_score, candidates, counts, finite) + d_positive_score[:, None] * relative.positive
        d_query = (given.scale * d_query).to(given.query.dtype)
    if needs["positive"]:
        d_positive = (given.scale * d_positive_score[:, None] * relative.query).to(given.positive.dtype)
    if needs["candidates"]:
        d_candidates = over_seen(d_score.T, relative.query, counts.T, finite)
        d_candidates = (given.scale * d_candidates).to(given.candidates.dtype)
    if needs["scale"]:
        d_scale = (d_score * relative.product.masked_fill(~counts, 0)).sum() + (d_lse * relative.positive_product).sum()
    return [d_query, d_positive, d_candidates, d_scale]


def _relative(given: Arguments) -> Relative:
    dtype = torch.promote_types(given.query.dtype, torch.float32)
    query, positive = given.query.to(dtype), given.positive.to(dtype)
    positive_log_q = given.positive_log_q
    if given.row_weight is not None:
        kept = given.row_weight != 0
        query, positive = torch.where(kept[:, None], query, 0), torch.where(kept[:, None], positive, 0)
        positive_log_q = None if positive_log_q is None else torch.where(kept, positive_log_q, -1)
    positive_product = (query * positive).sum(1)
    product = query @ given.candidates.to(dtype).T - positive_product[:, None]
    left_out = _left_out(given)
    score = torch.where(left_out, -torch.inf, given.scale * product - given.log_q)
    negatives = _log_sum_exp(score, left_out)
    if given.form == "refined":
        assert positive_log_q is not None
        count = (~left_out).sum(1).clamp_min(1).to(dtype)
        # log Q'(m) = log Q(m) − log(1 − Q(positive)), and the mean over the negatives instead of their sum.
        denominator = negatives + (-positive_log_q.exp()).log1p() - count.log()
        return Relative(query, positive, positive_product, product, score, None, negatives, denominator, left_out)
    own = torch.zeros_like(negatives) if positive_log_q is None else -positive_log_q
    denominator = torch.logaddexp(own, negatives)
    return Relative(query, positive, positive_product, product, score, own, negatives, denominator, left_out)


def _left_out(given: Arguments) -> Tensor:
    """[N, M]: accidental hits, and candidates that come from the row's own owner."""
    left_out = given.positive_ids[:, None] == given.candidate_ids
    if given.query_owner is not None and given.candidate_owner is not None:
        same = given.query_owner[:, None] == given.candidate_owner
        left_out = left_out | (same & (given.candidate_owner >= 0))
    return left_out


def _log_sum_exp(score: Tensor, left_out: Tensor) -> Tensor:
    """Log-sum-exp over the candidates; −∞ with zero gradient where all are left out."""
    nothing = left_out.all(1)
    return torch.where(nothing, -torch.inf, torch.where(nothing[:, None], 0, score).logsumexp(1))


def _share(score: Tensor, own: Tensor | None) -> Tensor:
    """[N, M]: each candidate's share of the denominator; 0 where it is left out."""
    floor = score.new_full((score.shape[0], 1), torch.finfo(score.dtype).min) if own is None else own[:, None]
    peak = torch.cat([score, floor], 1).amax(1, keepdim=True)
    terms = (score - peak).exp()
    total = terms.sum(1, keepdim=True)
    return terms / (total.clamp_min(1) if own is None else total + (floor - peak).exp())


def _negative_share(log_sum_exp: Tensor) -> Tensor:
    """1 − P̂, P̂ = e^{s⁺} / (e^{s⁺} + e^{lse}), from lse − s⁺."""
    return log_sum_exp.sigmoid()


def _row_weight(given: Arguments, like: Tensor) -> Tensor:
    return like.new_ones(like.shape[0]) if given.row_weight is None else given.row_weight
