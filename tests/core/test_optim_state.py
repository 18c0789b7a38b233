"""RowwiseAdagrad's state: what it takes back and what it refuses, DCP; and clipping of row-sparse gradients."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from argus_kernels.optim import RowwiseAdagrad, clip_grad_norm_


class TwoTables(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.seen = torch.nn.Parameter(torch.randn(4, 2))
        self.untouched = torch.nn.Parameter(torch.randn(3, 2))


def stepped() -> tuple[TwoTables, RowwiseAdagrad]:
    """Two tables, of which one has had a gradient."""
    model = TwoTables()
    optimizer = RowwiseAdagrad(model.parameters(), lr=0.1)
    model.seen.grad = torch.ones(4, 2)
    optimizer.step()
    model.seen.grad = None
    return model, optimizer


def changed(change: Callable[[dict[str, Any]], Any]) -> Any:
    state = copy.deepcopy(stepped()[1].state_dict())
    returned = change(state)
    return state if returned is None else returned


def of_torch(kind: Any, steps: int = 1) -> Any:
    model = TwoTables()
    optimizer = kind(model.parameters())
    for _ in range(steps):
        model.seen.grad = torch.ones(4, 2)
        optimizer.step()
    return optimizer.state_dict()


def put(name: str, value: Any) -> Callable[[dict[str, Any]], Any]:
    """Sets an accumulator, or a setting of the group."""

    def change(state: dict[str, Any]) -> None:
        if name == "sum":
            state["state"][0]["sum"] = value
        else:
            state["param_groups"][0][name] = value

    return change


@pytest.mark.parametrize("entry", [None, {}, {"sum": {}}])
def test_a_table_without_an_entry_starts_afresh(entry: Any) -> None:
    def change(state: dict[str, Any]) -> None:
        state["state"].pop(0)
        if entry is not None:
            state["state"][0] = entry

    model, optimizer = stepped()
    optimizer.load_state_dict(changed(change))
    assert optimizer.state[model.seen]["sum"].tolist() == [0.0] * 4
    before = model.seen.detach().clone()
    model.seen.grad = torch.ones(4, 2)
    optimizer.step()
    torch.testing.assert_close(model.seen, before - 0.1)


REFUSED: list[tuple[Callable[[], Any], str]] = [
    (
        lambda: of_torch(torch.optim.Adam),
        r"betas: it is another optimiser's; .*exp_avg, exp_avg_sq, step, expected sum",
    ),
    (lambda: of_torch(torch.optim.Adam, steps=0), "has betas: it is another optimiser's"),
    (lambda: of_torch(torch.optim.Adagrad), r"has lr_decay: .*state\[0\] has step, sum, expected sum alone"),
    (lambda: of_torch(torch.optim.SGD), "has momentum: .*has no eps"),
    (
        lambda: changed(lambda s: s["state"].update({0: {"sum": np.zeros(4)}})),
        r"state\[0\] sum is ndarray, expected a tensor",
    ),
    (
        lambda: changed(lambda s: s["state"].update({0: {"sum": torch.zeros(4, device="meta")}})),
        r"state\[0\] sum is on meta, expected numbers",
    ),
    (lambda: changed(lambda s: s["param_groups"][0].update(params=None)), r"params are None, expected a list of"),
    (lambda: changed(lambda s: s["param_groups"][0].update(params=[[], []])), r"params are list, expected a list of"),
    (lambda: None, "state_dict is None, expected what state_dict\\(\\) gave"),
    (lambda: {"state": {}}, "state_dict is dict, expected"),
    (
        lambda: changed(lambda s: s["param_groups"].append(s["param_groups"][0])),
        r"have \[2, 2\] tables, expected \[2\]",
    ),
    (lambda: changed(lambda s: s["param_groups"][0]["params"].clear()), r"have \[0\] tables, expected \[2\]"),
    (lambda: changed(lambda s: s["state"].update({9: {}})), "state has entries for 9"),
    (lambda: changed(put("lr", float("nan"))), r"param_groups\[0\] lr is nan"),
    (lambda: changed(put("eps", "1e-8")), r"param_groups\[0\] eps is '1e-8'"),
    (lambda: changed(lambda s: s["param_groups"][0].pop("lr") and None), r"param_groups\[0\] has no lr"),
    (lambda: changed(put("sum", torch.zeros(5))), r"state\[0\] sum has shape \[5\], expected \[4\]"),
    (lambda: changed(put("sum", torch.zeros(4, 2))), r"state\[0\] sum has shape \[4, 2\], expected \[4\]"),
    (lambda: changed(put("sum", torch.zeros(4).half())), r"state\[0\] sum is torch.float16, expected torch.float32"),
    (lambda: changed(put("sum", torch.tensor([0, 1, -1e-9, 2]))), r"state\[0\] sum holds a negative number or NaN"),
    (lambda: changed(put("sum", torch.tensor([0, 1, float("nan"), 2]))), r"state\[0\] sum holds a negative"),
    (lambda: changed(put("sum", [0.0] * 4)), r"state\[0\] sum is list, expected a tensor"),
    (lambda: changed(put("sum", None)), r"state\[0\] sum is None, expected a tensor"),
    (lambda: changed(lambda s: s["state"].update({0: torch.zeros(4)})), r"state\[0\] has Tensor, expected sum alone"),
]


@pytest.mark.parametrize(("make", "sentence"), REFUSED)
def test_a_state_that_does_not_fit_changes_nothing(make: Callable[[], Any], sentence: str) -> None:
    _, optimizer = stepped()
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(ValueError, match="RowwiseAdagrad.load_state_dict: .*" + sentence):
        optimizer.load_state_dict(make())
    after = optimizer.state_dict()
    assert after["param_groups"] == before["param_groups"]
    assert all(torch.equal(after["state"][key]["sum"], entry["sum"]) for key, entry in before["state"].items())


@pytest.mark.parametrize("flat", [False, True])
def test_distributed_checkpoints_with_a_table_that_was_never_touched(tmp_path: Path, flat: bool) -> None:
    options = StateDictOptions(flatten_optimizer_state_dict=flat)
    model, optimizer = stepped()
    fresh = TwoTables()
    tables = copy.deepcopy(fresh.state_dict())
    other = RowwiseAdagrad(fresh.parameters(), lr=9.0, eps=0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        save({"optim": get_optimizer_state_dict(model, optimizer, options=options)}, checkpoint_id=tmp_path)
        state = {"optim": get_optimizer_state_dict(fresh, other, options=options)}
        load(state, checkpoint_id=tmp_path)
    set_optimizer_state_dict(fresh, other, state["optim"], options=options)
    assert other.param_groups[0]["lr"] == 0.1
    assert other.state[fresh.seen]["sum"].tolist() == [1.0] * 4
    assert other.state[fresh.untouched]["sum"].tolist() == [0.0] * 3
    assert all(torch.equal(tables[name], value) for name, value in fresh.state_dict().items())


def test_a_flattened_state_that_lacks_a_table() -> None:
    """As an optimiser that makes accumulators at the first gradient has saved it."""
    options = StateDictOptions(flatten_optimizer_state_dict=True)
    model, optimizer = stepped()
    state = get_optimizer_state_dict(model, optimizer, options=options)
    del state["state.untouched.sum"]
    fresh = TwoTables()
    other = RowwiseAdagrad(fresh.parameters())
    set_optimizer_state_dict(fresh, other, state, options=options)
    fresh.untouched.grad = torch.ones(3, 2)
    other.step()
    assert other.state[fresh.untouched]["sum"].tolist() == [1.0] * 3


def test_a_row_of_zeros_changes_nothing_without_eps() -> None:
    """0 / 0 would make it NaN."""
    table = torch.nn.Parameter(torch.randn(3, 2))
    before = table.detach().clone()
    optimizer = RowwiseAdagrad([table], lr=0.1, eps=0.0)
    table.grad = torch.tensor([[0.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
    optimizer.step()
    assert torch.equal(table[[0, 2]], before[[0, 2]])
    torch.testing.assert_close(table[1], before[1] - 0.1)


@pytest.mark.parametrize("largest", [0.5, 1e9])
def test_clipping_sparse_and_dense_gradients_together(largest: float) -> None:
    def gradients(sparse: bool) -> list[torch.nn.Parameter]:
        found = [torch.nn.Parameter(torch.zeros(5, 2)), torch.nn.Parameter(torch.zeros(3))]
        values = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))
        rows_only = torch.sparse_coo_tensor(torch.tensor([[4, 1, 4]]), values, (5, 2), check_invariants=True)
        found[0].grad = rows_only if sparse else rows_only.to_dense()
        found[1].grad = torch.tensor([1.0, -2.0, 3.0])
        return found

    ours, theirs = gradients(True), gradients(False)
    norm = clip_grad_norm_(iter(ours), largest)
    torch.testing.assert_close(norm, torch.nn.utils.clip_grad_norm_(theirs, largest))
    for one, other in zip(ours, theirs, strict=True):
        assert one.grad is not None and other.grad is not None
        dense: Tensor = one.grad.to_dense() if one.grad.is_sparse else one.grad
        torch.testing.assert_close(dense, other.grad)
    assert clip_grad_norm_([torch.nn.Parameter(torch.zeros(2, 2))], 1.0) == 0
    with pytest.raises(ValueError, match="clip_grad_norm_: max_norm is nan, expected a finite number of at least 0"):
        clip_grad_norm_(ours, float("nan"))
