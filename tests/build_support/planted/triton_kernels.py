"""Triton kernels for testing the compile gates: products on matrix units, and a tile too large for one warp."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from argus_kernels.core.triton_support import CompileCase, launch


@triton.jit
def product_kernel(left, right, out, depth, SIZE: tl.constexpr):
    place = tl.arange(0, SIZE)
    total = tl.zeros([SIZE, SIZE], tl.float32)
    for first in range(0, depth, SIZE):
        a = tl.load(left + place[:, None] * depth + first + place[None, :])
        b = tl.load(right + (first + place)[:, None] * SIZE + place[None, :])
        total = tl.dot(a, b, total)
    tl.store(out + place[:, None] * SIZE + place[None, :], total)


def _product(size: int, warps: int, dtype: torch.dtype) -> None:
    with torch.device("meta"):
        left, right = torch.empty(size, 4 * size, dtype=dtype), torch.empty(4 * size, size, dtype=dtype)
        out = torch.empty(size, size)
    arguments = {"left": left, "right": right, "out": out, "depth": 4 * size, "SIZE": size}
    launch(product_kernel, (1,), arguments, warps=warps)


def compile_cases() -> list[CompileCase]:
    """A product for each kind of matrix instruction, one without, and one that spills."""
    return [
        CompileCase("large", lambda: _product(64, 4, torch.float16)),
        CompileCase("small", lambda: _product(16, 1, torch.bfloat16)),
        CompileCase("spilling", lambda: _product(128, 1, torch.float16), matrix=False),
    ]
