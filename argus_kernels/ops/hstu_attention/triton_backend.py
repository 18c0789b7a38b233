"""The `triton` backend of hstu_attention: what it takes. The kernels are imported when first called."""

from __future__ import annotations

from typing import Any

from argus_kernels.attention.triton.limits import why_not
from argus_kernels.core.triton_support import triton_backend


def forward(*arguments: Any) -> Any:
    """The op's outputs; arguments in schema order."""
    from argus_kernels.ops.hstu_attention import triton_kernels

    return triton_kernels.forward(*arguments)


def backward(*arguments: Any) -> Any:
    """The gradients of q, k, v and the two tables."""
    from argus_kernels.ops.hstu_attention import triton_kernels

    return triton_kernels.backward(*arguments)


BACKEND = triton_backend(forward, why_not, backward)
