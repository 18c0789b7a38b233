"""Optimisers for embedding tables: row-wise Adagrad over the rows that a step has touched."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor

from argus_kernels.ops.rowwise_adagrad import rowwise_adagrad_


class RowwiseAdagrad(torch.optim.Optimizer):
    """Row-wise Adagrad: one float32 accumulator per row, see `argus_kernels.rowwise_adagrad_` for the formula.

    Parameters are tables [V, d]. A row-sparse gradient (`triple_embedding(..., sparse=True)`, or
    `torch.nn.Embedding(sparse=True)`), coalesced or not, costs what its rows cost. A dense gradient counts as a
    gradient of every row: without weight decay a row of zeros changes nothing, but the whole table is read.

    Args:
        params: tables, or groups of them with their own `lr`, `eps` and `weight_decay`.
        lr: learning rate, at least 0.
        eps: added to the root of the accumulator, at least 0.
        weight_decay: L2 penalty on touched rows, at least 0.

    Raises:
        ValueError: a parameter that is not a table, a negative setting, or a gradient that is sparse in more than
            its rows.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 1e-2,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "eps": eps, "weight_decay": weight_decay})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group of tables with its own settings, checking both."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        for name in ("lr", "eps", "weight_decay"):
            if not 0 <= group[name] < float("inf"):
                raise ValueError(f"RowwiseAdagrad: {name} is {group[name]}, expected a finite value ≥ 0")
        for index, parameter in enumerate(group["params"]):
            if parameter.dim() != 2:
                raise ValueError(
                    f"RowwiseAdagrad: params[{index}] has shape {list(parameter.shape)}, expected a table [V, d]"
                )

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One step on every table that has a gradient. `closure` computes the loss anew and returns it."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for table in group["params"]:
                if table.grad is not None:
                    rows, row_gradients = _rows_and_gradients(table.grad)
                    rowwise_adagrad_(
                        table,
                        self._accumulator(table),
                        rows,
                        row_gradients,
                        lr=group["lr"],
                        eps=group["eps"],
                        weight_decay=group["weight_decay"],
                    )
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads what `state_dict()` gave. Accumulators keep their own dtype, whatever that of the table is."""
        super().load_state_dict(state_dict)
        # torch casts a parameter's state to the parameter's dtype: a bfloat16 accumulator would stop growing.
        saved = [index for group in state_dict["param_groups"] for index in group["params"]]
        tables = [table for group in self.param_groups for table in group["params"]]
        for index, table in zip(saved, tables, strict=True):
            if index in state_dict["state"]:
                given = state_dict["state"][index]["sum"]
                self.state[table]["sum"] = given.detach().clone().to(table.device)

    def _accumulator(self, table: Tensor) -> Tensor:
        state = self.state[table]
        if "sum" not in state:
            dtype = torch.promote_types(table.dtype, torch.float32)
            state["sum"] = torch.zeros(table.shape[0], dtype=dtype, device=table.device)
        accumulator: Tensor = state["sum"]
        return accumulator


def _rows_and_gradients(gradient: Tensor) -> tuple[Tensor, Tensor]:
    if gradient.layout == torch.strided:
        return torch.arange(gradient.shape[0], device=gradient.device), gradient
    if gradient.layout != torch.sparse_coo or gradient.sparse_dim() != 1:
        raise ValueError(
            f"RowwiseAdagrad: a gradient has layout {gradient.layout}, expected a dense one or torch.sparse_coo with "
            "one sparse dimension, the rows"
        )
    return gradient._indices()[0], gradient._values()
