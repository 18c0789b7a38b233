"""Numbers that change from call to call under torch.compile: one graph for all their values."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from argus_kernels import causal_attention, hstu_attention, rowwise_adagrad_

VALUES = [0.1 + 0.01 * step for step in range(14)]
OFFSETS = torch.tensor([0, 4], dtype=torch.int32)
Q = torch.randn(4, 1, 8, generator=torch.Generator().manual_seed(0))


def stepped(lr: float = 0.1, eps: float = 1e-8, weight_decay: float = 0.0) -> Tensor:
    table, state = Q.flatten(1).clone(), torch.zeros(4)
    rowwise_adagrad_(table, state, torch.tensor([1]), torch.ones(1, 8), lr=lr, eps=eps, weight_decay=weight_decay)
    return table


CALLS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "scale": lambda q, value: causal_attention(q, q * 2, q, OFFSETS, 4, scale=value),
    "alpha": lambda q, value: hstu_attention(q, q * 2, q, OFFSETS, 4, alpha=value),
    "divisor": lambda q, value: hstu_attention(q, q * 2, q, OFFSETS, 4, divisor=value),
    "lr": lambda q, value: stepped(lr=value),
    "eps": lambda q, value: stepped(eps=value),
    "weight_decay": lambda q, value: stepped(weight_decay=value),
}


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
