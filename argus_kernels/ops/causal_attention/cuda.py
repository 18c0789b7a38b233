"""The backend `cuda` of causal_attention: CUDA C++, csrc/causal_attention/ over csrc/attention/cuda/.

Bitwise the same in every run, safe in a CUDA graph; a user's results do not depend on who shares the batch.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from argus_kernels.attention.cuda import (
    aligned_heads,
    cuda_arguments,
    in_dtype_of,
    statistic,
    table_gradient,
)

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
    scale: float,
    window: int | None,
    *,
    launch: Launch | None = None,
) -> tuple[Tensor, Tensor]:
    """Computes out [T, H, Dh] in q's dtype and log_sum_exp [H, T]; arguments as in the public function."""
    history = cuda_arguments(q, k, v, offsets, visible, position_bias, time_bias, query_time, key_time)
    out, log_sum_exp = q.new_empty(q.shape), statistic(q)
    launch = launch or torch.ops.argus_native.causal_attention_
    launch(out, log_sum_exp, *history, scale, window or 0)
    return out, log_sum_exp


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
    scale: float,
    window: int | None,
    *,
    launch: Launch | None = None,
) -> list[Tensor | None]:
    """Gradients of q, k, v, position_bias and time_bias; those of q, k and v come together."""
    history = cuda_arguments(q, k, v, offsets, visible, position_bias, time_bias, query_time, key_time)
    d_position = table_gradient(position_bias, needs["position_bias"])
    d_time = table_gradient(time_bias, needs["time_bias"])
    found = [q.new_empty(q.shape) for _ in range(3)]
    launch = launch or torch.ops.argus_native.causal_attention_backward_
    launch(
        *found,
        d_position,
        d_time,
        aligned_heads(gradients[0]),
        gradients[1].contiguous(),
        *(output.contiguous() for output in outputs),
        *history,
        scale,
        window or 0,
    )
    return [*found, in_dtype_of(d_position, position_bias), in_dtype_of(d_time, time_bias)]
