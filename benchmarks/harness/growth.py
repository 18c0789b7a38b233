"""Cost against size: points, the power laws fitted to them, and the file that holds them."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks.harness.results import Quantiles


@dataclass(frozen=True)
class Point:
    """One size of a series: its time and peak extra memory, or why it was left out."""

    size: int
    ms: Quantiles | None = None
    peak_bytes: int | None = None
    left_out: str | None = None


@dataclass(frozen=True)
class Fit:
    """cost = factor · size^exponent; the standard error is of the exponent, None with fewer than three points."""

    exponent: float
    standard_error: float | None
    factor: float


@dataclass
class Series:
    """One op, pass and backend over increasing sizes."""

    op: str
    axis: str
    pass_: str
    backend: str
    dtype: str
    points: list[Point] = field(default_factory=list)
    time_fit: Fit | None = None
    memory_fit: Fit | None = None

    @property
    def name(self) -> str:
        """Its label in a legend."""
        return f"{self.backend}, {self.pass_.replace('_', ' + ')}"

    def measured(self) -> list[Point]:
        """The points that were not left out."""
        return [point for point in self.points if point.ms is not None]


@dataclass
class Scaling:
    """Everything that the command measured, in the form of `scaling.json`."""

    machine: dict[str, Any]
    versions: dict[str, str]
    commit: str
    series: list[Series]
    format: int = 1


def fit_power(sizes: Sequence[float], costs: Sequence[float]) -> Fit | None:
    """Least squares of ln cost on ln size; None with fewer than two different sizes or a cost that is not positive."""
    if len(set(sizes)) < 2 or min(costs) <= 0:
        return None
    x, y = [math.log(size) for size in sizes], [math.log(cost) for cost in costs]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    spread = sum((value - mean_x) ** 2 for value in x)
    exponent = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / spread
    residual = sum((b - mean_y - exponent * (a - mean_x)) ** 2 for a, b in zip(x, y, strict=True))
    error = math.sqrt(residual / (len(x) - 2) / spread) if len(x) > 2 else None
    return Fit(exponent, error, math.exp(mean_y - exponent * mean_x))


def foreseen(points: Sequence[tuple[float, float]], size: float) -> float | None:
    """The cost at `size`, extrapolated from smaller (size, cost) points with their last exponent, at least 1."""
    positive = [(place, cost) for place, cost in points if cost > 0]
    if not positive:
        return None
    last, cost = positive[-1]
    local = fit_power(*zip(*positive[-2:], strict=True)) if len(positive) > 1 else None
    return cost * (size / last) ** max(1.0, local.exponent if local else 1.0)


def to_json(found: Scaling) -> str:
    """The file's text."""
    values = asdict(found)
    for one in values["series"]:
        one["pass"] = one.pop("pass_")
    return json.dumps(values, indent=1, allow_nan=False) + "\n"


def from_json(text: str) -> Scaling:
    """Reads the text of `to_json`."""
    values = json.loads(text)
    for one in values["series"]:
        one["pass_"] = one.pop("pass")
        one["points"] = [Point(**(p | {"ms": Quantiles(**p["ms"]) if p["ms"] else None})) for p in one["points"]]
        for name in ("time_fit", "memory_fit"):
            one[name] = Fit(**one[name]) if one[name] else None
    return Scaling(**(values | {"series": [Series(**one) for one in values["series"]]}))


def summary(found: Scaling) -> list[str]:
    """One line per series with its exponents, and one per point that was left out."""
    lines = []
    for one in found.series:
        lines.append(
            f"{one.op} ({one.name}): time ~ {one.axis}^{_exponent(one.time_fit)}, "
            f"peak memory ~ ^{_exponent(one.memory_fit)}"
        )
        lines += [f"    {point.size:,} left out: {point.left_out}" for point in one.points if point.left_out]
    return lines


def _exponent(fit: Fit | None) -> str:
    if fit is None:
        return "(not enough points)"
    error = "" if fit.standard_error is None else f" ± {fit.standard_error:.2f}"
    return f"{fit.exponent:.2f}{error}"
