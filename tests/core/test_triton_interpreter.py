"""What the tests change of Triton's interpreter changes no type and no result."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from argus_kernels.core.triton_support import interpreted

pytest.importorskip("triton")
import triton
import triton.language as tl

pytestmark = pytest.mark.skipif(not interpreted(), reason="Triton's interpreter is not used here")


@pytest.mark.parametrize("element", [tl.float32, tl.int1, tl.pointer_type(tl.float16)], ids=str)
@pytest.mark.parametrize("shape", [[8], [2, 16], [tl.constexpr(4), 1, 2]], ids=str)
def test_a_type_made_again_is_the_type_made_first(element: Any, shape: Any) -> None:
    first, again = (tl.block_type(element, shape) for _ in range(2))
    assert again == first
    for name in ("name", "numel", "element_ty", "scalar"):
        assert getattr(again, name) == getattr(first, name)
    assert again.shape.type == first.shape.type
    assert again.shape.values == first.shape.values
    assert again.shape.values is not first.shape.values
    for value in (tl.tensor(None, first), tl.tensor(None, first)):
        assert [size.value for size in value.shape] == first.shape.values
        assert value.shape.type == tl.tuple([tl.constexpr(size) for size in first.shape]).type
        assert (value.numel.value, value.dtype, value.type) == (first.numel, element, first)


@pytest.mark.parametrize("shape", [[], [3], [2, 1 << 30], [2.0], (2,)], ids=str)
def test_a_shape_that_triton_refuses_is_refused_again(shape: list[Any]) -> None:
    tl.block_type(tl.float32, [2])
    for _ in range(2):
        with pytest.raises((TypeError, ValueError, AssertionError)):
            tl.block_type(tl.float32, shape)


@triton.jit
def wrap_kernel(result: Any, given: Any, LENGTH: tl.constexpr) -> None:
    """Sums and products that 32 bits do not hold."""
    place = tl.arange(0, LENGTH)
    value = tl.load(given + place)
    tl.store(result + place, value * value + value)
    tl.store(result + LENGTH + place, value - place - 2_000_000_000)


def test_whole_numbers_wrap() -> None:
    given = torch.tensor([2**31 - 1, -(2**31), 70_000, 3], dtype=torch.int32)
    found = torch.empty(8, dtype=torch.int32)
    wrap_kernel[(1,)](found, given, 4)
    wide = given.long()
    assert torch.equal(found[:4], (wide * wide + wide).int())
    assert torch.equal(found[4:], (wide - torch.arange(4) - 2_000_000_000).int())
