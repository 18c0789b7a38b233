"""What the CUDA backends of the attention ops over packed histories take: tensors as the kernels want them."""

from __future__ import annotations

import torch
from torch import Tensor

from argus_kernels.core import native
from argus_kernels.core.registry import Inputs, needs_device, needs_dtype

_STORED = (torch.float32, torch.bfloat16, torch.float16)
_PIECE_BYTES = 16
MOST_WIDTH = 256
MOST_HEADS = 65_535
MOST_POSITIONS = 512
"""Columns of position_bias that a block's shared memory has room for, beside its tiles."""

HistoryArguments = tuple[
    Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor | None
]  # fmt: skip


def available_cuda() -> str | None:
    """Why the CUDA backend cannot serve anything here, or None."""
    return native.why_not("cuda")


def why_not_cuda(inputs: Inputs) -> list[str]:
    """Every reason why the CUDA backend cannot serve these inputs."""
    tensors = {name: value for name, value in vars(inputs).items() if isinstance(value, Tensor)}
    rows, heads, width = inputs.q.shape
    problems = [*needs_device("cuda", **tensors), *needs_dtype(_STORED, q=inputs.q)]
    if width % 8 != 0 or width > MOST_WIDTH:
        problems.append(f"head width is {width}, expected a multiple of 8 up to {MOST_WIDTH}")
    if heads > MOST_HEADS:
        problems.append(f"q has {heads} heads, expected at most {MOST_HEADS}")
    if rows >= 2**31:
        problems.append(f"q has {rows} rows, expected below 2^31")
    table = inputs.position_bias
    if table is not None and table.shape[1] > MOST_POSITIONS:
        problems.append(f"position_bias has {table.shape[1]} columns, expected at most {MOST_POSITIONS}")
    return problems


def cuda_arguments(
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
    """The tensors of a history in the order of the native ops; nothing here waits for the GPU."""
    return (
        aligned_heads(q),
        aligned_heads(k),
        aligned_heads(v),
        offsets.contiguous(),
        _contiguous(visible),
        _float32(position_bias),
        _float32(time_bias),
        _contiguous(query_time),
        _contiguous(key_time),
    )


def aligned_heads(packed: Tensor) -> Tensor:
    """[T, H, Dh] whose heads are adjacent elements that begin at multiples of 16 bytes: itself, or a copy.

    Views of one projection to q, k and v are taken as they are.
    """
    piece = _PIECE_BYTES // packed.element_size()
    fits = packed.stride(2) == 1 and packed.stride(0) % piece == 0 and packed.stride(1) % piece == 0
    return (
        packed
        if fits and packed.data_ptr() % _PIECE_BYTES == 0
        else packed.clone(memory_format=torch.contiguous_format)
    )


def statistic(q: Tensor) -> Tensor:
    """Memory for one float32 a head and row, [H, T]."""
    return q.new_empty(q.shape[1], q.shape[0], dtype=torch.float32)


def table_gradient(table: Tensor | None, wanted: bool) -> Tensor | None:
    """Memory for the gradient of a bias table, float32; None where it is not wanted."""
    return table.new_empty(table.shape, dtype=torch.float32) if table is not None and wanted else None


def in_dtype_of(gradient: Tensor | None, table: Tensor | None) -> Tensor | None:
    """The gradient in the table's own dtype."""
    return None if gradient is None or table is None else gradient.to(table.dtype)


def _contiguous(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


def _float32(table: Tensor | None) -> Tensor | None:
    return None if table is None else table.float().contiguous()
