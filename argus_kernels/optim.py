"""Optimisers for embedding tables: row-wise Adagrad over the rows that a step has touched."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, overload

import torch
from torch import Tensor

from argus_kernels.core.problems import FLOATING, Problems, said
from argus_kernels.ops.rowwise_adagrad import rowwise_adagrad_

SETTINGS = ("lr", "eps", "weight_decay")
OTHERS_SETTINGS = (
    "alpha", "beta2_decay", "betas", "etas", "history_size", "lambd", "lr_decay", "momentum", "rho"
)  # fmt: skip
"""A group of any other optimiser of torch has at least one of these."""


class RowwiseAdagrad(torch.optim.Optimizer):
    """Row-wise Adagrad: one float32 accumulator per row, see `argus_kernels.rowwise_adagrad_` for the formula.

    Parameters are tables [V, d]. A row-sparse gradient (`triple_embedding(..., sparse=True)`, or
    `torch.nn.Embedding(sparse=True)`), coalesced or not, costs what its rows cost. A dense gradient counts as a
    gradient of every row: without weight decay a row of zeros changes nothing, but the whole gradient is read.
    torch.nn.utils.clip_grad_norm_ has no row-sparse gradients: `clip_grad_norm_` of this module takes both kinds.

    Args:
        params: tables, or groups of them with their own `lr`, `eps` and `weight_decay`.
        lr: learning rate, at least 0.
        eps: added to the root of the accumulator, at least 0.
        weight_decay: L2 penalty on touched rows, at least 0.

    Raises:
        ValueError: a parameter that is not a table of floating point, a setting that is negative or not finite, or a
            gradient that is sparse in more than its rows.
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
        """Adds a group of tables with its own settings, checking both; nothing is added where one is refused."""
        before = len(getattr(self, "param_groups", []))
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        problems = Problems("RowwiseAdagrad")
        for name in SETTINGS:
            group[name] = problems.number(name, group[name], least=0)
        for index, parameter in enumerate(group["params"]):
            table = "[V, d]"
            problems.require(
                parameter.dim() == 2,
                f"params[{index}] has shape {list(parameter.shape)}, expected a table {table}",
            )
            problems.require(
                parameter.dtype in FLOATING, f"params[{index}] is {parameter.dtype}, expected floating point"
            )
        if problems.found:
            del self.param_groups[before:]
        problems.raise_if_any()
        for table in group["params"]:
            self.state[table]["sum"] = _fresh(table)

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
                    rows, row_gradients = _rows_and_gradients(table.grad, group["weight_decay"] > 0)
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
        """Loads what `state_dict()` gave. Accumulators keep their own dtype, whatever that of the table is.

        A table without an entry, or with an empty one, starts with a fresh accumulator. Raises ValueError, having
        changed nothing, for the state of another optimiser, other groups, settings or accumulators that do not fit.
        """
        tables = [table for group in self.param_groups for table in group["params"]]
        sums = _sums_of(state_dict, [len(group["params"]) for group in self.param_groups], tables)
        super().load_state_dict(state_dict)
        # torch casts a parameter's state to the parameter's dtype: a bfloat16 accumulator would stop growing.
        self.state.clear()
        for table, given in zip(tables, sums, strict=True):
            self.state[table]["sum"] = _fresh(table) if given is None else given.detach().clone().to(table.device)

    def _accumulator(self, table: Tensor) -> Tensor:
        state = self.state[table]
        if "sum" not in state or state["sum"].device != table.device:
            # The table was moved after the optimiser was made, as module.to does.
            state["sum"] = state["sum"].to(table.device) if "sum" in state else _fresh(table)
        accumulator: Tensor = state["sum"]
        return accumulator


@torch.no_grad()
def clip_grad_norm_(parameters: Tensor | Iterable[Tensor], max_norm: float) -> Tensor:
    """torch.nn.utils.clip_grad_norm_ for gradients of which some are row-sparse: the joint 2-norm, at most max_norm.

    Gradients are scaled in place by min(1, max_norm / (norm + 1e-6)); a row-sparse one is coalesced first, because a
    row that is named twice counts by its sum. Returns the norm before, without waiting for the device. Raises
    ValueError for a max_norm that is not a finite number of at least 0.
    """
    problems = Problems("clip_grad_norm_")
    most = problems.number("max_norm", max_norm, least=0)
    problems.raise_if_any()
    values = []
    for parameter in [parameters] if isinstance(parameters, Tensor) else parameters:
        if parameter.grad is None:
            continue
        if parameter.grad.is_sparse:
            parameter.grad = parameter.grad.coalesce()
        values.append(parameter.grad.values() if parameter.grad.is_sparse else parameter.grad)
    if not values:
        return torch.zeros(())
    wide = [torch.promote_types(value.dtype, torch.float32) for value in values]
    norms = [torch.linalg.vector_norm(value, dtype=dtype) for value, dtype in zip(values, wide, strict=True)]
    norm = torch.linalg.vector_norm(torch.stack([one.to(norms[0].device) for one in norms]))
    scale = (most / (norm + 1e-6)).clamp(max=1.0)
    for value in values:
        value.mul_(scale.to(value.device, value.dtype))
    return norm


