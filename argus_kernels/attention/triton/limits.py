"""Which inputs of the attention ops the Triton kernels take; it does not import triton."""

from __future__ import annotations

from argus_kernels.core.problems import FLOATING
from argus_kernels.core.registry import Inputs
from argus_kernels.core.triton_support import device_problems, problems

MAX_WIDTH = 256


def why_not(inputs: Inputs) -> list[str]:
    """Every reason why the kernels cannot serve these inputs of an attention op over packed histories."""
    found = problems(q=inputs.q, k=inputs.k, v=inputs.v)
    found += device_problems(
        offsets=inputs.offsets, visible=inputs.visible, query_time=inputs.query_time, key_time=inputs.key_time
    )
    tables = {"position_bias": inputs.position_bias, "time_bias": inputs.time_bias}
    found += problems(FLOATING, **tables)
    width = inputs.q.shape[2]
    if width > MAX_WIDTH:
        found.append(f"head width is {width}, expected at most {MAX_WIDTH}")
    return found
