"""The record of sampled_softmax_loss."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Arguments(NamedTuple):
    """What `sampled_softmax_loss` hands to every backend, in the order of its schema.

    log_q, positive_log_q, scale and row_weight are float32 (float64 for a float64 query); scale has no dimension.
    reduced: the loss is one number, the sum over the rows, and its gradients are computed in the forward pass.
    """

    query: Tensor
    positive: Tensor
    candidates: Tensor
    positive_ids: Tensor
    candidate_ids: Tensor
    log_q: Tensor
    positive_log_q: Tensor | None
    scale: Tensor
    row_weight: Tensor | None
    query_owner: Tensor | None
    candidate_owner: Tensor | None
    form: str
    reduced: bool
