"""Matrix products in which a mask is exact: a hidden value adds nothing, even if it is NaN or infinite."""

from __future__ import annotations

import torch
from torch import Tensor


def all_finite(*packed: Tensor) -> bool:
    """Whether `over_seen` may leave the mask to the zeros among its weights."""
    return all(bool(tensor.isfinite().all()) for tensor in packed)


def over_seen(weights: Tensor, values: Tensor, seen: Tensor, finite: bool) -> Tensor:
    """Σ_j weights[..., i, j] · values[..., j, :] over the pairs that are seen, elsewhere `weights` is 0.

    A hidden key must not reach a query by 0 · NaN. finite: whether all values are finite, which is checked once per
    call.
    """
    if finite:
        return torch.matmul(weights, values)
    wild = ~values.isfinite()
    total = torch.matmul(weights, values.masked_fill(wild, 0.0))
    seen = seen.expand(weights.shape)
    for j in wild.nonzero()[:, -2].unique().tolist():
        counts = seen[..., j, None] & wild[..., None, j, :]
        total = total + torch.where(counts, weights[..., j, None] * values[..., None, j, :], 0.0)
    return total
