"""Tables whose optimiser updates them in the backward pass: which they are, and when an update may be made.

An op that reads rows of a table asks here in its forward pass (`update_of`) and applies the rows' gradients in its
backward pass instead of returning them. Everything that does not ask gets ordinary gradients, which the optimiser's
`step` applies: the results are the same.
"""

from __future__ import annotations

import weakref
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary


class Step(NamedTuple):
    """What row-wise Adagrad on a table needs besides gradients: the accumulator [V] and the group's settings now."""

    state: Tensor
    lr: float
    eps: float
    weight_decay: float


class Fusing(Protocol):
    """An optimiser that lets a backward pass update its tables."""

    def row_step(self, table: Tensor) -> Step:
        """State and settings of a table, as they stand."""

    def apply_rows(self, table: Tensor, rows: Tensor, row_gradients: Tensor) -> None:
        """Updates a table by gradients of some of its rows."""


class RowUpdate:
    """The updates of one table by backward passes: one between two calls of the optimiser's step()."""

    def __init__(self, optimiser: Fusing) -> None:
        self._optimiser = weakref.ref(optimiser)
        self.applied = False
        self.waiting: weakref.WeakSet[Recorded] = weakref.WeakSet()
        """Recorded calls that read the table and have had no backward pass."""

    @property
    def optimiser(self) -> Fusing | None:
        """None once the optimiser is gone; the table then has ordinary gradients again."""
        return self._optimiser()


class Recorded:
    """A call that autograd has recorded and that waits for its backward pass."""


_updates: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def attach(table: Tensor, optimiser: Fusing) -> RowUpdate | None:
    """Lets backward passes update `table` for `optimiser`; None where another living optimiser has it already."""
    if (held := update_of(table)) is not None and held.optimiser is not optimiser:
        return None
    update = _updates[table] = RowUpdate(optimiser)
    return update


def update_of(table: Tensor) -> RowUpdate | None:
    """The update of a table, None where it has ordinary gradients."""
    update: RowUpdate | None = _updates.get(table)
    return None if update is None or update.optimiser is None else update


def any_fused(tables: object) -> bool:
    """Whether a list of tables has one that a recorded call should update in its backward pass."""
    if not _updates or not torch.is_grad_enabled() or not isinstance(tables, (list, tuple)):
        return False
    return any(isinstance(one, Tensor) and one.requires_grad and update_of(one) is not None for one in tables)


def begin(op: str, name: str, update: RowUpdate, call: Recorded) -> None:
    """RuntimeError, with nothing changed, unless a backward pass may update the table now.

    Of two calls that read a table, the second one's backward pass would see rows that the first one's has changed.
    """
    if update.applied:
        raise RuntimeError(
            f"{op}: {name} was already updated by a backward pass since its optimiser's last step(), expected one "
            "backward pass through one lookup between two calls of step(); to add up gradients of several, set "
            "fused=False"
        )
    others = sum(one is not call for one in update.waiting)
    if others:
        raise RuntimeError(
            f"{op}: {name} was read by {others} more recorded call(s) that wait for their backward pass, expected one "
            "lookup: fused=True changes the table in the first one's; delete results that need none, or set "
            "fused=False"
        )
