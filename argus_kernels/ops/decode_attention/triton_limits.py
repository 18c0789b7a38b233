"""Which inputs the Triton kernels of decode_attention take; it does not import triton."""

from __future__ import annotations

from argus_kernels.core.registry import Inputs
from argus_kernels.core.triton_support import device_problems, problems

MAX_WIDTH = 256
"""Head width that a program holds in registers."""


def why_not(inputs: Inputs) -> list[str]:
    """Every reason why the kernels cannot serve these inputs."""
    found = problems(q=inputs.q, key_pages=inputs.key_pages, value_pages=inputs.value_pages)
    found += device_problems(block_table=inputs.block_table, lengths=inputs.lengths)
    if inputs.q.shape[-1] > MAX_WIDTH:
        found.append(f"head width is {inputs.q.shape[-1]}, expected at most {MAX_WIDTH}")
    return found
