"""Metrics beside the table: Gini and coverage of what is recommended, calibration of probabilities, intervals.

Definitions
- coverage: share of the catalogue that stands in at least one list.
- Gini: of how often each item of the catalogue stands in the lists, 0 where all stand equally often, near 1 where one
  item has every place.
- calibration: events in bins of equal width of the predicted probability; in each the mean prediction beside the share
  that happened. ECE: their mean absolute difference, weighted by the events of the bins (Guo et al., "On Calibration of
  Modern Neural Networks", 2017).
- interval: 2.5 % to 97.5 % of a metric over bootstrap samples of users.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

BINS = 10
DRAWS = 1000
_DRAWS_AT_ONCE = 50


def coverage(counts: np.ndarray) -> float:
    """Share of items with a count above 0; counts: int [V], V above 0."""
    return float((counts > 0).mean())


def gini(counts: np.ndarray) -> float:
    """Gini coefficient of counts [V], not negative; NaN (not defined) where all are 0."""
    total = float(counts.sum())
    if total == 0:
        return float("nan")
    n = len(counts)
    rising = np.sort(counts).astype(np.float64)
    return float((2 * np.arange(1, n + 1) - n - 1) @ rising / (n * total))


@dataclass(frozen=True)
class Calibration:
    """Bins that hold events: mean prediction, share that happened (float64) and events (int64), [bins] each."""

    predicted: np.ndarray
    observed: np.ndarray
    events: np.ndarray

    @property
    def error(self) -> float:
        """ECE; NaN without events."""
        if len(self.events) == 0:
            return float("nan")
        return float(np.average(np.abs(self.predicted - self.observed), weights=self.events))


def calibration(probability: np.ndarray, happened: np.ndarray, bins: int = BINS) -> Calibration:
    """Calibration of probability float [n] in [0, 1] for what happened, bool [n]; ValueError where one is outside."""
    if not ((probability >= 0) & (probability <= 1)).all():
        raise ValueError("probability: expected numbers in [0, 1]")
    place = np.minimum((probability * bins).astype(np.int64), bins - 1)
    events = np.bincount(place, minlength=bins)
    held = events > 0
    predicted = np.bincount(place, weights=probability, minlength=bins)[held] / events[held]
    observed = np.bincount(place, weights=happened.astype(np.float64), minlength=bins)[held] / events[held]
    return Calibration(predicted, observed, events[held])


def bootstrap_intervals(gains: np.ndarray, weights: np.ndarray, seed: int = 0, draws: int = DRAWS) -> np.ndarray:
    """float64 [M, 2]: the interval of each of M metrics sum(gains) / sum(weights).

    gains, weights: float [users, M]. Every draw takes as many users as there are, with replacement, the same ones for
    all metrics. NaN where there are fewer than two users or no weight.
    """
    users, count = gains.shape
    if users < 2:
        return np.full((count, 2), np.nan)
    random = np.random.default_rng(seed)
    found = []
    for begin in range(0, draws, _DRAWS_AT_ONCE):
        rows = min(_DRAWS_AT_ONCE, draws - begin)
        taken = random.integers(0, users, (rows, users)) + users * np.arange(rows)[:, None]
        times = np.bincount(taken.ravel(), minlength=rows * users).reshape(rows, users).astype(np.float64)
        with np.errstate(invalid="ignore", divide="ignore"):
            found.append((times @ gains) / (times @ weights))
    values = np.concatenate(found)
    out = np.full((count, 2), np.nan)
    for metric in range(count):
        defined = values[np.isfinite(values[:, metric]), metric]
        if len(defined):
            out[metric] = np.quantile(defined, [0.025, 0.975])
    return out
