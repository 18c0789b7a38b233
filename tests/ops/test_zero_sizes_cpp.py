"""Calls with a size of zero, in fresh memory full of NaN: the compiled backends give what the definition gives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import argus_kernels
from argus_kernels.core import native
from argus_kernels.testing import poisoned_memory


@pytest.fixture(autouse=True)
def _library() -> None:
    reason = native.why_not("cpu")
    if reason is not None:
        pytest.skip(reason)


def integers(*values: int, dtype: torch.dtype = torch.int64) -> Tensor:
    return torch.tensor(values, dtype=dtype)


def offsets(*values: int) -> Tensor:
    return integers(*values, dtype=torch.int32)


def attention(rows: int, heads: int, *bounds: int) -> dict[str, Any]:
    packed = [torch.randn(rows, heads, 4) for _ in range(3)]
    tables = {"position_bias": torch.randn(heads, 3), "time_bias": torch.randn(heads, 2)}
    times = {"query_time": torch.arange(rows), "key_time": torch.arange(rows)}
    return {**dict(zip("qkv", packed, strict=True)), "offsets": offsets(*bounds), **tables, **times}


def softmax(rows: int, drawn: int, width: int, form: str) -> dict[str, Any]:
    return {
        "query": torch.randn(rows, width),
        "positive": torch.randn(rows, width),
        "candidates": torch.randn(drawn, width),
        "positive_ids": torch.arange(rows),
        "candidate_ids": torch.arange(drawn) + 100,
        "log_q": torch.zeros(drawn),
        "positive_log_q": torch.full((rows,), -1.0),
        "form": form,
    }


def feedback(rows: int, width: int, classes: list[int], target: int = 0) -> dict[str, Any]:
    columns = sum(classes)
    return {
        "hidden": torch.randn(rows, width),
        "weight": torch.randn(width, columns),
        "bias": torch.randn(columns),
        "targets": torch.full((rows, len(classes)), target),
        "classes": classes,
    }


def embedding(columns: list[int], events: int, tables: list[tuple[int, int]], width: int) -> dict[str, Any]:
    height = sum(tables[column][1] for column in columns)
    ids = [[-1 if tables[column][0] == 0 else 0] * events for column in columns]
    return {
        "ids": torch.tensor(ids, dtype=torch.int64).reshape(len(columns), events),
        "tables": [torch.randn(*shape) for shape in tables],
        "columns": columns,
        "weight": torch.randn(height, width),
        "bias": torch.randn(width),
    }


def pairwise(events: int, *bounds: int) -> dict[str, Any]:
    return {
        "scores": torch.randn(events),
        "grades": torch.arange(events),
        "offsets": offsets(*bounds),
        "times": torch.zeros(events, dtype=torch.int64),
        "window": 5,
    }


CASES: list[tuple[str, str, Callable[[], dict[str, Any]]]] = [
    ("causal_attention", "no rows", lambda: attention(0, 2, 0)),
    ("causal_attention", "no user but rows", lambda: attention(3, 2, 0)),
    ("causal_attention", "empty users", lambda: attention(2, 2, 0, 0, 2, 2)),
    ("hstu_attention", "no rows", lambda: attention(0, 2, 0, 0)),
    ("hstu_attention", "no user but rows", lambda: attention(3, 2, 0)),
    ("feedback_loss", "no task", lambda: feedback(512, 64, [])),
    ("feedback_loss", "no row", lambda: feedback(0, 64, [1, 3])),
    ("feedback_loss", "no row and no task", lambda: feedback(0, 64, [])),
    ("feedback_loss", "no width", lambda: feedback(40, 0, [1, 3])),
    ("feedback_loss", "nothing observed", lambda: feedback(40, 5, [1, 3], target=-1)),
    ("sampled_softmax_loss", "no row", lambda: softmax(0, 5, 4, "standard")),
    ("sampled_softmax_loss", "no candidate", lambda: softmax(3, 0, 4, "standard")),
    ("sampled_softmax_loss", "no width", lambda: softmax(3, 5, 0, "standard")),
    ("sampled_softmax_loss", "nothing", lambda: softmax(0, 0, 0, "standard")),
    ("sampled_softmax_loss", "no row, refined", lambda: softmax(0, 5, 4, "refined")),
    ("triple_embedding", "no column", lambda: embedding([], 4, [], 6)),
    ("triple_embedding", "no column of a table", lambda: embedding([], 4, [(3, 2)], 6)),
    ("triple_embedding", "no event", lambda: embedding([0], 0, [(3, 2)], 6)),
    ("triple_embedding", "no row", lambda: embedding([0, 1], 4, [(0, 2), (5, 2)], 6)),
    ("triple_embedding", "no width of a table", lambda: embedding([0, 1], 4, [(3, 0), (5, 2)], 6)),
    ("triple_embedding", "no width", lambda: embedding([0, 1], 400, [(3, 2), (500, 2)], 0)),
    ("pairwise_loss", "no event", lambda: pairwise(0, 0, 0)),
    ("pairwise_loss", "no user but events", lambda: pairwise(4, 0)),
    ("pairwise_loss", "empty users", lambda: pairwise(4, 0, 0, 1, 4, 4)),
]


def results(name: str, arguments: dict[str, Any], backend: str) -> list[Tensor]:
    """The outputs and the gradients of every floating tensor, by backend."""
    leaves: list[Tensor] = []

    def leaf(value: Any) -> Any:
        if isinstance(value, list) and value and isinstance(value[0], Tensor):
            return [leaf(one) for one in value]
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        leaves.append(value.clone().requires_grad_())
        return leaves[-1]

    returned = getattr(argus_kernels, name)(**{key: leaf(value) for key, value in arguments.items()}, backend=backend)
    outputs = list(returned) if isinstance(returned, tuple) else [returned]
    roots = [output for output in outputs if output.requires_grad]
    gradients = torch.autograd.grad(roots, leaves, [torch.ones_like(root) for root in roots], allow_unused=True)
    found = [torch.zeros_like(x) if g is None else g for x, g in zip(leaves, gradients, strict=True)]
    return [*(output.detach() for output in outputs), *found]


@pytest.mark.parametrize(("name", "case", "make"), CASES, ids=[f"{name}-{case}" for name, case, _ in CASES])
def test_a_size_of_zero_gives_what_the_definition_gives(name: str, case: str, make: Callable[[], Any]) -> None:
    arguments = make()
    with poisoned_memory():
        found = results(name, arguments, "cpp")
        expected = results(name, arguments, "reference")
        eager = results(name, arguments, "eager")
    for left, middle, right in zip(found, expected, eager, strict=True):
        torch.testing.assert_close(left, middle, equal_nan=True)
        torch.testing.assert_close(right, middle, equal_nan=True)


def test_a_layer_of_no_rows() -> None:
    assert argus_kernels.decode_linear(torch.randn(0, 4), torch.randn(3, 4), backend="cpp").shape == (0, 3)


@pytest.mark.parametrize("backend", ["cpp", "reference", "eager"])
def test_the_gradient_without_tasks_is_zero(backend: str) -> None:
    hidden = torch.randn(512, 64, requires_grad=True)
    weight, bias = torch.zeros(64, 0, requires_grad=True), torch.zeros(0, requires_grad=True)
    targets = torch.zeros(512, 0, dtype=torch.int64)
    with poisoned_memory():
        argus_kernels.feedback_loss(hidden, weight, bias, targets, [], backend=backend).sum().backward()
    assert hidden.grad is not None and weight.grad is not None and bias.grad is not None
    assert torch.equal(hidden.grad, torch.zeros(512, 64))
    assert weight.grad.shape == (64, 0) and bias.grad.shape == (0,)


@pytest.mark.parametrize(("rows", "width"), [(0, 4), (3, 0)])
def test_nothing_to_update_leaves_the_table_alone(rows: int, width: int) -> None:
    table, state = torch.randn(5, width), torch.rand(5)
    before = table.clone(), state.clone()
    with poisoned_memory():
        torch.ops.argus_native.rowwise_adagrad_(
            table, state, torch.zeros(rows, dtype=torch.int64), torch.randn(rows, width), 0.1, 1e-8, 0.0
        )
    assert torch.equal(table, before[0]) and torch.equal(state, before[1])


@pytest.mark.parametrize(("users", "heads", "width"), [(0, 2, 4), (2, 0, 4), (2, 2, 0), (2, 2, 4)])
def test_decoding_of_nothing(users: int, heads: int, width: int) -> None:
    """Empty histories give zeros; an appended event's time is kept whether it has heads or not."""
    pages = torch.zeros(3, 2, heads, width)
    times = torch.zeros(3, 2, dtype=torch.int64)
    rows = torch.randn(users, heads, width)
    lengths = integers(*[1, 0][:users], dtype=torch.int32)
    now = torch.full((users,), 7)
    with poisoned_memory():
        out = torch.ops.argus_native.decode_attention(
            rows, pages, pages.clone(), times, integers(0, 1, dtype=torch.int32)[:users, None], lengths, rows, rows,
            None, None, now, now, 1.0, None,
        )  # fmt: skip
    assert out.shape == (users, heads, width) and out.isfinite().all()
    if users:
        assert times[0, 0] == 7 and not out[1:].any()
