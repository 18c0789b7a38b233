"""Stochastic length, as HSTU trains (arXiv 2402.17152): long histories are replaced by random subsequences.

With N events in the longest history and 1 ≤ α ≤ 2, a history of n events

    n ≤ N^(α/2)   stays as it is;
    n > N^(α/2)   is replaced with probability 1 − N^α / n² by N^(α/2) of its events, in their order.

So attention costs O(N^α) a history and not O(N²). A history is here what the model sees of one, a window of at most
N = `TrainConfig.window` events. α = 2 replaces nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from argus_kernels.host import MAX_SLOTS, hash_ids
from python_model.config import TrainConfig
from python_model.data.windows import Windows


@dataclass(frozen=True)
class StochasticLength:
    """The draw of the windows that are replaced and of the events they keep.

    recent: events are drawn without replacement with weights that rise linearly with their position, 1 for the oldest
    event of a window and n for its newest; otherwise all alike.
    """

    alpha: float
    window: int
    recent: bool = False

    @classmethod
    def of(cls, config: TrainConfig) -> StochasticLength | None:
        """As a run has it; None where it replaces nothing."""
        if config.stochastic_length_alpha == 2:
            return None
        return cls(config.stochastic_length_alpha, config.window, config.stochastic_length_sampling == "recent")

    @property
    def length(self) -> int:
        """Events of a subsequence: N^(α/2), rounded, at least 2."""
        return max(2, round(self.window ** (self.alpha / 2)))

    def probability(self, lengths: np.ndarray) -> np.ndarray:
        """With which probability a history of so many events is replaced, float64 like `lengths`."""
        kept = self.window**self.alpha / np.maximum(lengths, 1).astype(np.float64) ** 2
        return np.where(lengths > self.length, 1 - kept, 0.0)

    def shorten(self, windows: Windows, seed: Sequence[int]) -> Windows:
        """The windows with `kept` and `draw`, a function of the seed and of the windows' number and order."""
        random = np.random.default_rng([*seed, 1])
        replaced = random.random(len(windows)) < self.probability(windows.lengths)
        kept = np.where(replaced, self.length, windows.lengths)
        return replace(windows, kept=kept, draw=random.integers(0, 1 << 62, len(windows)))

    def rows(self, windows: Windows) -> np.ndarray:
        """The rows that the windows show, int64 [T], window by window and rising."""
        assert windows.draw is not None
        whole = windows.end - windows.start
        owner = np.repeat(np.arange(len(windows)), whole)
        begin = np.cumsum(whole) - whole
        position = np.arange(len(owner)) - begin[owner]
        # The events of the smallest keys: exponential variables, divided by the weights where events have some.
        uniform = (hash_ids(windows.draw[owner] + position, 1, MAX_SLOTS)[0] + 0.5) / MAX_SLOTS
        keys = -np.log(uniform) / (position + 1 if self.recent else 1)
        order = np.lexsort((keys, owner))
        chosen = order[position < windows.lengths[owner]]
        chosen.sort()
        rows: np.ndarray = windows.start[owner[chosen]] + position[chosen]
        return rows

    def expected(self, lengths: np.ndarray, power: int = 1) -> np.ndarray:
        """The mean of (events kept)^power of histories of these lengths, float64 like `lengths`."""
        probability, whole = self.probability(lengths), lengths.astype(np.float64) ** power
        return probability * float(self.length) ** power + (1 - probability) * whole
