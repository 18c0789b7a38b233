"""triple_embedding on tables whose optimiser has fused=True: its backward pass updates them and returns no gradient.

`cpp` does both in one pass that never stores row gradients. Every other backend computes row-sparse gradients and hands
them to the optimiser at once: the same sums, the same formula.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from argus_kernels.core import Op, row_updates
from argus_kernels.core.registry import default_backend
from argus_kernels.ops.triple_embedding import native
from argus_kernels.ops.triple_embedding.arguments import Arguments

_PLAIN = (Tensor, torch.nn.Parameter)
_C = torch._C


def serves(given: Arguments, backend: str | None) -> bool:
    """Whether this call updates tables in its backward pass.

    Under a transform, a mode or a subclass of tensors, and with backend "eager", it does not: gradients are ordinary
    then, and the optimiser's step() applies them.
    """
    if not row_updates.any_fused(given.tables) or type(backend or default_backend()) is not str:
        return False
    if (backend or default_backend()) == "eager" or forward_ad._current_level >= 0:
        return False
    if _C._are_functorch_transforms_active() or _C._len_torch_dispatch_stack() or _C._len_torch_function_stack():
        return False
    tensors = (given.ids, given.weight, *given.tables, *([] if given.bias is None else [given.bias]))
    return all(type(one) in _PLAIN for one in tensors)


def look_up(op: Op, given: Arguments, backend: str | None) -> Tensor:
    """The op on its checked record; autograd records one node for it."""
    for index, table in enumerate(given.tables):
        first, last = _span(table)
        if any(first < end and begin < last for begin, end in map(_span, given.tables[:index])):
            raise ValueError(
                f"triple_embedding: tables[{index}] shares memory with an earlier table, expected each table once "
                "where an optimiser with fused=True updates one: name it in several columns instead"
            )
    optional = [] if given.bias is None else [given.bias]
    out: Tensor = _Lookup.apply(_Call(op, given, backend or default_backend()), given.weight, *optional, *given.tables)
    return out


def _span(table: Tensor) -> tuple[int, int]:
    """The addresses from its first element to past its last one; none for a table of no elements."""
    if not table.numel():
        return 0, 0
    elements = 1 + sum((size - 1) * stride for size, stride in zip(table.shape, table.stride(), strict=True))
    return table.data_ptr(), table.data_ptr() + elements * table.element_size()


class _Call(row_updates.Recorded):
    """One lookup; holds the record without its tensors, which autograd keeps."""

    def __init__(self, op: Op, given: Arguments, wanted: str) -> None:
        self.op, self.wanted = op, wanted
        self.given: Arguments | None = given
        self.updates = [row_updates.update_of(table) if table.requires_grad else None for table in given.tables]

    def begin(self) -> None:
        """RuntimeError unless every table may be updated now."""
        for index, update in enumerate(self.updates):
            if update is not None and update.optimiser is not None:
                row_updates.begin("triple_embedding", f"tables[{index}]", update, self)


class _Lookup(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, call: _Call, *tensors: Tensor) -> Any:
        given = call.given
        assert given is not None
        out = call.op.compute(given, call.wanted)
        ctx.call, ctx.values = call, given._replace(tables=[], ids=None, weight=None, bias=None)  # type: ignore[arg-type]
        ctx.has_bias, call.given = given.bias is not None, None
        ctx.save_for_backward(given.ids, *tensors)
        for update in call.updates:
            if update is not None:
                update.waiting.add(call)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        call: _Call = ctx.call
        if torch.is_grad_enabled():
            raise RuntimeError(
                "triple_embedding: create_graph is set, expected no derivatives of a backward pass that updates its "
                "tables; set fused=False"
            )
        call.begin()
        ids, weight, *rest = ctx.saved_tensors
        bias, tables = (rest[0], rest[1:]) if ctx.has_bias else (None, rest)
        given = ctx.values._replace(ids=ids, weight=weight, bias=bias, tables=list(tables))
        needs_weight, *needs = ctx.needs_input_grad[1:]
        needs_bias, needs_tables = (needs[0], needs[1:]) if ctx.has_bias else (False, needs)
        d_weight, d_bias, d_tables = _backward(call, given, gradient, needs_tables, needs_weight, needs_bias)
        for update in call.updates:
            if update is not None:
                update.applied = True
                update.waiting.discard(call)
        return None, d_weight, *([d_bias] if ctx.has_bias else []), *d_tables


def _backward(
    call: _Call, given: Arguments, gradient: Tensor, needs_tables: list[bool], needs_weight: bool, needs_bias: bool
) -> tuple[Tensor | None, Tensor | None, list[Tensor | None]]:
    """Updates the tables that have an update; gradients of weight, bias and the other tables."""
    backend = call.op.serving(given, call.wanted, "backward")
    optimisers = [None if update is None else update.optimiser for update in call.updates]
    steps = [
        None if optimiser is None else optimiser.row_step(table)
        for optimiser, table in zip(optimisers, given.tables, strict=True)
    ]
    if backend.name == "cpp" and native.can_step(given, steps):
        d_weight, d_bias = native.backward_and_step(gradient, given, steps, needs_weight, needs_bias)
        return d_weight, d_bias, [None] * len(steps)
    sparse = given._replace(sparse=True)
    needs = [True, needs_weight, needs_bias]
    *parts, d_weight, d_bias = call.op.backward_op([gradient], [gradient], needs, *sparse, call.wanted)
    d_tables: list[Tensor | None] = []
    for index, (table, optimiser) in enumerate(zip(given.tables, optimisers, strict=True)):
        rows, values = parts[2 * index : 2 * index + 2]
        if optimiser is not None:
            optimiser.apply_rows(table, rows, values)
            d_tables.append(None)
        elif not needs_tables[index]:
            d_tables.append(None)
        elif given.sparse:
            made = torch.sparse_coo_tensor(rows[None], values, table.shape, is_coalesced=True, check_invariants=False)
            d_tables.append(made)
        else:
            d_tables.append(torch.zeros_like(table).index_copy_(0, rows, values))
    return d_weight if needs_weight else None, d_bias if needs_bias else None, d_tables
