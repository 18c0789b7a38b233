"""The compiled backend `cpp` of hstu_attention: C++ on the CPU, csrc/hstu_attention/.

Results are bitwise the same on any number of threads, and a user's do not depend on who shares the batch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from argus_kernels.attention.native import as_table, cpp_arguments, dense_heads, empty_table


def forward_cpp(
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
) -> Tensor:
    """Computes out [T, H, Dh] in q's dtype; arguments as in the public function."""
    history = cpp_arguments(q, k, v, offsets, visible, position_bias, time_bias, query_time, key_time)
    out = q.new_empty(q.shape)
    torch.ops.argus_native.hstu_attention_(out, *history, alpha, divisor, window or 0)
    return out


def backward_cpp(
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
) -> list[Tensor | None]:
    """Gradients of q, k, v, position_bias and time_bias; those of q, k and v come together."""
    history = cpp_arguments(q, k, v, offsets, visible, position_bias, time_bias, query_time, key_time)
    found = [q.new_empty(q.shape) for _ in range(3)]
    tables = [
        empty_table(position_bias, needs["position_bias"], q),
        empty_table(time_bias, needs["time_bias"], q),
    ]
    torch.ops.argus_native.hstu_attention_backward_(
        *found, *tables, dense_heads(gradients[0]), *history, alpha, divisor, window or 0
    )
    return [*found, as_table(tables[0], position_bias), as_table(tables[1], time_bias)]
