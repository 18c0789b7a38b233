"""Quality over the size of the model: data and compute grown along, with a log-linear fit, and at equal compute.

The published finding is that quality grows linearly in the logarithm of the encoder's parameters. A size with N
parameters is trained on the share (N / N of the largest)^growth of the users, for that share of the steps, so that the
passes over the data are the same for all; growth 0 gives every size the same data and steps. Learning rates scale as
1 / width, so that every size is trained at a suitable rate.

At equal compute every size has all users and as many steps as the budget pays for, in arithmetic of encoder, attention
and candidates. A budget is a share of what the largest size takes: which size is best depends on it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace

import numpy as np

from python_model.data.schema import Dataset
from python_model.data.synthetic import SyntheticConfig
from python_model.reporting.charts import Chart, point_chart
from python_model.studies.intervals import Interval, as_numbers, interval, interval_table
from python_model.studies.study import Budget, Report, Study, base_trial, resized, shapes_of
from python_model.studies.summary import (
    LABELS,
    LOWER_IS_BETTER,
    Fit,
    by_name,
    fit_line,
    plain,
    signed,
    table,
    values,
)  # fmt: skip
from python_model.studies.trials import Trial, TrialResult, over_seeds
from python_model.training.grown import encoder_flop, event_flop

SERVICE = SyntheticConfig(users=5000, clusters=32, dimensions=16)
SIZES = ("1x16", "1x32", "2x32", "2x64", "2x128")
GROWTH = 0.5
COMPUTE = (0.02, 0.1)
"""Budgets of the comparison at equal compute, as shares of what the largest size takes."""
METRICS = ("ndcg@10", "pairwise_accuracy", "next_item_ne", "feedback_ne")
BUDGET = {"steps": 600, "finetune_steps": 180, "seeds": 2, "max_events": 6000}
AT_EQUAL = ".c"
"""Between size and number of the budget in the names of the trials at equal compute."""


def scaling(
    dataset: Dataset, sizes: Sequence[str] = SIZES, budget: Budget | None = None, *, growth: float = GROWTH,
    compute: Sequence[float] = COMPUTE,
) -> Study:  # fmt: skip
    """The study over `sizes`: names of presets or LAYERSxWIDTH. compute: budgets, none leaves their comparison out."""
    budget = (budget or Budget()).or_else(**BUDGET)
    base = base_trial(dataset, budget)
    plainly = [resized(base, size, shapes_of(size)) for size in sizes]
    largest = max(plainly, key=lambda trial: encoder_flop(trial.model))
    trials = [grown_along(trial, largest, growth) for trial in plainly]
    for number, share in enumerate(compute):
        trials += [at_compute(trial, f"{trial.name}{AT_EQUAL}{number}", largest, share) for trial in plainly]
    settings = {"sizes": list(sizes), "growth": growth, "compute": list(compute), **asdict(budget)}
    report = Reporter(list(compute), {trial.name: training_flop(trial) for trial in trials}).report
    return Study("scaling", over_seeds(trials, budget.seeds or 1), report, settings)


def training_flop(trial: Trial) -> float:
    """Arithmetic of both stages of a trial at full batches: encoder, attention and candidates."""
    return sum(config.steps * config.batch_events * event_flop(trial.model, config) for config in trial.stages)


def grown_along(trial: Trial, largest: Trial, growth: float) -> Trial:
    """The trial with its share of the largest one's steps and users."""
    share = (encoder_flop(trial.model) / encoder_flop(largest.model)) ** growth
    return stretched(trial, share, users=share)


def at_compute(trial: Trial, name: str, largest: Trial, share: float) -> Trial:
    """The trial with the steps that a share of the largest one's arithmetic pays for."""
    return stretched(replace(trial, name=name), share * training_flop(largest) / training_flop(trial))


