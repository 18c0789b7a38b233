"""The compiled backends of triple_embedding: `cpp` (C++ on the CPU) and `cuda` (CUDA C++).

In both, row gradients are summed in a fixed order and nothing depends on how the work was shared out. On a GPU
row-sparse gradients wait for one number a table, how many rows were read; dense ones wait for nothing.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence

import torch
from torch import Tensor

from argus_kernels.core import native
from argus_kernels.core.registry import needs_device, needs_dtype
from argus_kernels.core.row_updates import Step
from argus_kernels.ops.triple_embedding.arguments import Arguments

MAX_CUDA_COLUMNS = 32
"""kMaxColumns of csrc/triple_embedding/triple_embedding_cuda.h."""
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
    dense = [_zeros(table) for table in given.tables] if needs["tables"] and not given.sparse else []
    wanted = (needs["tables"], needs["weight"], needs_bias)
    native_backward = native.op("triple_embedding_backward")
    found = iter(native_backward(gradients[0], *given[:4], dense, given.sparse, *wanted))
    d_tables: list[Tensor | None] = [None] * (2 * len(given.tables) if given.sparse else len(given.tables))
    if needs["tables"]:
        d_tables = [next(found) for _ in d_tables] if given.sparse else [*dense]
    return [d_tables, next(found) if needs["weight"] else None, next(found) if needs_bias else None]


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


def _zeros(like: Tensor) -> Tensor:
    large = like.numel() * like.element_size() >= _ON_DEMAND_BYTES
    if large and like.device.type == "cpu" and hasattr(mmap, "MADV_NOHUGEPAGE"):
        return _zeros_on_demand(like)
    return torch.zeros_like(like, memory_format=torch.contiguous_format)


def _zeros_on_demand(like: Tensor) -> Tensor:
    """Contiguous zeros of the shape and dtype of `like`, [V, d], in pages that the system fills as they are touched.

    torch.zeros fills a gradient of a million rows of 64 by hand: 256 MB, of which a step writes 8. Small pages: large
    ones hold a thousand rows each, so that a step would touch them all.
    """
    memory = mmap.mmap(-1, like.numel() * like.element_size(), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
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


def _tensors_on(kind: str, given: Arguments) -> list[str]:
    tables = {f"tables[{index}]": table for index, table in enumerate(given.tables)}
    return needs_device(kind, ids=given.ids, weight=given.weight, bias=given.bias, **tables)
