"""The compiled backend of decode_linear: `cpp`, C++ on the CPU, for a few rows."""

from __future__ import annotations

from torch import Tensor

from argus_kernels.core import native
from argus_kernels.core.problems import FLOATING
from argus_kernels.core.registry import needs_device, needs_dtype
from argus_kernels.ops.decode_linear.arguments import Arguments

MAX_ROWS = 16
"""Rows of a call; with more of them computing takes longer than reading, and torch's matrix product is the better."""


def forward(given: Arguments) -> Tensor:
    """[n, O]. A tensor that is not contiguous is copied, the weights too.

    Raises ValueError for shapes, dtypes and numbers of rows that the kernel does not take.
    """
    out: Tensor = native.op("decode_linear")(*given[:-1], given.activation == "gelu")
    return out


def available() -> str | None:
    """Why the C++ backend cannot serve anything here, or None."""
    return native.why_not("cpu")


def why_not(given: Arguments) -> list[str]:
    """Every reason why the C++ backend cannot serve these arguments."""
    problems = [
        *needs_device("cpu", x=given.x, weight=given.weight),
        *needs_dtype(FLOATING, x=given.x),
    ]
    rows = given.x.shape[0]
    if rows > MAX_ROWS:
        problems.append(f"x has {rows} rows, expected at most {MAX_ROWS}: more are a matrix product, torch's")
    return problems
