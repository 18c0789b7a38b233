"""`eager`: the op as a user writes it in plain PyTorch.

The definition of the op's room (backend "eager"). For two losses it is a shorter and faster formulation in the inputs'
own dtype: the rooms compute in float32 throughout, and relative to the positive's score.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from argus_kernels import OPS
from benchmarks.harness.cases import Case
from benchmarks.peers.base import Peer


def build(case: Case) -> Callable[[], Any]:
    """The plain PyTorch call on the case's arguments."""
    plain = PLAIN.get(case.op.name)
    if plain is None:
        return case.call("eager")
    return lambda: plain(**case.arguments)


def sampled_softmax_loss(
    query: Tensor,
    positive: Tensor,
    candidates: Tensor,
    positive_ids: Tensor,
    candidate_ids: Tensor,
    log_q: Tensor,
    scale: Tensor,
    form: str,
    reduction: str = "none",
) -> Tensor:
    """The standard form, [N] or one number, by one matrix of logits [N, 1 + M], as in most training code."""
    assert form == "standard"
    own = (query * positive).sum(1, keepdim=True).float() * scale
    scores = (query @ candidates.T).float() * scale - log_q
    scores = scores.masked_fill(positive_ids[:, None] == candidate_ids, -torch.inf)
    return F.cross_entropy(torch.cat([own, scores], 1), torch.zeros_like(positive_ids), reduction=reduction)


def feedback_loss(hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, classes: list[int]) -> Tensor:
    """The losses [F] by one projection and one loss per task."""
    losses = []
    for logits, target in zip((hidden @ weight + bias).float().split(classes, 1), targets.unbind(1), strict=True):
        if logits.shape[1] == 1:
            seen = target >= 0
            row = F.binary_cross_entropy_with_logits(logits[:, 0], target.clamp_min(0).float(), reduction="none")
            losses.append(torch.where(seen, row, 0).sum() / seen.sum().clamp_min(1))
        else:
            losses.append(F.cross_entropy(logits, target, ignore_index=-1))
    return torch.stack(losses)


PLAIN: dict[str, Callable[..., Any]] = {
    "sampled_softmax_loss": sampled_softmax_loss,
    "feedback_loss": feedback_loss,
}

PEER = Peer("eager", tuple(op.name for op in OPS), build)
