"""The backends `cpp` and `cuda` of hstu_attention: csrc/hstu_attention/ over csrc/attention/.

One native op has a CPU and a CUDA half. Results are bitwise the same in every run and on any number of threads, and a
user's do not depend on who shares the batch; the CUDA half is safe in a CUDA graph.
"""

from __future__ import annotations

from torch import Tensor

from argus_kernels.attention.arguments import History
from argus_kernels.attention.native import Launch, empty_rows, heads, in_dtype_of, native_arguments, table_gradient
from argus_kernels.core import native


def forward(given: History, *, launch: Launch | None = None) -> Tensor:
    """Computes out [T, H, Dh] in q's dtype."""
    q = given.q
    history = native_arguments(given, aligned=launch is not None or q.is_cuda)
    out = empty_rows(q)
    launch = launch or native.op("hstu_attention_")
    launch(out, *history, given.scale, given.divisor, given.window or 0)
    return out


def backward(
    gradients: list[Tensor],
    outputs: list[Tensor],
    needs: dict[str, bool],
    given: History,
    *,
    launch: Launch | None = None,
) -> list[Tensor | None]:
    """Gradients of q, k, v, position_bias and time_bias; those of q, k and v come together."""
    q = given.q
    aligned = launch is not None or q.is_cuda
    history = native_arguments(given, aligned=aligned)
    d_position = table_gradient(given.position_bias, needs["position_bias"], q)
    d_time = table_gradient(given.time_bias, needs["time_bias"], q)
    found = [empty_rows(q) for _ in range(3)]
    launch = launch or native.op("hstu_attention_backward_")
    launch(
        *found,
        d_position,
        d_time,
        heads(gradients[0], aligned),
        *history,
        given.scale,
        given.divisor,
        given.window or 0,
    )
    return [*found, in_dtype_of(d_position, given.position_bias), in_dtype_of(d_time, given.time_bias)]
