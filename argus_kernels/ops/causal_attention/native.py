"""The backends `cpp` and `cuda` of causal_attention: csrc/causal_attention/ over csrc/attention/.

One native op has a CPU and a CUDA half. Results are bitwise the same in every run and on any number of threads, and a
user's do not depend on who shares the batch; the CUDA half is safe in a CUDA graph.
"""

from __future__ import annotations

import torch
from torch import Tensor

from argus_kernels.attention.native import Launch, heads, in_dtype_of, native_arguments, statistic, table_gradient


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
    history = native_arguments(
        q,
        k,
        v,
        offsets,
        visible,
        position_bias,
        time_bias,
        query_time,
        key_time,
        aligned=launch is not None or q.is_cuda,
    )
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
    aligned = launch is not None or q.is_cuda
    history = native_arguments(
        q, k, v, offsets, visible, position_bias, time_bias, query_time, key_time, aligned=aligned
    )
    d_position = table_gradient(position_bias, needs["position_bias"], q)
    d_time = table_gradient(time_bias, needs["time_bias"], q)
    found = [q.new_empty(q.shape) for _ in range(3)]
    launch = launch or torch.ops.argus_native.causal_attention_backward_
    launch(
        *found,
        d_position,
        d_time,
        heads(gradients[0], aligned),
        gradients[1].contiguous(),
        *(output.contiguous() for output in outputs),
        *history,
        scale,
        window or 0,
    )
    return [*found, in_dtype_of(d_position, position_bias), in_dtype_of(d_time, time_bias)]
