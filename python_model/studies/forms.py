"""Full ARGUS against the simplified form, two heads against one, and how long fine-tuning looks back.

Every row differs from the model in production's form (simplified, both heads, fine-tuned on all of the training part,
about a year) in one respect:

    full                    three tokens an event, for the same events
    simplified_as_full      the simplified form for as much arithmetic as `full` takes: more steps
    full_as_simplified      the full form for as much arithmetic as `simplified` takes: fewer steps
    next_item_head          pre-trained for the next item alone
    feedback_head           pre-trained for the feedback alone
    week                    fine-tuned on the impressions of the last week, for the same steps
    no_finetuning           pre-trained only; pairs are ordered by expected feedback
    no_pretraining          fine-tuned from random weights, for the steps of both stages

The service runs for so long that its training part is a year.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np

from python_model.data.schema import Dataset
from python_model.data.synthetic import SyntheticConfig
from python_model.reporting.charts import Chart, range_chart
from python_model.studies.ablations import FEEDBACK, NEXT_ITEM, PAIRS, changed
from python_model.studies.intervals import Interval, as_numbers, difference, interval, interval_table
from python_model.studies.scaling import stretched, training_flop
from python_model.studies.study import Budget, Report, Study, base_trial
from python_model.studies.summary import COLUMNS, LABELS, by_name, table
from python_model.studies.trials import Trial, TrialResult, over_seeds

SERVICE = SyntheticConfig(days=430)
BUDGET = {"steps": 300, "finetune_steps": 120, "seeds": 2, "max_events": 8000}
METRICS = ("ndcg@10", "pairwise_accuracy", "next_item_ne", "feedback_ne")
BASE = "simplified"
WEEK = 7.0


@dataclass(frozen=True)
class Comparison:
    """Two rows whose difference answers a question."""

    question: str
    row: str
    other: str

    @property
    def name(self) -> str:
        return f"{self.row} − {self.other}"


COMPARISONS = (
    Comparison("full form, equal events", "full", BASE),
    Comparison("full form, equal compute of the full", "full", "simplified_as_full"),
    Comparison("full form, equal compute of the simplified", "full_as_simplified", BASE),
    Comparison("two heads against next item", BASE, "next_item_head"),
    Comparison("two heads against feedback", BASE, "feedback_head"),
    Comparison("a year of fine-tuning against a week", BASE, "week"),
    Comparison("a year of fine-tuning against none", BASE, "no_finetuning"),
    Comparison("pre-training against none", BASE, "no_pretraining"),
)


def rows(base: Trial, dataset: Dataset) -> dict[str, tuple[Trial, Sequence[str]]]:
    """Name -> the trial and the metrics that it trains."""
    assert base.pretrain is not None and base.finetune is not None
    simplified = replace(base, name=BASE)
    full = changed(base, "full", model={"form": "full"})
    ratio = training_flop(full) / training_flop(base)
    no_feedback = {"feedback_weights": dict.fromkeys(dataset.info.feedback, 0.0)}
    both = {"pretrain_weight": 0.0, "steps": base.pretrain.steps + base.finetune.steps}
    week = replace(base, name="week", finetune=replace(base.finetune, train_days=WEEK))
    last = replace(base.evaluation, ranking_kind="feedback")
    found: list[tuple[Trial, Sequence[str]]] = [
        (simplified, COLUMNS),
        (full, COLUMNS),
        (stretched(replace(base, name="simplified_as_full"), ratio), COLUMNS),
        (stretched(replace(full, name="full_as_simplified"), 1 / ratio), COLUMNS),
        (changed(base, "next_item_head", both=no_feedback), NEXT_ITEM + PAIRS),
        (changed(base, "feedback_head", both={"next_item_weight": 0.0}), FEEDBACK + PAIRS),
        (week, COLUMNS),
        (replace(base, name="no_finetuning", finetune=None, evaluation=last, trained_as=BASE), COLUMNS),
        (changed(replace(base, pretrain=None), "no_pretraining", both=both), PAIRS),
    ]
    return {trial.name: (trial, trained) for trial, trained in found}


def forms(dataset: Dataset, budget: Budget | None = None) -> Study:
    """The study."""
    budget = (budget or Budget()).or_else(**BUDGET)
    chosen = rows(base_trial(dataset, budget), dataset)
    trials = over_seeds([trial for trial, _ in chosen.values()], budget.seeds or 1)
    trained = {name: metrics for name, (_, metrics) in chosen.items()}
    flop = {name: training_flop(trial) for name, (trial, _) in chosen.items()}
    return Study("forms", trials, _report, {"flop": flop, **asdict(budget)}, trained)


def compared(results: Sequence[TrialResult]) -> dict[str, dict[str, Interval | None]]:
    """For each comparison whose rows are there the differences, paired over users and seeds."""
    found = by_name(results)
    return {
        one.name: {metric: difference(found[one.row], found[one.other], metric) for metric in METRICS}
        for one in COMPARISONS
        if one.row in found and one.other in found
    }


def _report(results: Sequence[TrialResult], known: Sequence[TrialResult]) -> Report:
    spans = {name: {metric: interval(row, metric) for metric in METRICS} for name, row in by_name(results).items()}
    found = compared(results)
    text = table([*known, *results])
    text += "\n95 % intervals over users and seeds:\n\n" + interval_table(spans, METRICS, "")
    text += "\nDifferences, over the same users and seeds (≈: the interval holds 0):\n\n"
    text += interval_table(found, METRICS, "", differences=True)
    figures = {metric.partition("@")[0]: _figure(metric, found) for metric in METRICS if _known(metric, found)}
    return Report(text, figures, {"intervals": as_numbers(spans), "differences": as_numbers(found)})


def _known(metric: str, found: Mapping[str, Mapping[str, Interval | None]]) -> dict[str, Interval]:
    return {name: one for name, by in found.items() if (one := by[metric]) is not None}


def _figure(metric: str, found: Mapping[str, Mapping[str, Interval | None]]) -> Chart:
    drawn = {name: np.array([one.low, one.value, one.high]) for name, one in _known(metric, found).items()}
    return range_chart(drawn, f"{LABELS[metric]}, difference and 95 % interval", zero=True)