def _fresh(table: Tensor) -> Tensor:
    """The accumulator of a table that has had no gradient yet."""
    dtype = torch.promote_types(table.dtype, torch.float32)
    return torch.zeros(table.shape[0], dtype=dtype, device=table.device)


def _sums_of(state_dict: Any, sizes: list[int], tables: list[Tensor]) -> list[Tensor | None]:
    """The accumulator that a state has for each table, None where it has none; ValueError for what is no such state."""
    problems = Problems("RowwiseAdagrad.load_state_dict")
    whole = isinstance(state_dict, Mapping) and isinstance(state_dict.get("state"), Mapping)
    if not problems.require(
        whole and isinstance(state_dict.get("param_groups"), (list, tuple)),
        f"state_dict is {said(state_dict)}, expected what state_dict() gave: state and param_groups",
    ):
        problems.raise_if_any()
    state, groups = state_dict["state"], state_dict["param_groups"]
    for index, group in enumerate(groups):
        ids = group.get("params") if isinstance(group, Mapping) else None
        named = isinstance(ids, (list, tuple)) and all(isinstance(one, (int, str)) for one in ids)
        problems.require(named, f"param_groups[{index}] params are {said(ids)}, expected a list of the tables' numbers")
    problems.raise_if_any()
    found = [list(group["params"]) for group in groups]
    if not problems.require(
        [len(ids) for ids in found] == sizes,
        f"param_groups have {[len(ids) for ids in found]} tables, expected {sizes} as this optimiser",
    ):
        problems.raise_if_any()
    for index, group in enumerate(groups):
        _check_group(problems, index, group)
    saved = [index for ids in found for index in ids]
    unknown = [str(key) for key in state if key not in saved]
    problems.require(not unknown, f"state has entries for {', '.join(unknown)}, expected tables of param_groups")
    sums = [_sum_of(problems, index, state.get(index), table) for index, table in zip(saved, tables, strict=True)]
    problems.raise_if_any()
    return sums


def _check_group(problems: Problems, index: int, group: Mapping[str, Any]) -> None:
    foreign = [name for name in OTHERS_SETTINGS if name in group]
    problems.require(not foreign, f"param_groups[{index}] has {', '.join(foreign)}: it is another optimiser's")
    for name in SETTINGS:
        if problems.require(name in group, f"param_groups[{index}] has no {name}, expected lr, eps and weight_decay"):
            problems.number(f"param_groups[{index}] {name}", group[name], least=0)


def _sum_of(problems: Problems, index: Any, entry: Any, table: Tensor) -> Tensor | None:
    """The accumulator in a table's entry; None where it has none."""
    name = f"state[{said(index)}]"
    if _is_missing(entry):
        return None
    if not isinstance(entry, Mapping) or set(entry) != {"sum"}:
        has = ", ".join(sorted(map(str, entry))) if isinstance(entry, Mapping) else said(entry)
        problems.require(False, f"{name} has {has}, expected sum alone: it is another optimiser's")
        return None
    given: Tensor = entry["sum"]
    dtypes = (torch.float32, torch.float64) if table.dtype == torch.float64 else (torch.float32,)
    if problems.tensor(f"{name} sum", given, shape=(table.shape[0],), dtype=dtypes) and problems.require(
        not given.is_meta, f"{name} sum is on meta, expected numbers"
    ):
        problems.require(
            bool((given >= 0).all()), f"{name} sum holds a negative number or NaN, expected sums of squares"
        )
    return given


def _is_missing(entry: Any) -> bool:
    """None, or what a flattened state of DCP has for an accumulator that was not saved: {} or {"sum": {}}."""
    inner = entry["sum"] if isinstance(entry, Mapping) and set(entry) == {"sum"} else entry
    return entry is None or (isinstance(inner, Mapping) and not inner)


def _rows_and_gradients(gradient: Tensor, decayed: bool) -> tuple[Tensor, Tensor]:
    """The rows that a gradient moves, −1 where none, and their gradients; decayed: weight decay moves every row."""
    if gradient.layout == torch.strided:
        rows = torch.arange(gradient.shape[0], device=gradient.device)
        return (rows if decayed else torch.where((gradient != 0).any(1), rows, -1)), gradient
    if gradient.layout != torch.sparse_coo or gradient.sparse_dim() != 1:
        raise ValueError(
            f"RowwiseAdagrad: a gradient has layout {gradient.layout}, expected a dense one or torch.sparse_coo with "
            "one sparse dimension, the rows"
        )
    return gradient._indices()[0], gradient._values()
