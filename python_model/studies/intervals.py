"""Intervals of a study's figures, drawn over users and seeds, and of the differences between its rows.

A draw takes as many of the evaluated users as there are, with replacement, and as many seeds. All rows of a study have
the same users, so a difference takes the same users and, where both rows have them, the same seeds on both sides: what
makes one user easier than another cancels. An interval holds the middle 95 % of the draws.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from python_model.studies.summary import LABELS, plain, signed
from python_model.studies.trials import TrialResult

DRAWS = 2000


@dataclass(frozen=True)
class Interval:
    """A figure, the mean over seeds, and the interval that its draws lie in."""

    value: float
    low: float
    high: float

    def overlaps(self, other: Interval) -> bool:
        """Whether the two intervals have a value in common."""
        return self.low <= other.high and other.low <= self.high

    @property
    def has_sign(self) -> bool:
        """Of a difference: whether the interval lies on one side of 0."""
        return self.low > 0 or self.high < 0


def interval(row: Sequence[TrialResult], metric: str, draws: int = DRAWS) -> Interval | None:
    """Of a row, the results of one trial over its seeds; None where the metric is not known by user."""
    sums = _sums(row, metric)
    return None if sums is None else _middle(_ratio(*sums), _drawn(sums, draws))


def difference(
    row: Sequence[TrialResult], other: Sequence[TrialResult], metric: str, draws: int = DRAWS
) -> Interval | None:
    """Of row minus other, over the seeds that both have (a row of one result without training stands for all).

    ValueError where they were evaluated on other users.
    """
    pair = _paired(row, other, metric)
    if pair is None:
        return None
    first, second = pair
    return _middle(_ratio(*first) - _ratio(*second), _drawn(first, draws) - _drawn(second, draws))


def ratio(row: Sequence[TrialResult], other: Sequence[TrialResult], metric: str, draws: int = DRAWS) -> Interval | None:
    """Of row / other, as `difference`; None also where the other row's figure is 0."""
    pair = _paired(row, other, metric)
    if pair is None or _ratio(*pair[1]) == 0:
        return None
    first, second = pair
    with np.errstate(invalid="ignore", divide="ignore"):
        return _middle(_ratio(*first) / _ratio(*second), _drawn(first, draws) / _drawn(second, draws))


def interval_table(
    rows: Mapping[str, Mapping[str, Interval | None]],
    metrics: Sequence[str],
    heading: str,
    *,
    differences: bool = False,
) -> str:
    """Markdown: row -> metric -> interval; a difference whose interval holds 0 is marked ≈."""
    lines = [
        f"| {heading} | " + " | ".join(LABELS.get(metric, metric) for metric in metrics) + " |",
        "|---" + "|---:" * len(metrics) + "|",
    ]
    for name, found in rows.items():
        cells = (interval_cell(found.get(metric), differences) for metric in metrics)
        lines.append(f"| `{name}` | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def interval_cell(found: Interval | None, is_difference: bool = False) -> str:
    """`.1234 [.1200, .1270]`; signed for a difference."""
    if found is None:
        return "–"
    shown = signed if is_difference else plain
    mark = "≈ " if is_difference and not found.has_sign else ""
    return f"{mark}{shown(found.value)} [{shown(found.low)}, {shown(found.high)}]"


def as_numbers(rows: Mapping[str, Mapping[str, Interval | None]]) -> dict[str, dict[str, list[float] | None]]:
    """JSON-ready: row -> metric -> [value, low, high]."""
    return {
        name: {metric: None if one is None else [one.value, one.low, one.high] for metric, one in found.items()}
        for name, found in rows.items()
    }


def _paired(
    row: Sequence[TrialResult], other: Sequence[TrialResult], metric: str
) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]] | None:
    """The sums of two rows over the seeds that both have; None where a row has none."""
    if not row or not other:
        return None
    seeds = sorted({one.seed for one in row} & {one.seed for one in other})
    if len(row) > 1 and len(other) > 1:
        row, other = ([one for one in rows if one.seed in seeds] for rows in (row, other))
    first, second = _sums(row, metric), _sums(other, metric)
    if first is None or second is None:
        return None
    if first[0].shape[1] != second[0].shape[1]:
        raise ValueError(f"{row[0].name}, {other[0].name}: expected the same users, found other numbers of them")
    return first, second


def _sums(row: Sequence[TrialResult], metric: str) -> tuple[np.ndarray, np.ndarray] | None:
    """Gains and weights [seeds, users]; None where a result has none."""
    found = [one.by_user.get(metric) for one in row if one.metrics.get(metric) is not None]
    if not found or len(found) < len(row) or None in found:
        return None
    stacked = np.array(found, float)
    return stacked[:, 0], stacked[:, 1]


def _ratio(gains: np.ndarray, weights: np.ndarray) -> float:
    return float((gains.sum(axis=1) / weights.sum(axis=1)).mean())


def _drawn(sums: tuple[np.ndarray, np.ndarray], draws: int) -> np.ndarray:
    """The draws of a row [draws]; equal numbers of users and of seeds give equal draws of them."""
    seeds, users = sums[0].shape
    counts = np.random.default_rng([0, users]).multinomial(users, np.full(users, 1 / users), draws).astype(float)
    with np.errstate(invalid="ignore", divide="ignore"):
        by_seed = (counts @ sums[0].T) / (counts @ sums[1].T)
    taken = np.random.default_rng([1, seeds]).integers(0, seeds, (draws, seeds))
    out: np.ndarray = np.take_along_axis(by_seed, taken, axis=1).mean(axis=1)
    return out


def _middle(value: float, drawn: np.ndarray) -> Interval:
    low, high = np.nanquantile(drawn, [0.025, 0.975])
    return Interval(value, float(low), float(high))
