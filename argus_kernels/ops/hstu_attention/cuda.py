"""The backend `cuda` of hstu_attention: CUDA C++, csrc/hstu_attention/ over csrc/attention/cuda/.

Bitwise the same in every run, safe in a CUDA graph; a user's results do not depend on who shares the batch.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from argus_kernels.attention.cuda import aligned_heads, cuda_arguments, in_dtype_of, table_gradient

Launch = Callable[..., None]
"""The native op; tests put the same kernels on the CPU in its place."""


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    max_length: int,
    visible: Tensor | None,
    position_bias: Tensor | None,
    time_bias: Tensor | None,
    query_time: Tensor | None,
    key_time: Tensor | None,
    alpha: float,
    divisor: float,
    window: int | None,
    *,
    launch: Launch | None = None,
) -> Tensor:
    """Computes out [T, H, Dh] in q's dtype; arguments as in the public function."""
    history = cuda_arguments(q, k, v, offsets, visible, position_bias, time_bias, query_time, key_time)
    out = q.new_empty(q.shape)
    launch = launch or torch.ops.argus_native.hstu_attention_
    launch(out, *history, alpha, divisor, window or 0)
    return out


def backward(
    gradients: list[Tensor],
    outputs: list[Tensor],
    needs: dict[str, bool],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    max_length: int,
    visible: Tensor | None,
    position_bias: Tensor | None,
    time_bias: Tensor | None,
    query_time: Tensor | None,
    key_time: Tensor | None,
    alpha: float,
    divisor: float,
    window: int | None,
    *,
    launch: Launch | None = None,
) -> list[Tensor | None]:
    """Gradients of q, k, v, position_bias and time_bias; those of q, k and v come together."""
    history = cuda_arguments(q, k, v, offsets, visible, position_bias, time_bias, query_time, key_time)
    d_position = table_gradient(position_bias, needs["position_bias"])
    d_time = table_gradient(time_bias, needs["time_bias"])
    found = [q.new_empty(q.shape) for _ in range(3)]
    launch = launch or torch.ops.argus_native.hstu_attention_backward_
    launch(
        *found,
        d_position,
        d_time,
        aligned_heads(gradients[0]),
        *history,
        alpha,
        divisor,
        window or 0,
    )
    return [*found, in_dtype_of(d_position, position_bias), in_dtype_of(d_time, time_bias)]
