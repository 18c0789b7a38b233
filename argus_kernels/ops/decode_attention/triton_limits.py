"""Which arguments the Triton kernels of decode_attention take; it does not import triton."""

from __future__ import annotations

from argus_kernels.core.triton_support import device_problems, problems
from argus_kernels.ops.decode_attention.arguments import Arguments

MAX_WIDTH = 256
"""Head width that a program holds in registers."""


def why_not(given: Arguments) -> list[str]:
    """Every reason why the kernels cannot serve these arguments."""
    found = problems(q=given.q)
    found += device_problems(key_pages=given.key_pages, value_pages=given.value_pages)
    found += device_problems(block_table=given.block_table, lengths=given.lengths)
    if given.q.shape[-1] > MAX_WIDTH:
        found.append(f"head width is {given.q.shape[-1]}, expected at most {MAX_WIDTH}")
    return found
