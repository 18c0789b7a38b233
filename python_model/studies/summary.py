"""Summaries of a study's results: means and ranges over seeds, the Markdown table, the log-linear fit, its files."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from python_model.io.disk import replace_text
from python_model.reporting import charts
from python_model.studies.trials import TrialResult, write_json

LABELS = {
    "ndcg@10": "NDCG@10",
    "recall@10": "recall@10",
    "pairwise_accuracy": "pairwise accuracy",
    "next_item_ne": "next-item NE",
    "feedback_ne": "feedback NE",
    "feedback_auc": "feedback AUC",
}
COLUMNS = tuple(LABELS)
LOWER_IS_BETTER = ("next_item_ne", "feedback_ne")


def by_name(results: Sequence[TrialResult]) -> dict[str, list[TrialResult]]:
    """Results by trial, the seeds together, in order of their first appearance."""
    out: dict[str, list[TrialResult]] = {}
    for one in results:
        out.setdefault(one.name, []).append(one)
    return out


def values(results: Sequence[TrialResult], metric: str) -> np.ndarray:
    """float64 [n]: one metric of every result, NaN where it is not defined."""
    return np.array([math.nan if one.metrics.get(metric) is None else one.metrics[metric] for one in results], float)


def cell(found: np.ndarray, *, difference: bool = False) -> str:
    """`.1234`, over several seeds `.1234 (.1220–.1250)`: mean, lowest, highest; signed for a difference."""
    if len(found) == 0 or np.isnan(found).any():
        return "–"
    shown, between = (signed, " … ") if difference else (plain, "–")
    mean, low, high = (shown(float(value)) for value in (found.mean(), found.min(), found.max()))
    return mean if len(found) == 1 else f"{mean} ({low}{between}{high})"


def plain(value: float) -> str:
    """`.1234`, `−.1234`: four decimals."""
    text = f"{value:.4f}".replace("-", "−")
    return text.replace("0.", ".", 1) if abs(value) < 1 else text


def signed(value: float) -> str:
    """`+.1234`, `−.1234`: four decimals of a difference."""
    return plain(value) if value < 0 else f"+{plain(value)}"


def table(
    results: Sequence[TrialResult], columns: Sequence[str] = COLUMNS, *, costs: bool = True, heading: str = ""
) -> str:
    """Markdown: a row per trial, means over its seeds with the lowest and highest in brackets.

    costs: adds parameters of the encoder, training events and seconds of training, where there was any.
    """
    names = [heading, *(LABELS.get(column, column) for column in columns)]
    names += ["encoder parameters", "events trained on", "training, s"] if costs else []
    lines = ["| " + " | ".join(names) + " |", "|---" + "|---:" * (len(names) - 1) + "|"]
    for name, found in by_name(results).items():
        cells = [f"`{name}`", *(cell(values(found, column)) for column in columns)]
        cells += _costs(found) if costs else []
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _costs(found: Sequence[TrialResult]) -> list[str]:
    if not found[0].events:
        return ["–", "–", "–"]
    seconds = float(np.mean([one.training_seconds for one in found]))
    return [f"{found[0].parameters['encoder']:,}", f"{found[0].events:,}", f"{seconds:,.0f}"]


@dataclass(frozen=True)
class Fit:
    """y = intercept + slope · x by least squares; low … high holds the slope with probability `confidence`.

    r2: share of y's variance that the line explains; 1 where y does not vary.
    The interval is Student's, on points − 2 degrees of freedom: it takes the points' errors as independent, normal
    and of one size.
    """

    intercept: float
    slope: float
    low: float
    high: float
    confidence: float
    points: int
    r2: float

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """The line at x [n]."""
        return self.intercept + self.slope * x


def fit_line(x: np.ndarray, y: np.ndarray, confidence: float = 0.95) -> Fit:
    """The line through points x, y [n]; ValueError where there are fewer than three or all lie at one x."""
    if len(x) != len(y) or len(x) < 3 or np.ptp(x) == 0:
        raise ValueError(f"fit_line: {len(x)} points over {len(np.unique(x))} places, expected at least 3 over 2")
    centred = x - x.mean()
    spread = float(centred @ centred)
    slope = float(centred @ y) / spread
    intercept = float(y.mean() - slope * x.mean())
    residual = y - (intercept + slope * x)
    error = math.sqrt(float(residual @ residual) / (len(x) - 2) / spread)
    reach = student_quantile(0.5 + confidence / 2, len(x) - 2) * error
    total = float(((y - y.mean()) ** 2).sum())
    r2 = 1 - float(residual @ residual) / total if total else 1.0
    return Fit(intercept, slope, slope - reach, slope + reach, confidence, len(x), r2)


@functools.cache
def student_quantile(probability: float, freedom: int) -> float:
    """The value that Student's t with `freedom` degrees stays below with this probability in (0.5, 1)."""
    if not 0.5 < probability < 1 or freedom < 1:
        raise ValueError(f"student_quantile: probability {probability}, freedom {freedom}, expected (0.5, 1) and 1")
    # t = √freedom · tan(angle) turns the distribution function into an integral of a cosine's power over an angle.
    angle = (np.arange(400_000) + 0.5) / 400_000 * (math.pi / 2)
    mass = np.cumsum(np.cos(angle) ** (freedom - 1))
    place = int(np.searchsorted(mass, (2 * probability - 1) * mass[-1]))
    return math.sqrt(freedom) * math.tan(angle[place])


def write_study(
    folder: Path, name: str, settings: Mapping[str, Any], results: Sequence[TrialResult], text: str,
    figures: Mapping[str, charts.Chart] | None = None, **more: Any,
) -> list[Path]:  # fmt: skip
    """`<name>.json` (settings, results and `more`), `<name>.md` with `text` and the figures `<name>_<figure>.svg`.

    The JSON leaves out `by_user`. figures by name. Called after every trial, so that a stopped study has its table so
    far.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = [{key: value for key, value in asdict(one).items() if key != "by_user"} for one in results]
    record = {"settings": dict(settings), **more, "results": rows}
    write_json(folder / f"{name}.json", record)
    written = [folder / f"{name}.json", folder / f"{name}.md"]
    for figure, chart in (figures or {}).items():
        written.append(folder / f"{name}_{figure}.svg")
        chart.write(written[-1])
        text += f"\n![{figure.replace('_', ' ')}]({written[-1].name})\n"
    replace_text(folder / f"{name}.md", text)
    return written
