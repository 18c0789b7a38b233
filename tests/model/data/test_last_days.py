"""Training on the last days: which events are targets, and which windows are left out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from python_model.config import TrainConfig
from python_model.data.batches import BatchPlan
from python_model.data.schema import Dataset, load_dataset
from python_model.data.shards import shard_dataset
from python_model.data.splits import make_split
from python_model.training.start import batch_source

CONFIG = TrainConfig(batch_events=128, window=16, negatives_in_batch=16, negatives_uniform=8)
DAY = 86_400


def test_only_events_of_the_last_days_are_targets(tiny_service: Dataset) -> None:
    train = make_split(tiny_service, "temporal").train
    end = int(tiny_service.time[train].max())
    wanted = train & (tiny_service.time > end - 3 * DAY)
    plan = batch_source(tiny_service, replace(CONFIG, train_days=3.0))
    assert isinstance(plan, BatchPlan)
    targets, seen = [], []
    for batch in plan.batches(0):
        rows = batch.rows.numpy()
        seen.append(rows)
        targets.append(rows[batch.is_target.numpy()])
        held = np.split(batch.is_target.numpy(), batch.offsets.numpy()[1:-1])
        assert all(one.any() for one in held), "a window without a target teaches nothing"
    found = np.concatenate(targets)
    assert len(np.unique(found)) == len(found) and set(found) <= set(np.flatnonzero(wanted))
    # Windows of one event are left out everywhere.
    assert len(found) > 0.9 * wanted.sum()
    assert set(np.concatenate(seen)) - set(found), "earlier events stay as history"


def test_all_days_are_the_default(tiny_service: Dataset) -> None:
    whole, long = (batch_source(tiny_service, one) for one in (CONFIG, replace(CONFIG, train_days=1000.0)))
    assert isinstance(whole, BatchPlan) and isinstance(long, BatchPlan)
    for one, other in zip(whole.batches(0), long.batches(0), strict=True):
        assert (one.rows == other.rows).all() and (one.is_target == other.is_target).all()


def test_no_days_are_refused() -> None:
    with pytest.raises(ValueError, match="train_days is 0"):
        TrainConfig(train_days=0.0)


def test_data_in_shards_is_refused(tiny_service: Dataset, tmp_path: Path) -> None:
    shard_dataset(tiny_service.path, tmp_path / "data", 3)
    source = batch_source(load_dataset(tmp_path / "data"), replace(CONFIG, train_days=3.0))
    with pytest.raises(ValueError, match=r"train_days is 3.0, expected null for .* in shards"):
        source.require(1)
