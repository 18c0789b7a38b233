"""Expanded, transposed and strided inputs and gradients, and sizes of 0 and 1, on every backend."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from argus_kernels import OPS
from argus_kernels.core import Op
from argus_kernels.testing import captured_arguments, poisoned_memory, run_op, small_samples
from argus_kernels.testing.harness import draw, public_function

FIRST_CASES = [pytest.param(op, backend.name, id=f"{op.name}-{backend.name}") for op in OPS for backend in op.backends]


def skip_unless_served(op: Op, backend: str, arguments: dict[str, Any]) -> None:
    reasons = op.backend(backend).reasons(captured_arguments(op, arguments))
    if reasons:
        pytest.skip("; ".join(reasons))


def one_row_expanded(name: str, tensor: Tensor) -> Tensor:
    """Row 0 in the place of every row, with stride 0; ints keep their values, which belong together."""
    return tensor[:1].expand(tensor.shape) if tensor.is_floating_point() and tensor.dim() and len(tensor) else tensor


def one_row_repeated(name: str, tensor: Tensor) -> Tensor:
    return one_row_expanded(name, tensor).contiguous()


EXPANDED = [
    pytest.param(
        op, backend.name, compiled, id=f"{op.name}-{backend.name}-{'compiled' if compiled else 'eager'}",
        marks=[pytest.mark.slow] * (compiled and backend.name != "cpp"),
    )
    for op in OPS
    for backend in op.backends
    for compiled in (False, True)
]  # fmt: skip
"""Tracing sees the op, not the backend: `make test` compiles for `cpp` alone."""


@pytest.mark.parametrize(("op", "backend", "compiled"), EXPANDED)
def test_expanded_inputs(op: Op, backend: str, compiled: bool) -> None:
    sample = small_samples(op)[0]
    arguments = draw(sample, torch.float32, 0)
    skip_unless_served(op, backend, arguments)
    call: Any = public_function(op)
    if compiled:
        torch._dynamo.reset()
        call = torch.compile(call, fullgraph=True, backend="aot_eager")

    def expanded(name: str, tensor: Tensor) -> Tensor:
        return tensor if name in op.mutates else one_row_expanded(name, tensor)

    def repeated(name: str, tensor: Tensor) -> Tensor:
        return tensor if name in op.mutates else one_row_repeated(name, tensor)

    found = run_op(op, sample, arguments, backend, call=call, transform=expanded).results
    plain = run_op(op, sample, arguments, backend, transform=repeated).results
    for name, value in plain.items():
        torch.testing.assert_close({name: found[name]}, {name: value}, equal_nan=True, atol=1e-5, rtol=1e-5)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "expanded": lambda g: g.flatten()[:1].expand(g.numel()).as_strided(g.shape, [0] * g.dim()) if g.numel() else g,
    "transposed": lambda g: g.transpose(0, -1).contiguous().transpose(0, -1) if g.dim() > 1 else g,
    "every other": lambda g: torch.stack([g, g], -1)[..., 0],
    "reversed rows": lambda g: g.flip(0) if g.dim() else g,
    "negated view": lambda g: (-g)._neg_view(),
}


@pytest.mark.parametrize(("op", "backend"), [case for case in FIRST_CASES if case.values[0].differentiable])  # type: ignore[union-attr]
def test_gradients_from_above_in_any_layout(op: Op, backend: str) -> None:
    sample = small_samples(op)[0]
    arguments = draw(sample, torch.float32, 0)
    skip_unless_served(op, backend, arguments)
    leaves = [arguments[name] for name in sample.grad]
    flat = [leaf for one in leaves for leaf in (one if isinstance(one, list) else [one])]
    for leaf in flat:
        leaf.requires_grad_()
    returned = public_function(op)(**arguments, backend=backend)
    outputs = [one for one in (returned if isinstance(returned, tuple) else (returned,)) if one.requires_grad]
    above = [torch.randn(output.shape) for output in outputs]
    for layout, change in LAYOUTS.items():
        strided = [change(gradient) for gradient in above]
        dense = [gradient.resolve_neg().contiguous() for gradient in strided]
        found = torch.autograd.grad(outputs, flat, strided, retain_graph=True)
        plain = torch.autograd.grad(outputs, flat, dense, retain_graph=True)
        for one, other in zip(found, plain, strict=True):
            torch.testing.assert_close({layout: one}, {layout: other})


def empty_attention(rows: int, users: int, **options: Any) -> dict[str, Any]:
    q, k, v = (torch.randn(rows, 2, 4) for _ in range(3))
    offsets = torch.tensor([0] * users + [rows] if users else [0], dtype=torch.int32)
    return {"q": q, "k": k, "v": v, "offsets": offsets, **options}


def embedding(tables: list[Tensor], columns: list[int], events: int, width: int) -> dict[str, Any]:
    height = sum(tables[column].shape[1] for column in columns)
    ids = torch.full((len(columns), events), -1) if any(len(table) == 0 for table in tables) else None
    return {
        "ids": torch.zeros(len(columns), events, dtype=torch.int64) if ids is None else ids,
        "tables": tables,
        "columns": columns,
        "weight": torch.randn(height, width),
        "bias": torch.randn(width),
    }


def feedback(rows: int, width: int, classes: list[int]) -> dict[str, Any]:
    return {
        "hidden": torch.randn(rows, width),
        "weight": torch.randn(width, sum(classes)),
        "bias": torch.randn(sum(classes)),
        "targets": torch.zeros(rows, len(classes), dtype=torch.int64),
        "classes": classes,
    }


def softmax(rows: int, drawn: int, width: int, **options: Any) -> dict[str, Any]:
    return {
        "query": torch.randn(rows, width),
        "positive": torch.randn(rows, width),
        "candidates": torch.randn(drawn, width),
        "positive_ids": torch.arange(rows),
        "candidate_ids": torch.arange(drawn) + 100,
        "log_q": torch.full((drawn,), -1.0),
        **options,
    }


def adagrad(size: int, width: int, count: int) -> dict[str, Any]:
    rows = torch.zeros(count, dtype=torch.int64) if size else torch.full((count,), -1)
    return {
        "table": torch.randn(size, width),
        "state": torch.ones(size),
        "rows": rows,
        "row_gradients": torch.randn(count, width),
        "lr": 0.1,
    }


def linear(rows: int, width: int, outputs: int) -> dict[str, Any]:
    return {"x": torch.randn(rows, width), "weight": torch.randn(outputs, width), "bias": torch.randn(outputs)}


def pairs(scores: int, users: int) -> dict[str, Any]:
    return {
        "scores": torch.randn(scores),
        "grades": torch.arange(scores),
        "offsets": torch.tensor([0] * users + [scores] if users else [0], dtype=torch.int32),
        "times": torch.zeros(scores, dtype=torch.int64),
        "window": 5,
    }


SIZES: dict[str, dict[str, Callable[[], dict[str, Any]]]] = {
    "causal_attention": {
        "no row": lambda: empty_attention(0, 2), "no user": lambda: empty_attention(3, 0),
        "one event": lambda: empty_attention(1, 1), "one element": lambda: dict.fromkeys("qkv", torch.ones(1, 1, 1))
        | {"offsets": torch.tensor([0, 1]), "position_bias": torch.ones(1, 1)},
    },
    "hstu_attention": {
        "no row": lambda: empty_attention(0, 2), "no user": lambda: empty_attention(3, 0),
        "one event": lambda: empty_attention(1, 1, divisor=2.0),
    },
    "triple_embedding": {
        "no column": lambda: embedding([torch.randn(3, 2)], [], 4, 3), "no table": lambda: embedding([], [], 4, 3),
        "no event": lambda: embedding([torch.randn(3, 2)], [0], 0, 3),
        "no row": lambda: embedding([torch.randn(0, 2)], [0], 4, 3),
        "no width": lambda: embedding([torch.randn(3, 0)], [0], 4, 3),
        "no output": lambda: embedding([torch.randn(3, 2)], [0], 4, 0),
        "one element": lambda: embedding([torch.randn(1, 1)], [0], 1, 1),
    },
    "feedback_loss": {
        "no task": lambda: feedback(5, 4, []), "no row": lambda: feedback(0, 4, [1, 3]),
        "no width": lambda: feedback(5, 0, [1, 3]), "nothing": lambda: feedback(0, 0, []),
        "one element": lambda: feedback(1, 1, [1]),
    },
    "sampled_softmax_loss": {
        "no candidate": lambda: softmax(4, 0, 3), "no row": lambda: softmax(0, 5, 3),
        "no width": lambda: softmax(4, 5, 0),
        "nothing": lambda: softmax(0, 0, 0), "one element": lambda: softmax(1, 1, 1),
        "refined, no candidate": lambda: softmax(4, 0, 3, form="refined", positive_log_q=torch.full((4,), -2.0)),
    },
    "pairwise_loss": {
        "no event": lambda: pairs(0, 2), "no user": lambda: pairs(3, 0), "one event": lambda: pairs(1, 1),
    },
    "rowwise_adagrad_": {
        "no table row": lambda: adagrad(0, 3, 2), "no gradient": lambda: adagrad(4, 3, 0),
        "no width": lambda: adagrad(4, 0, 3), "one element": lambda: adagrad(1, 1, 1),
    },
    "decode_linear": {"no row": lambda: linear(0, 3, 2), "one element": lambda: linear(1, 1, 1)},
}  # fmt: skip

SIZED = [
    pytest.param(op, backend.name, label, id=f"{op.name}-{backend.name}-{label}")
    for op in OPS
    for backend in op.backends
    for label in SIZES.get(op.name, {})
]


@pytest.mark.parametrize(("op", "backend", "label"), SIZED)
def test_sizes_of_zero_and_one(op: Op, backend: str, label: str) -> None:
    """Outputs, what is written in place, and gradients, in fresh memory full of NaN."""
    arguments = SIZES[op.name][label]()
    skip_unless_served(op, backend, arguments)
    with poisoned_memory():
        found = results(op, arguments, backend)
    exact = {name: _double(value) for name, value in arguments.items()}
    for name, value in results(op, exact, "eager").items():
        torch.testing.assert_close({name: found[name].double()}, {name: value.double()}, atol=1e-5, rtol=1e-5)


def _double(value: Any) -> Any:
    if isinstance(value, list):
        return [_double(one) for one in value]
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def results(op: Op, arguments: dict[str, Any], backend: str) -> dict[str, Tensor]:
    given = {name: value.clone() if isinstance(value, Tensor) else value for name, value in arguments.items()}
    leaves: dict[str, Tensor] = {}
    for name in op.differentiable:
        value = given.get(name)
        if isinstance(value, list):
            given[name] = [one.clone().requires_grad_() for one in value]
            leaves |= {f"d_{name}[{index}]": one for index, one in enumerate(given[name])}
        elif isinstance(value, Tensor):
            leaves[f"d_{name}"] = value.requires_grad_()
    returned = public_function(op)(**given, backend=backend)
    outputs = [one for one in (returned if isinstance(returned, tuple) else (returned,)) if one is not None]
    found = {f"output {index}": one.detach() for index, one in enumerate(outputs)}
    found |= {name: given[name] for name in op.mutates}
    total = sum((one.double().sum() for one in outputs if one.requires_grad), torch.zeros((), dtype=torch.float64))
    if total.requires_grad:
        gradients = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
        for (name, leaf), gradient in zip(leaves.items(), gradients, strict=True):
            found[name] = torch.zeros_like(leaf) if gradient is None else gradient
    return {name: value.detach() for name, value in found.items()}


@pytest.mark.parametrize("backend", [None, "cpp", "triton", "reference", "eager"])
@pytest.mark.parametrize("name", ["causal_attention", "hstu_attention"])
@pytest.mark.parametrize(("heads", "width", "sentence"), [(0, 4, "q has 0 heads"), (2, 0, "q has head width 0")])
def test_heads_without_a_size_are_refused_alike(
    backend: str | None, name: str, heads: int, width: int, sentence: str
) -> None:
    q = torch.zeros(3, heads, width)
    op = next(one for one in OPS if one.name == name)
    with pytest.raises(ValueError, match=f"{name}: {sentence}, expected at least 1"):
        public_function(op)(q, q, q, torch.tensor([0, 3]), backend=backend)
