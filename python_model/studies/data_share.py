"""Quality over the amount of training data: models trained on the histories of a share of the users.

Every model takes the same number of steps, so a small share is seen many times. The users of a smaller share are a
subset of those of a larger one. All users are evaluated, and every model sees their histories when it predicts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace

import numpy as np

from python_model.data.schema import Dataset
from python_model.data.synthetic import SyntheticConfig
from python_model.reporting.charts import point_chart
from python_model.studies.study import Budget, Report, Study, base_trial
from python_model.studies.summary import LABELS, by_name, table, values
from python_model.studies.trials import Trial, TrialResult, over_seeds
from python_model.train import training_rows

SERVICE = SyntheticConfig(users=4000)
SHARES = (1 / 64, 1 / 16, 1 / 4, 1.0)
METRICS = ("ndcg@10", "pairwise_accuracy", "next_item_ne", "feedback_ne")
BUDGET = {"steps": 320, "finetune_steps": 100, "seeds": 2, "max_events": 6000}


def data_share(dataset: Dataset, shares: Sequence[float] = SHARES, budget: Budget | None = None) -> Study:
    """The study over `shares` of the users, each in (0, 1]."""
    budget = (budget or Budget()).or_else(**BUDGET)
    base = base_trial(dataset, budget)
    trials = over_seeds([with_share(base, share) for share in shares], budget.seeds or 1)
    events = {}
    for trial in trials[: len(shares)]:
        rows = training_rows(dataset, trial.protocol, trial.stages[0].train_share)
        assert rows is not None
        events[trial.name] = int(rows.sum())

    def report(results: Sequence[TrialResult], known: Sequence[TrialResult]) -> Report:
        return _report(results, known, events)

    return Study("data", trials, report, {"training_events": events, **asdict(budget)})


def with_share(trial: Trial, share: float) -> Trial:
    """The trial on a share of the users; its name is the share in percent."""
    stages = {config.stage: replace(config, train_share=share) for config in trial.stages}
    return replace(trial, name=f"{100 * share:g}_percent", **stages)  # type: ignore[arg-type]


def _report(results: Sequence[TrialResult], known: Sequence[TrialResult], events: dict[str, int]) -> Report:
    groups = by_name(results)
    size = np.array([events[name] for name in groups])
    figures = {
        metric.partition("@")[0]: point_chart(
            {"trained": (size, [values(group, metric) for group in groups.values()])},
            "different training events", LABELS[metric],
        )
        for metric in METRICS
        if not np.isnan(values(results, metric)).any()
    }  # fmt: skip
    lines = ["", "| share of the users | training events | times each was seen |", "|---|---:|---:|"]
    lines += [
        f"| `{name}` | {events[name]:,} | {group[0].events / events[name]:.1f} |" for name, group in groups.items()
    ]
    return Report(table([*known, *results], heading="share of the users") + "\n".join(lines) + "\n", figures)
