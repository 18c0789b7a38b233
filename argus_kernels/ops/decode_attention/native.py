"""The compiled backends of decode_attention: `cpp` (C++ on the CPU) and `cuda` (CUDA C++)."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from argus_kernels.core import native
from argus_kernels.core.problems import FLOATING
from argus_kernels.core.registry import Inputs, needs_device, needs_dtype

MAX_WIDTH = 256
"""Head width that the CUDA kernels hold in registers."""


def forward(
    q: Tensor,
    key_pages: Tensor,
    value_pages: Tensor,
    time_pages: Tensor,
    block_table: Tensor,
    lengths: Tensor,
    k: Tensor | None,
    v: Tensor | None,
    position_bias: Tensor | None,
    time_bias: Tensor | None,
    query_time: Tensor | None,
    key_time: Tensor | None,
    scale: float,
    window: int | None,
) -> Tensor:
    """Writes the new events to their slots and computes out [B, H, Dh], on the pages' device.

    On a GPU a user with a length or a page out of bounds gets NaN, and nothing is written for it. Raises ValueError,
    having changed nothing, for shapes and dtypes that the kernels do not take, and on the CPU for a length or a page
    out of bounds and for two users that append to one page.
    """
    out: Tensor = _op()(
        q, key_pages, value_pages, time_pages, block_table, lengths, k, v, position_bias, time_bias, query_time,
        key_time, scale, window,
    )  # fmt: skip
    return out


@functools.cache
def _op() -> Any:
    """Looked up once: the way through torch.ops takes longer than the call."""
    return torch.ops.argus_native.decode_attention.default


def available_cpp() -> str | None:
    """Why the C++ backend cannot serve anything here, or None."""
    return native.why_not("cpu")


def available_cuda() -> str | None:
    """Why the CUDA backend cannot serve anything here, or None."""
    return native.why_not("cuda")


def why_not_cuda(inputs: Inputs) -> list[str]:
    """Every reason why the CUDA backend cannot serve these inputs."""
    problems = [
        *needs_device("cuda", q=inputs.q, key_pages=inputs.key_pages, lengths=inputs.lengths),
        *needs_dtype(FLOATING[:3], q=inputs.q),
        *_layout_problems(inputs),
    ]
    if inputs.q.shape[-1] > MAX_WIDTH:
        problems.append(f"head width is {inputs.q.shape[-1]}, expected at most {MAX_WIDTH}")
    return problems


def why_not_cpp(inputs: Inputs) -> list[str]:
    """Every reason why the C++ backend cannot serve these inputs."""
    return [
        *needs_device("cpu", q=inputs.q, key_pages=inputs.key_pages, lengths=inputs.lengths),
        *needs_dtype(FLOATING, q=inputs.q),
        *_layout_problems(inputs),
    ]


def _layout_problems(inputs: Inputs) -> list[str]:
    problems = []
    for name in ("key_pages", "value_pages"):
        pages: Tensor = getattr(inputs, name)
        if pages.dim() != 4:
            continue
        _, _, heads, width = pages.shape
        dense = (width <= 1 or pages.stride(3) == 1) and (heads <= 1 or pages.stride(2) == width)
        if not dense:
            problems.append(f"{name} is not contiguous within an event, expected heads and widths side by side")
    return problems
