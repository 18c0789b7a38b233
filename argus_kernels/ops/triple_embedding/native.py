"""The compiled backends of triple_embedding: `cpp` (C++ on the CPU) and `cuda` (CUDA C++).

In both, row gradients are summed in a fixed order and nothing depends on how the work was shared out. On a GPU
row-sparse gradients wait for one number a table, how many rows were read; dense ones wait for nothing.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence

import torch
from torch import Tensor

from argus_kernels.core import hopper, native
from argus_kernels.core.registry import needs_device, needs_dtype
from argus_kernels.core.row_updates import Step
from argus_kernels.ops.triple_embedding.arguments import Arguments

MAX_CUDA_COLUMNS = 32
"""kMaxColumns of csrc/triple_embedding/triple_embedding_cuda.h."""
MAX_LOOP_CHUNKS = 80
"""kMaxLoopChunks of the same header."""
_ON_DEMAND_BYTES = 1 << 20
"""Of a dense gradient from which on its zeros are left to the system."""


def forward(given: Arguments) -> Tensor:
    """The op on the device of `weight`.

    An id outside its table is a ValueError on the CPU, whether `check_ids` or not; on a GPU, where it was not checked,
    it reads as missing.
    """
    out: Tensor = native.op("triple_embedding")(*given[:5])
    return out


def backward(
    gradients: Sequence[Tensor],
    outputs: Sequence[Tensor],
    needs: dict[str, bool],
    given: Arguments,
) -> list[list[Tensor | None] | Tensor | None]:
    """Gradients of the tables (dense, or row numbers and rows where `sparse`), weight and bias."""
    needs_bias = needs["bias"] and given.bias is not None
    written = _zeros_on_demand(given.tables) if needs["tables"] and not given.sparse else []
    wanted = (needs["tables"], needs["weight"], needs_bias)
    native_backward = native.op("triple_embedding_backward")
    found: list[Tensor] = native_backward(gradients[0], *given[:4], written, given.sparse, *wanted)
    d_bias = found.pop() if needs_bias else None
    d_weight = found.pop() if needs["weight"] else None
    if not needs["tables"]:
        return [[None] * (2 * len(given.tables) if given.sparse else len(given.tables)), d_weight, d_bias]
    d_tables: list[Tensor | None] = [*(written or found)]
    return [d_tables, d_weight, d_bias]


def can_step(given: Arguments, steps: Sequence[Step | None]) -> bool:
    """Whether `backward_and_step` serves: every table is updated, and dense in memory of its own, as is its state."""
    weight = given.weight.untyped_storage().data_ptr()
    if given.weight.shape[1] == 0 or not steps:
        return False
    wide = torch.promote_types(given.weight.dtype, torch.float32)
    return all(
        step is not None
        and step.state.dtype == wide
        and step.state.is_contiguous()
        and table.is_contiguous()
        and table.shape[1] > 0
        and table.untyped_storage().data_ptr() != weight
        for table, step in zip(given.tables, steps, strict=True)
    )


def backward_and_step(
    gradient: Tensor, given: Arguments, steps: Sequence[Step | None], needs_weight: bool, needs_bias: bool
) -> tuple[Tensor | None, Tensor | None]:
    """The backward pass with row-wise Adagrad on all tables in it; gradients of weight and bias where wanted.

    The same bits as row-sparse gradients and `rowwise_adagrad_`: a row is changed after the last event that reads it.
    """
    taken = [step for step in steps if step is not None]
    written = [*given.tables, *(step.state for step in taken)]
    lies_in = {tensor.untyped_storage().data_ptr() for tensor in written}
    if gradient.untyped_storage().data_ptr() in lies_in:
        gradient = gradient.clone()
    found = native.op("triple_embedding_backward_and_step")(
        gradient, *given[:4], *(list(column) for column in zip(*taken, strict=True)), needs_weight, needs_bias
    )
    torch.autograd.graph.increment_version([one for one in written if not one.is_inference()])
    remaining = iter(found)
    return next(remaining) if needs_weight else None, next(remaining) if needs_bias else None


def _zeros_on_demand(tables: Sequence[Tensor]) -> list[Tensor]:
    """Zeros for the dense gradients of tables, those of large ones in pages that the system fills as they are touched.

    None where no table is large: the native op makes its own, in a third of the time. torch.zeros fills a gradient of a
    million rows of 64 by hand: 256 MB, of which a step writes 8.
    """
    if not hasattr(mmap, "MADV_NOHUGEPAGE"):
        return []
    large = [table.nbytes >= _ON_DEMAND_BYTES and table.is_cpu for table in tables]
    if True not in large:
        return []
    return [
        _mapped_zeros(table) if on_demand else torch.zeros_like(table, memory_format=torch.contiguous_format)
        for table, on_demand in zip(tables, large, strict=True)
    ]


def _mapped_zeros(like: Tensor) -> Tensor:
    """Contiguous zeros of the shape and dtype of `like`, [V, d].

    Small pages: large ones hold a thousand rows each, so that a step would touch them all.
    """
    memory = mmap.mmap(-1, like.nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_NOHUGEPAGE)
    return torch.frombuffer(memory, dtype=like.dtype).view(like.shape)


def available_cpp() -> str | None:
    """Why the C++ backend cannot serve anything here, or None."""
    return native.why_not("cpu")


def available_cuda() -> str | None:
    """Why the CUDA backend cannot serve anything here, or None."""
    return native.why_not("cuda")


def why_not_cpp(given: Arguments) -> list[str]:
    """Every reason why the C++ backend cannot serve these arguments."""
    return _tensors_on("cpu", given)


def why_not_cuda(given: Arguments) -> list[str]:
    """Every reason why the CUDA backend cannot serve these arguments."""
    problems = _tensors_on("cuda", given)
    problems += needs_dtype((torch.float32, torch.bfloat16, torch.float16), weight=given.weight)
    if len(given.columns) > MAX_CUDA_COLUMNS:
        problems.append(f"ids has {len(given.columns)} columns, expected at most {MAX_CUDA_COLUMNS}")
    return problems


def kernels_cuda(given: Arguments) -> str:
    """Which kernels of the CUDA backend run, and why not those of sm_90a."""
    return hopper.served_by("forward", given.weight, why_not_loop(given))


def why_not_loop(given: Arguments) -> list[str]:
    """Every reason why the product loop of sm_90a does not take these arguments: fits_product_loop of the C++ side."""
    problems = hopper.needs_half(weight=given.weight)
    if problems:
        return problems
    problems = hopper.needs_chunks(weight=given.weight)
    elements = 8
    chunks = sum((given.tables[column].shape[1] + elements - 1) // elements for column in given.columns)
    if not 0 < chunks <= MAX_LOOP_CHUNKS:
        problems.append(f"the columns have {chunks} chunks of {elements} elements, expected 1 to {MAX_LOOP_CHUNKS}")
    if given.ids.shape[1] > 1 << 30:
        problems.append(f"ids has {given.ids.shape[1]} events, expected at most {1 << 30}")
    return problems


def _tensors_on(kind: str, given: Arguments) -> list[str]:
    tables = {f"tables[{index}]": table for index, table in enumerate(given.tables)}
    return needs_device(kind, ids=given.ids, weight=given.weight, bias=given.bias, **tables)
