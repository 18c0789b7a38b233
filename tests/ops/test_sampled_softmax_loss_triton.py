"""The Triton kernels of sampled_softmax_loss across tiles: split candidates, slabs of rows, repeatability."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from argus_kernels import sampled_softmax_loss
from argus_kernels.core.triton_support import available, loads_by_tma

pytestmark = pytest.mark.skipif(available() is not None, reason=str(available()))
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
NAMES = ("query", "positive", "candidates", "scale")


def drawn(rows: int, count: int, width: int) -> dict[str, Any]:
    """Arguments with owners, weights and a shared id here and there."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(DEVICE)

    def integers(high: int, size: int) -> Tensor:
        return torch.randint(0, high, (size,), generator=generator).to(DEVICE)

    return {
        "query": normal(rows, width),
        "positive": normal(rows, width),
        "candidates": normal(count, width),
        "positive_ids": integers(40, rows),
        "candidate_ids": integers(40, count),
        "log_q": normal(count) - 3,
        "positive_log_q": -normal(rows).abs() - 0.1,
        "scale": torch.tensor(0.3, device=DEVICE),
        "row_weight": (integers(4, rows) / 2).float(),
        "query_owner": integers(9, rows),
        "candidate_owner": integers(10, count) - 1,
    }


def results(backend: str, arguments: dict[str, Any], form: str) -> list[Tensor]:
    leaves = {name: arguments[name].detach().clone().requires_grad_() for name in NAMES}
    outputs = sampled_softmax_loss(**{**arguments, **leaves}, form=form, backend=backend)
    generator = torch.Generator().manual_seed(1)
    above = [torch.randn(output.shape, generator=generator).to(DEVICE) for output in outputs]
    return [*(output.detach() for output in outputs), *torch.autograd.grad(outputs, list(leaves.values()), above)]


@pytest.mark.parametrize("form", ["standard", "refined"])
def test_several_tiles_and_splits(form: str) -> None:
    """70 rows and 150 candidates of width 20 in tiles of 64 by 64 by 16: every edge is inside a tile."""
    arguments = drawn(70, 150, 20)
    ours = results("triton", arguments, form)
    for found, expected in zip(ours, results("reference", arguments, form), strict=True):
        torch.testing.assert_close(found, expected, atol=3e-5, rtol=3e-5)
    for found, again in zip(ours, results("triton", arguments, form), strict=True):
        assert torch.equal(found, again)


