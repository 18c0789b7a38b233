"""When the Triton backends serve, what they say when they do not, and what a launch records."""

from __future__ import annotations

import importlib.util
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from argus_kernels import explain
from argus_kernels.core import triton_support
from argus_kernels.core.registry import needs_device
from argus_kernels.core.triton_support import ceil_div, launch, next_power_of_two


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """No interpreter, as in use."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


@pytest.mark.usefixtures("compiled")
def test_without_a_gpu_and_without_the_interpreter_nothing_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert triton_support.available() == (
        "torch sees no GPU, and TRITON_INTERPRET=1 does not ask for Triton's interpreter"
    )
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert triton_support.available() is None


def test_without_triton_nothing_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert triton_support.available() == "triton is not installed"


@pytest.mark.usefixtures("compiled")
def test_all_reasons_at_once() -> None:
    wrong = torch.zeros(2, dtype=torch.float64)
    assert triton_support.problems(query=wrong, bias=None) == [
        "query is on cpu, expected cuda",
        "query is float64, expected one of float32, bfloat16, float16",
    ]


class Placed(torch.Tensor):
    """A tensor that says it is on a GPU, which this machine need not have."""

    place = torch.device("cpu")

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return self.place

    @property
    def is_cuda(self) -> bool:  # type: ignore[override]
        return self.place.type == "cuda"


def on(place: str, tensor: torch.Tensor) -> Placed:
    """The tensor, as if it lay there."""
    found = tensor.as_subclass(Placed)
    found.place = torch.device(place)
    return found


def test_two_gpus_in_one_call_are_refused() -> None:
    one, two = on("cuda:0", torch.zeros(2)), on("cuda:1", torch.zeros(2))
    assert needs_device("cuda", q=one, k=one) == []
    assert needs_device("cuda", q=one, k=two, v=None) == ["k is on cuda:1, expected cuda:0"]
    assert needs_device("cuda", q=torch.zeros(2), k=two, v=two) == ["q is on cpu, expected cuda"]


@pytest.mark.usefixtures("compiled")
def test_every_argument_is_held_to_one_gpu() -> None:
    """Also those that a room looks at in different calls, and a list's."""
    from argus_kernels.ops.triple_embedding import OP

    ids, weight = torch.zeros(2, 3, dtype=torch.int64), on("cuda:0", torch.zeros(4, 2))
    tables = [on("cuda:0", torch.zeros(5, 2)), on("cuda:1", torch.zeros(5, 2))]
    given = OP.record(on("cuda:0", ids), tables, [0, 1], weight, None, False, False)
    assert OP.backend("triton").why_not(given) == ["tables[1] is on cuda:1, expected cuda:0"]
    given = given._replace(tables=tables[:1] * 2, ids=on("cuda:1", ids))
    others = ("tables[0]", "tables[1]", "weight")
    assert OP.backend("triton").why_not(given) == [f"{name} is on cuda:0, expected cuda:1" for name in others]


def test_bfloat16_is_refused_by_the_interpreter_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    half = torch.zeros(2, dtype=torch.bfloat16)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert triton_support.problems(query=half) == ["query is bfloat16, which Triton's interpreter computes wrongly"]
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    assert triton_support.problems(query=half) == ["query is on cpu, expected cuda"]


def test_explain_carries_the_reasons(monkeypatch: pytest.MonkeyPatch) -> None:
    from argus_kernels import rowwise_adagrad_

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    table, rows = torch.zeros(3, 5000, dtype=torch.float64), torch.zeros(2, dtype=torch.int64)
    verdicts = explain(rowwise_adagrad_, table, torch.zeros(3), rows, table[:2], lr=0.1)
    (found,) = [one for one in verdicts if one.backend == "triton"]
    assert "rows is on cpu, expected cuda" in found.reasons
    assert "table is float64, expected one of float32, bfloat16, float16" in found.reasons
    assert "table has 5000 columns, expected at most 4096" in found.reasons


@pytest.mark.parametrize(("value", "expected"), [(0, 1), (1, 1), (2, 2), (3, 4), (64, 64), (65, 128)])
def test_next_power_of_two(value: int, expected: int) -> None:
    assert next_power_of_two(value) == expected


def test_ceil_div() -> None:
    assert [ceil_div(value, 4) for value in (0, 1, 4, 5)] == [0, 1, 1, 2]


class Kernel:
    """Stands for a compiled kernel: names, and what it was launched with."""

    __name__ = "toy"
    params = tuple(
        SimpleNamespace(name=name, is_constexpr=name.isupper())
        for name in ("x", "n", "stride", "scale", "bias", "BLOCK")
    )

    def __init__(self) -> None:
        self.launched: list[Any] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return lambda **arguments: self.launched.append((grid, arguments))


def arguments(**changes: Any) -> dict[str, Any]:
    return {"x": torch.zeros(4), "n": 2**31, "stride": 1, "scale": 0.5, "bias": None, "BLOCK": 64} | changes


def test_a_launch_runs_unless_its_grid_is_empty() -> None:
    kernel = Kernel()
    launch(kernel, (3, 0), arguments())
    assert not kernel.launched
    launch(kernel, (3, 2), arguments(), warps=2)
    ((grid, given),) = kernel.launched
    assert grid == (3, 2) and given["num_warps"] == 2 and given["BLOCK"] == 64


def test_auto_passes_over_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    from argus_kernels import triple_embedding

    if not triton_support.interpreted():
        pytest.skip("the interpreter is not asked for")
    arguments = torch.zeros(1, 2, dtype=torch.int64), [torch.zeros(3, 2)], [0], torch.zeros(2, 4)
    triple_embedding(*arguments, backend="triton")
    (found,) = [one for one in explain(triple_embedding, *arguments) if one.backend == "triton"]
    assert not found.serves and found.reasons == ("triton serves by name only: its interpreter is for tests",)
