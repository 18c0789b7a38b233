"""The error rule against planted errors: it must pass what is right and fail what is slightly wrong."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from argus_kernels.testing import compare, require_close

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(params=DTYPES, ids=str)
def product(request: pytest.FixtureRequest) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """a, b in a low dtype; their product in float64 and as PyTorch gives it."""
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(64, 96, generator=generator).to(request.param)
    b = torch.randn(96, 48, generator=generator).to(request.param)
    return a, b, a.double() @ b.double(), a @ b


def test_another_summation_order_passes(product: tuple[Tensor, ...]) -> None:
    a, b, truth, torch_result = product
    order = torch.randperm(a.shape[1], generator=torch.Generator().manual_seed(1))
    reordered = (a[:, order].float() @ b[order].float()).to(a.dtype)
    assert compare("product", reordered, truth, torch_result).passed


def test_the_rounded_truth_passes_where_torch_is_exact() -> None:
    truth = torch.tensor([1 / 3, 2 / 3, 1.0], dtype=torch.float64)
    exact = truth.float()
    nudged = torch.nextafter(exact, torch.zeros(3))
    assert compare("thirds", exact, truth, exact).passed
    assert compare("thirds", exact, truth, nudged).passed


def test_one_wrong_element_fails(product: tuple[Tensor, ...]) -> None:
    _, _, truth, torch_result = product
    wrong = torch_result.clone()
    wrong[3, 5] *= 1.1
    wrong[3, 5] += 1.0
    assert not compare("product", wrong, truth, torch_result).passed


def test_a_small_error_everywhere_fails(product: tuple[Tensor, ...]) -> None:
    """Twice the rounding error everywhere stays under the maximum rule; the RMS rule has it."""
    _, _, truth, torch_result = product
    wrong = (truth + 2.2 * (torch_result.double() - truth)).to(torch.float64)
    comparison = compare("product", wrong, truth, torch_result.double())
    assert not comparison.passed
    assert comparison.rms_error > comparison.rms_allowed


def test_accumulating_in_the_low_dtype_fails() -> None:
    """Weight gradients summed in bfloat16 drift; PyTorch sums them in float32."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(4096, 16, generator=generator).to(torch.bfloat16)
    total = torch.zeros(16, dtype=torch.bfloat16)
    for row in rows:
        total = total + row
    assert not compare("sum", total, rows.double().sum(0), rows.sum(0)).passed


def test_a_missing_block_fails(product: tuple[Tensor, ...]) -> None:
    a, b, truth, torch_result = product
    assert not compare("product", a[:, :-4] @ b[:-4], truth, torch_result).passed


@pytest.mark.parametrize("planted", [float("nan"), float("inf")])
def test_non_finite_never_passes(product: tuple[Tensor, ...], planted: float) -> None:
    _, _, truth, torch_result = product
    wrong = torch_result.clone()
    wrong[0, 0] = planted
    comparison = compare("product", wrong, truth, torch_result)
    assert not comparison.passed and "not finite" in comparison.sentence


def test_infinities_must_be_the_truths() -> None:
    truth = torch.tensor([1.0, float("-inf")], dtype=torch.float64)
    assert compare("masked", truth.float(), truth, truth.float()).passed
    assert not compare("masked", torch.tensor([1.0, float("inf")]), truth, truth.float()).passed
    assert not compare("masked", torch.tensor([1.0, -1e30]), truth, truth.float()).passed


def test_shapes_dtypes_and_truths_are_checked() -> None:
    truth = torch.zeros(3, dtype=torch.float64)
    assert "shape" in compare("x", torch.zeros(2), truth, torch.zeros(3)).problem
    assert "dtype" in compare("x", torch.zeros(3), truth, torch.zeros(3).half()).problem
    assert "truth" in compare("x", torch.zeros(3), truth.float(), torch.zeros(3)).problem
    assert "paired" in compare("x", [torch.zeros(3)], [truth, truth], [torch.zeros(3)]).problem


def test_integers_must_be_equal() -> None:
    counts = torch.tensor([3, 5])
    assert compare("pairs", counts, counts, counts).passed
    assert not compare("pairs", counts + 1, counts, counts).passed


def test_pooling_draws_keeps_a_lucky_scalar_out() -> None:
    """One scalar for which PyTorch happens to be exact would fail a result as good as PyTorch's; eight do not."""
    generator = torch.Generator().manual_seed(3)
    draws = [torch.randn(1000, generator=generator) for _ in range(8)]
    truths = [draw.double().sum() for draw in draws]
    ours = [draw.flip(0).reshape(10, 100).sum(1).sum() for draw in draws]
    assert compare("sum", ours, truths, [draw.sum() for draw in draws]).passed


def test_require_close_carries_the_figures() -> None:
    with pytest.raises(AssertionError, match=r"d_weight fails: max error .* \(allowed"):
        require_close("d_weight", torch.ones(2), torch.zeros(2, dtype=torch.float64), torch.zeros(2))


def test_empty_results_pass() -> None:
    assert compare("nothing", torch.zeros(0), torch.zeros(0, dtype=torch.float64), torch.zeros(0)).passed


def test_further_draws_of_torch_keep_its_luck_out_and_an_error_in() -> None:
    """A scalar for which PyTorch happens to be exact, beside 32 draws of its usual error; larger errors still fail."""
    generator = torch.Generator().manual_seed(3)
    draws = [torch.randn(1000, generator=generator) for _ in range(32)]
    further = [(draw.double().sum(), draw.sum()) for draw in draws]
    usual = max(float((result - truth).abs()) for truth, result in further)
    truth = torch.tensor(1 / 3, dtype=torch.float64)
    lucky, ours, wrong = truth.float(), (truth + usual / 3).float(), (truth + 4 * usual).float()
    assert not compare("sum", ours, truth, lucky).passed
    assert compare("sum", ours, truth, lucky, further=further).passed
    assert not compare("sum", wrong, truth, lucky, further=further).passed