@pytest.mark.parametrize(("rows", "count", "width"), [(70, 150, 24), (130, 40, 264), (3, 5, 8)])
def test_descriptors_give_the_bits_of_plain_loads(
    rows: int, count: int, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a descriptor reads past the last row and column is zero, as a masked load has it."""
    from argus_kernels.ops.sampled_softmax_loss import triton_kernels, triton_products

    def half(value: Any) -> Any:
        return value.half() if isinstance(value, Tensor) and value.dim() == 2 else value

    arguments = {name: half(value) for name, value in drawn(rows, count, width).items()}
    described: list[bool] = []

    def noted(*matrices: Tensor) -> bool:
        described.append(loads_by_tma(*matrices))
        return described[-1]

    for module in (triton_kernels, triton_products):
        monkeypatch.setattr(module, "loads_by_tma", noted)
    ours = results("triton", arguments, "standard")
    # On another GPU than Hopper there is nothing to compare.
    assert set(described) == {DEVICE == "cpu" or torch.cuda.get_device_capability()[0] == 9}
    for module in (triton_kernels, triton_products):
        monkeypatch.setattr(module, "loads_by_tma", lambda *matrices: False)
    for found, expected in zip(ours, results("triton", arguments, "standard"), strict=True):
        assert torch.equal(found, expected)


def test_rows_that_tma_cannot_load_come_by_plain_loads() -> None:
    fits = torch.zeros(4, 64).half()
    assert loads_by_tma(fits) == (DEVICE == "cpu")
    padded = torch.zeros(4, 65).half()[:, :64]
    for other in (fits.float(), padded, fits[:, 1:], fits.T, torch.zeros(0, 64).half()):
        assert not loads_by_tma(fits, other)


def test_slabs_of_rows_give_what_one_slab_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    from argus_kernels.ops.sampled_softmax_loss import triton_kernels

    arguments = drawn(150, 10, 4)
    whole = results("triton", arguments, "standard")
    monkeypatch.setattr(triton_kernels, "SLAB_BYTES", 1)
    for found, expected in zip(results("triton", arguments, "standard"), whole, strict=True):
        torch.testing.assert_close(found, expected, atol=2e-6, rtol=2e-6)


def test_a_common_offset_of_the_scores_changes_nothing() -> None:
    """Scores of 10⁴: the positive's score leaves them before anything is rounded away."""
    arguments = drawn(9, 12, 4)
    direction = torch.zeros(4, device=DEVICE)
    direction[0] = 1e3
    shifted = dict(arguments)
    shifted["query"] = torch.cat([torch.ones(9, 1, device=DEVICE) * 32, arguments["query"][:, 1:]], 1)
    arguments["query"] = shifted["query"]
    shifted["positive"], shifted["candidates"] = arguments["positive"] + direction, arguments["candidates"] + direction
    loss = sampled_softmax_loss(**arguments, backend="triton")[0]
    moved = sampled_softmax_loss(**shifted, backend="triton")[0]
    torch.testing.assert_close(moved, loss, atol=2e-2, rtol=1e-2)


def test_tiny_gradients_survive_float16() -> None:
    """A mean over many rows hands gradients of 10⁻⁶ down: below float16's digits, unless they are lifted."""
    arguments = {name: value.half() if name in NAMES[:3] else value for name, value in drawn(8, 20, 6).items()}
    arguments["query"] *= 0.5
    arguments["row_weight"] = None
    leaf = arguments["candidates"].detach().clone().requires_grad_()
    found, expected = (
        torch.autograd.grad(sampled_softmax_loss(**{**arguments, "candidates": leaf}, backend=backend)[0].sum(), leaf)
        for backend in ("triton", "reference")
    )
    small, _ = (
        torch.autograd.grad(
            sampled_softmax_loss(**{**arguments, "candidates": leaf}, backend=backend)[0].sum() * 2.0**-12, leaf
        )
        for backend in ("triton", "reference")
    )
    torch.testing.assert_close(found[0], expected[0], atol=4e-3, rtol=4e-3)
    torch.testing.assert_close(small[0].float() * 2**12, found[0].float(), atol=4e-3, rtol=4e-3)


@pytest.mark.parametrize(
    ("row_blocks", "blocks", "programs"), [(64, 512, 128), (32, 512, 128), (256, 1024, 256), (1, 1, 1), (1, 256, 128)]
)
def test_candidates_are_split_so_that_the_grid_fills_the_multiprocessors(
    row_blocks: int, blocks: int, programs: int
) -> None:
    """On 132 multiprocessors 97 % of the rounds is work; 320 programs for 64 row blocks left 20 % idle."""
    from argus_kernels.ops.sampled_softmax_loss.triton_grid import split_blocks

    split = split_blocks(row_blocks, blocks, 132)
    assert row_blocks * -(-blocks // split) == programs
    rounds = -(-programs // 132)
    assert programs == 1 or row_blocks * blocks / (rounds * split * 132) > 0.96


def test_nothing_is_split_where_there_is_nothing() -> None:
    from argus_kernels.ops.sampled_softmax_loss.triton_grid import split_blocks

    assert split_blocks(3, 0, 132) == 1 and split_blocks(0, 3, 132) >= 1


WILD = {"nan": torch.nan, "infinity": torch.inf, "minus_infinity": -torch.inf}


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("value", list(WILD.values()), ids=list(WILD))
@pytest.mark.parametrize(("name", "form"), [("candidates", "standard"), ("query", "standard"), ("query", "refined")])
def test_what_a_row_leaves_out_does_not_reach_it(name: str, form: str, value: float) -> None:
    """What is not finite spreads to what float64 says and no further, in 66 rows and 40 candidates: two tiles each.

    Candidate 35 is an accidental hit of some rows and its owner's of others; row 65 leaves candidates out for both.
    """
    arguments = drawn(66, 40, 4)
    place = 35 if name == "candidates" else 65
    arguments[name][place, 3] = value
    arguments["row_weight"][65] = 1.0
    exact = {key: one.double() if key in NAMES else one for key, one in arguments.items()}
    found, expected = results("triton", arguments, form), results("reference", exact, form)
    for one, truth in zip(found, expected, strict=True):
        finite = truth.isfinite()
        assert torch.equal(one.isfinite(), finite)
        torch.testing.assert_close(one[finite].double(), truth[finite], atol=3e-5, rtol=3e-5)
    reached = ~expected[2 if name == "candidates" else 4].isfinite().all(1)
    assert reached.any() and not reached.all()


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("form", ["standard", "refined"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_row_without_a_candidate_left_counts_none_past_the_last(value: float, form: str) -> None:
    """Its positive is not finite, and 40 candidates leave the second tile half empty."""
    arguments = drawn(3, 40, 4)
    arguments["positive_ids"] = torch.tensor([77, 1, 2], device=DEVICE)
    arguments["candidate_ids"] = torch.full((40,), 77, device=DEVICE)
    arguments["row_weight"] = torch.ones(3, device=DEVICE)
    arguments["positive"][0, 1] = value
    exact = {key: one.double() if key in NAMES else one for key, one in arguments.items()}
    for found, truth in zip(results("triton", arguments, form)[:2], results("reference", exact, form), strict=False):
        torch.testing.assert_close(found.double(), truth, atol=3e-5, rtol=3e-5, equal_nan=True)
