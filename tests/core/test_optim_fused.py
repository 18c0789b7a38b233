"""RowwiseAdagrad(fused=True): the bits of two steps, what it refuses before anything changes, when it is off."""

from __future__ import annotations

import copy
import gc
from typing import Any

import pytest
import torch
from torch import Tensor

from argus_kernels import triple_embedding
from argus_kernels.core import native as libraries
from argus_kernels.optim import RowwiseAdagrad

needs_cpp = pytest.mark.skipif(libraries.why_not("cpu") is not None, reason="the native library is not built")
BACKENDS = ["reference", pytest.param("cpp", marks=needs_cpp)]
# 5,000 events: the second table is projected, the others are gathered, with rows that are read once and often.
SIZES, COLUMNS, WIDTH = ((2_000, 24), (9, 16), (20_000, 8)), [0, 1, 0, 2, 1], 40


class Inputs:
    """Tables and projection, the same for every instance; `ids` of a step."""

    def __init__(self, dtype: torch.dtype = torch.float32, wide: bool = False, events: int = 5_000) -> None:
        generator = torch.Generator().manual_seed(0)

        def leaf(*shape: int, stored: torch.dtype = dtype) -> torch.nn.Parameter:
            return torch.nn.Parameter(torch.randn(*shape, generator=generator).to(stored))

        self.tables = [leaf(*size, stored=torch.float32 if wide else dtype) for size in SIZES]
        self.weight = leaf(sum(SIZES[column][1] for column in COLUMNS), WIDTH)
        self.bias = leaf(WIDTH)
        self.events = events

    def ids(self, step: int = 0) -> Tensor:
        generator = torch.Generator().manual_seed(step)
        rows = torch.tensor([SIZES[column][0] for column in COLUMNS])[:, None]
        return (torch.rand(len(COLUMNS), self.events, generator=generator) * (rows + 1)).long() - 1

    def look_up(self, step: int = 0, **options: Any) -> Tensor:
        return triple_embedding(self.ids(step), self.tables, COLUMNS, self.weight, self.bias, **options)

    def backward(self, step: int = 0, **options: Any) -> None:
        out = self.look_up(step, **options)
        out.backward(torch.randn(out.shape, generator=torch.Generator().manual_seed(99 + step)).to(out.dtype))

    def forget(self) -> None:
        self.weight.grad = self.bias.grad = None

    def copies(self) -> list[Tensor]:
        return [table.detach().clone() for table in self.tables]


def trained(fused: bool, backend: str, settings: dict[str, float], **inputs: Any) -> list[Tensor]:
    """Tables, accumulators and the projection's gradients after three steps under a falling learning rate."""
    given = Inputs(**inputs)
    optimizer = RowwiseAdagrad(given.tables, **settings, fused=fused)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    found: list[Tensor] = []
    for step in range(3):
        given.forget()
        optimizer.zero_grad()
        given.backward(step, sparse=True, backend=backend)
        assert all((table.grad is None) == fused for table in given.tables)
        found += [grad for grad in (given.weight.grad, given.bias.grad) if grad is not None]
        optimizer.step()
        scheduler.step()
    assert len(found) == 6
    return [*given.copies(), *(optimizer.state[table]["sum"] for table in given.tables), *found]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("decay", [0.0, 0.25])
@pytest.mark.parametrize(
    ("dtype", "wide"),
    [(torch.float32, False), (torch.bfloat16, False), (torch.bfloat16, True), (torch.float64, False)],
)
def test_the_same_bits_as_two_steps(backend: str, decay: float, dtype: torch.dtype, wide: bool) -> None:
    settings = {"lr": 0.3, "eps": 1e-6, "weight_decay": decay}
    one = trained(True, backend, settings, dtype=dtype, wide=wide)
    other = trained(False, backend, settings, dtype=dtype, wide=wide)
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@needs_cpp
def test_the_same_bits_on_any_number_of_threads() -> None:
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            results.append(trained(True, "cpp", {"lr": 0.3, "weight_decay": 0.1}))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


@needs_cpp
def test_cpp_stores_no_row_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """The native pass serves, the one that returns row gradients is never called."""
    calls: list[str] = []
    find = libraries.op

    def noted(name: str) -> Any:
        calls.append(name)
        return find(name)

    monkeypatch.setattr(libraries, "op", noted)
    trained(True, "cpp", {"lr": 0.1})
    assert calls == ["triple_embedding", "triple_embedding_backward_and_step"] * 3


