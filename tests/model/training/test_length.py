"""How long a run trains: by steps, by passes, or chosen from the size of the data."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from python_model.config import TrainConfig
from python_model.data.batches import BatchPlan
from python_model.data.schema import Dataset
from python_model.data.splits import make_split
from python_model.model.argus import Argus
from python_model.train import train
from python_model.training.length import LEAST, chosen_steps, steps_of_epoch, with_length, with_validation
from python_model.training.runs import settings_of
from python_model.training.start import batch_source
from python_model.training.validation import LEAST as LEAST_EVENTS
from python_model.training.validation import Costs, affordable_rows
from tests.model.conftest import SMALL

CONFIG = TrainConfig(batch_events=128, window=16, negatives_in_batch=16, negatives_uniform=8)


def test_passes_become_steps(tiny_service: Dataset) -> None:
    plan = batch_source(tiny_service, CONFIG)
    assert isinstance(plan, BatchPlan)
    each = len(list(plan.batches(0)))
    assert steps_of_epoch(tiny_service, CONFIG) == each > 1
    for epochs, steps in ((1.0, each), (2.5, int(np.ceil(2.5 * each))), (1e-3, 1)):
        config, _ = with_length(
            tiny_service, replace(CONFIG, epochs=epochs), {"epochs": epochs}, new=True, chosen=False
        )
        assert (config.steps, config.epochs) == (steps, epochs)
    half, _ = with_length(
        tiny_service, replace(CONFIG, epochs=1.0, batches_per_step=2), {"epochs": 1.0}, new=True, chosen=False
    )
    assert half.steps == -(-each // 2)


def test_given_steps_are_kept_and_both_are_refused(tiny_service: Dataset) -> None:
    config, text = with_length(tiny_service, replace(CONFIG, steps=7), {"steps": 7}, new=True, chosen=True)
    assert (config.steps, config.epochs, text) == (7, None, None)
    with pytest.raises(ValueError, match="give either --steps or --epochs: found steps 7 and epochs 2"):
        with_length(tiny_service, CONFIG, {"steps": 7, "epochs": 2.0}, new=True, chosen=True)


def test_a_recipe_keeps_its_steps_and_a_log_of_ones_own_does_not(tiny_service: Dataset) -> None:
    assert settings_of("pretrain", tiny_service, {}).train.steps == 420
    found = settings_of("pretrain", tiny_service, {}, recipe="default")
    assert found.train.steps == LEAST["pretrain"] and found.train.epochs == pytest.approx(
        found.train.steps / steps_of_epoch(tiny_service, found.train)
    )
    info = tiny_service.info
    assert f"{info.events:,} events of {info.users} users on {info.items} items: 200 steps" in found.notes[0]
    assert settings_of("pretrain", tiny_service, {"steps": 31}, recipe="default").train.steps == 31


def test_a_resumed_run_says_that_it_keeps_its_recipe(tiny_service: Dataset, tmp_path: Path) -> None:
    train("pretrain", tiny_service, tmp_path, SMALL, replace(CONFIG, steps=1))
    found = settings_of("pretrain", tiny_service, {}, recipe="ml-100k", resumed=tmp_path)
    assert found.train.steps == 1 and found.model == SMALL
    expected = f"{tmp_path} goes on with the settings it was begun with: --recipe ml-100k is not read"
    assert found.notes == (expected,)
    assert settings_of("pretrain", tiny_service, {}, resumed=tmp_path).notes == ()


@pytest.mark.parametrize(
    ("each", "items", "steps"), [(1, 10, 200), (30, 10, 600), (5_000, 10, 20_000), (50_000, 10, 50_000),
                                 (30, 10**6, 2_442), (30, 10**9, 20_000)],
)  # fmt: skip
def test_the_size_of_the_data_chooses(each: int, items: int, steps: int) -> None:
    assert chosen_steps(TrainConfig(), each, items) == steps


@pytest.mark.parametrize("steps", [1, 7, 100, 420, 5_000])
def test_a_run_is_evaluated_about_twenty_times_and_once_a_pass(tiny_service: Dataset, steps: int) -> None:
    config, text = with_validation(tiny_service, replace(CONFIG, steps=steps), {})
    each = steps_of_epoch(tiny_service, CONFIG)
    assert text is None and config.patience == 5
    evaluations = steps // config.validate_every
    assert evaluations <= 60 and (evaluations >= min(steps, 20) or config.validate_every == 1)
    assert config.validate_every <= each or evaluations >= 50


def test_what_is_given_stays_and_nothing_held_out_is_not_evaluated(tiny_service: Dataset) -> None:
    given: dict[str, Any] = {"validate_every": 0, "patience": 0}
    config, _ = with_validation(tiny_service, replace(CONFIG, validate_every=0, patience=0), given)
    assert (config.validate_every, config.patience) == (0, 0)
    config, text = with_validation(tiny_service, replace(CONFIG, protocol="all"), {})
    assert config.validate_every == 0 and text is not None and "holds no events out" in text


def test_a_patience_that_nothing_can_try_is_refused(tiny_service: Dataset) -> None:
    with pytest.raises(ValueError, match="patience counts evaluations, which validate_every=0 turns off"):
        with_validation(tiny_service, CONFIG, {"patience": 2, "validate_every": 0})


def test_evaluated_users_are_whole_drawn_once_and_bounded(tiny_service: Dataset) -> None:
    split = make_split(tiny_service, "temporal")
    rows = np.flatnonzero(split.validation)
    costs = Costs.of(Argus.for_dataset(SMALL, tiny_service), CONFIG, 128)
    few = affordable_rows(tiny_service, rows, 16, costs, 0.0)
    everything = affordable_rows(tiny_service, rows, 10**6, costs, 1e30)
    assert_array_equal(everything, rows)
    assert min(LEAST_EVENTS, len(rows)) <= len(few) <= len(rows) and np.isin(few, rows).all()
    assert_array_equal(few, affordable_rows(tiny_service, rows, 16, costs, 0.0))
    for user in np.unique(tiny_service.user[few]):
        own = rows[tiny_service.user[rows] == user]
        assert_array_equal(few[tiny_service.user[few] == user], own[:16])
