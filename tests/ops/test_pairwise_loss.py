"""pairwise_loss against an explicit list of pairs; its edges; every bad input."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from argus_kernels import pairwise_loss
from argus_kernels.ops.pairwise_loss import OP, reference
from argus_kernels.testing import captured_arguments
from tests.drawn_examples import examples

BACKENDS = [backend.name for backend in OP.backends]


def draw(lengths: list[int], window: int = 20, padding: int = 0, seed: int = 0, spread: int = 60) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    total = sum(lengths) + padding
    return {
        "scores": torch.randn(total, generator=generator, dtype=torch.float64).requires_grad_(),
        "grades": torch.randint(-1, 3, (total,), generator=generator),
        "offsets": torch.tensor([0, *lengths]).cumsum(0).int(),
        "times": torch.randint(0, spread, (total,), generator=generator),
        "window": window,
    }


def serve(backend: str, arguments: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    reasons = OP.backend(backend).reasons(captured_arguments(OP, arguments))
    if reasons:
        pytest.skip("; ".join(reasons))
    return pairwise_loss(**arguments, backend=backend)


def listed(arguments: dict[str, Any]) -> tuple[float, int, int, list[float]]:
    """Loss, pairs, concordant pairs and the gradient, from a list of pairs in plain Python."""
    scores, grades, times = (arguments[name].tolist() for name in ("scores", "grades", "times"))
    offsets = arguments["offsets"].tolist()
    loss, pairs, concordant, gradient = 0.0, 0, 0, [0.0] * len(scores)
    for first, last in pairwise(offsets):
        for a in range(first, last):
            for b in range(first, last):
                if grades[a] > grades[b] >= 0 and abs(times[a] - times[b]) <= arguments["window"]:
                    margin = scores[a] - scores[b]
                    loss += math.log1p(math.exp(-abs(margin))) + max(-margin, 0.0)
                    pairs += 1
                    concordant += margin > 0
                    share = 0.5 * (1 - math.tanh(margin / 2))
                    gradient[a] -= share
                    gradient[b] += share
    return loss, pairs, concordant, gradient


def assert_equals_list(backend: str, arguments: dict[str, Any]) -> None:
    loss, pairs, concordant = serve(backend, arguments)
    expected_loss, expected_pairs, expected_concordant, expected_gradient = listed(arguments)
    assert (int(pairs), int(concordant)) == (expected_pairs, expected_concordant)
    assert float(loss.detach()) == pytest.approx(expected_loss, rel=1e-12, abs=1e-12)
    gradient = torch.autograd.grad(loss, arguments["scores"])[0]
    torch.testing.assert_close(gradient, torch.tensor(expected_gradient, dtype=torch.float64))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("block", [1, 3, 1024])
def test_equals_a_list_of_pairs(backend: str, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever part of the pair matrix the reference holds at once."""
    monkeypatch.setattr(reference, "BLOCK", block)
    assert_equals_list(backend, draw([7, 0, 1, 12, 2], padding=3))


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=examples(40), deadline=None)
@given(
    lengths=st.lists(st.integers(0, 8), max_size=5),
    window=st.integers(0, 70),
    padding=st.integers(0, 3),
    seed=st.integers(0, 2**31 - 1),
)
def test_any_users(backend: str, lengths: list[int], window: int, padding: int, seed: int) -> None:
    assert_equals_list(backend, draw(lengths, window, padding, seed))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("window", [30, 10**9])
def test_long_users(backend: str, window: int) -> None:
    """More events than any tile holds, out of order, with windows of a few and of all of a user's events."""
    assert_equals_list(backend, draw([300, 1, 270], window, padding=1, spread=2_000))


@pytest.mark.parametrize("backend", BACKENDS)
def test_grades_past_32_bits(backend: str) -> None:
    """Only the order of grades matters, whatever their size."""
    arguments = draw([30, 5])
    levels = torch.tensor([-(2**40), 3, 2**33, 2**33 + 1])
    assert_equals_list(backend, {**arguments, "grades": levels[arguments["grades"] + 1]})


@pytest.mark.parametrize("backend", BACKENDS)
def test_times_at_both_ends_of_64_bits(backend: str) -> None:
    arguments = draw([4], window=5)
    arguments["grades"] = torch.tensor([0, 1, 2, 3])
    for times in ([2**63 - 1, 2**63 - 2, 2**63 - 9, 2**63 - 1], [-(2**63), -(2**63) + 3, -(2**63) + 9, -(2**63)]):
        assert_equals_list(backend, {**arguments, "times": torch.tensor(times)})


