"""sampled_softmax_loss against the full softmax, by enumeration and in expectation; its edges; every bad input."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from argus_kernels import sampled_softmax_loss
from argus_kernels.ops.sampled_softmax_loss import OP
from argus_kernels.testing import captured_arguments

BACKENDS = [backend.name for backend in OP.backends]
LEAVES = ("query", "positive", "candidates", "scale")


def draw(rows: int, drawn: int, width: int = 4, seed: int = 0, dtype: torch.dtype = torch.float64) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    scale = torch.tensor(0.7, dtype=torch.promote_types(dtype, torch.float32))
    arguments = {name: torch.randn(rows, width, generator=generator).to(dtype) for name in ("query", "positive")}
    return {
        **{name: value.requires_grad_() for name, value in arguments.items()},
        "candidates": torch.randn(drawn, width, generator=generator).to(dtype).requires_grad_(),
        "positive_ids": torch.arange(rows),
        "candidate_ids": torch.arange(drawn) + 100,
        "log_q": torch.rand(drawn, generator=generator) - 3,
        "scale": scale.requires_grad_(),
    }


def catalogue(rows: int, items: int, width: int = 4, seed: int = 0) -> dict[str, Any]:
    """Every item a candidate; each row's positive is a row of the catalogue itself, gradients included."""
    arguments = draw(rows, items, width, seed)
    ids = torch.randint(0, items, (rows,), generator=torch.Generator().manual_seed(seed + 1))
    return {
        **arguments,
        "positive": arguments["candidates"][ids],
        "positive_ids": ids,
        "candidate_ids": torch.arange(items),
        "log_q": torch.zeros(items),
    }


def serve(backend: str, arguments: dict[str, Any]) -> tuple[Tensor, Tensor]:
    reasons = OP.backend(backend).reasons(captured_arguments(OP, arguments))
    if reasons:
        pytest.skip("; ".join(reasons))
    return sampled_softmax_loss(**arguments, backend=backend)


def gradients(loss: Tensor, arguments: dict[str, Any], names: tuple[str, ...] = LEAVES) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, [arguments[name] for name in names], retain_graph=True, materialize_grads=True)


