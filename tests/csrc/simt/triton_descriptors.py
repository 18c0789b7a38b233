"""Run without the interpreter: the matrix descriptors of wgmma that Triton gives products of TMA tiles on sm_90.

Prints a line of JSON for each of CASES: its wgmma in order, each with the constant parts of the descriptors of A and B
(the start, relative to the tile's, included) and whether they are MN-major.
"""

from __future__ import annotations

import json
import re

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

ROWS, COLUMNS = 64, 128
CASES = [(64, True, True), (64, True, False), (64, False, True), (64, False, False), (32, True, True), (16, True, True)]
"""Depth of a tile, and whether A and B are K-major."""


@triton.jit
def product_kernel(a, b, d, rows, columns, depth, DEPTH: tl.constexpr, A_K: tl.constexpr, B_K: tl.constexpr):
    if A_K:
        left = tl.make_tensor_descriptor(a, [rows, depth], [depth, 1], [64, DEPTH])
    else:
        left = tl.make_tensor_descriptor(a, [depth, rows], [rows, 1], [DEPTH, 64])
    if B_K:
        right = tl.make_tensor_descriptor(b, [columns, depth], [depth, 1], [128, DEPTH])
    else:
        right = tl.make_tensor_descriptor(b, [depth, columns], [columns, 1], [DEPTH, 128])
    sums = tl.zeros([64, 128], tl.float32)
    for k in range(0, depth, DEPTH):
        x = left.load([0, k]) if A_K else left.load([k, 0]).T
        y = right.load([0, k]).T if B_K else right.load([k, 0])
        sums = tl.dot(x, y, sums)
    tl.store(d + tl.arange(0, 64)[:, None] * 128 + tl.arange(0, 128)[None, :], sums)


def compiled(depth: int, left_k: bool, right_k: bool) -> str:
    """The PTX of a case."""
    types = {"a": "*bf16", "b": "*bf16", "d": "*fp32", "rows": "i32", "columns": "i32", "depth": "i32"}
    constants = {"DEPTH": depth, "A_K": left_k, "B_K": right_k}
    aligned = {(index,): [["tt.divisibility", 16]] for index in range(6)}
    source = ASTSource(product_kernel, types, constants, aligned)
    return str(triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 4}).asm["ptx"])


def products(text: str) -> list[list[int]]:
    """Constants of A and B, and whether they are MN-major, of each wgmma."""
    constants = {
        name: int(value) for name, value in re.findall(r"(?:or\.b64|add\.s64)\s+(%rd\d+), %rd\d+, (-?\d{15,});", text)
    }
    pattern = r"wgmma\.mma_async\.sync\.aligned\.m64n128k16\S+ \{[^}]+\}, (%rd\d+), (%rd\d+), [^,]+, 1, 1, (\d), (\d);"
    return [
        [constants[left] % 2**64, constants[right] % 2**64, int(left_mn), int(right_mn)]
        for left, right, left_mn, right_mn in re.findall(pattern, text)
    ]


if __name__ == "__main__":
    for case in CASES:
        print(json.dumps(products(compiled(*case))))
