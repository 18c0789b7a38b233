"""The switches that studies turn: each takes away what it names and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from python_model.config import ModelConfig, TrainConfig
from python_model.data.batches import JaggedBatch
from python_model.data.schema import Dataset
from python_model.model.negatives import NegativeSampler
from python_model.train import train, training_rows
from python_model.training import checkpoint
from tests.model.conftest import SMALL, random_batch, small_model

SHORT = {"steps": 2, "batch_events": 256, "window": 32, "negatives_in_batch": 16, "negatives_uniform": 16}


@pytest.mark.parametrize("form", ["simplified", "full"])
def test_without_feedback_input_no_feedback_is_read(
    form: str, changed: Callable[[JaggedBatch, int, str], JaggedBatch]
) -> None:
    batch = random_batch([12, 9])
    model, seeing = small_model(form, feedback_input=False), small_model(form)
    other = changed(batch, 3, "feedback")
    assert torch.equal(model.encode(batch), model.encode(other))
    assert not torch.equal(seeing.encode(batch), seeing.encode(other))
    assert not torch.equal(model.encode(batch), model.encode(changed(batch, 3, "items")))


def test_without_time_bias_its_table_stays_at_zero(tiny_service: Dataset, tmp_path: Path) -> None:
    found = {}
    for time_bias in (True, False):
        config = ModelConfig(layers=1, width=16, heads=1, item_width=8, feature_width=4, time_bias=time_bias)
        run = tmp_path / str(time_bias)
        train("pretrain", tiny_service, run, config, TrainConfig(**SHORT))  # type: ignore[arg-type]
        found[time_bias] = checkpoint.load_model(run).encoder.time_bias
    assert bool(found[True].any()) and not bool(found[False].any())


def test_without_log_q_nothing_is_corrected() -> None:
    items = np.array([1, 1, 1, 2, 5, 1])
    with_q, without = (
        NegativeSampler(TrainConfig(negatives_in_batch=4, negatives_uniform=3, log_q=log_q), 10)
        for log_q in (True, False)
    )
    drawn, plain = with_q.draw(0, items, items), without.draw(0, items, items)
    assert torch.equal(drawn.items, plain.items)
    assert bool(drawn.log_q.any()) and not bool(plain.log_q.any())
    with pytest.raises(ValueError, match="log_q"):
        TrainConfig(log_q=False, softmax_form="refined")


def test_fine_tuning_without_the_lag_of_pairs_keeps_the_models_lag(tiny_service: Dataset, tmp_path: Path) -> None:
    for lag_pairs in (True, False):
        config = TrainConfig(stage="finetune", lag_pairs=lag_pairs, **SHORT)  # type: ignore[arg-type]
        train("finetune", tiny_service, tmp_path / str(lag_pairs), SMALL, config)
    lags = {one: checkpoint.read_description(tmp_path / str(one)).model_config.lag for one in (True, False)}
    assert lags == {True: tiny_service.info.pair_window + 1, False: 0}


def test_shares_of_the_users_are_nested_and_keep_whole_prefixes(tiny_service: Dataset) -> None:
    whole = training_rows(tiny_service, "temporal")
    quarter, half = (training_rows(tiny_service, "temporal", share) for share in (0.25, 0.5))
    assert whole is not None and quarter is not None and half is not None
    users = {len(np.unique(tiny_service.user[rows])) for rows in (quarter, half)}
    assert users == {round(0.25 * tiny_service.info.users), round(0.5 * tiny_service.info.users)}
    assert not (quarter & ~half).any() and not (half & ~whole).any()
    kept = np.isin(tiny_service.user, np.unique(tiny_service.user[quarter]))
    assert np.array_equal(quarter, whole & kept)
    every = training_rows(tiny_service, "all", 0.25)
    assert every is not None and np.array_equal(every, kept)
    with pytest.raises(ValueError, match="train_share"):
        TrainConfig(train_share=0.0)