def transcribed(arguments: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """The two formulas as they are published, row by row, over the candidates that stay."""
    losses, lses = [], []
    positive_log_q, weight = arguments.get("positive_log_q"), arguments.get("row_weight")
    for row in range(arguments["query"].shape[0]):
        own = arguments["scale"] * arguments["query"][row] @ arguments["positive"][row]
        scores = arguments["scale"] * arguments["candidates"] @ arguments["query"][row] - arguments["log_q"]
        stays = arguments["candidate_ids"] != arguments["positive_ids"][row]
        if arguments.get("query_owner") is not None:
            owner = arguments["candidate_owner"]
            stays &= (owner < 0) | (owner != arguments["query_owner"][row])
        scores = scores[stays]
        if arguments.get("form") == "refined":
            assert positive_log_q is not None
            log_q_positive = positive_log_q[row].double()
            negatives = scores + torch.log1p(-log_q_positive.exp()) - math.log(max(len(scores), 1))
            lse = negatives.logsumexp(0)
            share = torch.cat([own[None], negatives]).softmax(0)[0].detach()
            loss = (1 - share) * (lse - own) if len(scores) else own * 0
        else:
            positive = own if positive_log_q is None else own - positive_log_q[row]
            lse = torch.cat([positive[None], scores]).logsumexp(0)
            loss = lse - own
        losses.append(loss if weight is None else loss * weight[row])
        lses.append(lse)
    return torch.stack(losses), torch.stack(lses)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("form", ["standard", "refined"])
@pytest.mark.parametrize("positive_log_q", [False, True])
@pytest.mark.parametrize("owners", [False, True])
def test_equals_the_published_formula(backend: str, form: str, positive_log_q: bool, owners: bool) -> None:
    if form == "refined" and not positive_log_q:
        pytest.skip("the refined form needs positive_log_q")
    arguments = {**draw(6, 20), "form": form}
    arguments["candidate_ids"][::3] = torch.arange(7)
    arguments["row_weight"] = torch.linspace(0.5, 2, 6)
    if positive_log_q:
        arguments["positive_log_q"] = -torch.linspace(0.1, 4, 6)
    if owners:
        arguments["query_owner"] = torch.arange(6) % 3
        arguments["candidate_owner"] = torch.arange(20) % 4 - 1
    ours, theirs = serve(backend, arguments), transcribed(arguments)
    gradient = torch.linspace(-1, 2, 6, dtype=torch.float64)
    for index in range(2):
        torch.testing.assert_close(ours[index], theirs[index])
        found = gradients((ours[index] * gradient).sum(), arguments)
        for one, other in zip(found, gradients((theirs[index] * gradient).sum(), arguments), strict=True):
            torch.testing.assert_close(one, other)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_whole_catalogue_is_the_full_softmax(backend: str) -> None:
    arguments = catalogue(7, 30)
    loss, lse = serve(backend, arguments)
    logits = arguments["scale"] * arguments["query"] @ arguments["candidates"].T
    expected = F.cross_entropy(logits, arguments["positive_ids"], reduction="none")
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(lse, logits.logsumexp(1))
    names = ("query", "candidates", "scale")
    for one, other in zip(
        gradients(loss.sum(), arguments, names), gradients(expected.sum(), arguments, names), strict=True
    ):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_refined_form_over_the_whole_catalogue_has_the_full_softmax_gradient(backend: str) -> None:
    """Every item once, Q uniform: the weighted loss gives the gradient of −log P exactly."""
    arguments = {**catalogue(5, 12), "form": "refined"}
    arguments["log_q"] = torch.full((12,), -math.log(12), dtype=torch.float64)
    arguments["positive_log_q"] = torch.full((5,), -math.log(12), dtype=torch.float64)
    loss, _ = serve(backend, arguments)
    logits = arguments["scale"] * arguments["query"] @ arguments["candidates"].T
    expected = F.cross_entropy(logits, arguments["positive_ids"], reduction="none")
    names = ("query", "candidates", "scale")
    for one, other in zip(
        gradients(loss.sum(), arguments, names), gradients(expected.sum(), arguments, names), strict=True
    ):
        torch.testing.assert_close(one, other)


DRAWS, SAMPLED = 200, 2_000


def sampled_gradient_errors(backend: str, form: str, correct: bool) -> Tensor:
    """How many standard errors the mean gradient of query over many draws is from the full softmax's, [N · D]."""
    arguments = catalogue(3, 20)
    logits = arguments["scale"] * arguments["query"] @ arguments["candidates"].T
    full = F.cross_entropy(logits, arguments["positive_ids"], reduction="none").sum()
    expected = torch.autograd.grad(full, arguments["query"])[0]
    q = torch.linspace(-2, 1, 20, dtype=torch.float64).softmax(0)
    given = {**arguments, "form": form}
    generator = torch.Generator().manual_seed(5)
    found = []
    for _ in range(DRAWS):
        ids = torch.multinomial(q, SAMPLED, replacement=True, generator=generator)
        log_q = q[ids].log() if correct else torch.full((SAMPLED,), -math.log(20), dtype=torch.float64)
        given["candidates"], given["candidate_ids"] = arguments["candidates"][ids].detach(), ids
        given["log_q"] = log_q + (math.log(SAMPLED) if form == "standard" else 0)
        if form == "refined":
            given["positive_log_q"] = q[arguments["positive_ids"]].log()
        loss, _ = serve(backend, given)
        found.append(torch.autograd.grad(loss.sum(), arguments["query"])[0])
    drawn = torch.stack(found)
    return ((drawn.mean(0) - expected) / (drawn.std(0) / math.sqrt(DRAWS))).abs().flatten()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("form", ["standard", "refined"])
def test_the_correction_is_unbiased(backend: str, form: str) -> None:
    """Within 4.5 standard errors of the full softmax (12 figures: one false alarm in 12,000); without it far off."""
    assert sampled_gradient_errors(backend, form, correct=True).max() < 4.5
    assert sampled_gradient_errors(backend, form, correct=False).max() > 20


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_denominator_is_unbiased(backend: str) -> None:
    """With log(M · Q) the mean of e^lse is the full softmax's denominator, whatever M; the wrong sign is caught."""
    arguments = catalogue(1, 20)
    logits = arguments["scale"] * arguments["query"] @ arguments["candidates"].T
    expected = float(logits.exp().sum().detach())
    q = torch.linspace(-2, 1, 20, dtype=torch.float64).softmax(0)
    generator = torch.Generator().manual_seed(3)
    for sign, unbiased in ((1, True), (-1, False)):
        values = []
        for _ in range(600):
            ids = torch.multinomial(q, 5, replacement=True, generator=generator)
            drawn = {"candidates": arguments["candidates"][ids].detach(), "candidate_ids": ids}
            _, lse = serve(backend, {**arguments, **drawn, "log_q": sign * (5 * q[ids]).log()})
            values.append(float(lse.detach().exp()))
        mean = torch.tensor(values, dtype=torch.float64)
        error = abs(float(mean.mean()) - expected) / float(mean.std() / math.sqrt(len(values)))
        assert (error < 4.5) == unbiased, error


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_refined_gradient_is_that_of_minus_log_share(backend: str) -> None:
    """(1 − P̂)(∇lse − ∇s⁺) is the gradient of −log P̂: the stop-gradient hides no other objective."""
    arguments = {**draw(5, 9), "form": "refined", "positive_log_q": -torch.linspace(0.5, 3, 5)}
    loss, lse = serve(backend, arguments)
    own = arguments["scale"] * (arguments["query"] * arguments["positive"]).sum(1)
    expected = F.softplus(lse - own).sum()
    for one, other in zip(gradients(loss.sum(), arguments), gradients(expected, arguments), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_common_offset_of_ten_thousand_changes_nothing(backend: str, dtype: torch.dtype) -> None:
    """All inputs are multiples of 1/8, so that the scores are exact: loss and gradients must be those without it."""
    generator = torch.Generator().manual_seed(0)

    def eighths(*shape: int) -> Tensor:
        return (torch.randint(-8, 9, shape, generator=generator) / 8).to(dtype)

    base = {**draw(4, 12, dtype=dtype), "query": eighths(4, 5), "positive": eighths(4, 5), "candidates": eighths(12, 5)}
    base["scale"] = 1.0
    base["query"][:, -1] = 1
    base["query"].requires_grad_()
    results = []
    for offset in (0.0, 10_000.0):
        moved = dict(base)
        for name in ("positive", "candidates"):
            moved[name] = base[name].detach().clone()
            moved[name][:, -1] = offset
            moved[name].requires_grad_()
        loss, _ = serve(backend, moved)
        d_positive, d_candidates = gradients(loss.sum(), moved, ("positive", "candidates"))
        results.append([loss, d_positive, d_candidates])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6 if one.dtype == torch.float32 else 1e-3, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("form", ["standard", "refined"])
def test_log_q_of_fifty(backend: str, form: str) -> None:
    single = {**draw(4, 8, dtype=torch.float32), "form": form, "positive_log_q": torch.full((4,), -1.0)}
    single["log_q"] = torch.tensor([50.0, -50.0] * 4)
    double = {
        name: value.detach().double().requires_grad_() if name in LEAVES else value for name, value in single.items()
    }
    for one, other in zip(serve(backend, single), transcribed(double), strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=1e-5)
    found = gradients(serve(backend, single)[0].sum(), single)
    expected = gradients(transcribed(double)[0].sum(), double)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_ids_that_float32_cannot_hold(backend: str) -> None:
    """2²⁴ and 2²⁴ + 1 are one number in float32; 2⁶² and 2⁶² + 1 in float64."""
    arguments = draw(2, 2)
    arguments["positive_ids"] = torch.tensor([2**24, 2**62])
    arguments["candidate_ids"] = torch.tensor([2**24 + 1, 2**62 + 1])
    apart = serve(backend, arguments)[0]
    arguments["candidate_ids"] = torch.tensor([7, 8])
    assert torch.equal(apart, serve(backend, arguments)[0])
    arguments["candidate_ids"] = torch.tensor([2**24, 2**62])
    assert (serve(backend, arguments)[0] < apart).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("form", ["standard", "refined"])
@pytest.mark.parametrize("drawn", [0, 5])
def test_no_candidate_left(backend: str, form: str, drawn: int) -> None:
    """M = 0, and every candidate an accidental hit: no NaN, no gradient but that of the positive's own score in lse."""
    arguments = {**draw(3, drawn), "form": form, "positive_log_q": torch.tensor([-1.0, -2.0, -3.0])}
    arguments["positive_ids"] = torch.full((3,), 4)
    arguments["candidate_ids"] = torch.full((drawn,), 4)
    loss, lse = serve(backend, arguments)
    own = (arguments["scale"] * (arguments["query"] * arguments["positive"]).sum(1)).detach()
    if form == "refined":
        assert loss.tolist() == [0, 0, 0]
        assert lse.tolist() == [-math.inf] * 3
    else:
        torch.testing.assert_close(loss, torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64))
        torch.testing.assert_close(lse, own + loss)
    for gradient in gradients(loss.sum(), arguments):
        assert not gradient.count_nonzero()
    for gradient in gradients(lse.sum(), arguments):
        assert gradient.isfinite().all()
        assert form == "standard" or not gradient.count_nonzero()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("form", ["standard", "refined"])
def test_rows_of_weight_zero_may_hold_anything(backend: str, form: str) -> None:
    """Eager or compiled: loss and lse 0, gradients 0, the others' candidates' gradients untouched."""
    clean = {**draw(6, 9, dtype=torch.float32), "form": form, "positive_log_q": -torch.linspace(0.5, 3, 6)}
    clean["row_weight"] = torch.tensor([0.0, 1, 1, 0, 2, 1])
    dirty = dict(clean)
    for name, garbage in (("query", torch.nan), ("positive", torch.inf), ("positive_log_q", torch.nan)):
        dirty[name] = clean[name].detach().clone()
        dirty[name][[0, 3]] = garbage
    dirty["query"].requires_grad_()
    dirty["positive"].requires_grad_()
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda: sampled_softmax_loss(**dirty, backend=backend), fullgraph=True, backend="aot_eager"
    )
    results = []
    for arguments, outputs in (
        (clean, serve(backend, clean)),
        (dirty, serve(backend, dirty)),
        (dirty, compiled()),
    ):
        loss, lse = outputs
        assert loss[[0, 3]].tolist() == lse[[0, 3]].tolist() == [0, 0]
        results.append([loss, lse, *gradients((loss + lse).sum(), arguments)])
    for other in results[1:]:
        assert all(torch.equal(one, two) for one, two in zip(results[0], other, strict=True))
    assert not results[1][2][[0, 3]].count_nonzero()


