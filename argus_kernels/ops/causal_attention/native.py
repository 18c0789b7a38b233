"""The backends `cpp` and `cuda` of causal_attention: csrc/causal_attention/ over csrc/attention/.

One native op has a CPU and a CUDA half. Results are bitwise the same in every run and on any number of threads, and a
user's do not depend on who shares the batch; the CUDA half is safe in a CUDA graph. On compute capability 9.0 the
forward pass of 16-bit heads up to 128 adds in an order of its own (TMA and wgmma).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from argus_kernels.attention.arguments import History
from argus_kernels.attention.native import Launch, gradients_of, heads, native_arguments, wanted_tables
from argus_kernels.core import native
from argus_kernels.core.gradients import or_none


def forward(given: History, *, launch: Launch | None = None) -> tuple[Tensor, Tensor]:
    """Computes out [T, H, Dh] in q's dtype and log_sum_exp [H, T]."""
    arguments = native_arguments(given, (given.scale,), launch is not None or given.q.is_cuda)
    out, log_sum_exp = (launch or native.op("causal_attention"))(*arguments)
    return out, log_sum_exp


def backward(
    gradients: Sequence[Tensor],
    outputs: Sequence[Tensor],
    needs: dict[str, bool],
    given: History,
    *,
    launch: Launch | None = None,
) -> list[Tensor | None]:
    """Gradients of q, k, v, position_bias and time_bias; those of q, k and v come together."""
    aligned = launch is not None or given.q.is_cuda
    d_log_sum_exp = or_none(gradients, 1) if launch is None else gradients[1]
    launch = launch or native.op("causal_attention_backward")
    found = launch(
        heads(gradients[0], aligned),
        None if d_log_sum_exp is None else d_log_sum_exp.contiguous(),
        *(output.contiguous() for output in outputs),
        *native_arguments(given, (given.scale,), aligned, wanted_tables(needs, given)),
    )
    return gradients_of(found, needs, given)
