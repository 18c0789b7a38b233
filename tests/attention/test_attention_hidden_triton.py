"""What the mask hides reaches nothing in the Triton attention kernels, whatever it holds, and rows that see no key yet.

Truth is the reference in float64. Users reach over two tiles; each has one element that is not finite.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from argus_kernels import causal_attention, hstu_attention
from argus_kernels.core.triton_support import available

pytestmark = [
    pytest.mark.skipif(available() is not None, reason=str(available())),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LENGTH, WIDTH = 40, 3
"""float32 has tiles of 32 queries and keys, float16 with biases of 64 on one side and 16 or 32 on the other."""
PLANTED = ("q", "k", "v", "d_out")
VALUES = (float("nan"), float("inf"), float("-inf"))
PLACES = (0, 20, LENGTH - 1)


def drawn(users: int, dtype: torch.dtype) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(users)
    rows = users * LENGTH
    given: dict[str, Any] = {name: torch.randn(rows, 1, WIDTH, generator=generator).to(dtype) for name in PLANTED}
    given["position_bias"] = torch.randn(1, 90, generator=generator).to(dtype)
    given["offsets"] = torch.arange(users + 1, dtype=torch.int32) * LENGTH
    return given


def results(op: Any, given: dict[str, Any], backend: str, **mask: Any) -> dict[str, Tensor]:
    """Output and gradients, in float64 for the reference."""
    wide = {
        name: value.double() if backend == "reference" and value.is_floating_point() else value.to(DEVICE)
        for name, value in given.items()
    }
    leaves = {name: wide[name].detach().requires_grad_() for name in ("q", "k", "v", "position_bias")}
    mask = {name: value.to(wide["q"].device) if isinstance(value, Tensor) else value for name, value in mask.items()}
    out = op(**leaves, offsets=wide["offsets"], backend=backend, **mask)
    found = torch.autograd.grad(out, list(leaves.values()), wide["d_out"])
    named = zip(leaves, found, strict=True)
    return {"out": out.detach().cpu(), **{f"d_{name}": value.cpu() for name, value in named}}


def assert_alike(found: dict[str, Tensor], truth: dict[str, Tensor], dtype: torch.dtype) -> None:
    """Finite at the same elements, and near the truth there."""
    tolerance = 2e-5 if dtype == torch.float32 else 2e-2
    for name, expected in truth.items():
        finite = expected.isfinite()
        assert torch.equal(found[name].isfinite(), finite), name
        torch.testing.assert_close(found[name][finite].double(), expected[finite], atol=tolerance, rtol=tolerance)


SINGLE = [
    pytest.param(
        op, dtype, number, id=f"{op.__name__}-{dtype}-{name}", marks=[pytest.mark.slow] * ((i + j + number) % 2 == 1)
    )
    for i, op in enumerate((causal_attention, hstu_attention))
    for j, dtype in enumerate((torch.float32, torch.float16))
    for number, name in enumerate(PLANTED)
]
"""`make test` takes each tensor of an op in one dtype, in turn."""


@pytest.mark.parametrize(("op", "dtype", "number"), SINGLE)
def test_what_is_not_finite_reaches_only_who_sees_it(op: Any, dtype: torch.dtype, number: int) -> None:
    """Each value and each place for a user of its own; five events or fewer are seen."""
    given = drawn(len(VALUES), dtype)
    for user, value in enumerate(VALUES):
        given[PLANTED[number]][user * LENGTH + PLACES[(user + number) % len(PLACES)], 0, 1] = value
    limits = (torch.arange(LENGTH, dtype=torch.int32) - 2).clamp(min=0).repeat(len(VALUES))
    mask = {"window": 5, "visible": limits if number % 2 else None}
    truth = results(op, given, "reference", **mask)
    assert_alike(results(op, given, "triton", **mask), truth, dtype)


@pytest.mark.parametrize("op", [causal_attention, hstu_attention], ids=lambda op: op.__name__)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_tables_add_up_visible_pairs_alone(op: Any, dtype: torch.dtype) -> None:
    """The last event holds NaN and sees itself alone: position 0 of the table's gradient is broken and no other."""
    given = drawn(1, dtype)
    for name in PLANTED:
        given[name][-1] = float("nan")
    visible = torch.arange(LENGTH, dtype=torch.int32)
    visible[-1] = 0
    truth = results(op, given, "reference", visible=visible)
    found = results(op, given, "triton", visible=visible)
    assert_alike(found, truth, dtype)
    assert found["d_position_bias"].isnan().nonzero().tolist() == [[0, 0]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("mask", ["window", "visible", "itself"])
def test_queries_that_see_nothing_of_their_tiles_first_keys(dtype: torch.dtype, mask: str) -> None:
    """Its running maximum is −∞ until a query meets its first key, itself at the latest, whose score may be −∞ too."""
    given = drawn(1, dtype)
    if mask == "itself":
        given["position_bias"][:, 0] = float("-inf")
    own_place = torch.arange(LENGTH, dtype=torch.int32)
    masks: dict[str, dict[str, Any]] = {
        "window": {"window": 5},
        "visible": {"visible": own_place.clamp(max=3)},
        "itself": {},
    }
    truth = results(causal_attention, given, "reference", **masks[mask])
    assert bool(truth["out"][1:].isfinite().all())
    assert_alike(results(causal_attention, given, "triton", **masks[mask]), truth, dtype)


@pytest.mark.parametrize("value", [1.0, float("nan")])
def test_a_row_whose_scores_are_all_minus_infinity(value: float) -> None:
    """Its result is NaN, and so is its log-sum-exp, as the reference has them; a NaN has the row computed alone."""
    given = drawn(1, torch.float32)
    given["position_bias"][:, :3] = float("-inf")
    given["v"][1] = value
    arguments = {name: given[name].to(DEVICE) for name in ("q", "k", "v", "offsets", "position_bias")}
    masks: list[dict[str, Any]] = [{}, {"window": 3}, {"prefix": 2, "window": 2}]
    for mask in masks:
        found, truth = (
            causal_attention(**arguments, **mask, return_log_sum_exp=True, backend=backend)
            for backend in ("triton", "reference")
        )
        for one, other in zip(found, truth, strict=True):
            torch.testing.assert_close(one, other, equal_nan=True, atol=2e-5, rtol=2e-5)
        assert bool(truth[1][0, 0].isnan())
