"""The CUDA kernels of pairwise_loss, held to the error rule and to their promises on the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from argus_kernels import pairwise_loss
from argus_kernels.ops.pairwise_loss import OP
from tests.csrc.simt.pairwise_loss_on_host import PAIRWISE_LOSS
from tests.drawn_examples import examples

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
NAME = PAIRWISE_LOSS.name


@pytest.fixture(autouse=True, scope="module")
def _with_backend() -> Iterator[None]:
    reason = PAIRWISE_LOSS.available()
    if reason is not None:
        pytest.skip(reason)
    before = OP.backends
    OP.backends = (*before, PAIRWISE_LOSS)
    yield
    OP.backends = before


def events(lengths: list[int], window: int = 30, padding: int = 0, seed: int = 0, **changes: Any) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    total = sum(lengths) + padding
    return {
        "scores": torch.randn(total, generator=generator).requires_grad_(),
        "grades": torch.randint(-1, 3, (total,), generator=generator),
        "offsets": torch.tensor([0, *lengths]).cumsum(0).int(),
        "times": torch.randint(0, 20 * max(total, 1), (total,), generator=generator),
        "window": window,
        **changes,
    }


def results(arguments: dict[str, Any], backend: str) -> list[Tensor]:
    outputs = pairwise_loss(**arguments, backend=backend)
    return [*outputs, *torch.autograd.grad(outputs[0], arguments["scores"])]


def assert_equals_reference(arguments: dict[str, Any]) -> None:
    for ours, theirs in zip(results(arguments, NAME), results(arguments, "reference"), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@settings(max_examples=examples(6))
@given(
    lengths=st.lists(st.one_of(st.just(0), st.integers(0, 70)), max_size=4),
    window=st.sampled_from([0, 40, 10_000]),
    padding=st.integers(0, 3),
    seed=st.integers(0, 2**31 - 1),
)
def test_any_users(lengths: list[int], window: int, padding: int, seed: int) -> None:
    assert_equals_reference(events(lengths, window, padding, seed))


def test_a_window_over_many_blocks() -> None:
    """More partners than a logarithm takes, and ranges over several blocks."""
    assert_equals_reference(events([300, 3], window=10**9, padding=2))


def test_times_at_both_ends_of_64_bits() -> None:
    for times in ([2**63 - 1, 2**63 - 2, 2**63 - 9, 2**63 - 1], [-(2**63), -(2**63) + 3, -(2**63) + 9, -(2**63)]):
        changes: dict[str, Any] = {"times": torch.tensor(times)}
        changes["grades"] = torch.tensor([0, 1, 2**40, 2**40 + 1])
        assert_equals_reference(events([4], window=5, **changes))


def test_same_bits_in_every_order_of_the_threads() -> None:
    arguments = events([90, 40], window=300)
    first = results(arguments, NAME)
    for _ in range(3):
        assert all(torch.equal(one, other) for one, other in zip(results(arguments, NAME), first, strict=True))


def test_events_left_out_may_hold_anything() -> None:
    arguments = events([30, 12], padding=4, window=100)
    left_out = arguments["grades"] < 0
    left_out[42:] = True
    dirty = {**arguments, "scores": arguments["scores"].detach().masked_fill(left_out, torch.nan).requires_grad_()}
    dirty["times"] = arguments["times"].masked_fill(torch.arange(46) >= 42, 2**63 - 1)
    one, other = results(arguments, NAME), results(dirty, NAME)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(one, other, strict=True))
    assert not other[3][left_out].count_nonzero()


def test_inputs_that_cuda_refuses_are_refused() -> None:
    arguments = events([4])
    with pytest.raises(ValueError, match=r"pairwise_loss\[cuda_on_host\]: scores is float64"):
        pairwise_loss(**{**arguments, "scores": arguments["scores"].detach().double()}, backend=NAME)