@pytest.mark.parametrize("window", [100, 10**9])
def test_any_number_of_threads_gives_the_same_bits(window: int) -> None:
    arguments = draw([1_000, 0, 1_200, 7], window, spread=20_000)
    arguments["scores"] = arguments["scores"].detach().float().requires_grad_()
    results = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        outputs = serve("cpp", arguments)
        results.append([*outputs, torch.autograd.grad(outputs[0], arguments["scores"])[0]])
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_well_separated_pairs_keep_their_small_losses(backend: str) -> None:
    """Losses of 1e-9 a pair add up to what they are worth: nothing is lost beside a 1."""
    total = 200
    arguments = draw([total], window=10**9)
    arguments["grades"] = torch.arange(total) % 2
    arguments["scores"] = (arguments["grades"] * 20.0 + torch.arange(total) / 256.0).requires_grad_()
    loss, pairs, concordant = serve(backend, arguments)
    exact = pairwise_loss(**{**arguments, "scores": arguments["scores"].detach().double()}, backend="reference")
    assert int(pairs) == int(concordant) == total**2 // 4
    torch.testing.assert_close(loss.double(), exact[0], rtol=1e-6, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_order_of_events_does_not_matter(backend: str) -> None:
    arguments = draw([30])
    order = torch.randperm(30, generator=torch.Generator().manual_seed(1))
    shuffled = {**arguments, **{name: arguments[name][order] for name in ("scores", "grades", "times")}}
    loss, pairs, concordant = serve(backend, arguments)
    other_loss, other_pairs, other_concordant = serve(backend, shuffled)
    torch.testing.assert_close(loss, other_loss)
    assert (int(pairs), int(concordant)) == (int(other_pairs), int(other_concordant))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("grade", [0, 2, -1])
def test_no_pair_is_no_loss(backend: str, grade: int) -> None:
    arguments = draw([9, 4])
    arguments["grades"] = torch.full((13,), grade)
    loss, pairs, concordant = serve(backend, arguments)
    assert (float(loss.detach()), int(pairs), int(concordant)) == (0, 0, 0)
    assert not torch.autograd.grad(loss, arguments["scores"])[0].count_nonzero()


@pytest.mark.parametrize("backend", BACKENDS)
def test_events_left_out_may_hold_anything(backend: str) -> None:
    """A negative grade, and a place past the last offset: NaN scores there reach nothing."""
    arguments = draw([8, 5], padding=2)
    left_out = arguments["grades"] < 0
    left_out[13:] = True
    assert left_out[:13].any()
    dirty = {**arguments, "scores": arguments["scores"].detach().masked_fill(left_out, torch.nan).requires_grad_()}
    dirty["times"] = arguments["times"].masked_fill(torch.arange(15) >= 13, torch.iinfo(torch.int64).max)
    results = []
    for given_arguments in (arguments, dirty):
        outputs = serve(backend, given_arguments)
        results.append([*outputs, torch.autograd.grad(outputs[0], given_arguments["scores"])[0]])
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))
    assert not results[1][3][left_out].count_nonzero()


@pytest.mark.parametrize("backend", BACKENDS)
def test_ties_count_as_wrong(backend: str) -> None:
    arguments = draw([2], window=10**9)
    arguments["scores"] = torch.zeros(2, requires_grad=True)
    arguments["grades"] = torch.tensor([1, 0])
    loss, pairs, concordant = serve(backend, arguments)
    assert float(loss.detach()) == pytest.approx(math.log(2))
    assert (int(pairs), int(concordant)) == (1, 0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_common_offset_of_ten_thousand_changes_nothing(backend: str) -> None:
    """Scores in sixteenths, so that float32 holds them exactly at both places."""
    arguments = draw([20, 10])
    scores = (arguments["scores"].detach() * 16).round().float() / 16
    results = []
    for offset in (0.0, 10_000.0):
        moved = (scores + offset).requires_grad_()
        outputs = serve(backend, {**arguments, "scores": moved})
        results.append([*outputs, torch.autograd.grad(outputs[0], moved)[0]])
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_far_apart_scores_do_not_overflow(backend: str) -> None:
    arguments = draw([2], window=10**9)
    arguments["scores"] = torch.tensor([-3e4, 3e4], requires_grad=True)
    arguments["grades"] = torch.tensor([1, 0])
    loss, _, _ = serve(backend, arguments)
    assert float(loss.detach()) == 6e4
    assert torch.autograd.grad(loss, arguments["scores"])[0].tolist() == [-1, 1]


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int16, torch.int32])
def test_grades_of_any_integer_type(dtype: torch.dtype) -> None:
    arguments = draw([10])
    arguments["grades"].clamp_(min=0)
    expected = pairwise_loss(**arguments)
    found = pairwise_loss(**{**arguments, "grades": arguments["grades"].to(dtype)})
    assert all(torch.equal(one, other) for one, other in zip(expected, found, strict=True))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"offsets": torch.tensor([0, 4, 2], dtype=torch.int32)}, r"offsets\[2\] is 2, expected at least offsets\[1\]"),
        ({"offsets": torch.tensor([0, 9], dtype=torch.int32)}, r"offsets\[1\] is 9, expected at most the 6 rows"),
        ({"offsets": torch.tensor([1, 6], dtype=torch.int32)}, r"offsets\[0\] is 1, expected 0"),
        (
            {"offsets": torch.tensor([0, 6], dtype=torch.int16)},
            r"offsets is torch\.int16, expected torch\.int32 or torch\.int64",
        ),
        ({"grades": torch.zeros(6)}, r"grades is torch\.float32"),
        ({"grades": torch.zeros(5, dtype=torch.int64)}, r"grades has shape \[5\], expected \[6\] like scores"),
        ({"times": torch.zeros(6, dtype=torch.int32)}, r"times is torch\.int32, expected torch\.int64"),
        ({"window": -1}, r"window is -1, expected at least 0"),
        ({"scores": torch.zeros(6, 1)}, r"scores has shape \[6, 1\], expected \[any\]"),
    ],
)
def test_bad_input(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match="pairwise_loss.*" + sentence):
        pairwise_loss(**{**draw([4, 2]), **change})
