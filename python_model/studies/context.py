"""Quality over the length of the context: how many events of history the model sees, from 16 to 8,192.

The synthetic users' tastes have many dimensions and drift slowly over hundreds of sessions, so a long history carries
more information than a short one. One model is pre-trained on windows of moderate length and evaluated with every
context, longer ones included: its biases depend on distance and elapsed time, not on absolute positions, so this is
possible. With `train_each` every context has its own model, which answers the question directly but needs the training
steps of a GPU: a batch of long windows holds few users, and a model that sees 8,192 events must first learn which of
them to ignore. Pairs are ordered by expected feedback.
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

SERVICE = SyntheticConfig(
    users=100, events_per_user=8400.0, days=720, clusters=32, dimensions=32, drift=0.998, organic_sharpness=3.0,
    policy_sharpness=2.4,
)  # fmt: skip
WINDOWS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
METRICS = ("ndcg@10", "pairwise_accuracy", "next_item_ne", "feedback_ne")
BUDGET = {"steps": 400, "window": 512, "batch_events": 2048, "seeds": 1, "max_events": 12000}


def context(
    dataset: Dataset, windows: Sequence[int] = WINDOWS, budget: Budget | None = None, *, train_each: bool = False
) -> Study:
    """The study over `windows`; ValueError for one that the data's histories are too short for."""
    budget = (budget or Budget()).or_else(**BUDGET)
    longest = int(np.diff(dataset.offsets).max())
    # One window may exceed the longest history; a second one would give the same result.
    too_long = [window for window in windows if window >= 2 * longest]
    if too_long:
        raise ValueError(
            f"windows: {', '.join(map(str, too_long))} events, but the longest history of {dataset.info.name} has "
            f"{longest:,}: expected fewer than twice as many"
        )
    if train_each:
        most = max(windows)
        budget = replace(budget, window=most, batch_events=max(budget.batch_events or 0, most))
    base = base_trial(dataset, budget, finetune=False)
    longest_seen = max(base.model.max_events, *windows)
    base = replace(
        base, name="model", model=replace(base.model, max_events=longest_seen),
        evaluation=replace(base.evaluation, ranking_kind="feedback"),
    )  # fmt: skip
    trials = over_seeds([with_context(base, window, train_each) for window in windows], budget.seeds or 1)
    settings = {"windows": list(windows), "longest": longest, "train_each": train_each, **asdict(budget)}
    return Study("context", trials, _report, settings)


def with_context(trial: Trial, window: int, train: bool) -> Trial:
    """The trial with another context, in training too where `train`; its name is the number of events."""
    seen = replace(trial, name=str(window), evaluation=replace(trial.evaluation, window=window))
    if not train or trial.pretrain is None:
        return replace(seen, trained_as=trial.name)
    return replace(seen, pretrain=replace(trial.pretrain, window=window))


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
