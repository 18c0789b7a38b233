"""The floor under the ops: backend choice, argument checks, jagged offsets, samples."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

import argus_kernels
from argus_kernels.core import (
    Backend,
    Op,
    Problems,
    autocast,
    default_backend,
    explain,
    registry,
    use_backend,
    varlen,
)
from argus_kernels.core.huge_pages import prefer_huge_pages
from argus_kernels.core.registry import forget_verdicts, needs_device, needs_dtype

calls: list[str] = []


class Toy(NamedTuple):
    """The record of the op below."""

    tables: list[Tensor]
    weight: Tensor
    bias: Tensor | None
    factor: float


def _forward(name: str) -> Any:
    def forward(given: Toy) -> Tensor:
        calls.append(name)
        total = sum((table @ given.weight for table in given.tables), torch.zeros(()))
        return given.factor * total + (given.bias if given.bias is not None else 0.0)

    return forward


def _backward(gradients: list[Tensor], outputs: list[Tensor], needs: dict[str, bool], given: Toy) -> list[Any]:
    (gradient,) = gradients
    tables, factor = given.tables, given.factor
    return [
        [factor * gradient @ given.weight.T for _ in tables] if needs["tables"] else [None for _ in tables],
        factor * sum((table.T @ gradient for table in tables), torch.zeros(())) if needs["weight"] else None,
        gradient.sum(0) if needs["bias"] and given.bias is not None else None,
    ]


def _only_small(given: Toy) -> list[str]:
    return [] if given.weight.shape[0] <= 4 else [f"weight has {given.weight.shape[0]} rows, at most 4 are served"]


TOY = Op(
    "toy_for_tests",
    arguments=Toy,
    returns="Tensor",
    fake=lambda given: given.tables[0].new_empty(given.tables[0].shape[0], given.weight.shape[1]),
    differentiable=("tables", "weight", "bias"),
    backends=(
        Backend("absent", _forward("absent"), _backward, available=lambda: "the library is not built"),
        Backend("small", _forward("small"), _backward, _only_small),
        Backend("reference", _forward("reference"), _backward),
        Backend("forward_only", _forward("forward_only")),
    ),
)


def toy(
    tables: list[Tensor], weight: Tensor, bias: Tensor | None = None, factor: float = 2.0, backend: str | None = None
) -> Tensor:
    result: Tensor = TOY(Toy(tables, weight, bias, factor), backend=backend)
    return result


@pytest.fixture(autouse=True)
def _forget_calls() -> Iterator[None]:
    calls.clear()
    yield


def arguments(rows: int = 4) -> tuple[list[Tensor], Tensor]:
    tables = [torch.randn(3, rows, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    return tables, torch.randn(rows, 5, dtype=torch.float64, requires_grad=True)


def test_auto_takes_the_first_that_serves() -> None:
    toy(*arguments(4))
    toy(*arguments(6))
    assert calls == ["small", "reference"]


def test_a_named_backend_that_cannot_serve_raises_with_its_reasons() -> None:
    with pytest.raises(ValueError, match=r"toy_for_tests\[small\]: weight has 6 rows, at most 4"):
        toy(*arguments(6), backend="small")
    with pytest.raises(ValueError, match=r"toy_for_tests\[absent\]: the library is not built"):
        toy(*arguments(), backend="absent")
    with pytest.raises(ValueError, match="expected one of auto, eager, absent, small, reference, forward_only"):
        toy(*arguments(), backend="cudnn")
    assert not calls


def test_an_error_inside_a_backend_never_means_try_the_next() -> None:
    tables, weight = arguments()
    with pytest.raises(RuntimeError):
        toy([tables[0][:, :2]], weight)
    assert calls == ["small"]


def test_use_backend_nests_and_restores() -> None:
    assert default_backend() == "auto"
    with use_backend("reference"):
        toy(*arguments())
        with use_backend("small"):
            toy(*arguments())
        toy(*arguments(), backend="small")
    toy(*arguments())
    assert calls == ["reference", "small", "small", "small"]
    assert default_backend() == "auto"


def test_use_backend_restores_after_an_error() -> None:
    with pytest.raises(ValueError), use_backend("absent"):
        toy(*arguments())
    assert default_backend() == "auto"


def test_backward_stays_with_the_backend_of_the_forward_call(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    original = registry.choose

    def spy(op: str, backends: Any, wanted: str, *given: Any) -> Backend:
        seen.append(wanted)
        return original(op, backends, wanted, *given)

    monkeypatch.setattr("argus_kernels.core.torch_op.choose", spy)
    forget_verdicts()
    with use_backend("reference"):
        output = toy(*arguments())
    output.sum().backward()
    assert seen == ["reference", "reference"]


def test_a_backend_without_a_backward_says_so() -> None:
    output = toy(*arguments(), backend="forward_only")
    with pytest.raises(ValueError, match=r"toy_for_tests\[forward_only\]: this backend has no backward pass"):
        output.sum().backward()


def test_explain_lists_every_backend() -> None:
    verdicts = explain(toy, *arguments(6))
    assert [(v.backend, v.serves) for v in verdicts] == [
        ("absent", False),
        ("small", False),
        ("reference", True),
        ("forward_only", True),
    ]
    assert verdicts[0].reasons == ("the library is not built",)
    assert "at most 4" in verdicts[1].reasons[0]
    assert not calls


def test_explain_refuses_what_is_not_an_op() -> None:
    with pytest.raises(TypeError, match="len is not an op"):
        explain(len, [])


@pytest.mark.parametrize("with_bias", [False, True])
def test_gradients_of_lists_and_absent_arguments(with_bias: bool) -> None:
    tables, weight = arguments()
    bias = torch.randn(5, dtype=torch.float64, requires_grad=True) if with_bias else None
    leaves = [*tables, weight, *([bias] if bias is not None else [])]
    assert torch.autograd.gradcheck(lambda *a: toy(list(a[:2]), a[2], a[3] if with_bias else None), leaves)
    report = torch.library.opcheck(TOY.torch_op, (tables, weight, bias, 2.0, "auto"))
    assert set(report.values()) == {"SUCCESS"}


def test_gradients_that_nobody_wants_are_not_computed() -> None:
    tables, weight = arguments()
    weight.requires_grad_(False)
    toy(tables, weight).sum().backward()
    assert weight.grad is None and tables[0].grad is not None


def test_eager_backend_is_the_definition_without_a_boundary() -> None:
    tables, weight = arguments()
    output = toy(tables, weight, backend="eager")
    assert "toy_for_tests" not in str(output.grad_fn)
    torch.testing.assert_close(output, toy(tables, weight, backend="reference"))


def test_no_double_backward_is_said_not_guessed() -> None:
    tables, weight = arguments()
    (gradient,) = torch.autograd.grad(toy(tables, weight).sum(), weight, create_graph=True)
    with pytest.raises(RuntimeError):
        torch.autograd.grad(gradient.sum(), tables)


def test_autocast_casts_what_it_is_given() -> None:
    a, b = torch.zeros(2), torch.zeros(2, dtype=torch.float64)
    assert autocast(a, None, b) == (a, None, b)
    with torch.autocast("cpu", torch.bfloat16):
        cast, nothing, double = autocast(a, None, b)
    assert cast.dtype == torch.bfloat16 and nothing is None and double.dtype == torch.float64


def test_problems_come_all_at_once() -> None:
    problems = Problems("op")
    problems.tensor("k", torch.zeros(3, 2), shape=(4, None), dtype=torch.float64, like="q")
    problems.tensor("v", [1], shape=(2,))
    problems.require(False, "scale is 0, expected a positive number")
    problems.tensor("fine", torch.zeros(3), shape=(3,), dtype=(torch.float32, torch.float64))
    with pytest.raises(ValueError) as error:
        problems.raise_if_any()
    assert str(error.value) == (
        "op: k has shape [3, 2], expected [4, any] like q; k is torch.float32, expected torch.float64 like q; "
        "v is list, expected a tensor; scale is 0, expected a positive number"
    )


def test_reasons_name_tensor_and_expectation() -> None:
    q = torch.zeros(2, dtype=torch.float64)
    assert needs_device("cuda", q=q, bias=None) == ["q is on cpu, expected cuda"]
    assert needs_dtype((torch.float32, torch.bfloat16), q=q) == ["q is float64, expected one of float32, bfloat16"]


def int32(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


@pytest.mark.parametrize(
    ("offsets", "message"),
    [
        (int32(1, 2), r"offsets\[0\] is 1, expected 0"),
        (int32(0, 3, 2), r"offsets\[2\] is 2, expected at least offsets\[1\] = 3"),
        (int32(0, 3, 9), r"offsets\[2\] is 9, expected at most the 8 rows given"),
    ],
)
def test_offsets_that_break_the_contract(offsets: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        varlen.check_offsets("op", offsets, 8)


@pytest.mark.parametrize("offsets", [int32(0), int32(0, 0, 0), int32(0, 8), int32(0, 2, 2, 5)])
def test_offsets_that_keep_it(offsets: Tensor) -> None:
    varlen.check_offsets("op", offsets, 8)


def test_offsets_of_the_wrong_kind() -> None:
    problems = Problems("op")
    varlen.offsets_problems(problems, torch.zeros(3, dtype=torch.int64), torch.device("cpu"))
    assert not problems.found
    varlen.offsets_problems(problems, torch.zeros(3, dtype=torch.int16), torch.device("cpu"))
    varlen.offsets_problems(problems, torch.zeros(0, dtype=torch.int32), torch.device("cpu"))
    assert "torch.int16, expected torch.int32 or torch.int64" in problems.found[0]
    assert "offsets is empty" in problems.found[1]


def test_max_length_and_visible_are_checked() -> None:
    with pytest.raises(ValueError, match="user 1 has 5 events, expected at most max_length = 4"):
        varlen.check_max_length("op", int32(0, 2, 7), 4)
    varlen.check_max_length("op", int32(0), 0)
    counts, most = int32(0, 1, 0, 2, 99), int32(1, 1, 1, 1, 1)
    real = torch.tensor([True, True, True, True, False])
    with pytest.raises(ValueError, match=r"visible\[3\] is 2, expected 0 to 1 keys"):
        varlen.check_bounds("op", "visible", counts, 0, most, real, " keys")
    with pytest.raises(ValueError, match=r"prefix\[1\] is -1, expected at least 0"):
        varlen.check_bounds("op", "prefix", int32(0, -1), 0, None)
    varlen.check_bounds("op", "visible", int32(0, 1, 0, 1, 99), 0, most, real)


def test_rows_know_their_user_and_place() -> None:
    offsets = int32(0, 2, 2, 5)
    assert varlen.user_of_row(offsets, 7).tolist() == [0, 0, 2, 2, 2, 3, 3]
    assert varlen.local_positions(offsets, 7).tolist() == [0, 1, 0, 1, 2, -1, -1]
    assert varlen.local_positions(int32(0), 2).tolist() == [-1, -1]
    assert varlen.spans(offsets) == [(0, 2), (2, 2), (2, 5)]


@pytest.mark.parametrize("op", argus_kernels.OPS, ids=lambda op: op.name)
def test_the_front_door_has_every_op_under_its_name(op: Op) -> None:
    function = getattr(argus_kernels, op.name)
    assert function.__name__ == op.name and function.__module__ == f"argus_kernels.ops.{op.name.rstrip('_')}"


def test_huge_pages_change_nothing_but_the_pages() -> None:
    large = prefer_huge_pages(torch.zeros(3 << 20))
    assert large.shape == (3 << 20,) and not large.any()
    assert prefer_huge_pages(torch.ones(3)).sum() == 3
    assert prefer_huge_pages(torch.empty(0)).numel() == 0
