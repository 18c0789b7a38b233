"""The compiled backends of rowwise_adagrad_: `cpp` (C++ on the CPU) and `cuda` (CUDA C++).

Both add the gradients of a row that is given more than once in the order given, so that a repetition gives the same
bits on any number of threads. The CPU sorts the rows itself; on the GPU torch's stable sort precedes the kernel,
without a host synchronisation, so that the whole is safe in a CUDA graph.
"""

from __future__ import annotations

import torch
from torch import Tensor

from argus_kernels.core import native
from argus_kernels.core.problems import share_memory
from argus_kernels.core.registry import needs_device, needs_dtype
from argus_kernels.ops.rowwise_adagrad.arguments import Arguments

_STORED = (torch.float32, torch.bfloat16, torch.float16)


def forward(given: Arguments) -> None:
    """Updates table [V, d] and state [V] in place at rows [R] by row_gradients [R, d]; on either device.

    Raises:
        ValueError: a row outside the table (CPU; on the GPU such a row is left out), or a shape or dtype that the
            kernels do not take.
    """
    row_gradients = kept_apart(given.row_gradients, given.table, given.state)
    native.op("rowwise_adagrad_")(*given._replace(row_gradients=row_gradients))


def kept_apart(read: Tensor, *written: Tensor) -> Tensor:
    """A tensor that is read while others are written: a copy where it lies in the memory of one of them."""
    return read.clone() if any(share_memory(read, one) for one in written) else read


def require_apart(given: Arguments) -> None:
    """ValueError where table and state share an element. Not of the metadata that a call is known by: asked of each."""
    if share_memory(given.state, given.table):
        raise ValueError("rowwise_adagrad_: state shares memory with table, expected its own")


forward_cuda = forward


def forward_cpp(given: Arguments) -> None:
    """The same on the CPU, for tables and states of any strides: the touched rows of others are worked on in a copy."""
    require_apart(given)
    if not layout_problems(given.table, given.state):
        forward(given)
        return
    touched, place = given.rows.unique(return_inverse=True)
    first = int((touched < 0).sum())
    touched = touched[first:]
    kept_table, kept_state = given.table[touched].contiguous(), given.state[touched].contiguous()
    forward(given._replace(table=kept_table, state=kept_state, rows=place - first))
    given.table.index_copy_(0, touched, kept_table)
    given.state.index_copy_(0, touched, kept_state)


def available_cpp() -> str | None:
    """Why the C++ backend cannot serve anything here, or None."""
    return native.why_not("cpu")


def available_cuda() -> str | None:
    """Why the CUDA backend cannot serve anything here, or None."""
    return native.why_not("cuda")


def why_not_cpp(given: Arguments) -> list[str]:
    """Every reason why the C++ backend cannot serve these arguments."""
    return [*_tensors_on("cpu", given), *_dtype_problems(given, (*_STORED, torch.float64))]


def checks_values_cpp(given: Arguments) -> bool:
    """The kernel refuses a row outside the table before it writes; a copy of the touched rows hides where it was."""
    return not layout_problems(given.table, given.state)


def why_not_cuda(given: Arguments) -> list[str]:
    """Every reason why the CUDA backend cannot serve these arguments."""
    return [
        *_tensors_on("cuda", given),
        *_dtype_problems(given, _STORED),
        *layout_problems(given.table, given.state),
    ]


def _tensors_on(kind: str, given: Arguments) -> list[str]:
    return needs_device(kind, table=given.table, state=given.state, rows=given.rows, row_gradients=given.row_gradients)


def _dtype_problems(given: Arguments, stored: tuple[torch.dtype, ...]) -> list[str]:
    table: Tensor = given.table
    states = (torch.float32, torch.float64) if table.dtype == torch.float64 else (torch.float32,)
    return [
        *needs_dtype(stored, table=table),
        *needs_dtype(states, state=given.state),
        *needs_dtype((torch.int64,), rows=given.rows),
        *needs_dtype(tuple(dict.fromkeys((table.dtype, torch.float32))), row_gradients=given.row_gradients),
    ]


def layout_problems(table: Tensor, state: Tensor) -> list[str]:
    """What the kernels cannot step through: rows that are not dense, a state that is not."""
    problems = []
    if table.shape[1] > 1 and table.stride(1) != 1:
        problems.append(f"table has stride {table.stride(1)} within a row, expected 1")
    if not state.is_contiguous():
        problems.append("state is not contiguous")
    return problems
