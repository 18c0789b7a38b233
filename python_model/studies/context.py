"""Quality over the length of the context: how many events of history the model sees, up to 8,192.

The synthetic service is one whose users a long history says more about: tastes that return with the season, items that
come back a year later, loyalty to what was ever liked (the preset "years"). One model is pre-trained on windows as long
as the longest context and evaluated with every context, which it has all seen in training: an event at place n of a
window has a context of n. `short_steps` puts steps on windows of SHORT before those on longer ones, which cost more.
With `train_each` every context has a model of its own. Beside them stand the oracles that are restricted to the same
contexts. Pairs are ordered by expected feedback.

`without` leaves one memory of the service out (MEMORIES): what the gain from context loses with it is its share.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from itertools import pairwise
from typing import Any

import numpy as np

from python_model.data.schema import Dataset
from python_model.data.synthetic import SyntheticConfig, preset
from python_model.evaluation.baselines import Oracle
from python_model.reporting.charts import Chart, point_chart
from python_model.studies.intervals import Interval, as_numbers, difference, interval, interval_table
from python_model.studies.study import Budget, Report, Study, base_trial
from python_model.studies.summary import LABELS, by_name, table, values
from python_model.studies.trials import Trial, TrialResult, over_seeds

SERVICE = preset(
    "years", users=320, tracks=4, expectation=-0.2, seasonality=0.8, weekday_tastes=0.02, hour_tastes=0.02, cycles=0.7,
    loyalty=0.1,
)  # fmt: skip
"""More of a taste returns with the season than in the preset, so that models of a few minutes have something to find;
a user has as many events as the longest context."""
MEMORIES: dict[str, Mapping[str, Any]] = {
    "seasons": {"seasonality": 0.0, "cycles": 0.0},
    "loyalty": {"loyalty": 0.0},
    "discovery": {"discovery": 0.0},
}
"""What can be left out of the service, by the settings that turn it off."""
WINDOWS = (128, 512, 2048)
ORACLE = "oracle_"
"""Prefix of the rows of the restricted oracles."""
METRICS = ("ndcg@10", "pairwise_accuracy", "next_item_ne", "feedback_ne")
BUDGET = {"steps": 3600, "seeds": 2, "max_events": 40_000}
SHORT = 2048
SETTINGS: Mapping[str, Any] = {"layers": 1, "heads": 4, "dropout": 0.0, "mimetic_logit": 6.0}
"""docs/results/context.md has what `mimetic_logit` gives; layers and heads were not searched."""
ALL_ITEMS = 8192
"""The largest catalogue whose items are all candidates of every step."""


def service(windows: Sequence[int] = WINDOWS, without: Sequence[str] = ()) -> SyntheticConfig:
    """The service of the study for these contexts, without some of MEMORIES.

    ValueError for another name, or a context that the service's calendar has no room for.
    """
    most = int(SERVICE.slots * SERVICE.session_length)
    if max(windows) >= most:
        raise ValueError(
            f"windows: found {max(windows):,} events, expected under {most:,}, as the service runs six years"
        )
    unknown = sorted(set(without) - set(MEMORIES))
    if unknown:
        raise ValueError(f"without: found {', '.join(unknown)}, expected some of {', '.join(MEMORIES)}")
    left_out = {name: value for one in without for name, value in MEMORIES[one].items()}
    return replace(SERVICE, events_per_user=float(max(windows)), **left_out)


def settings_for(items: int) -> dict[str, Any]:
    """The settings of model and training for a synthetic service of so many items, where the budget gives no other."""
    candidates = {"negatives_in_batch": 0, "negatives_uniform": items} if items <= ALL_ITEMS else {}
    return {**SETTINGS, **candidates}


def context(
    dataset: Dataset, windows: Sequence[int] = WINDOWS, budget: Budget | None = None, *, train_each: bool = False,
    short_steps: int = 0,
) -> Study:  # fmt: skip
    """The study over `windows`; ValueError for one that the data's histories are too short for.

    Where the budget says nothing else, training windows are as long as the longest context and a batch holds one.
    """
    budget = (budget or Budget()).or_else(**BUDGET)
    longest_context = max(windows)
    batch = budget.batch_events or max(2048, longest_context)
    budget = budget.or_else(batch_events=batch, window=min(longest_context, batch))
    if dataset.info.has_oracle:
        # Other data has a recipe of its own.
        budget = replace(budget, given=settings_for(dataset.info.items) | dict(budget.given))
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
    if train_each and short_steps:
        raise ValueError(f"short_steps: found {short_steps} with a model for each context, expected 0")
    base = with_short_windows(base, short_steps)
    trials = over_seeds([with_context(base, window, train_each) for window in windows], budget.seeds or 1)
    settings = {
        "windows": list(windows), "longest": longest, "train_each": train_each, "short_steps": short_steps,
        **asdict(budget),
    }  # fmt: skip
    oracles = {f"{ORACLE}{window}": Oracle(dataset, window) for window in windows} if dataset.info.has_oracle else {}
    return Study("context", trials, _report, settings, predictors=oracles)


def with_short_windows(trial: Trial, steps: int) -> Trial:
    """The trial with so many steps on windows of SHORT first; ValueError where its windows are no longer than those."""
    assert trial.pretrain is not None
    if steps == 0:
        return trial
    if trial.pretrain.window <= SHORT:
        raise ValueError(
            f"short_steps: found {steps} steps on windows of {SHORT:,} events before windows of "
            f"{trial.pretrain.window:,}, expected 0 where those are no longer"
        )
    warmup = min(trial.pretrain.warmup_steps, max(1, steps // 8))
    short = replace(trial.pretrain, steps=steps, window=SHORT, batch_events=SHORT, warmup_steps=warmup)
    return replace(trial, short=short)


def with_context(trial: Trial, window: int, train: bool) -> Trial:
    """The trial with another context, in training too where `train`; its name is the number of events."""
    seen = replace(trial, name=str(window), evaluation=replace(trial.evaluation, window=window))
    if not train or trial.pretrain is None:
        return replace(seen, trained_as=trial.name)
    return replace(seen, pretrain=replace(trial.pretrain, window=window))


def _report(results: Sequence[TrialResult], known: Sequence[TrialResult]) -> Report:
    trained, oracles = by_name(results), by_name([one for one in known if one.name.startswith(ORACLE)])
    series = {"trained": trained, "oracle of that context": oracles}
    figures = {
        metric.partition("@")[0]: _figure(metric, series)
        for metric in METRICS
        if not np.isnan(values(results, metric)).any()
    }
    found = {name: {metric: interval(row, metric) for metric in METRICS} for name, row in (trained | oracles).items()}
    gained = gains(trained, oracles)
    text = table([*known, *results], heading="context")
    text += "\n95 % intervals over users and seeds:\n\n" + interval_table(found, METRICS, "context")
    if gained:
        text += "\nDifferences, over the same users:\n\n" + interval_table(gained, METRICS, "", differences=True)
    more = {"intervals": as_numbers(found), "gains": as_numbers(gained)}
    return Report(text, figures, more)


def _figure(metric: str, series: Mapping[str, Mapping[str, list[TrialResult]]]) -> Chart:
    """A metric over the context, a line and its error bars for every series of rows."""
    lines, bars = {}, {}
    for label, rows in series.items():
        found = [values(row, metric) for row in rows.values()]
        if not found or np.isnan(np.concatenate(found)).any():
            continue
        events = np.array([int(name.removeprefix(ORACLE)) for name in rows])
        lines[label] = (events, found)
        spans = [interval(row, metric) for row in rows.values()]
        known = [one for one in spans if one is not None]
        if len(known) == len(spans):
            bars[label] = np.array([one.low for one in known]), np.array([one.high for one in known])
    return point_chart(lines, "events of context", LABELS[metric], bars=bars)


def gains(
    trained: Mapping[str, Sequence[TrialResult]], oracles: Mapping[str, Sequence[TrialResult]]
) -> dict[str, dict[str, Interval | None]]:
    """What each context gains over the next shorter one and the longest over the shortest; for the oracles too."""
    contexts = sorted({int(name.removeprefix(ORACLE)) for name in (*trained, *oracles)})
    steps = list(pairwise(contexts))
    if len(contexts) > 2:
        steps.append((contexts[0], contexts[-1]))
    out = {}
    for prefix, rows in (("", trained), (ORACLE, oracles)):
        for short, long in steps:
            low, high = rows.get(f"{prefix}{short}", []), rows.get(f"{prefix}{long}", [])
            if low and high:
                out[f"{prefix}{short}→{long}"] = {metric: difference(high, low, metric) for metric in METRICS}
    return out
