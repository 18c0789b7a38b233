"""rowwise_adagrad_ in plain PyTorch: the definition."""

from __future__ import annotations

import torch

from argus_kernels.ops.rowwise_adagrad.arguments import Arguments


def forward(given: Arguments) -> None:
    """Updates table [V, d] and state [V] in place at rows [R], by row_gradients [R, d]."""
    wide = torch.promote_types(given.table.dtype, torch.float32)
    present = given.rows >= 0
    touched, place = given.rows[present].unique(return_inverse=True)
    # Unlike index_add_ it adds in a fixed order on every device.
    gradient = torch.ops.aten.embedding_dense_backward(
        given.row_gradients[present].to(wide), place, touched.shape[0], -1, False
    )
    before = given.table[touched].to(wide)
    if given.weight_decay != 0:
        gradient = gradient + given.weight_decay * before
    second_moment = (given.state[touched] + gradient.square().sum(1) / max(given.table.shape[1], 1)).to(
        given.state.dtype
    )
    step = given.lr * gradient / (second_moment.to(wide).sqrt() + given.eps)[:, None]
    given.state.index_copy_(0, touched, second_moment)
    given.table.index_copy_(0, touched, (before - step).to(given.table.dtype))
