"""The CUDA kernels of sampled_softmax_loss, held to the error rule and to their promises on the CPU."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch

from argus_kernels import sampled_softmax_loss
from argus_kernels.ops.sampled_softmax_loss import OP
from tests.csrc.simt import sampled_softmax_loss_on_host as on_host
from tests.ops.softmax_draws import DTYPES, FORMS, LEAVES, draw, in_float64, require_right, require_same_reach, results

NAME = on_host.BACKEND.name
# Rows, candidates and columns past a tile, several chunks, splits and strips; widths that 16-byte copies take, one not.
SIZES = [(130, 270, 40), (1, 300, 8), (260, 3, 24), (150, 140, 37), (20, 140, 136)]


@pytest.fixture(autouse=True)
def _with_backend(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    reason = on_host.BACKEND.available()
    if reason is not None:
        pytest.skip(reason)
    assert NAME not in [backend.name for backend in OP.backends]
    monkeypatch.setattr(OP, "backends", (*OP.backends, on_host.BACKEND))
    yield


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_error_rule_across_tiles(sizes: tuple[int, int, int], form: str, dtype: torch.dtype) -> None:
    require_right(draw(*sizes, dtype, form), NAME)


@pytest.mark.parametrize(
    ("rows", "drawn", "width"),
    [(8192, 16384, 512), (8192, 8192, 256), (12288, 16384, 1024), (4096, 131072, 512), (16384, 16384, 2048)],
)
def test_blocks_fill_whole_waves_of_a_large_gpu(rows: int, drawn: int, width: int) -> None:
    for blocks in on_host.blocks(rows, drawn, width):
        assert blocks / (264 * -(-blocks // 264)) > 0.95


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_same_bits_in_every_order_of_the_threads(dtype: torch.dtype) -> None:
    arguments = draw(*SIZES[0], dtype)
    first = results(arguments, NAME)
    for _ in range(2):
        again = results(arguments, NAME)
        assert all(torch.equal(first[name], again[name]) for name in first)


@pytest.mark.parametrize(
    "wanted", [pytest.param(name, marks=[pytest.mark.slow] * (name in ("positive", "candidates"))) for name in LEAVES]
)
def test_one_gradient_alone_is_that_of_all(wanted: str) -> None:
    arguments = draw(*SIZES[0])
    whole = results(arguments, NAME, both=False)[f"d_{wanted}"]
    leaf = arguments[wanted].clone().requires_grad_()
    loss, _ = sampled_softmax_loss(**{**arguments, wanted: leaf}, backend=NAME)
    (alone,) = torch.autograd.grad((loss * torch.linspace(-1, 2, len(loss))).sum(), leaf)
    assert torch.equal(alone, whole)


@pytest.mark.parametrize("form", FORMS)
def test_every_candidate_a_hit(form: str) -> None:
    arguments = draw(140, 150, 16, form=form, catalogue=1)
    found = results(arguments, NAME, both=False)
    assert all(bool(value.isfinite().all()) for name, value in found.items() if name != "lse")
    if form == "refined":
        assert not found["loss"].count_nonzero()
        assert (found["lse"][arguments["row_weight"] != 0] == -math.inf).all()
    else:
        torch.testing.assert_close(found["loss"], -arguments["row_weight"] * arguments["positive_log_q"])
    assert not any(found[f"d_{name}"].count_nonzero() for name in LEAVES)


def test_ids_that_differ_in_the_last_bit_only() -> None:
    arguments = draw(20, 140, 8)
    for bit in (24, 53, 62):
        arguments["positive_ids"] = torch.arange(20) * 2 + 2**bit
        arguments["candidate_ids"] = torch.arange(140) * 2 + 2**bit + 1
        apart = results(arguments, NAME)
        arguments["candidate_ids"] = torch.full((140,), -1)
        assert all(torch.equal(value, apart[name]) for name, value in results(arguments, NAME).items())
        arguments["candidate_ids"] = torch.arange(140) * 2 + 2**bit
        assert not torch.equal(results(arguments, NAME)["loss"], apart["loss"])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_of_weight_zero_may_hold_nan(dtype: torch.dtype) -> None:
    clean = draw(*SIZES[0], dtype)
    ignored = clean["row_weight"] == 0
    dirty = {**clean, "query": clean["query"].clone(), "positive": clean["positive"].clone()}
    dirty["query"][ignored], dirty["positive"][ignored] = torch.nan, torch.inf
    ours, theirs = results(dirty, NAME), results(clean, NAME)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert not ours["d_query"][ignored].count_nonzero() and not ours["d_positive"][ignored].count_nonzero()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("form", FORMS)
def test_a_common_offset_of_ten_thousand_changes_nothing(form: str, dtype: torch.dtype) -> None:
    arguments = draw(40, 150, 9, form=form)
    for name in ("query", "positive", "candidates"):
        arguments[name] = ((arguments[name] * 4).round().clamp(-8, 8) / 8).to(dtype)
    arguments["query"][:, -1], arguments["scale"] = 1, torch.tensor(1.0)
    found = []
    for offset in (0.0, 10_000.0):
        moved = {**arguments, **{name: arguments[name].clone() for name in ("positive", "candidates")}}
        moved["positive"][:, -1] = moved["candidates"][:, -1] = offset
        found.append(results(moved, NAME, both=False))
    for name in ("loss", "d_positive", "d_candidates", "d_scale"):
        largest = float(found[0][name].abs().max())
        bound = largest * (2e-5 if found[0][name].dtype == torch.float32 else 2e-3)
        torch.testing.assert_close(found[1][name], found[0][name], rtol=0, atol=bound)


@pytest.mark.parametrize("form", FORMS)
def test_log_q_of_fifty(form: str) -> None:
    arguments = draw(40, 150, 9, form=form)
    arguments["log_q"] = torch.where(torch.arange(150) % 7 == 0, 50.0, -50.0)
    ours, truth = results(arguments, NAME), results(in_float64(arguments), "eager")
    for name, value in truth.items():
        torch.testing.assert_close(ours[name].double(), value, rtol=1e-4, atol=1e-4 * float(value.abs().max()))


@pytest.mark.parametrize("form", FORMS)
def test_a_score_of_infinity_gives_an_infinite_loss(form: str) -> None:
    arguments = draw(20, 150, 8, torch.bfloat16, form)
    for name in ("query", "positive", "candidates"):
        arguments[name] = arguments[name].abs() + 0.5
    arguments["query"][::2, 3] *= -1.0
    arguments["candidates"][140, 3] = math.inf
    ours, truth = results(arguments, NAME, both=False), results(in_float64(arguments), "eager", both=False)
    assert bool(truth["loss"].isposinf().any()) and bool(truth["loss"].isfinite().any())
    for name in ("loss", "lse", "d_query", "d_positive"):
        for is_one in (torch.isnan, torch.isposinf, torch.isneginf):
            assert torch.equal(is_one(ours[name]), is_one(truth[name])), name


PLANTED = [
    pytest.param(
        name, dtype, value, id=f"{name}-{dtype}-{value}", marks=[pytest.mark.slow] * ((i + j + k) % len(DTYPES) != 0)
    )
    for i, name in enumerate(("query", "positive", "candidates", "d_loss"))
    for j, dtype in enumerate(DTYPES)
    for k, value in enumerate((math.nan, math.inf, -math.inf))
]
"""`make test` plants each value in each tensor, in one dtype in turn."""


@pytest.mark.parametrize(("name", "dtype", "value"), PLANTED)
def test_what_is_not_finite_reaches_what_it_reaches_in_float64(name: str, dtype: torch.dtype, value: float) -> None:
    bound = 1e-5 if dtype == torch.float32 else 2e-2
    require_same_reach(draw(135, 140, 16, dtype), name, value, NAME, bound)


@pytest.mark.parametrize("size", [1e-6, 1e4])
def test_half_precision_score_gradients_stay_in_range(size: float) -> None:
    """Gradients of 10⁻⁶ or 10⁴ a row would leave float16 unless dS is scaled."""
    arguments = draw(40, 150, 16, torch.float16)
    arguments["candidates"] = arguments["candidates"] * 2**-5
    found = []
    for backend, values in ((NAME, arguments), ("eager", in_float64(arguments))):
        candidates = values["candidates"].clone().requires_grad_()
        loss, _ = sampled_softmax_loss(**{**values, "candidates": candidates, "scale": 1.0}, backend=backend)
        (gradient,) = torch.autograd.grad((loss * size).sum(), candidates)
        found.append(gradient.double())
    kept = found[1].abs() < 6e4
    bound = max(2e-3 * float(found[1][kept].abs().max()), 6e-8)
    torch.testing.assert_close(found[0][kept], found[1][kept], rtol=2e-3, atol=bound)


def test_inputs_that_cuda_refuses_are_refused() -> None:
    with pytest.raises(ValueError, match=r"sampled_softmax_loss\[cuda_on_host\]: query is float64"):
        sampled_softmax_loss(**in_float64(draw(4, 5, 3)), backend=NAME)
