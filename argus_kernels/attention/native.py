"""What the compiled attention ops over packed histories take: the tensors as the CPU kernels want them."""

from __future__ import annotations

import torch
from torch import Tensor

from argus_kernels.core import native
from argus_kernels.core.registry import Inputs, needs_device, needs_dtype

_STORED = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

HistoryArguments = tuple[
    Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor | None,
]  # fmt: skip


def available_cpp() -> str | None:
    """Why the C++ backend cannot serve anything here, or None."""
    return native.why_not("cpu")


def why_not_cpp(inputs: Inputs) -> list[str]:
    """Every reason why the C++ backend cannot serve these inputs."""
    tensors = {name: value for name, value in vars(inputs).items() if isinstance(value, Tensor)}
    return [*needs_device("cpu", **tensors), *needs_dtype(_STORED, q=inputs.q)]


def cpp_arguments(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    visible: Tensor | None,
    position_bias: Tensor | None,
    time_bias: Tensor | None,
    query_time: Tensor | None,
    key_time: Tensor | None,
) -> HistoryArguments:
    """The tensors of a history in the order of the native ops.

    q, k and v are taken with any strides as long as the elements of a head lie side by side, as in the views of one
    projection to all three; the tables come in the dtype of the sums.
    """
    wide = torch.promote_types(q.dtype, torch.float32)
    return (
        dense_heads(q),
        dense_heads(k),
        dense_heads(v),
        offsets.contiguous(),
        _contiguous(visible),
        _wide(position_bias, wide),
        _wide(time_bias, wide),
        _contiguous(query_time),
        _contiguous(key_time),
    )


def dense_heads(packed: Tensor) -> Tensor:
    """[T, H, Dh] with the elements of a head side by side: itself where they are, else a contiguous copy."""
    return packed if packed.shape[2] <= 1 or packed.stride(2) == 1 else packed.contiguous()


def empty_table(table: Tensor | None, wanted: bool, q: Tensor) -> Tensor | None:
    """Memory for the gradient of a bias table, in the dtype of the sums; None where it is not wanted."""
    if table is None or not wanted:
        return None
    return q.new_empty(table.shape, dtype=torch.promote_types(q.dtype, torch.float32))


def as_table(gradient: Tensor | None, table: Tensor | None) -> Tensor | None:
    """The gradient in the table's own dtype."""
    return None if gradient is None or table is None else gradient.to(table.dtype)


def _contiguous(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


def _wide(table: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if table is None else table.to(dtype).contiguous()
