"""Which inputs the Triton kernels of rowwise_adagrad_ take; it does not import triton."""

from __future__ import annotations

from argus_kernels.core.registry import Inputs
from argus_kernels.core.triton_support import DTYPES, device_problems, problems

MAX_WIDTH = 4096
"""Columns of a row that one program holds in registers."""


def why_not(inputs: Inputs) -> list[str]:
    """Every reason why the kernels cannot serve these inputs."""
    found = problems(DTYPES, table=inputs.table, row_gradients=inputs.row_gradients)
    found += device_problems(rows=inputs.rows)
    found += problems(DTYPES[:1], state=inputs.state)
    if inputs.table.shape[1] > MAX_WIDTH:
        found.append(f"table has {inputs.table.shape[1]} columns, expected at most {MAX_WIDTH}")
    return found
