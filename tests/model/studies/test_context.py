"""The context study before anything is trained: the oracles of every context, and what they gain."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from python_model.config import RECIPES
from python_model.data.schema import Dataset
from python_model.studies import study as engine
from python_model.studies.context import context, service, settings_for
from python_model.studies.study import Budget, run_study
from python_model.training.runs import RECIPE_OF_SOURCE


class Stopped(Exception):
    """Stands for Ctrl-C before the first result."""


def test_every_item_is_a_candidate_where_there_are_few(tiny_service: Dataset) -> None:
    budget = Budget(steps=2, batch_events=64, seeds=1, max_events=200, given={"layers": 1})
    trained = context(tiny_service, [4, 32], budget).trials[0]
    assert trained.pretrain is not None and trained.model.layers == 1
    assert (trained.pretrain.negatives_in_batch, trained.pretrain.negatives_uniform) == (0, tiny_service.info.items)
    assert "negatives_uniform" not in settings_for(100_000)


def test_data_without_an_oracle_keeps_the_recipe_of_its_source(
    tiny_service: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiny_service, "info", replace(tiny_service.info, has_oracle=False, source="movielens"))
    trained = context(tiny_service, [4, 32], Budget(steps=2, batch_events=64, seeds=1)).trials[0]
    recipe = RECIPES[RECIPE_OF_SOURCE["movielens"]]
    assert trained.pretrain is not None and trained.model.dropout == recipe.model.dropout > 0
    assert trained.pretrain.negatives_in_batch == recipe.pretrain.negatives_in_batch > 0


def test_the_longest_windows_may_follow_shorter_ones(tiny_service: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("python_model.studies.context.SHORT", 16)
    budget = Budget(steps=2, batch_events=64, seeds=1)
    trained = context(tiny_service, [4, 32], budget, short_steps=9).trials[0]
    assert trained.pretrain is not None and trained.short is not None
    assert (trained.short.steps, trained.short.window, trained.short.batch_events) == (9, 16, 16)
    assert (trained.pretrain.steps, trained.pretrain.window) == (2, 32)
    assert context(tiny_service, [4, 32], budget).trials[0].short is None
    with pytest.raises(ValueError, match="short_steps: found 9 steps on windows of 16 events before windows of 16"):
        context(tiny_service, [4, 16], budget, short_steps=9)
    with pytest.raises(ValueError, match="short_steps: found 9 with a model for each context, expected 0"):
        context(tiny_service, [4, 32], budget, train_each=True, short_steps=9)


def test_the_service_of_the_study_has_histories_of_the_longest_context() -> None:
    assert service([512, 8192]).events_per_user == 8192
    assert service([16, 64], ["loyalty"]).loyalty == 0 < service([16, 64]).loyalty


def test_the_oracles_stand_before_the_first_model(
    tiny_service: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise Stopped

    monkeypatch.setattr(engine, "run_trials", stop)
    study = context(tiny_service, [4, 32], Budget(steps=2, batch_events=64, seeds=1, max_events=200))
    with pytest.raises(Stopped):
        run_study(study, tiny_service, tmp_path)
    record = json.loads((tmp_path / "context.json").read_text())
    assert record["results"] == [] and list(record["intervals"]) == ["oracle_4", "oracle_32"]
    value, low, high = record["gains"]["oracle_4→32"]["ndcg@10"]
    assert low <= value <= high and low > 0, "repeats and the taste need a past"
    text = (tmp_path / "context.md").read_text()
    assert "| `oracle_4→32` |" in text and "(context_ndcg.svg)" in text
