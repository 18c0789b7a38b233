"""The compiled backends of decode_attention: `cpp` (C++ on the CPU) and `cuda` (CUDA C++)."""

from __future__ import annotations

import torch
from torch import Tensor

from argus_kernels.core import native
from argus_kernels.core.problems import FLOATING
from argus_kernels.core.registry import needs_device, needs_dtype
from argus_kernels.ops.decode_attention.arguments import Arguments

MAX_WIDTH = 256
"""Head width that the CUDA kernels hold in registers."""
_FIRST_DEFAULT = Arguments._fields.index("offsets")
"""Arguments from here on are None in most calls; the dispatcher takes 0.1 µs for each that it is given."""


def forward(given: Arguments) -> Tensor:
    """Writes the new events to their slots and computes out [B, H, Dh], on the pages' device.

    On a GPU a user with a length or a page out of bounds gets NaN, and nothing is written for it. Raises ValueError,
    having changed nothing, for shapes and dtypes that the kernels do not take, and on the CPU for a length or a page
    out of bounds and for two users that append to one page.
    """
    if given.key_scales is not None and given.q.dtype != torch.float32:
        k, v = (None if one is None else one.float() for one in (given.k, given.v))
        return forward(given._replace(q=given.q.float(), k=k, v=v)).to(given.q.dtype)
    usual = given.offsets is None and given.divisor is None and given.key_scales is None
    out: Tensor = native.op("decode_attention")(*(given[:_FIRST_DEFAULT] if usual else given))
    return out


def available_cpp() -> str | None:
    """Why the C++ backend cannot serve anything here, or None."""
    return native.why_not("cpu")


def available_cuda() -> str | None:
    """Why the CUDA backend cannot serve anything here, or None."""
    return native.why_not("cuda")


def why_not_cuda(given: Arguments) -> list[str]:
    """Every reason why the CUDA backend cannot serve these arguments."""
    problems = [
        *needs_device("cuda", q=given.q, key_pages=given.key_pages, lengths=given.lengths),
        *needs_dtype(FLOATING[:3], q=given.q),
        *_layout_problems(given),
    ]
    if given.q.shape[-1] > MAX_WIDTH:
        problems.append(f"head width is {given.q.shape[-1]}, expected at most {MAX_WIDTH}")
    return problems


def why_not_cpp(given: Arguments) -> list[str]:
    """Every reason why the C++ backend cannot serve these arguments."""
    return [
        *needs_device("cpu", q=given.q, key_pages=given.key_pages, lengths=given.lengths),
        *needs_dtype(FLOATING if given.key_scales is None else FLOATING[:3], q=given.q),
        *_layout_problems(given),
    ]


def _layout_problems(given: Arguments) -> list[str]:
    problems = []
    for name in ("key_pages", "value_pages"):
        pages: Tensor = getattr(given, name)
        if pages.dim() != 4:
            continue
        _, _, heads, width = pages.shape
        dense = (width <= 1 or pages.stride(3) == 1) and (heads <= 1 or pages.stride(2) == width)
        if not dense:
            problems.append(f"{name} is not contiguous within an event, expected heads and widths side by side")
    return problems