@pytest.mark.parametrize("backend", BACKENDS)
def test_positive_log_q_moves_no_gradient_between_the_two_conventions(backend: str) -> None:
    """Corrected on both sides, as TensorFlow has it, the loss differs by a constant: the gradients are these."""
    arguments = {**draw(4, 9), "positive_log_q": -torch.linspace(0.5, 3, 4)}
    loss, lse = serve(backend, arguments)
    own = arguments["scale"] * (arguments["query"] * arguments["positive"]).sum(1)
    both_sides = lse - (own - arguments["positive_log_q"])
    torch.testing.assert_close(both_sides - loss, arguments["positive_log_q"].double())
    for one, other in zip(gradients(loss.sum(), arguments), gradients(both_sides.sum(), arguments), strict=True):
        torch.testing.assert_close(one, other)


def test_scale_as_a_number_and_as_a_tensor() -> None:
    arguments = draw(4, 9, dtype=torch.float32)
    number = sampled_softmax_loss(**{**arguments, "scale": float(arguments["scale"].detach())})[0]
    assert torch.equal(number, sampled_softmax_loss(**arguments)[0])
    assert gradients(sampled_softmax_loss(**arguments)[0].sum(), arguments, ("scale",))[0].shape == ()


@pytest.mark.parametrize("weights", [torch.float16, torch.bfloat16, torch.float64])
def test_a_mean_has_the_dtype_of_the_loss_whatever_that_of_the_weights(weights: torch.dtype) -> None:
    """Six weights of 60,000 are more than float16 holds; 257 of them are 256 or 258 in bfloat16."""
    arguments = draw(6, 9, dtype=torch.float32)
    expected = sampled_softmax_loss(**arguments, reduction="mean")[0]
    heavy = torch.full((6,), 60_000, dtype=weights)
    loss = sampled_softmax_loss(**arguments, row_weight=heavy, reduction="mean")[0]
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected)
    many = draw(257, 9, dtype=torch.float32)
    loss = sampled_softmax_loss(**many, row_weight=torch.ones(257, dtype=weights), reduction="mean")[0]
    torch.testing.assert_close(loss, sampled_softmax_loss(**many, reduction="mean")[0])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("dtype", "factor"), [(torch.float16, 65_536), (torch.bfloat16, 1 / 3)])
