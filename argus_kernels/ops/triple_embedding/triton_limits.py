"""The limits of triple_embedding's Triton kernels, and the choice of the id check on a GPU; does not import triton."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from argus_kernels.core.triton_support import DTYPES, available, device_problems, interpreted, problems
from argus_kernels.core.varlen import device_checks
from argus_kernels.ops.triple_embedding.arguments import Arguments

MAX_COLUMNS = 64
"""The forward kernel is compiled with its columns one after the other."""


def why_not(given: Arguments) -> list[str]:
    """Every reason why the kernels cannot serve these arguments."""
    tables = {f"tables[{index}]": table for index, table in enumerate(given.tables)}
    found = device_problems(ids=given.ids) + problems(DTYPES, weight=given.weight, bias=given.bias, **tables)
    if len(given.columns) > MAX_COLUMNS:
        found.append(f"columns are {len(given.columns)}, expected at most {MAX_COLUMNS}")
    return found


def checks_ids(given: Arguments) -> bool:
    """Whether ids on a GPU are checked by one kernel of Triton, whichever backend computes."""
    return available() is None and not interpreted() and len(given.columns) <= MAX_COLUMNS


def check_ids(ids: Tensor, heights: Sequence[int]) -> None:
    """Asserts on the device that ids [K, T] lie in [−1, heights[k]), where values on a GPU are checked at all."""
    if device_checks() and ids.numel():
        from argus_kernels.ops.triple_embedding import triton_check

        triton_check.check_ids(ids, heights)