def other_layout(given: Inputs) -> None:
    """A table whose rows are not dense in memory takes the two steps."""
    given.tables[2] = torch.nn.Parameter(given.tables[2].detach().T.contiguous().T)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", ["one_unfused", "one_frozen", "transposed", "no_event", "no_bias", "dense"])
def test_every_kind_of_call(backend: str, case: str) -> None:
    results = []
    for fused in (True, False):
        given = Inputs(events=0 if case == "no_event" else 300)
        if case == "transposed":
            other_layout(given)
        if case == "one_frozen":
            given.tables[0].requires_grad_(False)
        if case == "no_bias":
            given.bias = None  # type: ignore[assignment]
        held = given.tables[1:] if case == "one_unfused" else given.tables
        optimizer = RowwiseAdagrad(held, lr=0.3, fused=fused)
        given.backward(sparse=case != "dense", backend=backend)
        grads = [table.grad for table in given.tables]
        if fused:
            first_is_left = case == "one_unfused"
            assert [grad is not None for grad in grads] == [first_is_left, False, False]
        optimizer.step()
        results.append(
            [*given.copies(), *(grad.to_dense() for grad in grads[:1] if grad is not None and case == "one_unfused")]
        )
    assert all(torch.allclose(one, other) for one, other in zip(*results, strict=True))


def test_either_loads_the_others_state() -> None:
    given, resumed = Inputs(events=50), Inputs(events=50)
    optimizer = RowwiseAdagrad(given.tables, lr=0.3, fused=True)
    given.backward()
    optimizer.step()
    for table, source in zip(resumed.tables, given.tables, strict=True):
        table.data.copy_(source.detach())
    other = RowwiseAdagrad(resumed.tables, lr=9.0)
    assert other.state_dict()["param_groups"][0].keys() == optimizer.state_dict()["param_groups"][0].keys()
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    given.backward(1)
    resumed.backward(1, sparse=True)
    for one in (optimizer, other):
        one.step()
    assert all(torch.equal(one, two) for one, two in zip(given.tables, resumed.tables, strict=True))
    optimizer.load_state_dict(other.state_dict())
    given.backward(2)
    assert all(table.grad is None for table in given.tables)


def refused(given: Inputs, kind: type[Exception], sentence: str, action: Any) -> None:
    before = given.copies()
    with pytest.raises(kind, match=sentence):
        action()
    assert all(torch.equal(one, table) for one, table in zip(before, given.tables, strict=True))


def test_a_second_backward_pass_before_step_is_refused() -> None:
    given = Inputs(events=20)
    optimizer = RowwiseAdagrad(given.tables, fused=True)
    given.backward()
    refused(given, RuntimeError, r"tables\[0\] was already updated .* one backward pass", given.backward)
    optimizer.step()
    given.backward()


def test_a_graph_that_is_kept_does_not_update_twice() -> None:
    given = Inputs(events=20)
    optimizer = RowwiseAdagrad(given.tables, fused=True)
    loss = given.look_up().sum()
    loss.backward(retain_graph=True)
    refused(given, RuntimeError, "already updated", loss.backward)
    optimizer.step()
    refused(given, RuntimeError, "modified by an inplace operation", loss.backward)


def test_two_lookups_of_a_table_are_refused() -> None:
    given = Inputs(events=20)
    optimizer = RowwiseAdagrad(given.tables, fused=True)
    outputs = [given.look_up(), given.look_up(1)]
    refused(given, RuntimeError, "read by 1 more recorded call", lambda: torch.cat(outputs).sum().backward())
    outputs.clear()
    gc.collect()
    given.backward()
    assert all(optimizer.state[table]["sum"].any() for table in given.tables)


def test_create_graph_is_refused() -> None:
    given = Inputs(events=20)
    optimizer = RowwiseAdagrad(given.tables, fused=True)
    out = given.look_up().sum()
    refused(
        given, RuntimeError, "create_graph is set", lambda: torch.autograd.grad(out, [given.weight], create_graph=True)
    )
    del optimizer


