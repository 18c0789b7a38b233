"""Ablations of ARGUS: the full model against models that each lack one part, seed by seed.

All models have the same data, batches and steps. Every row is evaluated like the full model, with states older than the
pair window; only `no_lag_seen` is evaluated as it was trained, to show its inflated figure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from python_model.data.schema import Dataset
from python_model.data.synthetic import SyntheticConfig
from python_model.reporting.charts import range_chart
from python_model.studies.study import Budget, Report, Study, base_trial
from python_model.studies.summary import COLUMNS, LABELS, by_name, cell, table
from python_model.studies.trials import Trial, TrialResult

SERVICE = SyntheticConfig()
BUDGET = {"steps": 300, "finetune_steps": 100, "seeds": 2, "max_events": 8000}
FULL = "argus"
NEXT_ITEM = ("ndcg@10", "recall@10", "next_item_ne")
FEEDBACK = ("feedback_ne", "feedback_auc")
PAIRS = ("pairwise_accuracy",)
SHOWN = ("ndcg@10", "pairwise_accuracy", "next_item_ne", "feedback_ne")


@dataclass(frozen=True)
class Variant:
    """A trial and the metrics of the heads that it trains; other metrics would be of untrained heads."""

    trial: Trial
    trained: tuple[str, ...] = COLUMNS


def variants(base: Trial, dataset: Dataset) -> list[Variant]:
    """The full model first, then each ablation."""
    no_feedback = {"feedback_weights": dict.fromkeys(dataset.info.feedback, 0.0)}
    assert base.pretrain is not None and base.finetune is not None
    both = base.pretrain.steps + base.finetune.steps
    alone = replace(base, name="no_pretraining", pretrain=None)
    no_lag = changed(base, "no_lag", both={"lag_pairs": False})
    return [
        Variant(replace(base, name=FULL)),
        Variant(changed(alone, "no_pretraining", both={"pretrain_weight": 0.0}), PAIRS),
        Variant(changed(alone, "no_pretraining_same_steps", both={"pretrain_weight": 0.0, "steps": both}), PAIRS),
        Variant(replace(base, name="no_finetuning", finetune=None, trained_as=FULL), NEXT_ITEM + FEEDBACK),
        Variant(changed(base, "next_item_only", both=no_feedback), NEXT_ITEM + PAIRS),
        Variant(changed(base, "feedback_only", both={"next_item_weight": 0.0}), FEEDBACK + PAIRS),
        Variant(changed(base, "no_feedback_input", model={"feedback_input": False})),
        Variant(changed(base, "no_log_q", both={"log_q": False})),
        Variant(changed(base, "refined_log_q", both={"softmax_form": "refined"})),
        Variant(changed(base, "full_form", model={"form": "full"})),
        Variant(changed(base, "no_time_bias", model={"time_bias": False})),
        Variant(no_lag),
        Variant(
            replace(no_lag, name="no_lag_seen", evaluation=replace(base.evaluation, lag=0), trained_as=no_lag.name),
            PAIRS,
        ),
    ]


def changed(
    trial: Trial, name: str, *, model: dict[str, Any] | None = None, both: dict[str, Any] | None = None
) -> Trial:
    """Another trial with settings of the model or of its stages changed."""
    stages = {config.stage: replace(config, **(both or {})) for config in trial.stages}
    return replace(trial, name=name, model=replace(trial.model, **(model or {})), **stages)  # type: ignore[arg-type]


def ablations(dataset: Dataset, only: Sequence[str] = (), budget: Budget | None = None) -> Study:
    """The study; `only`: names of ablations to run beside the full model, all by default. ValueError for another."""
    budget = (budget or Budget()).or_else(**BUDGET)
    chosen = variants(base_trial(dataset, budget), dataset)
    names = [variant.trial.name for variant in chosen]
    unknown = sorted(set(only) - set(names))
    if unknown:
        raise ValueError(f"ablations: {', '.join(unknown)} is none, expected some of {', '.join(names)}")
    chosen = [variant for variant in chosen if not only or variant.trial.name in {FULL, *only}]
    trained = {variant.trial.name: variant.trained for variant in chosen}
    trials = [variant.trial.with_seed(seed) for seed in range(budget.seeds or 1) for variant in chosen]
    return Study("ablations", trials, _report, {"ablations": list(trained), **asdict(budget)}, trained)


def differences(results: Sequence[TrialResult], metric: str) -> dict[str, np.ndarray]:
    """For each ablation its metric minus the full model's, seed by seed, where the metric is defined."""
    groups = by_name(results)
    full = {one.seed: one.metrics[metric] for one in groups[FULL]}
    out = {}
    for name, group in groups.items():
        pairs = [(one.metrics[metric], full[one.seed]) for one in group if one.seed in full]
        found = np.array([one - other for one, other in pairs if one is not None and other is not None])
        if name != FULL and len(found):
            out[name] = found
    return out


def _report(results: Sequence[TrialResult], known: Sequence[TrialResult]) -> Report:
    found = {metric: differences(results, metric) for metric in SHOWN}
    names = [name for name in by_name(results) if name != FULL]
    lines = [
        "", f"Differences from `{FULL}`, seed by seed: mean (lowest–highest).", "",
        "| | " + " | ".join(LABELS[metric] for metric in SHOWN) + " |",
        "|---" + "|---:" * len(SHOWN) + "|",
    ]  # fmt: skip
    for name in names:
        cells = [_difference(found[metric].get(name, np.zeros(0))) for metric in SHOWN]
        lines.append(f"| `{name}` | " + " | ".join(cells) + " |")
    lines += ["", "≈: the seeds do not agree on the sign, or there is one seed only; read it as no difference shown."]
    figures = {
        metric.partition("@")[0]: range_chart(found[metric], f"{LABELS[metric]}, difference from {FULL}", zero=True)
        for metric in SHOWN
        if found[metric]
    }
    more = {"differences": {m: {name: d.tolist() for name, d in by.items()} for m, by in found.items()}}
    return Report(table([*known, *results]) + "\n".join(lines) + "\n", figures, more)


def _difference(found: np.ndarray) -> str:
    if len(found) == 0:
        return "–"
    agree = len(found) > 1 and (found.min() > 0 or found.max() < 0)
    return ("" if agree else "≈ ") + cell(found, difference=True)
