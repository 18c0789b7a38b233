"""Quality over the length of the context: models that see 128 … 8,192 events of a user, in training and evaluation.

The synthetic users' tastes have many dimensions and drift slowly over hundreds of sessions, so that a long history
says more than a short one. Every model goes through the same number of events in batches of the same size. An evaluated
event has between half a window and a whole window of history behind it, or all that its user has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace

import numpy as np

from python_model.charts import point_chart
from python_model.data.schema import Dataset
from python_model.data.synthetic import SyntheticConfig
from python_model.studies.study import Budget, Report, Study, base_trial
from python_model.studies.summary import LABELS, by_name, table, values
from python_model.studies.trials import Trial, TrialResult, over_seeds

SERVICE = SyntheticConfig(
    users=120, events_per_user=8500.0, days=720, clusters=32, dimensions=32, drift=0.995, organic_sharpness=3.0,
    policy_sharpness=2.4,
)  # fmt: skip
WINDOWS = (128, 512, 2048, 8192)
METRICS = ("ndcg@10", "pairwise_accuracy", "next_item_ne", "feedback_ne")
BUDGET = {"steps": 100, "finetune_steps": 30, "batch_events": 8192, "seeds": 1, "max_events": 8000}


def context(dataset: Dataset, windows: Sequence[int] = WINDOWS, budget: Budget | None = None) -> Study:
    """The study over `windows`; ValueError for one longer than the data's longest history or than a batch."""
    budget = (budget or Budget()).or_else(**BUDGET)
    longest = int(np.diff(dataset.offsets).max())
    # Twice the longest history shows nothing that the longest does not: one window may pass it, no second one.
    too_long = [window for window in windows if window >= 2 * longest]
    if too_long:
        raise ValueError(
            f"windows: {', '.join(map(str, too_long))} events, but the longest history of {dataset.info.name} has "
            f"{longest:,}: expected fewer than twice as many"
        )
    base = base_trial(dataset, replace(budget, batch_events=max(budget.batch_events or 0, *windows)))
    trials = over_seeds([with_window(base, window) for window in windows], budget.seeds or 1)
    return Study("context", trials, _report, {"windows": list(windows), "longest": longest, **asdict(budget)})


def with_window(trial: Trial, window: int) -> Trial:
    """The trial with another context; its name is the number of events."""
    stages = {config.stage: replace(config, window=window) for config in trial.stages}
    model = replace(trial.model, max_events=max(trial.model.max_events, window))
    return replace(trial, name=str(window), model=model, **stages)  # type: ignore[arg-type]


def _report(results: Sequence[TrialResult], known: Sequence[TrialResult]) -> Report:
    groups = by_name(results)
    windows = np.array([int(name) for name in groups])
    figures = {
        metric.partition("@")[0]: point_chart(
            {"trained": (windows, [values(group, metric) for group in groups.values()])},
            "events of context", LABELS[metric],
        )
        for metric in METRICS
        if not np.isnan(values(results, metric)).any()
    }  # fmt: skip
    return Report(table([*known, *results], heading="context"), figures)
