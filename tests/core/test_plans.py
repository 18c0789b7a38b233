"""Plans of calls: a call like one before is not checked again, and one that differs in anything is judged anew."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import argus_kernels
from argus_kernels import causal_attention, decode_linear, feedback_loss, rowwise_adagrad_, use_backend
from argus_kernels.core import Op, plans
from argus_kernels.core.plans import Plan, key_of
from argus_kernels.testing import small_samples
from argus_kernels.testing.harness import draw, public_function

OFFSETS = torch.tensor([0, 2, 4], dtype=torch.int32)
Q = torch.randn(4, 2, 8, generator=torch.Generator().manual_seed(0))
K, V = Q.clone(), Q.clone()
"""Of their own: a call that passes a tensor twice is looked up by its key."""


def op_of(function: Callable[..., Any]) -> Op:
    return next(op for op in argus_kernels.OPS if op.name == function.__name__)


@pytest.fixture(autouse=True)
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The backends that calls were judged for, one entry a call that found no plan; no op has a plan at first."""
    judged: list[str] = []
    make = Plan.__init__

    def noted(self: Plan, op: Op, *given: Any) -> None:
        make(self, op, *given)
        judged.append(self.backend.name)

    monkeypatch.setattr(Plan, "__init__", noted)
    for op in argus_kernels.OPS:
        monkeypatch.setattr(op, "_plans", {})
        monkeypatch.setattr(op, "_latest", ())
    return judged


def call(**changed: Any) -> Tensor:
    given: dict[str, Any] = {"q": Q, "k": K, "v": V, "offsets": OFFSETS, **changed}
    out: Tensor = causal_attention(**given, backend="reference")
    return out


@pytest.mark.parametrize("op", argus_kernels.OPS, ids=lambda op: op.name)
def test_the_second_call_is_not_judged_again_and_gives_the_same(op: Op, made: list[str]) -> None:
    sample = small_samples(op)[0]
    found = []
    for _ in range(2):
        returned = public_function(op)(**draw(sample, torch.float32, 0), backend="reference")
        found.append(returned if isinstance(returned, tuple) else (returned,))
    assert made == ["reference"]
    for first, second in zip(*found, strict=True):
        assert first is second is None or torch.equal(first, second)


def test_each_thing_that_a_verdict_depends_on_has_its_own(made: list[str]) -> None:
    call()
    for changed in (
        {"v": Q.double()[..., :8].float().transpose(0, 1).contiguous().transpose(0, 1)},
        {"q": Q[..., :4], "k": Q[..., :4], "v": Q[..., :4]},
        {"q": Q.double(), "k": Q.double(), "v": Q.double()},
        {"q": Q.clone().requires_grad_()},
        {"max_length": 2},
        {"window": 1},
        {"scale": 0.5},
        {"visible": torch.tensor([0, 1, 0, 1], dtype=torch.int32)},
        {"position_bias": torch.zeros(2, 3)},
        {"position_bias": torch.zeros(2, 4)},
        {"offsets": torch.tensor([0, 4], dtype=torch.int32)},
        {"return_log_sum_exp": True},
    ):
        before = len(made)
        for _ in range(3):
            call(**changed)
            call()
        assert len(made) == before + 1, changed
    with torch.no_grad():
        call()
    assert len(made) == 14


