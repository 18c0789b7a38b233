"""sampled_softmax_loss beyond one tile: sizes at which the compiled CPU kernel cuts rows and candidates into pieces."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from argus_kernels import sampled_softmax_loss
from argus_kernels.ops.sampled_softmax_loss import OP
from benchmarks.harness.memory import peak_extra_bytes
from tests.ops.softmax_draws import DTYPES, FORMS, LEAVES, draw, in_float64, require_right, results

BACKEND = "cpp"
# One row and one candidate past a tile; few rows, few candidates; several groups of candidates and steps of rows.
SIZES = [(97, 513, 33), (1, 2_000, 7), (500, 3, 24), (700, 1_300, 40)]
LARGE = (200, 8_200, 1_024)
CASES = [
    *((sizes, form, dtype) for sizes in SIZES for form in FORMS for dtype in DTYPES),
    *(
        pytest.param(LARGE, form, dtype, marks=[pytest.mark.slow] * (form != FORMS[0] or dtype != torch.float32))
        for form in FORMS
        for dtype in DTYPES
    ),
]


@pytest.fixture(autouse=True)
def _library() -> None:
    reason = OP.backend(BACKEND).available()
    if reason is not None:
        pytest.skip(reason)


@pytest.mark.parametrize(("sizes", "form", "dtype"), CASES, ids=str)
def test_error_rule(sizes: tuple[int, int, int], form: str, dtype: torch.dtype) -> None:
    require_right(draw(*sizes, dtype, form), BACKEND)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=str)
@pytest.mark.parametrize("sizes", [*SIZES, pytest.param(LARGE, marks=pytest.mark.slow)], ids=str)
def test_same_bits_on_any_number_of_threads(sizes: tuple[int, int, int], dtype: torch.dtype) -> None:
    if dtype == torch.float64 and math.prod(sizes) > 10**8:
        pytest.skip("float64 serves gradient checks; its plain loops would take long")
    arguments = draw(*sizes, dtype)
    if dtype == torch.float64:
        arguments = in_float64(arguments)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 4, 3, 1):
            torch.set_num_threads(threads)
            found.append(results(arguments, BACKEND))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(found[0][name], other[name]) for name in other)


@pytest.mark.parametrize("form", FORMS)
def test_every_candidate_a_hit(form: str) -> None:
    arguments = draw(200, 1_300, 16, form=form, catalogue=1)
    found = results(arguments, BACKEND, both=False)
    assert all(bool(value.isfinite().all()) for name, value in found.items() if name != "lse")
    kept = arguments["row_weight"] != 0
    if form == "refined":
        assert not found["loss"].count_nonzero()
        assert (found["lse"][kept] == -math.inf).all()
    else:
        torch.testing.assert_close(found["loss"], -arguments["row_weight"] * arguments["positive_log_q"])
    assert not any(found[f"d_{name}"].count_nonzero() for name in LEAVES)


def test_ids_that_differ_in_the_last_bit_only() -> None:
    arguments = draw(150, 1_100, 8)
    for bit in (24, 53, 62):
        arguments["positive_ids"] = torch.arange(150) * 2 + 2**bit
        arguments["candidate_ids"] = torch.arange(1_100) * 2 + 2**bit + 1
        apart = results(arguments, BACKEND)
        arguments["candidate_ids"] = torch.full((1_100,), -1)
        assert all(torch.equal(value, apart[name]) for name, value in results(arguments, BACKEND).items())
        arguments["candidate_ids"] = torch.arange(1_100) * 2 + 2**bit
        assert not torch.equal(results(arguments, BACKEND)["loss"], apart["loss"])


def test_the_whole_catalogue_is_the_full_softmax() -> None:
    generator = torch.Generator().manual_seed(0)
    query, catalogue = (torch.randn(count, 24, generator=generator).double() for count in (150, 2_500))
    ids = torch.randint(0, 2_500, (150,), generator=generator)
    query.requires_grad_(), catalogue.requires_grad_()
    zeros = torch.zeros(2_500)
    loss, lse = sampled_softmax_loss(
        query, catalogue[ids], catalogue, ids, torch.arange(2_500), zeros, scale=0.3, backend=BACKEND
    )
    logits = 0.3 * query @ catalogue.T
    expected = F.cross_entropy(logits, ids, reduction="none")
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(lse, logits.logsumexp(1))
    ours, theirs = (torch.autograd.grad(value.sum(), [query, catalogue]) for value in (loss, expected))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_common_offset_of_ten_thousand_changes_nothing(form: str, dtype: torch.dtype) -> None:
    """Multiples of 1/8, so that every score is exact: the offset must cancel in loss and gradients."""
    arguments = draw(150, 1_100, 9, form=form)
    for name in ("query", "positive", "candidates"):
        arguments[name] = ((arguments[name] * 4).round().clamp(-8, 8) / 8).to(dtype)
    arguments["query"][:, -1], arguments["scale"] = 1, torch.tensor(1.0)
    found = []
    # bfloat16 has no 10,000, but 2¹³.
    for offset in (0.0, 8_192.0 if dtype == torch.bfloat16 else 10_000.0):
        moved = {**arguments, **{name: arguments[name].clone() for name in ("positive", "candidates")}}
        moved["positive"][:, -1] = moved["candidates"][:, -1] = offset
        found.append(results(moved, BACKEND, both=False))
        found[-1]["d_query"][:, -1] = 0
    tolerance = {torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}[dtype]
    for name in ("loss", "d_query", "d_positive", "d_candidates", "d_scale"):
        largest = float(found[0][name].abs().max())
        bound = largest * (2e-5 if found[0][name].dtype == torch.float32 else tolerance)
        torch.testing.assert_close(found[1][name], found[0][name], rtol=0, atol=bound)


@pytest.mark.parametrize("form", FORMS)
def test_log_q_of_fifty(form: str) -> None:
    arguments = draw(150, 1_100, 9, form=form)
    arguments["log_q"] = torch.where(torch.arange(1_100) % 7 == 0, 50.0, -50.0)
    ours, truth = results(arguments, BACKEND), results(in_float64(arguments), "eager")
    for name, value in truth.items():
        torch.testing.assert_close(ours[name].double(), value, rtol=1e-4, atol=1e-4 * float(value.abs().max()))


def test_rows_of_weight_zero_cost_nothing_and_may_hold_nan() -> None:
    clean = draw(400, 1_100, 16)
    ignored = clean["row_weight"] == 0
    dirty = {**clean, "query": clean["query"].clone(), "positive": clean["positive"].clone()}
    dirty["query"][ignored], dirty["positive"][ignored] = torch.nan, torch.inf
    ours, theirs = results(dirty, BACKEND), results(clean, BACKEND)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert not ours["d_query"][ignored].count_nonzero() and not ours["d_positive"][ignored].count_nonzero()


def test_the_scores_are_never_stored() -> None:
    """12,000 × 12,000 scores would be 576 MB in float32; a pass with gradients needs a tenth of that at most."""
    arguments = draw(12_000, 12_000, 8, catalogue=10**6)
    results({**arguments, **{name: value[:8] for name, value in arguments.items() if _of_rows(name)}}, BACKEND)
    peak, _ = peak_extra_bytes("cpu", lambda: results(arguments, BACKEND))
    if peak is None:
        pytest.skip("this system does not tell a process's peak memory")
    assert peak < 12_000 * 12_000 * 4 / 10, f"{peak / 1e6:.0f} MB"


def _of_rows(name: str) -> bool:
    return name in ("query", "positive", "positive_ids", "positive_log_q", "row_weight", "query_owner")