def stretched(trial: Trial, factor: float, users: float = 1.0) -> Trial:
    """The trial with other numbers of steps in both stages, and a share of its users."""
    stages = {}
    for config in trial.stages:
        steps = max(2, round(factor * config.steps))
        warmup = min(config.warmup_steps, max(1, steps // 8))
        share = min(1.0, config.train_share * users)
        stages[config.stage] = replace(config, steps=steps, warmup_steps=warmup, train_share=share)
    return replace(trial, **stages)  # type: ignore[arg-type]


def fits(results: Sequence[TrialResult]) -> dict[str, Fit]:
    """For each metric the line over log10 of the encoder's parameters, through every trial; {} for fewer than 3 sizes.

    Seeds of one size are points of their own, as if independent; they share the evaluated events.
    """
    size = np.log10([one.parameters["encoder"] for one in results])
    if len(np.unique(size)) < 3:
        return {}
    measured = {metric: values(results, metric) for metric in METRICS}
    return {metric: fit_line(size, found) for metric, found in measured.items() if not np.isnan(found).any()}


def best_sizes(rows: Mapping[str, Sequence[TrialResult]], metric: str) -> str:
    """The row that is best by the metric; "–" where it is not known."""
    found = {name: float(values(row, metric).mean()) for name, row in rows.items()}
    known = {name: value for name, value in found.items() if not np.isnan(value)}
    if not known:
        return "–"
    pick = min if metric in LOWER_IS_BETTER else max
    return pick(known, key=lambda name: known[name])


class Reporter:
    """Makes the report of the results so far. compute: the budgets; flop: trial name -> arithmetic of its training."""

    def __init__(self, compute: Sequence[float], flop: Mapping[str, float]) -> None:
        self._compute, self._flop = compute, flop

    def report(self, results: Sequence[TrialResult], known: Sequence[TrialResult]) -> Report:
        """Tables of the grown sizes and of those at equal compute, fits, figures."""
        grown = [one for one in results if AT_EQUAL not in one.name]
        found = fits(grown)
        rows = by_name(grown)
        spans = {name: {metric: interval(row, metric) for metric in METRICS} for name, row in rows.items()}
        text = table([*known, *grown], heading="size")
        text += "\n95 % intervals over users and seeds:\n\n" + interval_table(spans, METRICS, "size")
        text += "\n" + _fit_table(found)
        figures = {
            metric.partition("@")[0]: _figure(metric, rows, found.get(metric))
            for metric in METRICS
            if not np.isnan(values(grown, metric)).any()
        }
        more = {
            "fits": {metric: asdict(fit) for metric, fit in found.items()}, "intervals": as_numbers(spans),
            "flop": dict(self._flop),
        }  # fmt: skip
        return Report(text + self._at_equal_compute(results), figures, more)

    def _at_equal_compute(self, results: Sequence[TrialResult]) -> str:
        """A row for every size and budget, and the best size of every budget by every metric."""
        text = ""
        best: list[str] = []
        for number, share in enumerate(self._compute):
            end = f"{AT_EQUAL}{number}"
            row_of = by_name([one for one in results if one.name.endswith(end)])
            rows = {name.removesuffix(end): row for name, row in row_of.items()}
            if not rows:
                continue
            flop = max(self._flop[name] for name in row_of)
            spans: dict[str, dict[str, Interval | None]] = {
                f"{size}, {row[0].events:,} events": {metric: interval(row, metric) for metric in METRICS}
                for size, row in rows.items()
            }
            text += f"\nAt {flop:.2g} FLOP, {share:g} of the largest size's:\n\n"
            text += interval_table(spans, METRICS, "size")
            best.append(f"| {flop:.2g} | " + " | ".join(f"`{best_sizes(rows, metric)}`" for metric in METRICS) + " |")
        if best:
            head = "\n| FLOP | " + " | ".join(f"best by {LABELS[metric]}" for metric in METRICS) + " |\n"
            text += head + "|---:" + "|---" * len(METRICS) + "|\n" + "\n".join(best) + "\n"
        return text


def _figure(metric: str, rows: Mapping[str, Sequence[TrialResult]], fit: Fit | None) -> Chart:
    size = np.array([row[0].parameters["encoder"] for row in rows.values()])
    order = np.argsort(size)
    in_order = [list(rows.values())[place] for place in order]
    spans = [interval(row, metric) for row in in_order]
    known = [one for one in spans if one is not None]
    bars = (np.array([one.low for one in known]), np.array([one.high for one in known]))
    ends = np.array([size.min(), size.max()])
    return point_chart(
        {"trained": (size[order], [values(row, metric) for row in in_order])},
        "parameters of the encoder", LABELS[metric],
        line=None if fit is None else (ends, fit(np.log10(ends))),
        bars={"trained": bars} if len(known) == len(spans) else None,
    )  # fmt: skip


def _fit_table(found: dict[str, Fit]) -> str:
    if not found:
        return "No fit: fewer than three sizes are done.\n"
    lines = [
        "| per tenfold parameters | slope | 95 % interval of the slope | R² | points |",
        "|---|---:|---:|---:|---:|",
    ]
    for metric, fit in found.items():
        ends = f"{signed(fit.low)} … {signed(fit.high)}"
        lines.append(f"| {LABELS[metric]} | {signed(fit.slope)} | {ends} | {plain(fit.r2)} | {fit.points} |")
    return "\n".join(lines) + "\n"
