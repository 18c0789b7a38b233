"""The Triton kernels of pairwise_loss where they find partners without a sort: any order, any times, any strides."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from argus_kernels import pairwise_loss
from argus_kernels.core.triton_support import available

pytestmark = pytest.mark.skipif(available() is not None, reason=str(available()))
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LEAST, MOST = -(2**63), 2**63 - 1


def results(backend: str, arguments: dict[str, Any]) -> list[Tensor]:
    """Loss, pairs, concordant and the gradient of the scores."""
    given: dict[str, Any] = {
        name: value.to(DEVICE) if isinstance(value, Tensor) else value for name, value in arguments.items()
    }
    given["scores"].requires_grad_()
    outputs = pairwise_loss(**given, backend=backend)
    return [*outputs, torch.autograd.grad(outputs[0], given["scores"])[0]]


def assert_as_reference(arguments: dict[str, Any]) -> None:
    found = results("triton", arguments)
    expected = results("reference", {**arguments, "scores": arguments["scores"].detach().double()})
    assert [int(one) for one in found[1:3]] == [int(one) for one in expected[1:3]]
    for one, other in ((found[0], expected[0]), (found[3], expected[3])):
        torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=1e-5)


def drawn(total: int, seed: int = 0) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "scores": torch.randn(total, generator=generator),
        "grades": torch.randint(-1, 3, (total,), generator=generator),
        "times": torch.randint(0, 40 * total, (total,), generator=generator),
    }


@pytest.mark.parametrize("ordered", [True, False], ids=["in_order", "out_of_order"])
def test_partners_are_found_in_any_order_of_times(ordered: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Users that begin and end inside blocks, one of them of more blocks than are looked at in one step."""
    from argus_kernels.ops.pairwise_loss import triton_kernels

    monkeypatch.setattr(triton_kernels, "_SCANNED", 2)
    arguments = drawn(150)
    if ordered:
        arguments["times"] = arguments["times"].sort().values
    assert_as_reference({**arguments, "offsets": torch.tensor([0, 5, 5, 140, 147]), "window": 900})


@pytest.mark.parametrize("window", [5, MOST])
def test_times_at_both_ends_of_64_bits(window: int) -> None:
    """A window that reaches past the ends, and users beside each other whose times are 2⁶⁴ − 1 apart."""
    times = [MOST, MOST - 2, MOST - 9, MOST, LEAST, LEAST + 3, LEAST + 9, LEAST]
    arguments = {**drawn(8), "times": torch.tensor(times), "offsets": torch.tensor([0, 4, 8]), "window": window}
    assert_as_reference({**arguments, "grades": torch.tensor([0, 2**40, 2, 2**40 + 1, 3, 2, 1, 0])})


def test_what_takes_part_in_no_pair_may_hold_any_time_and_score() -> None:
    """Padding and negative grades, at both ends of 64 bits and NaN: the same bits as with ordinary values there."""
    arguments = {**drawn(70), "offsets": torch.tensor([0, 40, 65]), "window": 300}
    expected = results("triton", arguments)
    left_out = arguments["grades"] < 0
    left_out[65:] = True
    every_third = torch.arange(70) % 3
    hostile = torch.tensor([MOST, LEAST, 0])[every_third]
    arguments["times"] = torch.where(left_out, hostile, arguments["times"])
    arguments["scores"] = arguments["scores"].detach().masked_fill(left_out, torch.nan)
    assert all(torch.equal(one, other) for one, other in zip(results("triton", arguments), expected, strict=True))


def test_every_argument_may_have_strides() -> None:
    arguments = {**drawn(40), "offsets": torch.tensor([0, 33, 40], dtype=torch.int32), "window": 400}
    expected = results("triton", arguments)
    spread = {
        name: torch.stack([value.detach(), value.detach()], 1)[:, 0]
        for name, value in arguments.items()
        if name != "window"
    }
    found = results("triton", {**spread, "grades": spread["grades"].to(torch.int8), "window": 400})
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
