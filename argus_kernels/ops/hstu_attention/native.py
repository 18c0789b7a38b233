"""The backends `cpp` and `cuda` of hstu_attention: csrc/hstu_attention/ over csrc/attention/.

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


def forward(given: History, *, launch: Launch | None = None) -> Tensor:
    """Computes out [T, H, Dh] in q's dtype."""
    arguments = native_arguments(given, (given.scale, given.divisor), launch is not None or given.q.is_cuda)
    out: Tensor = (launch or native.op("hstu_attention"))(*arguments)
    return out


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
    launch = launch or native.op("hstu_attention_backward")
    found = launch(
        heads(gradients[0], aligned),
        *native_arguments(given, (given.scale, given.divisor), aligned, wanted_tables(needs, given)),
    )
    return gradients_of(found, needs, given)
