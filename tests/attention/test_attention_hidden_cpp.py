"""What the mask hides reaches nothing in the compiled attention ops, whatever it holds: NaN and infinities too."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import argus_kernels
from argus_kernels.core import native

OPS = ("causal_attention", "hstu_attention")
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
HEADS, WIDTH, POSITIONS, TIMES = 2, 8, 300, 8
BROKEN = 150
"""The row that holds what must not spread."""
INF, NAN = float("inf"), float("nan")


@pytest.fixture(autouse=True)
def _library() -> None:
    reason = native.why_not("cpu")
    if reason is not None:
        pytest.skip(reason)


def draw(lengths: list[int], dtype: torch.dtype, biases: bool = True) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(sum(lengths))
    rows = sum(lengths)
    given: dict[str, Any] = {
        name: torch.randn(rows, HEADS, WIDTH, generator=generator).to(dtype) for name in ("q", "k", "v", "d_out")
    }
    given["offsets"] = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    if biases:
        given["position_bias"] = torch.randn(HEADS, POSITIONS, generator=generator)
        given["time_bias"] = torch.randn(HEADS, TIMES, generator=generator)
        given["query_time"] = given["key_time"] = torch.arange(rows) * 3
    return given


def gradients(op: str, given: dict[str, Any], window: int | None = None, visible: Tensor | None = None) -> Any:
    leaves = {
        name: value.detach().clone().requires_grad_()
        for name, value in given.items()
        if name in ("q", "k", "v", "position_bias", "time_bias")
    }
    rest = {name: value for name, value in given.items() if name not in (*leaves, "d_out")}
    out = getattr(argus_kernels, op)(**leaves, **rest, window=window, visible=visible, backend="cpp")
    found = torch.autograd.grad(out, list(leaves.values()), given["d_out"])
    return {"out": out.detach(), **{f"d_{name}": value for name, value in zip(leaves, found, strict=True)}}


def broken_rows(result: Tensor) -> list[int]:
    return (~result.isfinite()).flatten(1).any(1).nonzero().flatten().tolist()


def expected_rows(op: str, name: str, seen: Tensor) -> dict[str, list[int]]:
    """The rows that row BROKEN of `name` reaches by the formula; seen bool [query's row, key's row]."""
    keys = seen[BROKEN].nonzero().flatten().tolist()
    queries = seen[:, BROKEN].nonzero().flatten().tolist()
    if name in ("q", "d_out"):
        return {"out": [BROKEN] if name == "q" else [], "d_q": [BROKEN], "d_k": keys, "d_v": keys}
    others = seen[queries].any(0).nonzero().flatten().tolist() if op == "causal_attention" else [BROKEN]
    return {"out": queries, "d_q": queries, "d_k": others, "d_v": others if name == "k" else []}


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["q", "k", "v", "d_out"])
@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_a_broken_row_reaches_only_who_sees_it(op: str, dtype: torch.dtype, name: str, value: float) -> None:
    lengths = [20, 205]
    given = draw(lengths, dtype)
    given[name][BROKEN] = value
    found = gradients(op, given)
    place = torch.arange(sum(lengths))
    user = (place >= 20).int()
    seen = (user[:, None] == user) & (place[:, None] >= place)
    for result, rows in expected_rows(op, name, seen).items():
        broken = broken_rows(found[result])
        # An infinite score of hstu's may give a gradient of 0 where NaN would be allowed.
        assert set(broken) <= set(rows), result
        if value != value:
            assert broken == rows, result


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_window_and_visible_hide_what_is_broken(op: str, dtype: torch.dtype) -> None:
    """Rows that see nothing broken have the bits that they have without it, but for the order of their sums."""
    given = draw([BROKEN + 60], dtype)
    visible = torch.arange(BROKEN + 60, dtype=torch.int32).clamp(max=BROKEN)
    clean = gradients(op, given, window=17, visible=visible)
    for name in ("k", "v"):
        given[name][BROKEN] = NAN
    found = gradients(op, given, window=17, visible=visible)
    whole = torch.arange(BROKEN + 60) != BROKEN
    for name in ("out", "d_q"):
        assert broken_rows(found[name]) == [BROKEN]
        torch.testing.assert_close(found[name][whole], clean[name][whole], rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_entries_of_a_table_that_no_pair_reads_reach_nothing(op: str, dtype: torch.dtype, value: float) -> None:
    given = draw([3, 70], dtype)
    clean = gradients(op, given)
    given["position_bias"][:, 70:] = value
    found = gradients(op, given)
    for name, result in clean.items():
        assert torch.equal(found[name], result), name
    assert not found["d_position_bias"][:, 70:].any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_score_of_minus_infinity_is_a_weight_of_zero(dtype: torch.dtype) -> None:
    """Also where it is the first that a query meets: itself."""
    given = draw([70], dtype)
    given["position_bias"][:, 0] = -INF
    found = gradients("causal_attention", given)
    wide = {name: value.double() if value.is_floating_point() else value for name, value in given.items()}
    truth = argus_kernels.causal_attention(
        **{name: value for name, value in wide.items() if name != "d_out"}, backend="reference"
    )
    # The first event sees itself alone, at -inf: its softmax is of nothing.
    assert broken_rows(found["out"]) == [0]
    tolerance = 1e-5 if dtype in (torch.float32, torch.float64) else 4e-2
    torch.testing.assert_close(found["out"][1:].double(), truth[1:], rtol=tolerance, atol=tolerance)
    assert broken_rows(found["d_q"]) == [0]


def test_times_further_apart_than_int64_keep_their_buckets() -> None:
    """Distances wrap around as in the definition, of which the kernels' short cut through a block knows nothing."""
    given = draw([40], torch.float64)
    given["time_bias"] = torch.randn(HEADS, 200, dtype=torch.float64)
    given["position_bias"] = given["position_bias"].double()
    times = torch.tensor([-(2**63), 2**62 + 3, 0, -(2**62) - 1, 2**63 - 1, 2**55, -(2**50), 12])
    given["query_time"], given["key_time"] = times.repeat(5), times.flip(0).repeat(5)
    arguments = {name: value for name, value in given.items() if name != "d_out"}
    results = []
    for backend in ("cpp", "reference"):
        table = given["time_bias"].clone().requires_grad_()
        out = argus_kernels.hstu_attention(**{**arguments, "time_bias": table}, backend=backend)
        results.append((out.detach(), *torch.autograd.grad(out, table, given["d_out"])))
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected)
