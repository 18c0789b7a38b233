"""Balanced batches: the same windows in every step, equal work for the ranks, the same gradient."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from python_model.config import TrainConfig, preset
from python_model.data.balance import HistoryCost, balanced, deal
from python_model.data.batches import BatchPlan, JaggedBatch
from python_model.data.schema import Dataset, load_dataset
from python_model.data.shards import shard_dataset
from python_model.data.windows import Windows
from python_model.model.argus import Argus
from python_model.train import Trainer
from python_model.training.history_cost import cost_of_training, history_cost
from python_model.training.start import batch_source, with_batches_per_step
from tests.model.conftest import SMALL
from tests.model.training.test_train import PRETRAIN

COST = HistoryCost(linear=1.0, quadratic=0.1)
CONFIG = replace(PRETRAIN, batch_events=128, batches_per_step=3)


def windows_of(lengths: list[int]) -> Windows:
    ends = np.cumsum(np.array(lengths, np.int64))
    return Windows(ends - lengths, ends - lengths, ends)


def work(batch: JaggedBatch) -> float:
    return float(COST.of(batch.offsets.diff().numpy()).sum())


@given(lengths=st.lists(st.integers(1, 50), max_size=60), parts=st.integers(1, 6), room=st.integers(40, 400))
def test_a_deal_holds_every_window_once_in_its_room(lengths: list[int], parts: int, room: int) -> None:
    sizes = np.array(lengths, np.int64)
    costs = COST.of(sizes)
    dealt = deal(costs, sizes, parts, room)
    if dealt is None:
        assert sizes.sum() > parts * (room - 50), "a part that takes no window of 50 events holds room - 49 or more"
        return
    assert len(dealt) == parts and sorted(np.concatenate(dealt).tolist()) == list(range(len(lengths)))
    assert all(sizes[one].sum() <= room and (np.diff(one) > 0).all() for one in dealt)
    if sizes.sum() <= room:
        # Graham's bound holds where no part ever is full.
        most, mean = max(costs[one].sum() for one in dealt), costs.sum() / parts
        assert most <= (4 / 3 - 1 / (3 * parts)) * max(mean, costs.max(initial=0)) + 1e-9 or most <= mean + costs.max()


def test_known_deals() -> None:
    costs = np.array([7.0, 6, 5, 4, 3, 2])
    dealt = deal(costs, costs.astype(np.int64), 3, 100)
    assert dealt is not None and [one.tolist() for one in dealt] == [[0, 5], [1, 4], [2, 3]]
    assert deal(np.array([3.0, 3.0]), np.array([3, 3]), 2, 2) is None
    # The cheapest part is full: the window goes to the next.
    full = deal(np.array([9.0, 2.0, 1.0]), np.array([1, 5, 4]), 2, 5)
    assert full is not None and [one.tolist() for one in full] == [[0, 2], [1]]


def test_batches_that_gain_nothing_stay_as_they_are() -> None:
    batches = [windows_of([10, 10]), windows_of([10, 10])]
    assert balanced(batches, COST, 20)[0] is batches[0]
    skewed = [windows_of([40, 5, 5]), windows_of([10] * 5)]
    found = balanced(skewed, COST, 50)
    assert max(COST.of(one.lengths).sum() for one in found) <= max(COST.of(one.lengths).sum() for one in skewed)


def test_steps_keep_their_windows_and_ranks_work_alike(tiny_service: Dataset) -> None:
    plain, dealt = (batch_source(tiny_service, CONFIG, cost) for cost in (None, COST))
    uneven: list[float] = []
    even: list[float] = []
    walks = [list(islice(source.walk(source.start(), range(3), 3), 9)) for source in (plain, dealt)]
    for one, other in zip(*walks, strict=True):
        assert one.place == other.place
        rows = [sorted(row for batch in step.batches for row in batch.rows.tolist()) for step in (one, other)]
        assert rows[0] == rows[1]
        assert all(len(batch) <= CONFIG.batch_events for batch in other.batches)
        for step, found in ((one, uneven), (other, even)):
            costs = [work(batch) for batch in step.batches]
            found.append(max(costs) / np.mean(costs))
    assert (np.array(even) <= np.array(uneven) + 1e-9).all() and np.mean(even) < 1 + 0.5 * (np.mean(uneven) - 1)


def test_a_rank_takes_the_same_whatever_the_others_take(tiny_service: Dataset) -> None:
    source = batch_source(tiny_service, CONFIG, COST)
    whole = next(source.walk(source.start(), range(3), 3))
    for number in range(3):
        alone = next(source.walk(source.start(), [number], 3)).batches[0]
        assert alone.rows.tolist() == whole.batches[number].rows.tolist()


@pytest.mark.parametrize("shortened", [False, True])
def test_the_gradient_of_a_step_stays(tiny_service: Dataset, tmp_path: Path, shortened: bool) -> None:
    """Every item of the step is a candidate, so that both steps draw the same ones."""
    settings = replace(
        CONFIG, negatives_in_batch=10_000, negatives_uniform=10_000, sketch_width=1 << 12,
        stochastic_length_alpha=1.5 if shortened else 2.0,
    )  # fmt: skip
    gradients, batches = [], []
    for on in (False, True):
        torch.manual_seed(0)
        model = Argus.for_dataset(SMALL, tiny_service)
        trainer = Trainer(tiny_service, tmp_path / "run", model, replace(settings, balanced=on))
        batches.append(next(trainer._batches()))
        trainer._gradients(batches[-1])
        gradients.append({name: one.grad for name, one in model.named_parameters() if one.grad is not None})
    assert [one.rows.tolist() for one in batches[0]] != [one.rows.tolist() for one in batches[1]]
    assert gradients[0].keys() == gradients[1].keys()
    largest = max(float(one.abs().max()) for one in gradients[0].values())
    for name, one in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], one, rtol=1e-4, atol=1e-6 * largest)


def test_the_cost_follows_the_shapes(tiny_service: Dataset) -> None:
    config = preset("3m")
    once, twice = (history_cost(config, 3_160_000, 0, 0, recomputed=again) for again in (False, True))
    assert once == HistoryCost(linear=6 * 3_160_000, quadratic=7 * 4 * 256)
    assert twice == HistoryCost(linear=8 * 3_160_000, quadratic=9 * 4 * 256)
    full = history_cost(replace(config, form="full"), 3_160_000, 0, 0, recomputed=False)
    assert (full.linear, full.quadratic) == (3 * once.linear, 9 * once.quadratic)
    model = Argus.for_dataset(SMALL, tiny_service)
    found = cost_of_training(model, replace(CONFIG, negatives_in_batch=32, negatives_uniform=16))
    assert cost_of_training(model, replace(CONFIG, activation_checkpointing=True)) == cost_of_training(model, CONFIG)
    dense = sum(p.numel() for name, p in model.named_parameters() if not name.startswith("tables."))
    assert found == HistoryCost(linear=6 * (dense + 48 * SMALL.vector_width), quadratic=7 * 2 * SMALL.width)


def test_new_runs_are_balanced_where_they_can(tiny_service: Dataset, tmp_path: Path) -> None:
    assert with_batches_per_step(CONFIG, tiny_service, None).balanced is True
    assert with_batches_per_step(replace(CONFIG, balanced=False), tiny_service, None).balanced is False
    assert with_batches_per_step(TrainConfig(), tiny_service, None).balanced is None
    shard_dataset(tiny_service.path, tmp_path / "data", 3)
    sharded = load_dataset(tmp_path / "data")
    assert with_batches_per_step(CONFIG, sharded, None).balanced is None
    with pytest.raises(ValueError, match=r"balanced is true, expected false for .* in shards"):
        batch_source(sharded, replace(CONFIG, balanced=True)).require(3)
    assert isinstance(batch_source(tiny_service, CONFIG, COST), BatchPlan)
