"""Numbers that change from call to call under torch.compile: one graph for all their values."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from argus_kernels import causal_attention, decode_linear, hstu_attention, rowwise_adagrad_, sampled_softmax_loss
from argus_kernels.core.registry import use_backend
from argus_kernels.ops.causal_attention import OP

VALUES = [0.1 + 0.01 * step for step in range(14)]
OFFSETS = torch.tensor([0, 4], dtype=torch.int32)
Q = torch.randn(4, 1, 8, generator=torch.Generator().manual_seed(0))


Number = float | Tensor


def stepped(lr: Number = 0.1, eps: Number = 1e-8, weight_decay: Number = 0.0) -> Tensor:
    table, state = Q.flatten(1).clone(), torch.zeros(4)
    rowwise_adagrad_(table, state, torch.tensor([1]), torch.ones(1, 8), lr=lr, eps=eps, weight_decay=weight_decay)
    return table


def losses(q: Tensor, scale: Number) -> Tensor:
    rows, ids = q.flatten(1), torch.arange(4)
    return sampled_softmax_loss(rows, rows * 2, rows * 3, ids, ids + 9, torch.zeros(4), scale=scale)[0]


CALLS: dict[str, Callable[[Tensor, Number], Tensor]] = {
    "scale": lambda q, value: causal_attention(q, q * 2, q, OFFSETS, 4, scale=value),
    "alpha": lambda q, value: hstu_attention(q, q * 2, q, OFFSETS, 4, alpha=value),
    "divisor": lambda q, value: hstu_attention(q, q * 2, q, OFFSETS, 4, divisor=value),
    "lr": lambda q, value: stepped(lr=value),
    "eps": lambda q, value: stepped(eps=value),
    "weight_decay": lambda q, value: stepped(weight_decay=value),
    "layer_eps": lambda q, value: decode_linear(
        q.detach().flatten(1), torch.eye(8), norm_weight=torch.ones(8), norm_bias=torch.zeros(8), eps=value
    ),
    "temperature": losses,
}
TENSORS = [name for name in CALLS if name != "temperature"]
"""Of whose numbers a tensor gets no gradient."""


@pytest.mark.parametrize("name", CALLS)
def test_fourteen_values_compile_twice(name: str) -> None:
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(CALLS[name], backend=counter, fullgraph=True)
    for value in VALUES:
        leaf = Q.clone().requires_grad_()
        found, expected = compiled(leaf, value), CALLS[name](leaf, value)
        assert torch.equal(found, expected)
        if found.requires_grad:
            wanted = torch.autograd.grad(expected.sum(), leaf)
            assert torch.equal(torch.autograd.grad(found.sum(), leaf)[0], wanted[0])
    assert counter.frame_count == 2


def is_same(found: Tensor, expected: Tensor, leaf: Tensor) -> bool:
    """Values and gradients."""
    if found.requires_grad != expected.requires_grad or not torch.equal(found, expected):
        return False
    if not found.requires_grad:
        return True
    gradients = [torch.autograd.grad(one.sum(), leaf)[0] for one in (found, expected)]
    return torch.equal(*gradients)


@pytest.mark.parametrize("name", CALLS)
def test_a_tensor_of_fourteen_values_compiles_at_the_first_only(name: str) -> None:
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(CALLS[name], backend=counter, fullgraph=True)
    at_first = 0
    for value in VALUES:
        leaf = Q.clone().requires_grad_()
        number = torch.tensor(value, dtype=torch.float64 if name in TENSORS else torch.float32)
        assert is_same(compiled(leaf, number), CALLS[name](leaf, value), leaf)
        at_first = at_first or counter.frame_count
    assert counter.frame_count == at_first


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("backend", ["auto", "eager"])
def test_a_tensor_counts_as_the_number_in_it(name: str, backend: str) -> None:
    for value in VALUES[:3]:
        leaf = Q.clone().requires_grad_()
        with use_backend(backend):
            assert is_same(CALLS[name](leaf, torch.tensor(value)), CALLS[name](leaf, torch.tensor(value).item()), leaf)


def test_a_tensor_finds_the_plan_of_the_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OP, "_plans", {})
    for value in VALUES[:4]:
        CALLS["scale"](Q, torch.tensor(value))
        CALLS["scale"](Q, value)
    assert len(OP._plans) == 1


@pytest.mark.parametrize("name", TENSORS)
@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (torch.ones(1), r"is a tensor of shape \[1\]"),
        (torch.tensor(1), "is a tensor of torch.int64"),
        (torch.ones((), device="meta"), "is a tensor on meta"),
        (torch.tensor(1.0, requires_grad=True), "is a tensor that requires a gradient"),
        (torch.tensor(torch.inf), "is inf, expected a finite number"),
        (torch.tensor(torch.nan), "is nan, expected a finite number"),
    ],
)
def test_what_is_no_number_is_refused(name: str, wrong: Tensor, said: str) -> None:
    with pytest.raises(ValueError, match=f"{name.removeprefix('layer_')} {said}"):
        CALLS[name](Q, wrong)


@pytest.mark.parametrize("name", TENSORS)
def test_a_compiled_call_refuses_the_value_of_a_tensor(name: str) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(CALLS[name], backend="aot_eager", fullgraph=True)
    compiled(Q, torch.tensor(0.5))
    with pytest.raises(ValueError, match=f"{name.removeprefix('layer_')} is nan, expected a finite number"):
        compiled(Q, torch.tensor(torch.nan))
