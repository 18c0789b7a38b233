"""SGD, Adagrad and Adam on the rows that a step has touched; other rows and their states are not read or written."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from argus_kernels.core.problems import Problems, said
from argus_kernels.optim import row_steps
from argus_kernels.optim.row_optimiser import RowOptimiser, check_floats, check_squares, wide


class RowSGD(RowOptimiser):
    """SGD on touched rows: row ← row − lr · (g + weight_decay · row), g the sum of the row's gradients.

    Parameters are tables [V, d] of any floating dtype. A row-sparse gradient, coalesced or not, costs what its rows
    cost; a dense one is a gradient of every row. Without weight decay the same as torch.optim.SGD without momentum,
    and as FBGEMM's EXACT_SGD.

    Args:
        params: tables, or groups of them with their own `lr` and `weight_decay`.
        lr: learning rate, at least 0.
        weight_decay: L2 penalty on touched rows, at least 0.

    Raises:
        ValueError: a parameter that is not a table of floating point, a setting that is negative or not finite, or a
            gradient that is sparse in more than its rows.
    """

    SETTINGS = ("lr", "weight_decay")

    def __init__(
        self, params: Iterable[Tensor] | Iterable[dict[str, Any]], lr: float = 1e-2, weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, lr=lr, weight_decay=weight_decay)

    def fresh(self, table: Tensor) -> dict[str, Tensor]:
        """Nothing: SGD keeps no state."""
        return {}

    def moves_every_row(self, group: dict[str, Any]) -> bool:
        """Weight decay moves rows whose gradient is zero."""
        return bool(group["weight_decay"] > 0)

    def update(self, table: Tensor, rows: Tensor, row_gradients: Tensor, group: dict[str, Any]) -> None:
        """One step on the named rows."""
        row_steps.sgd_(table, rows, row_gradients, lr=group["lr"], weight_decay=group["weight_decay"])


class RowAdagrad(RowOptimiser):
    """Adagrad on touched rows: one accumulator per element, where `RowwiseAdagrad` has one per row.

        g ← g + weight_decay · row;  sum ← sum + g²;  row ← row − lr · g / (√sum + eps)

    with g the sum of the row's gradients. Without weight decay the same as torch.optim.Adagrad on row-sparse gradients
    and as FBGEMM's EXACT_ADAGRAD. Accumulators [V, d] are float32 (float64 for a float64 table), from the start.

    Args:
        params: tables [V, d], or groups of them with their own settings; gradients as for `RowSGD`.
        lr: learning rate, at least 0.
        eps: added to the root of the accumulator, at least 0.
        weight_decay: L2 penalty on touched rows, at least 0.

    Raises:
        ValueError: as for `RowSGD`.
    """

    SETTINGS = ("lr", "eps", "weight_decay")
    STATES = ("sum",)

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 1e-2,
        eps: float = 1e-10,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, lr=lr, eps=eps, weight_decay=weight_decay)

    def fresh(self, table: Tensor) -> dict[str, Tensor]:
        """An accumulator [V, d] of zeros."""
        return {"sum": _zeros(table)}

    def check_state(self, problems: Problems, label: str, name: str, value: Any, table: Tensor) -> None:
        """Accumulators are sums of squares."""
        check_squares(problems, label, value, tuple(table.shape), table)

    def moves_every_row(self, group: dict[str, Any]) -> bool:
        """Weight decay moves rows whose gradient is zero; 0 / √0 is left alone, also with eps = 0."""
        return bool(group["weight_decay"] > 0)

    def update(self, table: Tensor, rows: Tensor, row_gradients: Tensor, group: dict[str, Any]) -> None:
        """One step on the named rows."""
        settings = {name: group[name] for name in self.SETTINGS}
        row_steps.adagrad_(table, self.state_of(table)["sum"], rows, row_gradients, **settings)


class RowAdam(RowOptimiser):
    """Adam on touched rows, as torch.optim.SparseAdam: means of rows that have no gradient stay as they are.

        m ← m + (1 − β₁)(g − m);  v ← v + (1 − β₂)(g² − v)
        row ← row − lr · √(1 − β₂ᵗ) / (1 − β₁ᵗ) · m / (√v + eps)

    with g the sum of the row's gradients and t the number of steps that had a gradient of the table. FBGEMM's ADAM adds
    eps after the correction of v, and so differs where eps counts. States `exp_avg`, `exp_avg_sq` [V, d] are float32
    (float64 for a float64 table), from the start; `step` is a number on the CPU.

    Args:
        params: tables [V, d], or groups of them with their own settings. A row-sparse gradient, coalesced or not, costs
            what its rows cost. A dense one, which SparseAdam refuses, is a gradient of every row, rows of zeros too.
        lr: learning rate, at least 0.
        betas: decay of the two means, each at least 0 and below 1.
        eps: added to the root of the second mean, at least 0.

    Raises:
        ValueError: as for `RowSGD`; a beta of 1 or more.
    """

    SETTINGS = ("lr", "betas", "eps")
    STATES = ("step", "exp_avg", "exp_avg_sq")

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        super().__init__(params, lr=lr, betas=betas, eps=eps)

    @classmethod
    def check_setting(cls, problems: Problems, name: str, label: str, value: Any) -> Any:
        """Numbers of at least 0; betas are two below 1."""
        if name != "betas":
            return super().check_setting(problems, name, label, value)
        if not isinstance(value, (tuple, list)) or len(value) != 2:
            problems.require(False, f"{label} is {said(value)}, expected two numbers")
            return (0.0, 0.0)
        betas = tuple(problems.number(f"{label}[{index}]", one, least=0) for index, one in enumerate(value))
        for index, beta in enumerate(betas):
            problems.require(beta < 1, f"{label}[{index}] is {said(beta)}, expected a number below 1")
        return betas

    def fresh(self, table: Tensor) -> dict[str, Tensor]:
        """No step, and means [V, d] of zeros."""
        return {"step": torch.zeros(()), "exp_avg": _zeros(table), "exp_avg_sq": _zeros(table)}

    def check_state(self, problems: Problems, label: str, name: str, value: Any, table: Tensor) -> None:
        """The number of steps, a mean, and a mean of squares."""
        if name == "exp_avg":
            check_floats(problems, label, value, tuple(table.shape), table)
        elif name == "exp_avg_sq":
            check_squares(problems, label, value, tuple(table.shape), table)
        elif check_floats(problems, label, value, (), table):
            whole = float(value) >= 0 and float(value).is_integer()
            problems.require(whole, f"{label} is {said(float(value))}, expected a number of steps")

    def update(self, table: Tensor, rows: Tensor, row_gradients: Tensor, group: dict[str, Any]) -> None:
        """One step on the named rows."""
        state, (first, second) = self.state_of(table), group["betas"]
        steps = int(state["step"]) + 1
        lr = group["lr"] * math.sqrt(1 - second**steps) / (1 - first**steps)
        row_steps.adam_(
            table, state["exp_avg"], state["exp_avg_sq"], rows, row_gradients,
            lr=lr, betas=(first, second), eps=group["eps"],
        )  # fmt: skip
        state["step"].fill_(steps)


def _zeros(table: Tensor) -> Tensor:
    return torch.zeros(table.shape, dtype=wide(table), device=table.device)
