"""RowwiseAdagrad: one formula for sparse and dense gradients, settings by group, state that survives a round trip."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from argus_kernels import triple_embedding
from argus_kernels.optim import RowwiseAdagrad


def table(size: int = 6, width: int = 3, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.nn.Parameter:
    values = torch.randn(size, width, generator=torch.Generator().manual_seed(seed))
    return torch.nn.Parameter(values.to(dtype))


def sparse(rows: list[int], values: Tensor, size: int) -> Tensor:
    return torch.sparse_coo_tensor(torch.tensor([rows]), values, (size, values.shape[1]), check_invariants=True)


def test_sparse_steps_are_the_formula() -> None:
    parameter = table()
    expected, state = parameter.detach().clone(), torch.zeros(6)
    optimizer = RowwiseAdagrad([parameter], lr=0.1, eps=1e-6, weight_decay=0.2)
    for step in range(3):
        values = torch.randn(3, 3, generator=torch.Generator().manual_seed(step))
        parameter.grad = sparse([4, 1, 4], values, 6)
        optimizer.step()
        for row, gradient in ((4, values[0] + values[2]), (1, values[1])):
            gradient = gradient + 0.2 * expected[row]
            state[row] += gradient.square().mean()
            expected[row] -= 0.1 * gradient / (state[row].sqrt() + 1e-6)
    torch.testing.assert_close(parameter.detach(), expected)
    torch.testing.assert_close(optimizer.state[parameter]["sum"], state)
    assert torch.equal(parameter[[0, 2, 3, 5]], table()[[0, 2, 3, 5]])


def test_dense_gradients_move_as_sparse_ones_do() -> None:
    values = torch.randn(2, 3)
    one, other = table(), table()
    one.grad = sparse([5, 0], values, 6)
    other.grad = one.grad.to_dense()
    for parameter in (one, other):
        RowwiseAdagrad([parameter], lr=0.3).step()
    torch.testing.assert_close(one, other)


def test_training_tables_through_sparse_gradients() -> None:
    """Five steps of triple_embedding with sparse and with dense gradients give the same tables and the same losses."""
    ids = torch.randint(-1, 6, (2, 40), generator=torch.Generator().manual_seed(0))
    weight, target = torch.randn(6, 4), torch.randn(40, 4)
    losses: dict[bool, list[float]] = {}
    tables = {}
    for rows_only in (False, True):
        parameter = table()
        optimizer = RowwiseAdagrad([parameter], lr=0.1)
        losses[rows_only] = []
        for _ in range(5):
            optimizer.zero_grad()
            loss = (triple_embedding(ids, [parameter], [0, 0], weight, sparse=rows_only) - target).square().mean()
            loss.backward()
            assert parameter.grad is not None and parameter.grad.is_sparse == rows_only
            optimizer.step()
            losses[rows_only].append(float(loss.detach()))
        tables[rows_only] = parameter.detach()
    assert losses[True] == pytest.approx(losses[False])
    assert losses[True][-1] < losses[True][0]
    torch.testing.assert_close(tables[True], tables[False])


def test_groups_have_their_own_settings() -> None:
    slow, fast, still = table(), table(), table()
    groups: list[dict[str, Any]] = [{"params": [slow]}, {"params": [fast, still], "lr": 1.0}]
    optimizer = RowwiseAdagrad(groups, lr=0.01)
    slow.grad, fast.grad = torch.ones(6, 3), torch.ones(6, 3)
    optimizer.step()
    torch.testing.assert_close(slow, table() - 0.01)
    torch.testing.assert_close(fast, table() - 1.0)
    assert torch.equal(still, table())
    assert optimizer.state[still]["sum"].tolist() == [0.0] * 6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_state_survives_a_round_trip(dtype: torch.dtype) -> None:
    """Going on from a loaded state gives the same bits; the accumulator of a bfloat16 table stays float32."""
    parameter = table(dtype=dtype)
    optimizer = RowwiseAdagrad([parameter], lr=0.1)
    gradients = [torch.randn(6, 3, generator=torch.Generator().manual_seed(step)).to(dtype) for step in range(4)]
    for gradient in gradients[:2]:
        parameter.grad = gradient
        optimizer.step()
    resumed = torch.nn.Parameter(parameter.detach().clone())
    other = RowwiseAdagrad([resumed], lr=9.0)
    saved = copy.deepcopy(optimizer.state_dict())
    other.load_state_dict(saved)
    assert other.param_groups[0]["lr"] == 0.1
    assert other.state[resumed]["sum"].dtype == torch.float32
    for gradient in gradients[2:]:
        parameter.grad, resumed.grad = gradient, gradient
        optimizer.step()
        other.step()
    assert torch.equal(parameter, resumed)
    assert torch.equal(optimizer.state[parameter]["sum"], other.state[resumed]["sum"])
    assert not torch.equal(saved["state"][0]["sum"], other.state[resumed]["sum"])


def test_closure_is_computed_with_gradients() -> None:
    parameter = table()
    optimizer = RowwiseAdagrad([parameter], lr=0.1)

    def closure() -> float:
        optimizer.zero_grad()
        loss = parameter.square().sum()
        loss.backward()
        return float(loss.detach())

    first = optimizer.step(closure)
    assert first == pytest.approx(float(table().square().sum().detach()))
    assert optimizer.step(closure) < first


@pytest.mark.parametrize(
    ("parameters", "settings", "sentence"),
    [
        ([torch.nn.Parameter(torch.zeros(3))], {}, r"params\[0\] has shape \[3\], expected a table"),
        ([table()], {"lr": -1.0}, r"lr is -1\.0, expected a finite number of at least 0"),
        ([table()], {"eps": float("nan")}, r"eps is nan"),
        ([table()], {"lr": torch.tensor(0.1)}, "lr is Tensor, expected a finite number of at least 0"),
        ([table()], {"weight_decay": "0"}, "weight_decay is '0', expected a finite number"),
        ([torch.zeros(3, 2, dtype=torch.int64)], {}, r"params\[0\] is torch\.int64, expected floating point"),
        ([{"params": [table()], "weight_decay": -0.5}], {}, r"weight_decay is -0\.5"),
    ],
)
def test_bad_settings(parameters: Any, settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match="RowwiseAdagrad: " + sentence):
        RowwiseAdagrad(parameters, **settings)


def test_a_gradient_sparse_in_its_elements_is_refused() -> None:
    parameter = table()
    parameter.grad = torch.ones(6, 3).to_sparse()
    with pytest.raises(ValueError, match="one sparse dimension, the rows"):
        RowwiseAdagrad([parameter]).step()
    assert torch.equal(parameter, table())
