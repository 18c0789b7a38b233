"""rowwise_adagrad_ in plain PyTorch: the definition."""

from __future__ import annotations

import torch
from torch import Tensor


def forward(
    table: Tensor, state: Tensor, rows: Tensor, row_gradients: Tensor, lr: float, eps: float, weight_decay: float
) -> None:
    """Updates table [V, d] and state [V] in place at rows [R], by row_gradients [R, d]."""
    wide = torch.promote_types(table.dtype, torch.float32)
    present = rows >= 0
    touched, place = rows[present].unique(return_inverse=True)
    # Unlike index_add_ it adds in a fixed order on every device.
    gradient = torch.ops.aten.embedding_dense_backward(
        row_gradients[present].to(wide), place, touched.shape[0], -1, False
    )
    before = table[touched].to(wide)
    if weight_decay != 0:
        gradient = gradient + weight_decay * before
    second_moment = (state[touched] + gradient.square().sum(1) / max(table.shape[1], 1)).to(state.dtype)
    step = lr * gradient / (second_moment.to(wide).sqrt() + eps)[:, None]
    state.index_copy_(0, touched, second_moment)
    table.index_copy_(0, touched, (before - step).to(table.dtype))
