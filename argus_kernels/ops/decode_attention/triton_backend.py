"""The `triton` backend of decode_attention: what it takes. The kernels are imported when first called."""

from __future__ import annotations

from typing import Any

from argus_kernels.core.registry import Inputs
from argus_kernels.core.triton_support import device_problems, problems, triton_backend

WIDEST = 256
"""Head width that a program holds in registers."""


def why_not(inputs: Inputs) -> list[str]:
    """Every reason why the kernels cannot serve these inputs."""
    found = problems(q=inputs.q, key_pages=inputs.key_pages, value_pages=inputs.value_pages)
    found += device_problems(block_table=inputs.block_table, lengths=inputs.lengths)
    if inputs.q.shape[-1] > WIDEST:
        found.append(f"head width is {inputs.q.shape[-1]}, expected at most {WIDEST}")
    return found


def forward(*arguments: Any) -> Any:
    """The op's output; arguments in schema order."""
    from argus_kernels.ops.decode_attention import triton_kernels

    return triton_kernels.forward(*arguments)


BACKEND = triton_backend(forward, why_not)
