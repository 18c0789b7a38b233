"""The `triton` backend of rowwise_adagrad_: what it takes. The kernels are imported when first called."""

from __future__ import annotations

from typing import Any

from argus_kernels.core.registry import Inputs
from argus_kernels.core.triton_support import DTYPES, device_problems, problems, triton_backend
from argus_kernels.ops.rowwise_adagrad.native import kept_apart

WIDEST = 4096
"""Columns of a row that one program holds in registers."""


def why_not(inputs: Inputs) -> list[str]:
    """Every reason why the kernels cannot serve these inputs."""
    found = problems(DTYPES, table=inputs.table, row_gradients=inputs.row_gradients)
    found += device_problems(rows=inputs.rows)
    found += problems(DTYPES[:1], state=inputs.state)
    if inputs.table.shape[1] > WIDEST:
        found.append(f"table has {inputs.table.shape[1]} columns, expected at most {WIDEST}")
    return found


def forward(*arguments: Any) -> None:
    """Updates table and state in place; arguments in schema order."""
    from argus_kernels.ops.rowwise_adagrad import triton_kernels

    table, state, rows, row_gradients, *settings = arguments
    if table.shape[1] == 0:
        return  # no gradient, so nothing to add to the state
    triton_kernels.forward(table, state, rows, kept_apart(row_gradients, table, state), *settings)


BACKEND = triton_backend(forward, why_not)
