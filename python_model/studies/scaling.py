"""Quality over the size of the model: the same data, steps and batches for every size, and a log-linear fit.

The published finding is that quality grows linearly in the logarithm of the encoder's parameters. Learning rates scale
as 1 / width, so that every size is trained at a suitable rate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import numpy as np

from python_model.data.schema import Dataset
from python_model.data.synthetic import SyntheticConfig
from python_model.reporting.charts import point_chart
from python_model.studies.study import Budget, Report, Study, base_trial, resized, shapes_of
from python_model.studies.summary import LABELS, Fit, by_name, fit_line, signed, table, values
from python_model.studies.trials import TrialResult, over_seeds

SERVICE = SyntheticConfig(users=5000, clusters=32, dimensions=16)
SIZES = ("1x16", "2x32", "2x64", "3x128")
METRICS = ("ndcg@10", "pairwise_accuracy", "next_item_ne", "feedback_ne")
BUDGET = {"steps": 320, "finetune_steps": 100, "seeds": 2, "max_events": 6000}


def scaling(dataset: Dataset, sizes: Sequence[str] = SIZES, budget: Budget | None = None) -> Study:
    """The study over `sizes`: names of presets or LAYERSxWIDTH."""
    budget = (budget or Budget()).or_else(**BUDGET)
    base = base_trial(dataset, budget)
    trials = over_seeds([resized(base, size, shapes_of(size)) for size in sizes], budget.seeds or 1)
    return Study("scaling", trials, _report, {"sizes": list(sizes), **asdict(budget)})


def fits(results: Sequence[TrialResult]) -> dict[str, Fit]:
    """For each metric the line over log10 of the encoder's parameters, through every trial; {} for fewer than 3 sizes.

    Seeds of one size are points of their own, as if independent; they share the evaluated events.
    """
    size = np.log10([one.parameters["encoder"] for one in results])
    if len(np.unique(size)) < 3:
        return {}
    measured = {metric: values(results, metric) for metric in METRICS}
    return {metric: fit_line(size, found) for metric, found in measured.items() if not np.isnan(found).any()}


def _report(results: Sequence[TrialResult], known: Sequence[TrialResult]) -> Report:
    found = fits(results)
    text = table([*known, *results], heading="size") + "\n" + _fit_table(found)
    groups = by_name(results)
    size = np.array([group[0].parameters["encoder"] for group in groups.values()])
    ends = np.array([size.min(), size.max()])
    figures = {
        metric.partition("@")[0]: point_chart(
            {"trained": (size, [values(group, metric) for group in groups.values()])},
            "parameters of the encoder", LABELS[metric],
            line=(ends, found[metric](np.log10(ends))) if metric in found else None,
        )
        for metric in METRICS
        if not np.isnan(values(results, metric)).any()
    }  # fmt: skip
    return Report(text, figures, {"fits": {metric: asdict(fit) for metric, fit in found.items()}})


def _fit_table(found: dict[str, Fit]) -> str:
    if not found:
        return "No fit: fewer than three sizes are done.\n"
    lines = ["| per tenfold parameters | slope | 95 % interval of the slope | points |", "|---|---:|---:|---:|"]
    for metric, fit in found.items():
        interval = f"{signed(fit.low)} … {signed(fit.high)}"
        lines.append(f"| {LABELS[metric]} | {signed(fit.slope)} | {interval} | {fit.points} |")
    return "\n".join(lines) + "\n"
