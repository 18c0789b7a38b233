"""The tensors of the native attention ops over packed histories, in the layout of the CPU and the CUDA kernels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from argus_kernels.attention.arguments import History
from argus_kernels.core import native
from argus_kernels.core.records import tensors_by_name
from argus_kernels.core.registry import needs_device, needs_dtype

_ON_CUDA = (torch.float32, torch.bfloat16, torch.float16)
_ON_CPU = (*_ON_CUDA, torch.float64)
_PIECE_BYTES = 16
WIDE = {dtype: torch.promote_types(dtype, torch.float32) for dtype in _ON_CPU}
"""The dtype of sums, statistics and tables by that of q."""
MAX_WIDTH = 256
MAX_HEADS = 65_535
MAX_POSITIONS = 512
"""Columns of position_bias that a block's shared memory has room for, beside its tiles."""

Launch = Callable[..., Any]
"""A native op of CUDA. Tests give one that runs the same kernels on the CPU."""
HistoryArguments = tuple[Tensor | None, ...]


def available_cpp() -> str | None:
    """Why the C++ backend cannot serve anything here, or None."""
    return native.why_not("cpu")


def available_cuda() -> str | None:
    """Why the CUDA backend cannot serve anything here, or None."""
    return native.why_not("cuda")


def why_not_cpp(given: History) -> list[str]:
    """Every reason why the C++ backend cannot serve these arguments."""
    return [*needs_device("cpu", **tensors_by_name(given)), *needs_dtype(_ON_CPU, q=given.q)]


def checks_values_cpp(given: History) -> bool:
    """The C++ kernels refuse what does not fit of the values; max_length and key_max_length they do not get."""
    return given.max_length >= given.q.shape[0] and given.longest_keys >= given.k.shape[0]


def why_not_cuda(given: History) -> list[str]:
    """Every reason why the CUDA backend cannot serve these arguments."""
    rows, heads, width = given.q.shape
    problems = [*needs_device("cuda", **tensors_by_name(given)), *needs_dtype(_ON_CUDA, q=given.q)]
    if width % 8 != 0 or width > MAX_WIDTH:
        problems.append(f"head width is {width}, expected a multiple of 8 up to {MAX_WIDTH}")
    if heads > MAX_HEADS:
        problems.append(f"q has {heads} heads, expected at most {MAX_HEADS}")
    if rows >= 2**31:
        problems.append(f"q has {rows} rows, expected below 2^31")
    table = given.position_bias
    if table is not None and table.shape[1] > MAX_POSITIONS:
        problems.append(f"position_bias has {table.shape[1]} columns, expected at most {MAX_POSITIONS}")
    return problems


def native_arguments(given: History, *, aligned: bool) -> HistoryArguments:
    """The tensors of a history in the order of the native ops; nothing here waits for a GPU.

    q, k and v are taken with any strides as long as the elements of a head lie side by side, as in the views of one
    projection to all three; the tables come in the dtype of the sums. aligned: heads as the CUDA kernels read them.
    """
    # All fields at once: an attribute of a named tuple costs as much as the rest of its line.
    (
        q, k, v, offsets, _, key_offsets, _, visible, position, own_begin, own_end, prefix, position_bias, time_bias,
        query_time, key_time, dropout_seed, *_,
    ) = given  # fmt: skip
    return (
        heads(q, aligned),
        heads(k, aligned),
        heads(v, aligned),
        offsets.contiguous(),
        None if key_offsets is None else key_offsets.contiguous(),
        None if visible is None else visible.contiguous(),
        None if position is None else position.contiguous(),
        None if own_begin is None else own_begin.contiguous(),
        None if own_end is None else own_end.contiguous(),
        None if prefix is None else prefix.contiguous(),
        None if position_bias is None else position_bias.to(WIDE[q.dtype]).contiguous(),
        None if time_bias is None else time_bias.to(WIDE[q.dtype]).contiguous(),
        None if query_time is None else query_time.contiguous(),
        None if key_time is None else key_time.contiguous(),
        None if dropout_seed is None else dropout_seed.contiguous(),
    )


def heads(packed: Tensor, aligned: bool) -> Tensor:
    """[T, H, Dh] with the elements of a head side by side: itself where they are, else a contiguous copy.

    aligned: heads begin at multiples of 16 bytes, too, which is what the CUDA kernels copy at once.
    """
    if not aligned:
        return packed if packed.stride(2) == 1 or packed.shape[2] <= 1 else packed.contiguous()
    piece = _PIECE_BYTES // packed.element_size()
    fits = packed.stride(2) == 1 and packed.stride(0) % piece == 0 and packed.stride(1) % piece == 0
    return (
        packed
        if fits and packed.data_ptr() % _PIECE_BYTES == 0
        else packed.clone(memory_format=torch.contiguous_format)
    )


def gradients_of(found: Sequence[Tensor], needs: dict[str, bool], given: History) -> list[Tensor | None]:
    """Gradients of q, k, v and the tables, each table's in its own dtype, from what a native backward pass returns."""
    if len(found) == 3:
        return [*found, None, None]
    remaining = iter(found[3:])
    tables = (("position_bias", given.position_bias), ("time_bias", given.time_bias))
    return [
        *found[:3],
        *(next(remaining).to(table.dtype) if needs[name] and table is not None else None for name, table in tables),
    ]


def wanted_tables(needs: dict[str, bool], given: History) -> tuple[bool, bool]:
    """Whether the gradients of position_bias and time_bias are wanted."""
    return (
        needs["position_bias"] and given.position_bias is not None,
        needs["time_bias"] and given.time_bias is not None,
    )
