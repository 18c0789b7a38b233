"""Which arguments the Triton kernels of rowwise_adagrad_ take; it does not import triton."""

from __future__ import annotations

from argus_kernels.core.triton_support import DTYPES, device_problems, problems
from argus_kernels.ops.rowwise_adagrad.arguments import Arguments

MAX_WIDTH = 4096
"""Columns of a row that one program holds in registers."""


def why_not(given: Arguments) -> list[str]:
    """Every reason why the kernels cannot serve these arguments."""
    found = problems(DTYPES, table=given.table, row_gradients=given.row_gradients)
    found += device_problems(rows=given.rows)
    found += problems(DTYPES[:1], state=given.state)
    if given.table.shape[1] > MAX_WIDTH:
        found.append(f"table has {given.table.shape[1]} columns, expected at most {MAX_WIDTH}")
    return found
