"""feedback_loss against torch's own losses, and every bad input by its sentence."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from argus_kernels import feedback_loss
from argus_kernels.ops.feedback_loss import OP
from argus_kernels.testing import captured_arguments
from tests.drawn_examples import examples

BACKENDS = [backend.name for backend in OP.backends]


def draw(
    rows: int, width: int, classes: list[int], seed: int = 0, dtype: torch.dtype = torch.float64
) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    columns = [torch.randint(-1, max(count, 2), (rows,), generator=generator) for count in classes]
    return {
        "hidden": torch.randn(rows, width, generator=generator, dtype=dtype, requires_grad=True),
        "weight": torch.randn(width, sum(classes), generator=generator, dtype=dtype, requires_grad=True),
        "bias": torch.randn(sum(classes), generator=generator, dtype=dtype, requires_grad=True),
        "targets": torch.stack(columns, 1) if columns else torch.zeros(rows, 0, dtype=torch.int64),
        "classes": classes,
    }


def serve(backend: str, arguments: dict[str, Any]) -> Tensor:
    reasons = OP.backend(backend).reasons(captured_arguments(OP, arguments))
    if reasons:
        pytest.skip("; ".join(reasons))
    return feedback_loss(**arguments, backend=backend)


def one_task_at_a_time(arguments: dict[str, Any]) -> Tensor:
    """Each task on the rows that observed it, by torch's mean-reduced losses and weights."""
    losses, first = [], 0
    for task, count in enumerate(arguments["classes"]):
        target = arguments["targets"][:, task]
        weights = arguments.get("row_weight")
        seen = target >= 0 if weights is None else (target >= 0) & (weights > 0)
        logits = arguments["hidden"][seen] @ arguments["weight"][:, first : first + count]
        logits = logits + arguments["bias"][first : first + count]
        if count == 1:
            each = F.binary_cross_entropy_with_logits(logits[:, 0], target[seen].to(logits), reduction="none")
        else:
            each = F.cross_entropy(logits, target[seen], reduction="none")
        share = torch.ones_like(each) if weights is None else weights[seen].to(each)
        mean = (each * share).sum() / share.sum() if seen.any() else each.sum()
        losses.append(mean * (1 if arguments.get("task_weight") is None else arguments["task_weight"][task]))
        first += count
    return torch.stack(losses)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("weighted", [False, True])
def test_equals_one_task_at_a_time(backend: str, weighted: bool) -> None:
    arguments = draw(40, 8, [1, 3, 1, 8])
    if weighted:
        arguments["task_weight"] = torch.tensor([1.0, 0.5, 0.0, 2.0])
        arguments["row_weight"] = torch.arange(40.0) % 4
    expected = one_task_at_a_time(arguments)
    found = serve(backend, arguments)
    torch.testing.assert_close(found, expected)
    leaves = [arguments[name] for name in ("hidden", "weight", "bias")]
    gradient = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64)
    for ours, theirs in zip(
        torch.autograd.grad(found, leaves, gradient), torch.autograd.grad(expected, leaves, gradient), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=examples(25), deadline=None)
@given(
    rows=st.integers(0, 9), classes=st.lists(st.integers(1, 5), min_size=1, max_size=4), seed=st.integers(0, 2**31 - 1)
)
def test_any_tasks(backend: str, rows: int, classes: list[int], seed: int) -> None:
    arguments = draw(rows, 3, classes, seed)
    torch.testing.assert_close(serve(backend, arguments), one_task_at_a_time(arguments))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_task_never_observed_costs_nothing(backend: str) -> None:
    arguments = draw(6, 4, [1, 3])
    arguments["targets"][:, 1] = -1
    loss = serve(backend, arguments)
    assert float(loss[1].detach()) == 0
    d_weight, d_bias = torch.autograd.grad(loss.sum(), [arguments["weight"], arguments["bias"]])
    assert not d_weight[:, 1:].count_nonzero()
    assert not d_bias[1:].count_nonzero()
    assert d_bias[0] != 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_that_count_for_nothing_may_hold_anything(backend: str) -> None:
    """Rows of weight 0, and rows in which no task was observed, hold NaN: no loss and no gradient notices."""
    clean = draw(9, 4, [1, 3], dtype=torch.float32)
    clean["row_weight"] = torch.ones(9)
    clean["row_weight"][:3] = 0
    clean["targets"][3:5] = -1
    dirty = {**clean, "hidden": clean["hidden"].detach().clone()}
    dirty["hidden"][:3] = torch.nan
    dirty["hidden"][3:5] = torch.inf
    dirty["hidden"].requires_grad_()
    results = []
    for arguments in (clean, dirty):
        loss = serve(backend, arguments)
        leaves = [arguments[name] for name in ("hidden", "weight", "bias")]
        results.append([loss, *torch.autograd.grad(loss.sum(), leaves)])
    for ours, theirs in zip(*results, strict=True):
        assert torch.equal(ours, theirs)
    assert not results[1][1][:5].count_nonzero()


