"""Which arguments of the attention ops the Triton kernels take; it does not import triton."""

from __future__ import annotations

from argus_kernels.attention.arguments import OF_QUERIES, History
from argus_kernels.core.problems import FLOATING
from argus_kernels.core.triton_support import device_problems, problems

MAX_WIDTH = 256


def why_not(given: History) -> list[str]:
    """Every reason why the kernels cannot serve these arguments of an attention op over packed histories."""
    found = problems(q=given.q, k=given.k, v=given.v)
    names = ("offsets", "key_offsets", *OF_QUERIES, "prefix", "query_time", "key_time", "dropout_seed")
    found += device_problems(**{name: getattr(given, name) for name in names})
    tables = {"position_bias": given.position_bias, "time_bias": given.time_bias}
    found += problems(FLOATING, **tables)
    width = given.q.shape[2]
    if width > MAX_WIDTH:
        found.append(f"head width is {width}, expected at most {MAX_WIDTH}")
    return found
