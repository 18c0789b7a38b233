"""The search for recipes: the same settings and training for every model, and what reaches the test part."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from python_model.cli import app
from python_model.data.schema import Dataset
from python_model.studies import recipes
from python_model.studies.recipes import MODELS, SPACE, Plan
from python_model.studies.trials import Trial, TrialResult
from tests.model.studies.planted import planted

PLAN = Plan(trials=4, epochs=2, seeds=2, protocol="temporal", validate_events=100)


def trials_of(dataset: Dataset, plan: Plan = PLAN) -> dict[str, Trial]:
    found = [
        recipes.trial_of(kind, number, setting, dataset, plan)
        for number, setting in enumerate(recipes.drawn_settings(plan))
        for kind in MODELS
    ]
    return {one.name: one for one in found}


def test_settings_do_not_depend_on_how_many_are_drawn_and_try_every_value() -> None:
    few, many = recipes.drawn_settings(PLAN), recipes.drawn_settings(replace(PLAN, trials=10))
    assert many[:4] == few and few[0] == {}
    for name, values in SPACE.items():
        assert {one[name] for one in few[1:]} == set(values)
        assert all(setting[name] in values for setting in many[1:])
    assert recipes.drawn_settings(replace(PLAN, seed=1)) != few


def test_every_model_has_the_same_training(tiny_service: Dataset) -> None:
    trials = trials_of(tiny_service)
    assert len(trials) == 3 * 4
    for number in range(4):
        argus, sasrec, hstu = (trials[f"{kind}-{number}"] for kind in MODELS)
        assert argus.pretrain == sasrec.pretrain == hstu.pretrain
        assert argus.evaluation.part == sasrec.evaluation.part == "validation"
        assert (sasrec.model.model, hstu.model.model, hstu.model.encoder) == ("sasrec", "hstu", "hstu")
        assert len({(one.model.width, one.model.dropout, one.model.item_dropout) for one in (argus, sasrec, hstu)}) == 1
        assert hstu.model.layers == round(argus.model.layers * 12 / 5)
    config = trials["argus-1"].pretrain
    assert config is not None and config.best_metric == "ndcg@10" and config.steps // config.validate_every == 4
    assert config.table_learning_rate == 2 * config.learning_rate
    weight = recipes.drawn_settings(PLAN)[1]["feedback_weight"]
    assert config.feedback_weights == dict.fromkeys(tiny_service.info.feedback, weight)


def test_what_is_given_is_not_searched() -> None:
    given = replace(PLAN, given={"layers": 1, "feedback_weights": {"like": 2.0}, "dropout": 0.5})
    for fixed, free in zip(recipes.drawn_settings(given)[1:], recipes.drawn_settings(PLAN)[1:], strict=True):
        assert fixed == {name: free[name] for name in free if name not in ("size", "feedback_weight", "dropout")}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"given": {"steps": 5}}, "setting steps is made by the search itself"),
        ({"given": {"colour": "red"}}, "unknown setting colour"),
        ({"epochs": float("nan")}, "epochs is nan, expected a finite number"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        replace(PLAN, **changes)


def results_of(best: dict[str, int]) -> list[TrialResult]:
    """Validation results where the setting of this number is the best of each model."""
    figure = lambda kind, number: np.full(5, 0.5 if best[kind] == number else 0.1 + 0.01 * number)  # noqa: E731
    return [
        planted(f"{kind}-{number}", dict.fromkeys(recipes.METRICS, figure(kind, number)))
        for number in range(4)
        for kind in MODELS
    ]


def test_the_best_of_each_model_goes_to_the_test_part(tiny_service: Dataset) -> None:
    trials = trials_of(tiny_service)
    sampled = [n for n, one in enumerate(recipes.drawn_settings(PLAN)) if one.get("candidates") == "sampled"]
    chosen = recipes.test_trials(trials, results_of({"argus": 2, "sasrec": 0, "hstu": 3}))
    assert {name: one.trained_as for name, one in chosen.items()} == {
        "argus": "argus-2", "sasrec": "sasrec-0", "hstu": "hstu-3", "sasrec_sampled": f"sasrec-{sampled[-1]}",
        "argus_default": "argus-0",
    }  # fmt: skip
    assert all(one.name == f"test-{one.trained_as}" for one in chosen.values()), "another best leaves what is done"
    assert all(one.evaluation.part == "test" and one.evaluation.max_events is None for one in chosen.values())
    again = recipes.test_trials(trials, results_of({"argus": 0, "sasrec": sampled[0], "hstu": 0}))
    assert list(again) == ["argus", "sasrec", "hstu"]


@pytest.mark.slow
def test_the_command_searches_and_goes_on(tiny_service: Dataset, tmp_path: Path) -> None:
    def run(*options: str) -> str:
        quick = ["--epochs", "0.2", "--seeds", "1", "--protocol", "temporal", "--validate-events", "50"]
        given = ["--set", "negatives_in_batch=0", "--set", "negatives_uniform=16", "--set", "layers=1"]
        command = ["study", "recipes", str(tmp_path), "--data", str(tiny_service.path), *quick, *given, *options]
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 0, result.output
        return result.stderr

    first = run("--trials", "2")
    assert "argus / sasrec" in first
    stamps = {file: file.stat().st_mtime_ns for file in tmp_path.glob("trials/*/result.json")}
    assert len([file for file in stamps if not file.parent.name.startswith("test-")]) == 6
    run("--trials", "3")
    assert {file: file.stat().st_mtime_ns for file in stamps} == stamps
    found = json.loads((tmp_path / "recipes.json").read_text())
    assert len(found["search"]) == 9 and len(found["settings"]["drawn"]) == 3
    assert {"argus", "sasrec", "hstu"} <= {one["name"] for one in found["results"]}
    assert all(low <= value <= high for by in found["intervals"].values() for value, low, high in by.values())
