"""csrc/common/cpu/vector_math.h: the errors that its comments state, over the whole range of float32."""

from __future__ import annotations

import ctypes
import math
import os

import pytest
import torch
from torch import Tensor

from tests import warm
from tests.csrc.native.probe import library

EXP, LOG1P, SOFTPLUS, SIGMOID, SUM, MAX, ERF, GELU, EXP_UP_TO_ONE = range(9)


def apply(which: int, values: Tensor) -> Tensor:
    result = torch.empty_like(values)
    library().apply(
        which, ctypes.c_void_p(values.data_ptr()), ctypes.c_void_p(result.data_ptr()), ctypes.c_int64(values.numel())
    )
    return result


def worst_in_last_place(found: Tensor, truth: Tensor) -> float:
    """The largest error in units in the last place of the float32 truth."""
    unit = torch.exp2(torch.frexp(truth).exponent.double() - 24)
    return float(((found.double() - truth) / unit).abs().max())


def grid(low: float, high: float) -> Tensor:
    return torch.linspace(low, high, 1_000_001, dtype=torch.float64).float()


def test_exp() -> None:
    values = torch.cat([grid(-86.59, 88.72), grid(-1, 1), grid(-1e-3, 1e-3)])
    assert worst_in_last_place(apply(EXP, values), values.double().exp()) < 2
    ends = torch.tensor([-math.inf, -1e38, -86.7, 88.73, 1e38, math.inf])
    assert apply(EXP, ends).tolist() == [0, 0, 0, math.inf, math.inf, math.inf]
    assert apply(EXP, torch.tensor([math.nan, 0.0])).tolist()[1] == 1
    assert apply(EXP, torch.tensor([math.nan])).isnan().all()


def test_exp_up_to_one_has_the_bits_of_exp() -> None:
    ends = torch.tensor([-math.inf, -3e38, -1e30, -86.600006, -86.6, -86.59999, -0.0, 0.0])
    values = torch.cat([grid(-90, 1), grid(-1e-3, 1e-3), -torch.logspace(-44, 38, 100_000), ends])
    assert torch.equal(apply(EXP_UP_TO_ONE, values), apply(EXP, values))
    assert apply(EXP_UP_TO_ONE, torch.tensor([math.nan])).isnan().all()


def test_log1p_of_fraction() -> None:
    values = torch.cat([grid(0, 1)[1:], grid(0, 1e-6)[1:]])
    assert worst_in_last_place(apply(LOG1P, values), values.double().log1p()) < 2
    assert apply(LOG1P, torch.zeros(1)).item() == 0


def test_softplus() -> None:
    values = torch.cat([grid(-80, 100), grid(-2, 2)])
    assert (
        worst_in_last_place(apply(SOFTPLUS, values), torch.nn.functional.softplus(values.double(), threshold=1e9)) < 3
    )
    assert apply(SOFTPLUS, torch.tensor([1e4, -1e4, math.inf])).tolist() == [1e4, 0, math.inf]


def test_sigmoid() -> None:
    values = torch.cat([grid(-80, 80), grid(-2, 2)])
    assert worst_in_last_place(apply(SIGMOID, values), values.double().sigmoid()) < 4
    assert apply(SIGMOID, torch.tensor([1e4, -1e4, 0.0])).tolist() == [1, 0, 0.5]


def test_erf() -> None:
    values = torch.cat([grid(-5, 5), grid(0.99, 1.01), grid(-1e-3, 1e-3)])
    values = values[values != 0]
    assert worst_in_last_place(apply(ERF, values), values.double().erf()) < 2
    ends = torch.tensor([-math.inf, -1e38, -3.95, 0.0, 3.95, 1e38, math.inf])
    assert apply(ERF, ends).tolist() == [-1, -1, -1, 0, 1, 1, 1]
    assert apply(ERF, torch.tensor([math.nan])).isnan().all()


def test_gelu() -> None:
    values = torch.cat([grid(-8, 8), grid(-1, 1)])
    truth = torch.nn.functional.gelu(values.double())
    found = (apply(GELU, values).double() - truth).abs()
    theirs = (torch.nn.functional.gelu(values).double() - truth).abs()
    assert found.max() <= 1.5 * theirs.max()
    assert found.square().mean().sqrt() <= 1.2 * theirs.square().mean().sqrt()
    assert apply(GELU, torch.tensor([1e4, -1e4, 0.0, math.inf])).tolist() == [1e4, 0, 0, math.inf]


@pytest.mark.parametrize("count", [1, 15, 16, 17, 1000])
def test_lanes(count: int) -> None:
    values = torch.randn(count)
    assert apply(SUM, values)[0] == pytest.approx(values.double().sum().item(), abs=1e-4)
    assert apply(MAX, values)[0] == max(values.max().item(), -1.0)


def test_the_same_bits_on_every_instruction_set() -> None:
    program = (
        "import zlib, torch\nfrom tests.csrc.native.test_vector_math import apply\n"
        "x = torch.randn(40000, generator=torch.Generator().manual_seed(0)) * 10\n"
        "print([zlib.crc32(apply(w, x.sigmoid() if w == 1 else x)[:1 if w in (4, 5) else None].numpy().tobytes())"
        " for w in range(8)])"
    )
    levels = ("portable", "avx2", "avx512")
    done = [warm.python(["-c", program], {**os.environ, "ARGUS_CPU_ISA": level}) for level in levels]
    assert all(one.returncode == 0 for one in done), done
    assert len({one.stdout for one in done}) == 1
