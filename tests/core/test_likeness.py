"""What recognises a call like the last: never one whose key differs, and one of the same key at its third time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from argus_kernels import OPS, causal_attention
from argus_kernels.core import Op, plans
from argus_kernels.core.plans import Likeness, key_of
from argus_kernels.ops.causal_attention import OP
from argus_kernels.testing import captured_arguments, small_samples
from argus_kernels.testing.harness import draw

LAYOUTS = (torch.strided, torch.jagged)
OFFSETS = torch.tensor([0, 2, 4], dtype=torch.int32)


def others(value: Any) -> list[Any]:
    """Values near to this one."""
    if isinstance(value, Tensor):
        changed = [value.detach().clone(), value[None], value.to("meta"), value.bool(), None, 1.0, value.to_sparse()]
        changed += [value.reshape(-1, 1).to_sparse_csr()]
        changed += [torch.nested.nested_tensor([value, value], layout=layout) for layout in LAYOUTS if value.dim()]
        if value.is_floating_point():
            again = value.detach().clone()
            changed += [again.requires_grad_(), torch.nn.Parameter(value), torch._neg_view(value)]
        return [*changed, value.t() if value.dim() == 2 else value.flatten()[:-1]]
    if isinstance(value, (bool, int)):
        return [not value, value + 1, float(value), str(value), None, torch.tensor(value)]
    if isinstance(value, float):
        return [value * 2 + 1, -value, 0.0, float("nan"), float("inf"), int(value), torch.tensor(value), None]
    if isinstance(value, (list, tuple)):
        first = [[other, *value[1:]] for other in others(value[0])] if value else []
        return [*first, [*value, *value[:1]], value[:-1], tuple(value), None]
    return [None, "other", 0, 0.5, torch.ones(2), [1], [torch.ones(2)]]


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors", "ignore:Sparse CSR tensor support")
@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_a_call_of_another_key_is_never_taken_for_it(op: Op) -> None:
    sample = small_samples(op)[0]
    values = (True, "cpp", None, *captured_arguments(op, draw(sample, torch.float32, 0)))
    key, like = key_of(values), Likeness(values)
    assert key is not None and like(values)
    taken = 0
    for place, value in enumerate(values):
        for other in others(value):
            changed = (*values[:place], other, *values[place + 1 :])
            same = key_of(changed) == key
            assert same or not like(changed), (place, other)
            taken += like(changed)
    # A copy of each tensor, at least.
    assert taken >= sum(isinstance(value, Tensor) for value in values)


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The keys that were asked for; the op has no plan at first."""
    asked: list[Any] = []

    def noted(values: Any) -> Any:
        asked.append(values)
        return key_of(values)

    monkeypatch.setattr("argus_kernels.core.torch_op.key_of", noted)
    monkeypatch.setattr(OP, "_plans", {})
    monkeypatch.setattr(OP, "_latest", ())
    return asked


def call(rows: int = 4) -> Tensor:
    q, k, v = (torch.ones(rows, 1, 4) for _ in range(3))
    out: Tensor = causal_attention(q, k, v, OFFSETS)
    return out


def test_the_third_call_needs_no_key(keys: list[Any]) -> None:
    found = [call() for _ in range(4)]
    assert len(keys) == 2 and all(torch.equal(one, found[0]) for one in found)
    for _ in range(3):
        call(5)
        call()
    assert len(keys) == 4


def test_under_inference_mode_calls_are_recognised_too(keys: list[Any]) -> None:
    call()
    with torch.inference_mode():
        for _ in range(4):
            call()
    assert len(keys) == 3


def test_a_torch_without_guards_has_keys(keys: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(tensors: Any) -> Any:
        raise AttributeError("TensorGuards")

    plans.compares_tensors.cache_clear()
    monkeypatch.setattr(plans, "_guards", missing)
    try:
        for _ in range(4):
            call()
        assert len(keys) == 4
    finally:
        plans.compares_tensors.cache_clear()