def test_the_gradient_of_one_number_is_multiplied_before_it_is_rounded(
    backend: str, dtype: torch.dtype, factor: float
) -> None:
    """65,536, where torch's gradient scaler begins, is infinite in float16, and a third in bfloat16 is .3340."""
    arguments = draw(3, 5, dtype=dtype)
    with torch.no_grad():
        for name in LEAVES[:3]:
            arguments[name] *= 2**-6
    loss, _ = serve(backend, {**arguments, "reduction": "sum"})
    once = gradients(loss, arguments)
    for one, scaled in zip(once, gradients(loss * factor, arguments), strict=True):
        assert torch.equal(scaled, (one.double() * torch.tensor(factor).double()).to(one.dtype))


def with_value(tensor: Tensor, position: int, value: float) -> Tensor:
    tensor = tensor.detach().clone()
    tensor[position] = value
    return tensor


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"log_q": with_value(torch.zeros(4), 2, -math.inf)}, r"log_q\[2\] is -inf, expected a finite value"),
        ({"log_q": with_value(torch.zeros(4), 1, math.nan)}, r"log_q\[1\] is nan, expected a finite value"),
        ({"log_q": torch.zeros(3)}, r"log_q has shape \[3\], expected \[4\]"),
        ({"log_q": torch.zeros(4, dtype=torch.int64)}, r"log_q is torch\.int64"),
        ({"positive_log_q": with_value(torch.zeros(3), 1, math.inf)}, r"positive_log_q\[1\] is inf"),
        (
            {"form": "refined", "positive_log_q": torch.tensor([-1.0, 0.0, -1.0])},
            r"positive_log_q\[1\] is 0\.0, expected a finite value below 0",
        ),
        ({"form": "refined"}, r"positive_log_q is None, expected \[N\] values"),
        ({"form": "full"}, r"form is 'full', expected one of standard, refined"),
        ({"scale": 0.0}, r"scale is 0\.0, expected a finite number above 0"),
        ({"scale": -1.0}, r"scale is -1\.0"),
        ({"scale": math.nan}, r"scale is nan"),
        ({"scale": 1e39}, r"scale is 1e\+39, expected at most 3\.4028235e\+38, the largest torch\.float32"),
        ({"scale": 10**400}, r"scale is an integer of 1329 bits, expected a finite number above 0$"),
        ({"scale": torch.tensor(-2.0)}, r"scale is -2\.0, expected a finite value above 0"),
        ({"scale": torch.ones(1)}, r"scale has shape \[1\], expected \[\]"),
        ({"row_weight": torch.tensor([1.0, -1.0, 0.0])}, r"row_weight\[1\] is -1\.0"),
        ({"query_owner": torch.zeros(3, dtype=torch.int64)}, r"one of query_owner and candidate_owner is None"),
        ({"positive_ids": torch.zeros(3)}, r"positive_ids is torch\.float32, expected torch\.int64"),
        ({"candidate_ids": torch.zeros(5, dtype=torch.int64)}, r"candidate_ids has shape \[5\], expected \[4\]"),
        ({"positive": torch.zeros(2, 4)}, r"positive has shape \[2, 4\], expected \[3, 4\] like query"),
        ({"candidates": torch.zeros(4, 5)}, r"candidates has shape \[4, 5\], expected \[any, 4\] like query"),
        ({"candidates": torch.zeros(4, 4).half()}, r"candidates is torch\.float16, expected torch\.float32 like query"),
    ],
)
def test_bad_input(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match="sampled_softmax_loss.*" + sentence):
        sampled_softmax_loss(**{**draw(3, 4, dtype=torch.float32), **change})
