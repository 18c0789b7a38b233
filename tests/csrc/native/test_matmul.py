"""csrc/common/cpu/matmul.h: packing and products of every layout and shape, on every instruction set of this CPU."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.csrc.native.probe import library, sizes
from tests.drawn_examples import examples

COLUMNS = 32
DTYPES = {"f": torch.float32, "b": torch.bfloat16, "h": torch.float16, "d": torch.float64}
PAIRS = [("f", "f"), ("f", "b"), ("f", "h"), ("b", "f"), ("b", "b"), ("b", "h"), ("d", "d")]


def padded(operand: str, depth: int) -> int:
    return -(-depth // 32) * 32 if operand == "b" else depth


def pointer(tensor: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())


def pack(side: str, operand: str, matrix: Tensor) -> Tensor:
    """`matrix` is [columns or rows, depth] in any layout; NaN stands where packing forgets to write."""
    count, depth = matrix.shape
    height = count if side == "left" else -(-count // COLUMNS) * COLUMNS
    packed = torch.full((height * padded(operand, depth),), torch.nan, dtype=DTYPES[operand])
    stored = next(name for name, dtype in DTYPES.items() if dtype == matrix.dtype)
    library().pack_operand(
        int(side == "left"),
        ctypes.c_char(operand.encode()),
        ctypes.c_char(stored.encode()),
        pointer(packed),
        pointer(matrix),
        sizes(count, depth, *matrix.stride()),
    )
    return packed


def multiply(
    operand: str, to: Tensor, left: Tensor, right: Tensor, rows: int, columns: int, depth: int, add: bool
) -> None:
    numbers = sizes(to.stride(0), padded(operand, depth), rows, columns, depth, int(add))
    library().multiply_operands(ctypes.c_char(operand.encode()), pointer(to), pointer(left), pointer(right), numbers)


def laid_out(matrix: Tensor, layout: str) -> Tensor:
    """The same values with the depth contiguous, with the rows contiguous, or with neither."""
    rows, depth = matrix.shape
    if layout == "depth":
        return torch.cat([matrix, matrix], dim=1)[:, :depth]
    if layout == "rows":
        return torch.cat([matrix.T, matrix.T], dim=1).T[:rows]
    return matrix.repeat_interleave(2, 0).repeat_interleave(3, 1)[::2, ::3]


def skip_without_unit(operand: str) -> None:
    if operand == "b" and library().bfloat16_unit() == b"none":
        pytest.skip("this machine multiplies no bfloat16")


@pytest.mark.parametrize(("operand", "stored"), PAIRS)
@settings(max_examples=examples(12))
@given(
    rows=st.integers(1, 70),
    columns=st.integers(1, 70),
    depth=st.integers(1, 70),
    layouts=st.tuples(*[st.sampled_from(["depth", "rows", "neither"])] * 2),
    add=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_products(
    operand: str, stored: str, rows: int, columns: int, depth: int, layouts: tuple[str, str], add: bool, seed: int
) -> None:
    """Small integers, which every order of summation gets exactly: the result is equal, not close."""
    skip_without_unit(operand)
    generator = torch.Generator().manual_seed(seed)
    left, right = (
        torch.randint(-8, 9, (count, depth), generator=generator).to(DTYPES[stored]) for count in (rows, columns)
    )
    total = torch.float64 if operand == "d" else torch.float32
    to = torch.full((rows, columns + 3), 5.0, dtype=total)
    expected = left.to(total) @ right.to(total).T + (5.0 if add else 0.0)
    packed_left = pack("left", operand, laid_out(left, layouts[0]))
    packed_right = pack("right", operand, laid_out(right, layouts[1]))
    multiply(operand, to, packed_left, packed_right, rows, columns, depth, add)
    assert torch.equal(to[:, :columns], expected)
    assert torch.equal(to[:, columns:], torch.full((rows, 3), 5.0, dtype=total))


@pytest.mark.parametrize("operand", ["f", "b", "d"])
def test_a_row_does_not_depend_on_the_others(operand: str) -> None:
    """The same bits whatever the number of rows and columns of the tile."""
    skip_without_unit(operand)
    left, right = torch.randn(50, 96).to(DTYPES[operand]), torch.randn(77, 96).to(DTYPES[operand])
    whole = torch.empty(50, 77, dtype=torch.promote_types(DTYPES[operand], torch.float32))
    multiply(operand, whole, pack("left", operand, left), pack("right", operand, right), 50, 77, 96, False)
    for rows, columns in ((1, 1), (11, 33), (13, 64), (49, 76)):
        part = torch.empty(rows, columns, dtype=whole.dtype)
        chosen = pack("left", operand, left[-rows:]), pack("right", operand, right[:columns])
        multiply(operand, part, *chosen, rows, columns, 96, False)
        assert torch.equal(part, whole[-rows:, :columns])


@pytest.mark.parametrize("operand", ["f", "b"])
def test_sums_are_float32(operand: str) -> None:
    """The error is that of float32 sums of exact products, far below a rounding to bfloat16."""
    skip_without_unit(operand)
    left, right = torch.randn(64, 512).to(DTYPES[operand]), torch.randn(64, 512).to(DTYPES[operand])
    to = torch.empty(64, 64)
    multiply(operand, to, pack("left", operand, left), pack("right", operand, right), 64, 64, 512, False)
    assert (to - left.double() @ right.double().T).abs().max() < 512**0.5 * 2e-5


def test_rounding_to_bfloat16_is_torchs() -> None:
    values = torch.cat([torch.randn(4000), torch.tensor([0.0, -0.0, 1 + 2**-8, 1 + 3 * 2**-8, 3e38, torch.inf])])[None]
    assert torch.equal(pack("left", "b", values)[: values.shape[1]], values[0].bfloat16())
    assert pack("left", "b", torch.tensor([[torch.nan]]))[0].isnan()


@pytest.mark.slow
@pytest.mark.parametrize("level", ["portable", "avx2", "avx512", "avx512_bf16"])
def test_every_instruction_set(level: str) -> None:
    """The tests above on the lower instruction sets, in processes of their own."""
    if "ARGUS_CPU_ISA" in os.environ:
        pytest.skip("already one of those processes")
    done = _run_below(level)
    assert done.returncode == 0, done.stdout[-3000:]


def _run_below(level: str) -> Any:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "products", __file__]
    environment = {**os.environ, "ARGUS_CPU_ISA": level}
    return subprocess.run(command, env=environment, capture_output=True, text=True)