@pytest.mark.parametrize("backend", BACKENDS)
def test_large_logits_do_not_overflow(backend: str) -> None:
    arguments = draw(8, 4, [1, 3], dtype=torch.float32)
    arguments["bias"] = torch.tensor([500.0, 1e4, 1e4, 1e4], requires_grad=True)
    loss = serve(backend, arguments)
    assert loss.isfinite().all()
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(loss.sum(), [arguments["hidden"]]))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("width", [48, 37])
def test_many_rows_and_columns(backend: str, dtype: torch.dtype, width: int) -> None:
    """More rows, columns and classes than any tile has, and rows that do not fill the last one."""
    arguments = draw(1_100, width, [1, 20, 13, 1], dtype=dtype)
    arguments["row_weight"] = torch.arange(1_100.0) % 5
    exact = {**arguments, **{name: arguments[name].detach().double() for name in ("hidden", "weight", "bias")}}
    names = ("hidden", "weight", "bias")
    leaves = [exact[name].requires_grad_() for name in names]
    expected = one_task_at_a_time(exact)
    found = serve(backend, arguments)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    truth = torch.autograd.grad(expected.sum(), leaves)
    for name, ours, theirs in zip(
        names, torch.autograd.grad(found.sum(), [arguments[name] for name in names]), truth, strict=True
    ):
        epsilon = max(torch.finfo(dtype).eps, 1e-6)
        scale = float(theirs.abs().max())
        torch.testing.assert_close({name: ours.double()}, {name: theirs}, rtol=2 * epsilon, atol=epsilon * scale)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_any_number_of_threads_gives_the_same_bits(dtype: torch.dtype) -> None:
    arguments = draw(5_000, 32, [1, 3, 8], dtype=dtype)
    results = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        loss = serve("cpp", arguments)
        results.append([loss, *torch.autograd.grad(loss.sum(), [arguments[n] for n in ("hidden", "weight", "bias")])])
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


def test_no_task_at_all() -> None:
    arguments = draw(4, 3, [])
    loss = feedback_loss(**arguments)
    assert loss.shape == (0,)
    loss.sum().backward()
    assert not arguments["hidden"].grad.count_nonzero()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_losses_are_float32(dtype: torch.dtype) -> None:
    assert feedback_loss(**draw(4, 3, [1, 2], dtype=dtype)).dtype == torch.float32


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"targets": torch.tensor([[0, 1], [2, 0], [0, 0]])},
            r"targets\[1, 0\] is 2, expected −1 .* 0 to 1 for task 0",
        ),
        (
            {"targets": torch.tensor([[0, 1], [0, 3], [0, 0]])},
            r"targets\[1, 1\] is 3, expected −1 .* 0 to 2 for task 1",
        ),
        ({"targets": torch.tensor([[0, 1], [0, 0], [-2, 0]])}, r"targets\[2, 0\] is -2"),
        ({"targets": torch.zeros(3, 1, dtype=torch.int64)}, r"targets has shape \[3, 1\], expected \[3, 2\]"),
        ({"targets": torch.zeros(3, 2, dtype=torch.int32)}, r"targets is torch.int32, expected torch.int64"),
        ({"targets": torch.zeros(2, 2, dtype=torch.int64)}, r"targets has shape \[2, 2\], expected \[3, 2\]"),
        ({"classes": [1, 0]}, r"classes\[1\] is 0, expected at least 1"),
        ({"classes": [1, 4]}, r"weight has shape \[4, 4\], expected \[4, 5\]"),
        ({"bias": torch.zeros(4).half()}, r"bias is torch.float16, expected torch.float32 like hidden"),
        ({"row_weight": torch.tensor([1.0, -1.0, 1.0])}, r"row_weight\[1\] is -1.0, expected a finite value ≥ 0"),
        ({"row_weight": torch.tensor([1.0, 1.0, torch.nan])}, r"row_weight\[2\] is nan"),
        ({"task_weight": torch.ones(3)}, r"task_weight has shape \[3\], expected \[2\]"),
        ({"hidden": torch.zeros(3, 4, dtype=torch.int64)}, r"hidden is torch.int64"),
    ],
)
def test_bad_input(change: dict[str, Any], sentence: str) -> None:
    arguments = draw(3, 4, [1, 3], dtype=torch.float32)
    arguments["targets"].clamp_(max=1)
    with pytest.raises(ValueError, match="feedback_loss.*" + sentence):
        feedback_loss(**{**arguments, **change})


def test_all_problems_are_named_at_once() -> None:
    arguments = draw(3, 4, [1, 3], dtype=torch.float32)
    with pytest.raises(ValueError, match=r"weight has shape.*; bias has shape.*; targets is torch\.int32"):
        feedback_loss(
            **{
                **arguments,
                "weight": torch.zeros(4, 5),
                "bias": torch.zeros(5),
                "targets": arguments["targets"].int(),
            }
        )


def test_compiled_with_ignored_rows() -> None:
    """The compiled graph gives the eager losses and gradients where rows and tasks are left out."""
    arguments = draw(12, 4, [1, 3], dtype=torch.float32)
    arguments["row_weight"] = torch.arange(12.0) % 3
    arguments["targets"][::2, 0] = -1
    leaves = [arguments[name] for name in ("hidden", "weight", "bias")]
    torch._dynamo.reset()
    compiled = torch.compile(lambda: feedback_loss(**arguments).sum(), fullgraph=True, backend="aot_eager")
    for ours, theirs in zip(
        torch.autograd.grad(compiled(), leaves),
        torch.autograd.grad(feedback_loss(**arguments).sum(), leaves),
        strict=True,
    ):
        assert torch.equal(ours, theirs)
