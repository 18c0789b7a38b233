"""What the native attention ops over packed histories take: the tensors as the CPU and the CUDA kernels want them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from argus_kernels.core import native
from argus_kernels.core.registry import Inputs, needs_device, needs_dtype

_ON_CUDA = (torch.float32, torch.bfloat16, torch.float16)
_ON_CPU = (*_ON_CUDA, torch.float64)
_PIECE_BYTES = 16
MAX_WIDTH = 256
MAX_HEADS = 65_535
MAX_POSITIONS = 512
"""Columns of position_bias that a block's shared memory has room for, beside its tiles."""

Launch = Callable[..., None]
"""A native op of CUDA. Tests give one that runs the same kernels on the CPU."""
HistoryArguments = tuple[
    Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor | None,
]  # fmt: skip


def available_cpp() -> str | None:
    """Why the C++ backend cannot serve anything here, or None."""
    return native.why_not("cpu")


def available_cuda() -> str | None:
    """Why the CUDA backend cannot serve anything here, or None."""
    return native.why_not("cuda")


def why_not_cpp(inputs: Inputs) -> list[str]:
    """Every reason why the C++ backend cannot serve these inputs."""
    return [*needs_device("cpu", **_tensors(inputs)), *needs_dtype(_ON_CPU, q=inputs.q)]


def why_not_cuda(inputs: Inputs) -> list[str]:
    """Every reason why the CUDA backend cannot serve these inputs."""
    rows, heads, width = inputs.q.shape
    problems = [*needs_device("cuda", **_tensors(inputs)), *needs_dtype(_ON_CUDA, q=inputs.q)]
    if width % 8 != 0 or width > MAX_WIDTH:
        problems.append(f"head width is {width}, expected a multiple of 8 up to {MAX_WIDTH}")
    if heads > MAX_HEADS:
        problems.append(f"q has {heads} heads, expected at most {MAX_HEADS}")
    if rows >= 2**31:
        problems.append(f"q has {rows} rows, expected below 2^31")
    table = inputs.position_bias
    if table is not None and table.shape[1] > MAX_POSITIONS:
        problems.append(f"position_bias has {table.shape[1]} columns, expected at most {MAX_POSITIONS}")
    return problems


def native_arguments(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    visible: Tensor | None,
    position_bias: Tensor | None,
    time_bias: Tensor | None,
    query_time: Tensor | None,
    key_time: Tensor | None,
    *,
    aligned: bool,
) -> HistoryArguments:
    """The tensors of a history in the order of the native ops; nothing here waits for a GPU.

    q, k and v are taken with any strides as long as the elements of a head lie side by side, as in the views of one
    projection to all three; the tables come in the dtype of the sums. aligned: heads as the CUDA kernels read them.
    """
    wide = torch.promote_types(q.dtype, torch.float32)
    return (
        *(heads(packed, aligned) for packed in (q, k, v)),
        offsets.contiguous(),
        _contiguous(visible),
        _wide(position_bias, wide),
        _wide(time_bias, wide),
        _contiguous(query_time),
        _contiguous(key_time),
    )  # type: ignore[return-value]


def heads(packed: Tensor, aligned: bool) -> Tensor:
    """[T, H, Dh] with the elements of a head side by side: itself where they are, else a contiguous copy.

    aligned: heads begin at multiples of 16 bytes, too, which is what the CUDA kernels copy at once.
    """
    if not aligned:
        return packed if packed.shape[2] <= 1 or packed.stride(2) == 1 else packed.contiguous()
    piece = _PIECE_BYTES // packed.element_size()
    fits = packed.stride(2) == 1 and packed.stride(0) % piece == 0 and packed.stride(1) % piece == 0
    return (
        packed
        if fits and packed.data_ptr() % _PIECE_BYTES == 0
        else packed.clone(memory_format=torch.contiguous_format)
    )


def statistic(q: Tensor) -> Tensor:
    """Memory for one number a head and row [H, T], in the dtype of the sums."""
    return q.new_empty(q.shape[1], q.shape[0], dtype=torch.promote_types(q.dtype, torch.float32))


def table_gradient(table: Tensor | None, wanted: bool, q: Tensor) -> Tensor | None:
    """Memory for the gradient of a bias table, in the dtype of the sums; None where it is not wanted."""
    if table is None or not wanted:
        return None
    return q.new_empty(table.shape, dtype=torch.promote_types(q.dtype, torch.float32))


def in_dtype_of(gradient: Tensor | None, table: Tensor | None) -> Tensor | None:
    """The gradient in the table's own dtype."""
    return None if gradient is None or table is None else gradient.to(table.dtype)


def _tensors(inputs: Inputs) -> dict[str, Tensor]:
    return {name: value for name, value in vars(inputs).items() if isinstance(value, Tensor)}


def _contiguous(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


def _wide(table: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if table is None else table.to(dtype).contiguous()
