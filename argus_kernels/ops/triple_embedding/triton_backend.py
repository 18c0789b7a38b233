"""The `triton` backend of triple_embedding: what it takes. The kernels are imported when first called."""

from __future__ import annotations

from typing import Any

from argus_kernels.core.registry import Inputs
from argus_kernels.core.triton_support import device_problems, problems, triton_backend

MOST_COLUMNS = 64
"""The forward kernel is compiled with its columns one after the other."""


def why_not(inputs: Inputs) -> list[str]:
    """Every reason why the kernels cannot serve these inputs."""
    tables = {f"tables[{index}]": table for index, table in enumerate(inputs.tables)}
    found = device_problems(ids=inputs.ids) + problems(weight=inputs.weight, bias=inputs.bias, **tables)
    if len(inputs.columns) > MOST_COLUMNS:
        found.append(f"columns are {len(inputs.columns)}, expected at most {MOST_COLUMNS}")
    return found


def forward(*arguments: Any) -> Any:
    """The op's output; arguments in schema order."""
    from argus_kernels.ops.triple_embedding import triton_kernels

    return triton_kernels.forward(*arguments)


def backward(*arguments: Any) -> Any:
    """The gradients of tables, weight and bias."""
    from argus_kernels.ops.triple_embedding import triton_kernels

    return triton_kernels.backward(*arguments)


BACKEND = triton_backend(forward, why_not, backward)