def test_numbers_that_change_find_their_plan_and_are_used(made: list[str]) -> None:
    outputs = [call(scale=scale) for scale in (0.5, 0.25)]
    assert len(made) == 1 and not torch.equal(*outputs)
    assert torch.equal(outputs[1], call(scale=0.25))
    table, state = torch.ones(3, 2), torch.zeros(3)
    for lr in (0.1, 0.2):
        rowwise_adagrad_(table, state, torch.tensor([1]), torch.ones(1, 2), lr=lr)
    assert len(made) == 2
    for wrong in (-0.1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="lr is"):
            rowwise_adagrad_(table, state, torch.tensor([1]), torch.ones(1, 2), lr=wrong)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"window": True}, "window is True"),
        ({"max_length": 2.0}, "max_length is 2.0"),
        ({"scale": float("nan")}, "scale is nan"),
        ({"return_log_sum_exp": 1}, "return_log_sum_exp is 1"),
        ({"k": Q.double()}, "k is torch.float64"),
        ({"k": Q[:3]}, r"k has shape \[3, 2, 8\]"),
        ({"k": Q.to_sparse()}, "k is a tensor of layout torch.sparse_coo"),
        ({"offsets": torch.tensor([0, 3, 2], dtype=torch.int32)}, r"causal_attention: offsets\[2\] is 2"),
        ({"offsets": torch.tensor([0, 2, 5], dtype=torch.int32)}, r"causal_attention: offsets\[2\] is 5"),
        ({"max_length": 2, "offsets": torch.tensor([0, 1, 4], dtype=torch.int32)}, "user 1 has 3 events"),
    ],
)
@pytest.mark.parametrize("backend", ["reference", "cpp"])
def test_what_was_refused_without_plans_is_refused_beside_one(changed: Any, message: str, backend: str) -> None:
    given: dict[str, Any] = {"q": Q, "k": K, "v": V, "offsets": OFFSETS, "window": 1, "max_length": 2, "scale": 1.0}
    given["return_log_sum_exp"] = True
    for _ in range(4):
        causal_attention(**given, backend=backend)
        with pytest.raises(ValueError, match=message):
            causal_attention(**{**given, **changed}, backend=backend)


def test_the_backend_asked_for_has_its_own_verdict(made: list[str]) -> None:
    for name in ("reference", "cpp", "reference", "cpp"):
        with use_backend(name):
            causal_attention(Q, Q, Q, OFFSETS)
    assert made == ["reference", "cpp"]


def test_backends_and_settings_are_asked_for_anew(made: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    causal_attention(Q, Q, Q, OFFSETS)
    monkeypatch.setenv("ARGUS_NATIVE_DISABLE", "1")
    causal_attention(Q, Q, Q, OFFSETS)
    monkeypatch.delenv("ARGUS_NATIVE_DISABLE")
    op = op_of(causal_attention)
    monkeypatch.setattr(op, "backends", (op.backend("reference"),))
    causal_attention(Q, Q, Q, OFFSETS)
    monkeypatch.undo()
    assert made == ["cpp", "reference", "reference"]


def test_a_limit_of_a_backend_holds_beside_a_plan(made: list[str]) -> None:
    weight = torch.randn(8, 8)
    for rows in (4, 40, 4, 40):
        decode_linear(torch.randn(rows, 8), weight)
    assert made == ["cpp", "reference"]


def test_lists_are_read_anew() -> None:
    hidden, weight, bias = torch.randn(3, 4), torch.randn(4, 3), torch.randn(3)
    targets, classes = torch.zeros(3, 2, dtype=torch.int64), [1, 2]
    for _ in range(2):
        feedback_loss(hidden, weight, bias, targets, classes)
    classes[:] = [2, 1]
    other = feedback_loss(hidden, weight, bias, targets, classes)
    assert torch.equal(other, feedback_loss(hidden, weight, bias, targets, (2, 1)))
    classes[1] = 2
    with pytest.raises(ValueError, match="weight has shape"):
        feedback_loss(hidden, weight, bias, targets, classes)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_keys_tell_types_apart_and_leave_out_what_cannot_be_kept() -> None:
    assert key_of([1]) != key_of([True]) != key_of([1.0])
    assert key_of([0.5]) == key_of([0.25]) != key_of([-0.5])
    assert key_of([(1, 2)]) != key_of([[1, 2]]) != key_of([1, 2])
    nested = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])
    for value in (float("nan"), float("inf"), object(), torch.ones(2).to_sparse(), nested, [object()]):
        assert key_of([value]) is None
    assert key_of([Q, [OFFSETS]]) is not None


def test_plans_are_forgotten_rather_than_heaped_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("argus_kernels.core.torch_op.MAX_PLANS", 2)
    for rows in range(1, 6):
        decode_linear(torch.randn(rows, 8), torch.randn(8, 8))
    assert len(op_of(decode_linear)._plans) <= 2 < plans.MAX_PLANS
