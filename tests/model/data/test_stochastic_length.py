"""Stochastic length: the published probability and lengths, order kept, resumable, and nothing where it is off."""

from __future__ import annotations

import shutil
from dataclasses import replace
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pytest

from python_model.config import TrainConfig
from python_model.data.batches import BatchPlan, JaggedBatch
from python_model.data.schema import Dataset, load_dataset
from python_model.data.shards import shard_dataset
from python_model.data.stochastic_length import StochasticLength
from python_model.data.windows import Windows
from python_model.train import train
from python_model.training import checkpoint
from python_model.training.start import batch_source
from tests.model.training.test_train import MODEL, PRETRAIN, assert_same_run

ON = TrainConfig(batch_events=256, window=64, seed=5, protocol="all", stochastic_length_alpha=1.5)


def windows_of(lengths: list[int]) -> Windows:
    ends = np.cumsum(lengths)
    starts = ends - lengths
    return Windows(starts, starts, ends)


def rows_of(batch: JaggedBatch) -> list[list[int]]:
    return [batch.rows[a:b].tolist() for a, b in pairwise(batch.offsets.tolist())]


@pytest.mark.parametrize(
    ("alpha", "window", "length"), [(2.0, 8192, 8192), (1.6, 8192, 1351), (1.5, 256, 64), (1.0, 4096, 64), (1.0, 2, 2)]
)
def test_a_subsequence_has_the_published_length(alpha: float, window: int, length: int) -> None:
    assert StochasticLength(alpha, window).length == length


def test_a_history_is_replaced_with_the_published_probability() -> None:
    stochastic, draws = StochasticLength(1.5, 256), 40_000
    for n in (63, 64, 65, 80, 128, 256):
        found = stochastic.shorten(windows_of([n] * draws), [3]).lengths
        probability = 1 - 256**1.5 / n**2 if n > 64 else 0.0
        assert set(found.tolist()) <= {n, 64}
        # Five standard deviations of a share.
        assert (found != n).mean() == pytest.approx(probability, abs=5 * 0.5 / draws**0.5)
        assert stochastic.expected(np.array([n]))[0] == pytest.approx(found.mean(), rel=0.02)


@pytest.mark.parametrize("recent", [False, True])
def test_every_event_is_kept_as_often_as_its_weight_says(recent: bool) -> None:
    n, draws = 9, 6_000
    stochastic = StochasticLength(1.0, 9, recent)
    windows = stochastic.shorten(windows_of([n] * draws), [1])
    shortened = windows.take(np.flatnonzero(windows.lengths == 3))
    position = stochastic.rows(shortened) - np.repeat(shortened.start, 3)
    assert (np.diff(position.reshape(-1, 3)) > 0).all(), "in order, none twice"
    shares = np.bincount(position, minlength=n) / len(shortened)
    if not recent:
        np.testing.assert_allclose(shares, 3 / n, atol=0.03)
        return
    # Three draws without replacement, one after the other, with weights 1 … 9.
    random, weights = np.random.default_rng(0), np.arange(1, n + 1)
    drawn = [random.choice(n, 3, replace=False, p=weights / weights.sum()) for _ in range(draws)]
    np.testing.assert_allclose(shares, np.bincount(np.ravel(drawn), minlength=n) / draws, atol=0.03)


def test_windows_show_their_events_in_order_under_the_budget(tiny_service: Dataset) -> None:
    plan = batch_source(tiny_service, ON)
    whole = batch_source(tiny_service, replace(ON, stochastic_length_alpha=2.0))
    assert isinstance(plan, BatchPlan) and isinstance(whole, BatchPlan)
    shortened = 0
    for batch in plan.batches(0):
        assert len(batch) <= ON.batch_events and batch.is_target.all()
        assert batch.items.tolist() == tiny_service.item[batch.rows.numpy()].tolist()
        for user, rows in zip(batch.users.tolist(), rows_of(batch), strict=True):
            assert all(a < b for a, b in pairwise(rows)) and set(tiny_service.user[rows]) == {user}
            assert (np.diff(tiny_service.time[rows]) >= 0).all() and len(rows) <= ON.window
            shortened += rows[-1] - rows[0] + 1 > len(rows)
    assert shortened > 0
    assert plan.epoch_batches() < whole.epoch_batches(), "a pass has fewer batches"
    passes = [{tuple(rows) for batch in plan.batches(epoch) for rows in rows_of(batch)} for epoch in (0, 1)]
    assert len(passes[0] & passes[1]) < 0.5 * len(passes[0]), "each pass draws anew"


def test_off_is_what_it_was(tiny_service: Dataset) -> None:
    off = replace(ON, stochastic_length_alpha=2.0)
    assert StochasticLength.of(off) is None
    plan = BatchPlan(tiny_service, off.batch_events, off.window, off.seed)
    source = batch_source(tiny_service, off)
    assert isinstance(source, BatchPlan)
    for one, other in zip(plan.batches(1), source.batches(1), strict=True):
        assert one.rows.tolist() == other.rows.tolist() and one.offsets.tolist() == other.offsets.tolist()


def test_it_goes_on_at_any_step(tiny_service: Dataset) -> None:
    steps = list(islice(batch_source(tiny_service, ON).walk({"epoch": 0, "batch": 0}, range(3), 3), 8))
    for number in (0, 3, 6):
        again = next(batch_source(tiny_service, ON).walk(steps[number].place, range(3), 3))
        assert [one.rows.tolist() for one in again.batches] == [one.rows.tolist() for one in steps[number + 1].batches]


def test_shards_draw_too_and_estimate_their_pass(tiny_service: Dataset, tmp_path: Path) -> None:
    shard_dataset(tiny_service.path, tmp_path / "data", 3)
    sharded = load_dataset(tmp_path / "data")
    source = batch_source(sharded, ON)
    batches, place = [], source.start()
    for step in source.walk(place, [0, 1, 2], 3):
        if all(lane["epoch"] > 0 for lane in step.place["lanes"].values()):
            break
        batches += step.batches
    spans = [rows[-1] - rows[0] + 1 - len(rows) for batch in batches for rows in rows_of(batch)]
    assert max(spans) > 0
    exact = batch_source(tiny_service, ON).epoch_batches()
    assert source.epoch_batches() == pytest.approx(exact, rel=0.25)


def test_a_run_resumes_bit_for_bit(tiny_service: Dataset, tmp_path: Path) -> None:
    config = replace(
        PRETRAIN, steps=4, checkpoint_every=2, keep=2, stochastic_length_alpha=1.2, stochastic_length_sampling="recent"
    )
    train("pretrain", tiny_service, tmp_path / "whole", MODEL, config)
    shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    shutil.rmtree(tmp_path / "parts" / checkpoint.CHECKPOINTS / "step-00000004")
    (tmp_path / "parts" / checkpoint.CHECKPOINTS / checkpoint.LATEST).write_text("step-00000002\n")
    train("pretrain", tiny_service, tmp_path / "parts", MODEL, config, resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    other = replace(config, stochastic_length_alpha=2.0)
    with pytest.raises(ValueError, match="stochastic_length_alpha"):
        train("pretrain", tiny_service, tmp_path / "parts", MODEL, other, resume=True)


def test_settings_are_checked() -> None:
    with pytest.raises(ValueError, match=r"stochastic_length_alpha is 2.5, expected a finite number in"):
        TrainConfig(stochastic_length_alpha=2.5)
    with pytest.raises(ValueError, match="stochastic_length_sampling is 'old', expected one of uniform, recent"):
        TrainConfig(stochastic_length_sampling="old")
