"""ARGUS beside its baselines: one table, every trained model under the same budget.

Equal for all: optimiser steps, events of a batch, window, width, learning rates, dropout, negatives of a step, width of
the item table. ARGUS divides its steps between its two stages, the others have one stage. HSTU's blocks are smaller, so
it has more of them, for about equal parameters. Impressions are ordered by each model's best score: for ARGUS by its
two towers, for the others, which have no such stage, by expected feedback.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace

import numpy as np

from python_model.config import ModelConfig
from python_model.data.schema import Dataset
from python_model.data.splits import events_to_predict, make_split
from python_model.evaluation.item_knn import ItemKnn
from python_model.evaluation.predictions import Predictor
from python_model.reporting.charts import range_chart
from python_model.studies.ablations import differences
from python_model.studies.study import Budget, Report, Study, base_trial
from python_model.studies.summary import LABELS, by_name, cell, table, values
from python_model.studies.trials import Trial, TrialResult, over_seeds

MODELS = ("argus", "hstu", "sasrec", "sasrec_bce")
MORE_MODELS = ("argus_hstu",)
SHOWN = ("ndcg@10", "recall@10", "pairwise_accuracy", "feedback_auc")


def compare(
    dataset: Dataset, models: Sequence[str] = MODELS, budget: Budget | None = None, part: str = "test"
) -> Study:
    """The comparison of `models`, some of MODELS and MORE_MODELS, on the held-out `part`; ValueError for another."""
    unknown = sorted(set(models) - {*MODELS, *MORE_MODELS})
    if unknown or not models:
        known = ", ".join((*MODELS, *MORE_MODELS))
        raise ValueError(f"models: found {', '.join(unknown) or 'none'}, expected some of {known}")
    budget = (budget or Budget()).or_else(seeds=1)
    base = base_trial(dataset, budget)
    base = replace(base, evaluation=replace(base.evaluation, part=part))
    trials = over_seeds([_trial(base, name) for name in models], budget.seeds or 1)
    settings = {"models": list(models), "part": part, **asdict(budget)}
    return Study("compare", trials, _report, settings, predictors=_neighbours(dataset, base))


def _trial(base: Trial, name: str) -> Trial:
    assert base.pretrain is not None and base.finetune is not None
    window = base.pretrain.window
    if name == "argus":
        return replace(base, name=name)
    if name == "argus_hstu":
        return replace(base, name=name, model=like_hstu(base.model, window))
    kind = name.partition("_")[0]
    model = replace(base.model, item_width=base.model.width, max_events=window)
    model = replace(like_hstu(model, window) if kind == "hstu" else model, model=kind)
    loss = "bce" if name == "sasrec_bce" else "softmax"
    whole = replace(base.pretrain, steps=base.pretrain.steps + base.finetune.steps, next_item_loss=loss)
    options = replace(base.evaluation, ranking_kind="feedback")
    return Trial(name, model, whole, None, options)


def like_hstu(model: ModelConfig, window: int) -> ModelConfig:
    """The HSTU encoder of about the same parameters: a block has 5/12 of a transformer's."""
    return replace(
        model, encoder="hstu", layers=round(model.layers * 12 / 5), max_events=window, position_buckets=window,
        time_buckets=129,
    )  # fmt: skip


def _neighbours(dataset: Dataset, base: Trial) -> dict[str, Predictor]:
    rows = make_split(dataset, base.protocol).train & events_to_predict(dataset, base.protocol)
    return {"item_knn": ItemKnn(dataset, rows, window=base.stages[0].window)}


def _report(results: Sequence[TrialResult], known: Sequence[TrialResult]) -> Report:
    rows = [*known, *results]
    text = table(rows)
    names = {one.name for one in results}
    if "argus" in names and len(names) > 1:
        text += _margins(results)
    groups = by_name([one for one in rows if one.name != "oracle"])
    figures = {}
    for metric in SHOWN:
        found = {name: values(group, metric) for name, group in groups.items()}
        found = {name: value for name, value in found.items() if not np.isnan(value).any()}
        if found:
            figures[metric.partition("@")[0]] = range_chart(found, LABELS[metric])
    return Report(text, figures)


def _margins(results: Sequence[TrialResult]) -> str:
    """The margin of ARGUS over each other trained model, seed by seed."""
    found = {metric: differences(results, metric) for metric in SHOWN}
    names = [name for name in by_name(results) if name != "argus"]
    lines = [
        "", "`argus` minus each, seed by seed: mean (lowest–highest).", "",
        "| | " + " | ".join(LABELS[metric] for metric in SHOWN) + " |", "|---" + "|---:" * len(SHOWN) + "|",
    ]  # fmt: skip
    for name in names:
        cells = [cell(-found[metric].get(name, np.zeros(0))) for metric in SHOWN]
        lines.append(f"| `{name}` | " + " | ".join(cells) + " |")
    errors = [f"{LABELS[m]} {_largest(results, m):.4f}" for m in ("ndcg@10", "pairwise_accuracy")]
    lines += ["", f"Largest standard error of a figure over users, which the seeds share: {', '.join(errors)}."]
    return "\n".join(lines) + "\n"


def _largest(results: Sequence[TrialResult], metric: str) -> float:
    return max((one.standard_errors.get(metric) or 0.0 for one in results), default=0.0)
