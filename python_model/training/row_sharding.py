"""Row-sharded embedding tables: each rank holds some rows, reads those of others and sends their gradients back.

A table of V rows is split over R ranks in blocks of ⌈V / R⌉ rows, like DTensor's Shard(0): the last ranks may hold
fewer or none. A batch reads each distinct row once: its ids go to the ranks that hold the rows, the rows come back, and
the ops run on this small table with renumbered ids. Gradients return the same way and are summed on the rank of the
row, so the optimiser's step needs no communication. Three all_to_all per batch: of distinct ids, rows and gradients.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from python_model.config import TrainConfig
from python_model.training import process_group

BLOCK = 1 << 16
"""Rows of a new table that are drawn together: a rank draws only the blocks that it holds."""


@dataclass(frozen=True)
class RowSharding:
    """Which tables are sharded: those of `least_rows` rows or more, evenly over `ranks`."""

    rank: int
    ranks: int
    least_rows: int

    def span(self, rows: int) -> tuple[int, int] | None:
        """First and last (exclusive) row of a table that this rank holds; None for a table that is not cut."""
        return span(self.rank, self.ranks, rows) if rows >= self.least_rows else None


def row_sharding(config: TrainConfig) -> RowSharding | None:
    """The row sharding of this run; None for a single process."""
    return (
        RowSharding(process_group.rank(), process_group.size(), config.shard_rows) if process_group.size() > 1 else None
    )


def span(rank: int, ranks: int, rows: int) -> tuple[int, int]:
    """The rows first … last − 1 of `rows` that a rank holds."""
    chunk = -(-rows // ranks)
    return min(rank * chunk, rows), min((rank + 1) * chunk, rows)


def initial_rows(rows: int, width: int, number: int, held: tuple[int, int] | None) -> Tensor:
    """Rows of a new table, N(0, 1 / width): float32 [held, width], or all of them; the same on every rank.

    number: of the table in its model. Small tables come from torch's generator, in full; others from one generator a
    block, seeded by torch's initial seed, the table and the block, so that no rank draws what it does not hold.
    """
    first, last = held or (0, rows)
    if rows <= BLOCK:
        return torch.randn(rows, width)[first:last] * width**-0.5
    out = torch.empty(last - first, width)
    if out.is_meta:
        return out  # a model on the meta device, whose weights are loaded later
    for block in range(first // BLOCK, -(-last // BLOCK)):
        begin = block * BLOCK
        random = np.random.default_rng([torch.initial_seed(), number, block])
        drawn = random.standard_normal((min(BLOCK, rows - begin), width), np.float32)
        low, high = max(first, begin), min(last, begin + BLOCK)
        out[low - first : high - first] = torch.from_numpy(drawn[low - begin : high - begin])
    return out.mul_(width**-0.5)


@dataclass(frozen=True)
class ReadRows:
    """The rows of a sharded table that a batch reads: ids int64 [n], ascending, each once; rows [n, width]."""

    ids: Tensor
    rows: Tensor

    def places(self, ids: Tensor) -> Tensor:
        """Where the given ids stand in `rows`; −1 stays −1."""
        return torch.where(ids >= 0, torch.searchsorted(self.ids, ids.contiguous()), -1)


class RowExchange:
    """Reads rows of the sharded tables of a model, and brings back their gradients."""

    def __init__(self, sharding: RowSharding, group: dist.ProcessGroup, *, sparse: bool) -> None:
        self.ranks, self.rank, self.group, self.sparse = sharding.ranks, sharding.rank, group, sparse

    def read(self, held: Tensor, rows: int, ids: Tensor) -> ReadRows:
        """The rows of a table of `rows` rows, of which this rank has `held`, that `ids` name (any shape, −1 = none).

        A collective call. The gradient of `held` is row-sparse where the model's are, dense otherwise.
        """
        distinct = torch.unique(ids[ids >= 0])
        chunk = -(-rows // self.ranks)
        asked = torch.bincount(distinct // chunk, minlength=self.ranks)
        wanted = torch.empty_like(asked)
        dist.all_to_all_single(wanted, asked, group=self.group)
        route = _Route(asked.tolist(), wanted.tolist(), self.group)
        local = route.to_owners(distinct) - min(self.rank * chunk, rows)
        return ReadRows(distinct, _Read.apply(held, local, route, self.sparse))


@dataclass(frozen=True)
class _Route:
    """The number of rows that this rank requests from each rank, and that each rank requests from it."""

    asked: list[int]
    wanted: list[int]
    group: dist.ProcessGroup

    def to_owners(self, values: Tensor) -> Tensor:
        """Send the values of the requested rows to their owners, [Σ asked, …] → [Σ wanted, …]."""
        return self._send(values, self.asked, self.wanted)

    def to_askers(self, values: Tensor) -> Tensor:
        """Send values back from the owners, [Σ wanted, …] → [Σ asked, …]."""
        return self._send(values, self.wanted, self.asked)

    def _send(self, values: Tensor, sent: list[int], received: list[int]) -> Tensor:
        out = values.new_empty(sum(received), *values.shape[1:])
        dist.all_to_all_single(out, values.contiguous(), received, sent, group=self.group)
        return out


class _Read(torch.autograd.Function):
    """held [v, width], local int64 [Σ wanted] → the asked rows [Σ asked, width]."""

    @staticmethod
    def forward(ctx: Any, held: Tensor, local: Tensor, route: _Route, sparse: bool) -> Tensor:
        ctx.save_for_backward(local)
        ctx.route, ctx.sparse, ctx.shape = route, sparse, held.shape
        return route.to_askers(held.index_select(0, local))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        (local,) = ctx.saved_tensors
        values = ctx.route.to_owners(gradient)
        if ctx.sparse:
            return torch.sparse_coo_tensor(local[None], values, ctx.shape, check_invariants=False), None, None, None
        return values.new_zeros(ctx.shape).index_add_(0, local, values), None, None, None
