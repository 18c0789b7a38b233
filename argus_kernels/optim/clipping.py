"""Clipping by the joint norm of gradients of which some are row-sparse."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from argus_kernels.core.problems import Problems


@torch.no_grad()
def clip_grad_norm_(parameters: Tensor | Iterable[Tensor], max_norm: float) -> Tensor:
    """torch.nn.utils.clip_grad_norm_ for gradients of which some are row-sparse: the joint 2-norm, at most max_norm.

    Gradients are scaled in place by min(1, max_norm / (norm + 1e-6)); a row-sparse one is coalesced first, because a
    row that is named twice counts by its sum. Returns the norm before, without waiting for the device. Raises
    ValueError for a max_norm that is not a finite number of at least 0.
    """
    problems = Problems("clip_grad_norm_")
    most = problems.number("max_norm", max_norm, least=0)
    problems.raise_if_any()
    values = []
    for parameter in [parameters] if isinstance(parameters, Tensor) else parameters:
        if parameter.grad is None:
            continue
        if parameter.grad.is_sparse:
            parameter.grad = parameter.grad.coalesce()
        values.append(parameter.grad.values() if parameter.grad.is_sparse else parameter.grad)
    if not values:
        return torch.zeros(())
    wide = [torch.promote_types(value.dtype, torch.float32) for value in values]
    norms = [torch.linalg.vector_norm(value, dtype=dtype) for value, dtype in zip(values, wide, strict=True)]
    norm = torch.linalg.vector_norm(torch.stack([one.to(norms[0].device) for one in norms]))
    scale = (most / (norm + 1e-6)).clamp(max=1.0)
    for value in values:
        value.mul_(scale.to(value.device, value.dtype))
    return norm
