"""The tensors of the native attention ops over packed histories, in the layout of the CPU and the CUDA kernels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from argus_kernels.attention.arguments import History
from argus_kernels.core import hopper, native
from argus_kernels.core.records import tensors_by_name
from argus_kernels.core.registry import needs_device, needs_dtype

_ON_CUDA = (torch.float32, torch.bfloat16, torch.float16)
_ON_CPU = (*_ON_CUDA, torch.float64)
_PIECE_BYTES = 16
WIDE = {dtype: torch.promote_types(dtype, torch.float32) for dtype in _ON_CPU}
"""The dtype of sums, statistics and tables by that of q."""
MAX_WIDTH = 256
LOOP_WIDTH = 128
"""Of the heads that the kernels of sm_90a take."""
MAX_HEADS = 65_535
MAX_POSITIONS = 512
"""Columns of position_bias that a block's shared memory has room for, beside its tiles."""

Launch = Callable[..., Any]
"""A native op of CUDA. Tests give one that runs the same kernels on the CPU."""


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


def kernels_cuda(given: History) -> str:
    """Which kernels of the CUDA backend run each pass, and why not those of sm_90a: fits_loops of the C++ side."""
    problems = hopper.needs_half(q=given.q)
    width = given.q.shape[2]
    if width > LOOP_WIDTH:
        problems.append(f"head width is {width}, expected at most {LOOP_WIDTH}")
    for name in ("q", "k"):
        if not getattr(given, name).shape[0]:
            problems.append(f"{name} has no row, expected at least one")
    if given.softmax and not given.scale > 0:
        problems.append(f"scale is {given.scale}, expected above 0")
    learned = any(table is not None and table.requires_grad for table in (given.position_bias, given.time_bias))
    remaining = "gradients of bias tables" if learned else ""
    forward = hopper.served_by("forward", given.q, problems)
    return f"{forward}; {hopper.served_by('backward', given.q, problems, remaining)}"


def native_arguments(
    given: History, factors: tuple[Any, ...], aligned: bool, wanted: tuple[bool, ...] = ()
) -> tuple[Any, ...]:
    """The arguments of the native ops in their order, up to the last that is not its default: the dispatcher takes
    0.1 µs for each. Nothing here waits for a GPU.

    q, k and v are taken with any strides as long as the elements of a head lie side by side, as in the views of one
    projection to all three; the tables come in the dtype of the sums. factors: the numbers that have no default.
    aligned: heads as the CUDA kernels read them. wanted: `wanted_tables`, in a backward pass.
    """
    # All fields at once: an attribute of a named tuple costs as much as the rest of its line.
    (
        q, k, v, offsets, _, _, _, window, dropout, position_bias, time_bias, query_time, key_time,
        visible, position, own_begin, own_end, prefix, key_offsets, _, dropout_seed,
    ) = given  # fmt: skip
    found = (heads(q, aligned), heads(k, aligned), heads(v, aligned), offsets.contiguous(), *factors)
    usual = (
        visible is None and position is None and own_begin is None and own_end is None and prefix is None
        and key_offsets is None and dropout_seed is None
    )  # fmt: skip
    if usual and position_bias is None and time_bias is None and window is None and not dropout:
        return found
    wide = WIDE[q.dtype]
    found += (
        *(window or 0, dropout, *wanted),
        None if position_bias is None else position_bias.to(wide).contiguous(),
        None if time_bias is None else time_bias.to(wide).contiguous(),
        None if query_time is None else query_time.contiguous(),
        None if key_time is None else key_time.contiguous(),
    )
    if usual:
        return found
    rule = (visible, position, own_begin, own_end, prefix, key_offsets, dropout_seed)
    return (*found, *(None if one is None else one.contiguous() for one in rule))


def heads(packed: Tensor, aligned: bool) -> Tensor:
    """[T, H, Dh] with the elements of a head side by side: itself where they are, else a contiguous copy.

    aligned: heads begin at multiples of 16 bytes, too, which is what the CUDA kernels copy at once, and each has memory
    of its own, as tensor maps ask.
    """
    if not aligned:
        return packed if packed.stride(2) == 1 or packed.shape[2] <= 1 else packed.contiguous()
    piece = _PIECE_BYTES // packed.element_size()
    row, head, element = packed.stride()
    fits = element == 1 and row > 0 and head > 0 and row % piece == 0 and head % piece == 0
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
