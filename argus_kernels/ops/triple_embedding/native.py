"""The compiled backends of triple_embedding: `cpp`, C++ on the CPU.

Row gradients are summed in the order of columns, then events, and nothing depends on the number of threads.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy
import torch
from torch import Tensor

from argus_kernels.core import native
from argus_kernels.core.registry import Inputs, needs_device

_ALIGNMENT = 64
"""Bytes; torch's own allocations begin on such an address, and rows of powers of two then straddle no line."""


def forward_cpp(
    ids: Tensor,
    tables: Sequence[Tensor],
    columns: Sequence[int],
    weight: Tensor,
    bias: Tensor | None,
    sparse: bool,
    check_ids: bool,
) -> Tensor:
    """The op on the CPU. An id outside its table is a ValueError, whether `check_ids` or not."""
    out: Tensor = torch.ops.argus_native.triple_embedding(ids, tables, columns, weight, bias)
    return out


def backward_cpp(
    gradients: Sequence[Tensor],
    outputs: Sequence[Tensor],
    needs: dict[str, bool],
    ids: Tensor,
    tables: Sequence[Tensor],
    columns: Sequence[int],
    weight: Tensor,
    bias: Tensor | None,
    sparse: bool,
    check_ids: bool,
) -> list[list[Tensor | None] | Tensor | None]:
    """Gradients of the tables (dense, or row numbers and rows where `sparse`), weight and bias."""
    needs_bias = needs["bias"] and bias is not None
    dense = [zeros_on_demand(table) for table in tables] if needs["tables"] and not sparse else []
    found = iter(
        torch.ops.argus_native.triple_embedding_backward(
            gradients[0], ids, tables, columns, weight, dense, sparse, needs["tables"], needs["weight"], needs_bias
        )
    )
    d_tables: list[Tensor | None] = [None] * (2 * len(tables) if sparse else len(tables))
    if needs["tables"]:
        d_tables = [next(found) for _ in d_tables] if sparse else [*dense]
    return [d_tables, next(found) if needs["weight"] else None, next(found) if needs_bias else None]


def zeros_on_demand(like: Tensor) -> Tensor:
    """Contiguous zeros of the shape and dtype of `like`, [V, d], in memory that the system fills as it is touched.

    torch.zeros fills a gradient of a million rows of 64 by hand: 256 MB, of which a step writes 8.
    """
    size = like.numel() * like.element_size()
    memory = numpy.zeros(size + _ALIGNMENT, dtype=numpy.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return torch.from_numpy(memory[start : start + size]).view(like.dtype).view(like.shape)


def available_cpp() -> str | None:
    """Why the C++ backend cannot serve anything here, or None."""
    return native.why_not("cpu")


def why_not_cpp(inputs: Inputs) -> list[str]:
    """Every reason why the C++ backend cannot serve these inputs."""
    tables = {f"tables[{index}]": table for index, table in enumerate(inputs.tables)}
    return needs_device("cpu", ids=inputs.ids, weight=inputs.weight, bias=inputs.bias, **tables)
