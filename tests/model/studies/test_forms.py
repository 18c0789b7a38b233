"""The study of forms, heads and fine-tuning: what its rows are, and its differences on planted results."""

from __future__ import annotations

import numpy as np
import pytest

from python_model.data.schema import Dataset
from python_model.studies import forms
from python_model.studies.scaling import training_flop
from python_model.studies.study import Budget, base_trial
from tests.model.studies.planted import planted

BUDGET = Budget(steps=3000, finetune_steps=900, seeds=1)


def test_every_row_differs_in_what_it_is_named_for(tiny_service: Dataset) -> None:
    rows = {name: trial for name, (trial, _) in forms.rows(base_trial(tiny_service, BUDGET), tiny_service).items()}
    assert {one.row for one in forms.COMPARISONS} | {one.other for one in forms.COMPARISONS} == set(rows)
    assert rows["full"].model.form == "full" and rows["full"].stages == rows["simplified"].stages
    assert training_flop(rows["simplified_as_full"]) == pytest.approx(training_flop(rows["full"]), rel=0.01)
    assert training_flop(rows["full_as_simplified"]) == pytest.approx(training_flop(rows["simplified"]), rel=0.01)
    assert training_flop(rows["full"]) > 2 * training_flop(rows["simplified"])
    assert rows["week"].finetune is not None and rows["week"].finetune.train_days == 7
    assert rows["week"].pretrain == rows["simplified"].pretrain
    assert [config.next_item_weight for config in rows["feedback_head"].stages] == [0, 0]
    assert all(set(config.feedback_weights.values()) == {0.0} for config in rows["next_item_head"].stages)
    alone = rows["no_pretraining"].stages
    assert len(alone) == 1 and alone[0].steps == 3900 and alone[0].stage == "finetune"


def test_the_training_part_of_the_service_is_about_a_year() -> None:
    assert 0.85 * forms.SERVICE.days == pytest.approx(365, abs=2)


def test_the_differences_are_those_that_were_planted() -> None:
    users = np.random.default_rng(0).uniform(0.4, 0.9, 30)
    shift = {"simplified": 0.0, "week": -0.05, "full": 0.03, "no_finetuning": 0.0}
    results = [
        planted(name, dict.fromkeys(forms.METRICS, users + by + 0.001 * seed), seed=seed)
        for seed in range(2)
        for name, by in shift.items()
    ]
    report = forms._report(results, [])
    found = report.more["differences"]
    assert found["simplified − week"]["pairwise_accuracy"] == pytest.approx([0.05, 0.05, 0.05], abs=0.0011)
    assert found["full − simplified"]["ndcg@10"] == pytest.approx([0.03, 0.03, 0.03], abs=0.0011)
    assert "simplified − next_item_head" not in found, "rows that are not done have no difference"
    assert "| `simplified − week` | +.0500" in report.text and "| `simplified − no_finetuning` | ≈ " in report.text
    assert set(report.figures) == {"ndcg", "pairwise_accuracy", "next_item_ne", "feedback_ne"}
