"""Row-wise Adagrad as a torch optimiser: one accumulator a row, in steps of its own or in the backward pass."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from argus_kernels.core import row_updates
from argus_kernels.core.problems import Problems
from argus_kernels.ops.rowwise_adagrad import rowwise_adagrad_
from argus_kernels.optim.row_optimiser import RowOptimiser, check_squares, wide


class RowwiseAdagrad(RowOptimiser):
    """Row-wise Adagrad: one float32 accumulator per row, see `argus_kernels.rowwise_adagrad_` for the formula.

    Parameters are tables [V, d]. A row-sparse gradient (`triple_embedding(..., sparse=True)`, or
    `torch.nn.Embedding(sparse=True)`), coalesced or not, costs what its rows cost. A dense gradient counts as a
    gradient of every row: without weight decay a row of zeros changes nothing, but the whole gradient is read.
    torch.nn.utils.clip_grad_norm_ has no row-sparse gradients: `clip_grad_norm_` of this module takes both kinds.

    fused: the backward pass of `triple_embedding` updates the tables, with the settings of their group at that moment,
    and leaves no gradient (`.grad` stays None); `step` only ends the step. The result is that of fused=False with
    row-sparse gradients, on `cpp` the same bits, and state_dict is the same, so that either loads the other's.

    - One backward pass through one lookup of a table between two calls of `step`. A second one, as for gradient
      accumulation, and two recorded lookups of one table are refused with RuntimeError before anything changes.
    - Nothing comes between gradient and update: clipping by norm, loss scaling, averaging over processes and skipping a
      step whose loss or gradients are not finite need fused=False.
    - Any backward pass through the lookup updates, one for the gradient of other tensors alone too.
    - Other uses of a table, torch.compile, torch.func and backend="eager" give ordinary gradients, which `step`
      applies; a table that has both in one step is refused by `step`, before it changes anything.
    - A copy of the optimiser (copy.deepcopy, pickle) is not fused.

    Args:
        params: tables, or groups of them with their own `lr`, `eps` and `weight_decay`.
        lr: learning rate, at least 0.
        eps: added to the root of the accumulator, at least 0.
        weight_decay: L2 penalty on touched rows, at least 0.
        fused: see above.

    Raises:
        ValueError: a parameter that is not a table of floating point, a setting that is negative or not finite, a
            gradient that is sparse in more than its rows, or a table that another fused optimiser updates.
    """

    SETTINGS = ("lr", "eps", "weight_decay")
    STATES = ("sum",)
    fused = False

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 1e-2,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        fused: bool = False,
    ) -> None:
        problems = Problems("RowwiseAdagrad")
        self.fused = problems.flag("fused", fused)
        problems.raise_if_any()
        super().__init__(params, lr=lr, eps=eps, weight_decay=weight_decay)

    def take(self, problems: Problems, tables: list[Tensor]) -> None:
        """Lets backward passes update the tables where fused."""
        if not self.fused:
            return
        for index, table in enumerate(tables):
            held = row_updates.update_of(table)
            problems.require(
                held is None or held.optimiser is self,
                f"params[{index}] is updated by another optimiser with fused=True, expected one optimiser a table",
            )
        if not problems.found:
            for table in tables:
                row_updates.attach(table, self)

    def before_update(self) -> None:
        """Ends the step of the tables that backward passes have updated.

        Raises RuntimeError where one of them has a gradient as well, having changed nothing.
        """
        if not self.fused:
            return
        tables = [table for group in self.param_groups for table in group["params"]]
        updates = [(table, row_updates.update_of(table)) for table in tables]
        applied = [(table, update) for table, update in updates if update is not None and update.applied]
        done = {id(table) for table, _ in applied}
        both = [str(index) for index, table in enumerate(tables) if table.grad is not None and id(table) in done]
        if both:
            raise RuntimeError(
                f"RowwiseAdagrad: table(s) {', '.join(both)} were updated by a backward pass and have a gradient as "
                "well, expected one of both: something other than triple_embedding also reads them; set fused=False"
            )
        for _, update in applied:
            update.applied = False

    def fresh(self, table: Tensor) -> dict[str, Tensor]:
        """An accumulator [V] of zeros."""
        return {"sum": torch.zeros(table.shape[0], dtype=wide(table), device=table.device)}

    def check_state(self, problems: Problems, label: str, name: str, value: Any, table: Tensor) -> None:
        """Accumulators are sums of squares."""
        check_squares(problems, label, value, (table.shape[0],), table)

    def moves_every_row(self, group: dict[str, Any]) -> bool:
        """Weight decay moves rows whose gradient is zero."""
        return bool(group["weight_decay"] > 0)

    def update(self, table: Tensor, rows: Tensor, row_gradients: Tensor, group: dict[str, Any]) -> None:
        """`rowwise_adagrad_` with the group's settings."""
        rowwise_adagrad_(
            table,
            self.state_of(table)["sum"],
            rows,
            row_gradients,
            lr=group["lr"],
            eps=group["eps"],
            weight_decay=group["weight_decay"],
        )

    def row_step(self, table: Tensor) -> row_updates.Step:
        """State and settings of a table, for a backward pass that updates it."""
        group, problems = self._group_of(table), Problems("RowwiseAdagrad")
        lr, eps, weight_decay = (self.check_setting(problems, name, name, group[name]) for name in self.SETTINGS)
        problems.raise_if_any()
        return row_updates.Step(self.state_of(table)["sum"], lr, eps, weight_decay)

    @torch.no_grad()
    def apply_rows(self, table: Tensor, rows: Tensor, row_gradients: Tensor) -> None:
        """Updates a table by row gradients of a backward pass."""
        self.update(table, rows, row_gradients, self._group_of(table))

    def _group_of(self, table: Tensor) -> dict[str, Any]:
        return next(group for group in self.param_groups if any(one is table for one in group["params"]))