def test_a_table_that_is_listed_twice_is_refused() -> None:
    given = Inputs(events=20)
    optimizer = RowwiseAdagrad(given.tables, fused=True)
    given.tables.append(given.tables[0])
    refused(given, ValueError, r"tables\[3\] shares memory with an earlier table", given.look_up)
    del optimizer


def test_a_gradient_beside_the_update_is_refused_by_step() -> None:
    given = Inputs(events=20)
    optimizer = RowwiseAdagrad(given.tables, fused=True)
    given.backward()
    given.tables[1].square().sum().backward()
    refused(given, RuntimeError, r"table\(s\) 1 were updated by a backward pass and have a gradient", optimizer.step)


def test_ordinary_gradients_are_applied_by_step() -> None:
    """Of the plain definition and of other uses of a table."""
    results = []
    for fused in (True, False):
        given = Inputs(events=40)
        optimizer = RowwiseAdagrad(given.tables, lr=0.3, fused=fused)
        given.backward(backend="eager")
        assert all(table.grad is not None for table in given.tables)
        optimizer.step()
        results.append(given.copies())
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


def test_one_fused_optimiser_a_table() -> None:
    given = Inputs(events=5)
    optimizer = RowwiseAdagrad(given.tables[:1], fused=True)
    with pytest.raises(ValueError, match=r"params\[0\] is updated by another optimiser with fused=True"):
        RowwiseAdagrad(given.tables, fused=True)
    with pytest.raises(ValueError, match="fused is 1, expected True or False"):
        RowwiseAdagrad(given.tables, fused=1)  # type: ignore[arg-type]
    del optimizer
    gc.collect()
    given.backward()
    assert all(table.grad is not None for table in given.tables), "without its optimiser a table has gradients again"


def test_a_setting_gone_wrong_changes_nothing() -> None:
    given = Inputs(events=5)
    optimizer = RowwiseAdagrad(given.tables, fused=True)
    optimizer.param_groups[0]["lr"] = float("nan")
    refused(given, ValueError, "RowwiseAdagrad: lr is nan", given.backward)


def test_evaluation_and_copies_are_not_fused() -> None:
    given = Inputs(events=20)
    optimizer = RowwiseAdagrad(given.tables, fused=True)
    with torch.no_grad():
        given.look_up()
    given.backward()
    assert not copy.deepcopy(optimizer).fused


def test_autocast_rounds_rows_as_they_are_read() -> None:
    results = []
    for fused in (True, False):
        given = Inputs(events=300)
        optimizer = RowwiseAdagrad(given.tables, lr=0.3, fused=fused)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = given.look_up(sparse=True)
        assert out.dtype == torch.bfloat16
        out.float().square().sum().backward()
        assert all((table.grad is None) == fused for table in given.tables)
        optimizer.step()
        assert given.weight.grad is not None and given.weight.grad.dtype == torch.float32
        results.append([*given.copies(), given.weight.grad])
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


@needs_cpp
@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"states": []}, "states has 0 tensors, expected one for each of 1 tables"),
        ({"lr": [0.1, 0.2]}, "a setting has 2 numbers, expected one for each of 1 tables"),
        ({"states": [torch.zeros(3)]}, r"a state has shape \[3\]"),
        ({"states": [torch.zeros(4).double()]}, "a state is Double|a state"),
        ({"tables": [torch.zeros(2, 4).T]}, "a table that is updated"),
        ({"ids": torch.tensor([[4, 0]])}, r"ids\[0, 0\] is 4"),
    ],
)
def test_the_native_pass_refuses_in_a_sentence(change: dict[str, Any], sentence: str) -> None:
    given: dict[str, Any] = {
        "gradient": torch.ones(2, 3), "ids": torch.tensor([[1, 0]]), "tables": [torch.zeros(4, 2)], "columns": [0],
        "weight": torch.ones(2, 3), "states": [torch.zeros(4)], "lr": [0.1], "eps": [1e-8], "weight_decay": [0.0],
        "needs_weight": True, "needs_bias": True, **change,
    }  # fmt: skip
    before = [table.clone() for table in given["tables"]]
    with pytest.raises(ValueError, match="triple_embedding: " + sentence):
        torch.ops.argus_native.triple_embedding_backward_and_step(**given)
    assert all(torch.equal(one, other) for one, other in zip(before, given["tables"], strict=True))
