"""What the optimisers of touched rows share: groups and their checks, steps, and a state that refuses strangers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, overload

import torch
from torch import Tensor

from argus_kernels.core.problems import FLOATING, Problems, said

OTHERS_SETTINGS = (
    "alpha", "beta2_decay", "betas", "etas", "history_size", "lambd", "lr_decay", "momentum", "rho"
)  # fmt: skip
"""A group of any other optimiser of torch has at least one of these, or `maximize`."""


class RowOptimiser(torch.optim.Optimizer):
    """An optimiser over tables [V, d] that updates the rows which a gradient names.

    A subclass gives its settings and states, what a fresh state is, and the update of one table.
    """

    SETTINGS: ClassVar[tuple[str, ...]] = ()
    """Settings of a group; `check_setting` says what each may be."""
    STATES: ClassVar[tuple[str, ...]] = ()
    """Tensors that are kept for each table, under torch's names."""

    def __init__(self, params: Iterable[Tensor] | Iterable[dict[str, Any]], **settings: Any) -> None:
        super().__init__(params, settings)

    @classmethod
    def check_setting(cls, problems: Problems, name: str, label: str, value: Any) -> Any:
        """Notes what is wrong with a setting; returns it as it is kept."""
        return problems.number(label, value, least=0)

    def fresh(self, table: Tensor) -> dict[str, Tensor]:
        """The state of a table that has had no gradient yet."""
        raise NotImplementedError

    def check_state(self, problems: Problems, label: str, name: str, value: Any, table: Tensor) -> None:
        """Notes what is wrong with one tensor of a table's state."""
        raise NotImplementedError

    def update(self, table: Tensor, rows: Tensor, row_gradients: Tensor, group: dict[str, Any]) -> None:
        """Updates a table by gradients of rows [R]; −1 names none, a row may be named more than once."""
        raise NotImplementedError

    def moves_every_row(self, group: dict[str, Any]) -> bool:
        """Whether a dense gradient also moves the rows where it is zero."""
        return True

    def before_update(self) -> None:
        """Called by `step` before it changes anything; may refuse."""

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group of tables with its own settings, checking both; nothing is added where one is refused."""
        before = len(getattr(self, "param_groups", []))
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        problems = Problems(type(self).__name__)
        for name in self.SETTINGS:
            group[name] = self.check_setting(problems, name, name, group[name])
        for index, parameter in enumerate(group["params"]):
            table = "[V, d]"
            problems.require(
                parameter.dim() == 2,
                f"params[{index}] has shape {list(parameter.shape)}, expected a table {table}",
            )
            problems.require(
                parameter.dtype in FLOATING, f"params[{index}] is {parameter.dtype}, expected floating point"
            )
        if not problems.found:
            self.take(problems, group["params"])
        if problems.found:
            del self.param_groups[before:]
        problems.raise_if_any()
        for table in group["params"]:
            self.state[table].update(self.fresh(table))

    def take(self, problems: Problems, tables: list[Tensor]) -> None:
        """A subclass's own checks of new tables, the last ones: what is not refused here is added."""

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
        self.before_update()
        for group in self.param_groups:
            for table in group["params"]:
                if table.grad is not None:
                    rows, row_gradients = self._rows_and_gradients(table.grad, self.moves_every_row(group))
                    self.update(table, rows, row_gradients, group)
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads what `state_dict()` gave. States keep their own dtype, whatever that of the table is.

        A table without an entry, or with an empty one, starts afresh. Raises ValueError, having changed nothing, for
        the state of another optimiser, other groups, settings or states that do not fit.
        """
        tables = [table for group in self.param_groups for table in group["params"]]
        entries = self._entries_of(state_dict, [len(group["params"]) for group in self.param_groups], tables)
        super().load_state_dict(state_dict)
        # torch casts a parameter's state to the parameter's dtype: a bfloat16 accumulator would stop growing.
        self.state.clear()
        for table, entry in zip(tables, entries, strict=True):
            kept = self.fresh(table)
            for name, value in (entry or {}).items():
                kept[name] = value.detach().clone().to(kept[name].device)
            self.state[table].update(kept)

    def state_of(self, table: Tensor) -> dict[str, Tensor]:
        """A table's state, on its device."""
        state: dict[str, Tensor] = self.state[table]
        if any(name not in state for name in self.STATES):
            state.update(self.fresh(table))
        for name in self.STATES:
            # The table was moved after the optimiser was made, as module.to does.
            if state[name].dim() and state[name].device != table.device:
                state[name] = state[name].to(table.device)
        return state

    def _entries_of(self, state_dict: Any, sizes: list[int], tables: list[Tensor]) -> list[Mapping[str, Tensor] | None]:
        """The state that a state_dict has for each table, None where it has none; ValueError if it is no such state."""
        problems = Problems(f"{type(self).__name__}.load_state_dict")
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
            problems.require(
                named, f"param_groups[{index}] params are {said(ids)}, expected a list of the tables' numbers"
            )
        problems.raise_if_any()
        found = [list(group["params"]) for group in groups]
        if not problems.require(
            [len(ids) for ids in found] == sizes,
            f"param_groups have {[len(ids) for ids in found]} tables, expected {sizes} as this optimiser",
        ):
            problems.raise_if_any()
        for index, group in enumerate(groups):
            self._check_group(problems, index, group)
        saved = [index for ids in found for index in ids]
        unknown = [str(key) for key in state if key not in saved]
        problems.require(not unknown, f"state has entries for {', '.join(unknown)}, expected tables of param_groups")
        entries = [
            self._checked_entry(problems, index, state.get(index), table)
            for index, table in zip(saved, tables, strict=True)
        ]
        problems.raise_if_any()
        return entries

    def _check_group(self, problems: Problems, index: int, group: Mapping[str, Any]) -> None:
        others = {*OTHERS_SETTINGS, "eps", "weight_decay"} - set(self.SETTINGS)
        foreign = [name for name in sorted(others) if name in group]
        foreign = foreign or [name for name in group if name == "maximize"]
        problems.require(not foreign, f"param_groups[{index}] has {', '.join(foreign)}: it is another optimiser's")
        *first, last = self.SETTINGS
        for name in self.SETTINGS:
            if problems.require(
                name in group, f"param_groups[{index}] has no {name}, expected {', '.join(first)} and {last}"
            ):
                self.check_setting(problems, name, f"param_groups[{index}] {name}", group[name])

    def _checked_entry(self, problems: Problems, index: Any, entry: Any, table: Tensor) -> Mapping[str, Tensor] | None:
        """The state in a table's entry; None where it has none."""
        label = f"state[{said(index)}]"
        if self._is_missing(entry):
            return None
        if not isinstance(entry, Mapping) or set(entry) != set(self.STATES):
            has = ", ".join(sorted(map(str, entry))) if isinstance(entry, Mapping) else said(entry)
            expected = f"{', '.join(self.STATES)} alone" if self.STATES else "nothing"
            problems.require(False, f"{label} has {has}, expected {expected}: it is another optimiser's")
            return None
        for name in self.STATES:
            self.check_state(problems, f"{label} {name}", name, entry[name], table)
        return entry

    def _is_missing(self, entry: Any) -> bool:
        """None, or what a flattened state of DCP has for states that were not saved: {} or {"sum": {}}."""
        if isinstance(entry, Mapping) and entry and set(entry) == set(self.STATES):
            return all(isinstance(one, Mapping) and not one for one in entry.values())
        return entry is None or (isinstance(entry, Mapping) and not entry)

    def _rows_and_gradients(self, gradient: Tensor, every: bool) -> tuple[Tensor, Tensor]:
        """The rows that a gradient moves, −1 where none, and their gradients; every: a row of zeros moves too."""
        if gradient.layout == torch.strided:
            rows = torch.arange(gradient.shape[0], device=gradient.device)
            return (rows if every else torch.where((gradient != 0).any(1), rows, -1)), gradient
        if gradient.layout != torch.sparse_coo or gradient.sparse_dim() != 1:
            raise ValueError(
                f"{type(self).__name__}: a gradient has layout {gradient.layout}, expected a dense one or "
                "torch.sparse_coo with one sparse dimension, the rows"
            )
        return gradient._indices()[0], gradient._values()


def wide(table: Tensor) -> torch.dtype:
    """The dtype of arithmetic on a table: float32, float64 for float64."""
    return torch.promote_types(table.dtype, torch.float32)


def check_squares(problems: Problems, label: str, value: Any, shape: tuple[int, ...], table: Tensor) -> None:
    """Notes what is wrong with a state that sums squares."""
    if check_floats(problems, label, value, shape, table):
        problems.require(bool((value >= 0).all()), f"{label} holds a negative number or NaN, expected sums of squares")


def check_floats(problems: Problems, label: str, value: Any, shape: tuple[int, ...], table: Tensor) -> bool:
    """Notes what is wrong with a floating-point state; whether nothing is."""
    dtypes = (torch.float32, torch.float64) if table.dtype == torch.float64 else (torch.float32,)
    return problems.tensor(label, value, shape=shape, dtype=dtypes) and problems.require(
        not value.is_meta, f"{label} is on meta, expected numbers"
    )
