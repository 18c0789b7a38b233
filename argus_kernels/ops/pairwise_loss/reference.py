"""pairwise_loss in plain PyTorch: the definition over each user's pair matrix, and the gradient written out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from argus_kernels.core import varlen
from argus_kernels.ops.pairwise_loss.arguments import Arguments

BLOCK = 1024
"""Rows of a user's pair matrix that are in memory at once."""


class Pairs(NamedTuple):
    """A block of rows of one user's pair matrix; `better`, `user` are slices of the packed rows."""

    better: slice
    user: slice
    counts: Tensor
    """[block, length] bool: the row's event and the column's are a pair, the row's with the higher grade."""
    margin: Tensor
    """[block, length]: s_a − s_b, zero where they are no pair."""


def forward(given: Arguments) -> tuple[Tensor, ...]:
    """(loss, pairs, concordant) of scores, grades, times [T] and offsets [B + 1]."""
    dtype = torch.promote_types(given.scores.dtype, torch.float32)
    loss = torch.zeros((), dtype=dtype, device=given.scores.device)
    pairs = torch.zeros((), dtype=torch.int64, device=given.scores.device)
    concordant = torch.zeros_like(pairs)
    for block in _pairs(given._replace(scores=given.scores.to(dtype))):
        loss = loss - torch.where(block.counts, torch.nn.functional.logsigmoid(block.margin), 0).sum()
        pairs = pairs + block.counts.sum()
        concordant = concordant + (block.counts & (block.margin > 0)).sum()
    return loss, pairs, concordant


def backward(
    gradients: Sequence[Tensor],
    outputs: Sequence[Tensor],
    needs: dict[str, bool],
    given: Arguments,
) -> list[Tensor | None]:
    """Gradient of scores from that of the loss; the counts have none."""
    d_scores = torch.zeros_like(given.scores, dtype=torch.promote_types(given.scores.dtype, torch.float32))
    for block in _pairs(given._replace(scores=given.scores.to(d_scores.dtype))):
        d_margin = torch.where(block.counts, -(-block.margin).sigmoid(), 0)
        d_scores[block.better] += d_margin.sum(1)
        d_scores[block.user] -= d_margin.sum(0)
    return [(d_scores * gradients[0]).to(given.scores.dtype) if needs["scores"] else None]


def _pairs(given: Arguments) -> Iterator[Pairs]:
    for first, last in varlen.spans(given.offsets):
        user = slice(first, last)
        graded = given.grades[user] >= 0
        for start in range(first, last, BLOCK):
            better = slice(start, min(start + BLOCK, last))
            near = (given.times[better, None] - given.times[user]).abs() <= given.window
            counts = near & (given.grades[better, None] > given.grades[user]) & graded
            yield Pairs(better, user, counts, torch.where(counts, given.scores[better, None] - given.scores[user], 0))
