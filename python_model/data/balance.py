"""Deals the windows of a step to its batches by what they cost, so that no rank waits long for another.

Batches of equally many events cost different amounts, as attention costs n² a window. Windows are dealt in falling
order of cost, each to the batch that costs least so far and has room (greedy, longest processing time first). The step
keeps its windows and counts: for the same candidates its gradient stays what it was, but for the order of sums.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from python_model.data.windows import Windows, joined


@dataclass(frozen=True)
class HistoryCost:
    """Arithmetic of training on a window of n events: linear · n + quadratic · n², in one unit."""

    linear: float
    quadratic: float

    def of(self, lengths: np.ndarray) -> np.ndarray:
        """The cost of windows of these lengths, float64."""
        n = lengths.astype(np.float64)
        return n * (self.linear + self.quadratic * n)


def balanced(batches: Sequence[Windows], cost: HistoryCost, token_budget: int) -> list[Windows]:
    """The windows of a step's batches in as many batches of at most token_budget events, costing about the same.

    A function of its arguments alone. Batches whose dearest one would not become cheaper are returned as they are. The
    windows of a batch keep their order.
    """
    together = joined(batches)
    dealt = deal(cost.of(together.lengths), together.lengths, len(batches), token_budget)
    found = None if dealt is None else [together.take(index) for index in dealt]
    before = max(cost.of(one.lengths).sum() for one in batches)
    if found is None or max(cost.of(one.lengths).sum() for one in found) >= before:
        return list(batches)
    return found


def deal(costs: np.ndarray, lengths: np.ndarray, parts: int, room: int) -> list[np.ndarray] | None:
    """The indices of each part, rising; None where a window fits in no part.

    costs float64 [n], lengths int64 [n]: of the windows; room: events of a part at most.
    """
    members: list[list[int]] = [[] for _ in range(parts)]
    free = [room] * parts
    parts_by_cost = [(0.0, part) for part in range(parts)]
    sizes, prices = lengths.tolist(), costs.tolist()
    for window in np.argsort(-costs, kind="stable").tolist():
        full = []
        while parts_by_cost and free[parts_by_cost[0][1]] < sizes[window]:
            full.append(heapq.heappop(parts_by_cost))
        if not parts_by_cost:
            return None
        spent, part = parts_by_cost[0]
        heapq.heapreplace(parts_by_cost, (spent + prices[window], part))
        members[part].append(window)
        free[part] -= sizes[window]
        for entry in full:
            heapq.heappush(parts_by_cost, entry)
    return [np.array(sorted(one), np.int64) for one in members]
