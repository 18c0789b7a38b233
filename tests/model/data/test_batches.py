"""Splits and batches: every target once, history where it is promised, the same order for the same seed."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from python_model.data.batches import (
    BatchBuilder,
    BatchPlan,
    JaggedBatch,
    evaluation_batches,
    history_windows,
    prefetch,
)
from python_model.data.feedback import BINARY
from python_model.data.prepare import options_of, prepare
from python_model.data.schema import Dataset, DatasetWriter, load_dataset
from python_model.data.splits import leave_last_out, split_at, temporal_split, yambda_split
from python_model.data.windows import Windows, cut_windows

BUDGET, WINDOW = 512, 48


def check_batch(dataset: Dataset, batch: JaggedBatch, budget: int, window: int) -> None:
    """What every batch promises, against the columns."""
    rows, offsets = batch.rows.numpy(), batch.offsets.numpy()
    lengths = np.diff(offsets)
    assert offsets.dtype == np.int32 and offsets[0] == 0 and offsets[-1] == len(rows) == len(batch) <= budget
    assert lengths.min() > 0 and batch.max_length == lengths.max() <= window
    assert (np.diff(rows)[np.diff(np.repeat(np.arange(len(lengths)), lengths)) == 0] == 1).all()
    np.testing.assert_array_equal(dataset.user[rows], np.repeat(batch.users.numpy(), lengths))
    for values, column in (
        (batch.items, "item"), (batch.time, "time"), (batch.organic, "organic"), (batch.grade, "grade"),
    ):  # fmt: skip
        np.testing.assert_array_equal(values.numpy(), dataset.column(column)[rows])
    for index, name in enumerate(dataset.info.context):
        np.testing.assert_array_equal(batch.context[index].numpy(), dataset.context(name)[rows])
    for index, name in enumerate(dataset.info.feedback):
        np.testing.assert_array_equal(batch.feedback[:, index].numpy(), dataset.feedback(name)[rows])
    for tensor in (batch.items, batch.time, batch.grade, batch.context, batch.feedback, batch.users, batch.rows):
        assert tensor.dtype == torch.int64


@pytest.mark.parametrize("overlap", [0, 16, WINDOW - 1])
def test_an_epoch_trains_on_every_row_once(small: Dataset, overlap: int) -> None:
    train = temporal_split(small).train
    plan = BatchPlan(small, BUDGET, WINDOW, seed=3, train=train, overlap=overlap)
    targets = np.zeros(len(small), np.int64)
    history = np.zeros(len(small), bool)
    for batch in plan.batches(0):
        check_batch(small, batch, BUDGET, WINDOW)
        targets[batch.rows[batch.is_target].numpy()] += 1
        history[batch.rows.numpy()] = True
    assert targets.max() == 1 and not targets[~train].any() and not history[~train].any()
    # Only a window of a single event is left out.
    assert targets[train].mean() > 0.97
    if overlap:
        lengths = np.diff(small.offsets)
        assert targets[train & (lengths[small.user] > 1)].mean() > 0.999


def test_batches_are_full(small: Dataset) -> None:
    plan = BatchPlan(small, BUDGET, WINDOW, seed=3)
    sizes = [len(batch) for batch in plan.batches(0)]
    assert np.mean(sizes[:-1]) > 0.9 * BUDGET
    assert min(sizes[:-1]) > BUDGET - WINDOW


def rows_of(batches: Iterable[JaggedBatch]) -> list[list[int]]:
    return [batch.rows.tolist() for batch in batches]


def test_order_is_a_function_of_seed_and_epoch(small: Dataset) -> None:
    first = rows_of(BatchPlan(small, BUDGET, WINDOW, seed=3).batches(1))
    assert rows_of(BatchPlan(small, BUDGET, WINDOW, seed=3).batches(1)) == first
    assert rows_of(BatchPlan(small, BUDGET, WINDOW, seed=3).batches(2)) != first
    assert rows_of(BatchPlan(small, BUDGET, WINDOW, seed=4).batches(1)) != first


def test_an_epoch_resumes_at_any_step(small: Dataset) -> None:
    plan = BatchPlan(small, BUDGET, WINDOW, seed=3)
    whole = rows_of(plan.batches(5))
    for start in (0, 1, len(whole) - 1, len(whole)):
        assert rows_of(plan.batches(5, start)) == whole[start:]


@pytest.mark.parametrize("of", [1, 2, 3, 7])
def test_a_step_that_an_epoch_does_not_fill_goes_on_in_the_next(small: Dataset, of: int) -> None:
    plan = BatchPlan(small, BUDGET, WINDOW, seed=3)
    whole = [rows for epoch in range(4) for rows in rows_of(plan.batches(epoch))]
    steps = list(islice(plan.walk(plan.start(), range(of + 1), of), len(whole) // of))
    assert [rows for step in steps for rows in rows_of(step.batches[:of])] == whole[: len(steps) * of]
    assert all(len(step.batches[of]) == 0 for step in steps)
    for number in (0, len(steps) // 2, len(steps) - 2):
        again = next(plan.walk(steps[number].place, range(of), of))
        assert rows_of(again.batches) == rows_of(steps[number + 1].batches[:of])


def test_a_later_epoch_of_fewer_batches_does_not_stop_a_run(small: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first one decides whether a step is too large; how many batches the others have is a matter of their cuts."""
    plan = BatchPlan(small, BUDGET, WINDOW, seed=3)
    sound = BatchPlan._plan
    monkeypatch.setattr(BatchPlan, "_plan", lambda self, epoch: sound(self, epoch)[: 1 if epoch else 4])
    steps = list(islice(plan.walk(plan.start(), range(4), 4), 3))
    assert [step.place for step in steps] == [{"epoch": epoch, "batch": 4 if epoch == 0 else 1} for epoch in (0, 4, 8)]
    assert rows_of(steps[1].batches) == [rows_of(plan.batches(epoch))[0] for epoch in (1, 2, 3, 4)]
    with pytest.raises(ValueError, match="batches_per_step is 5, expected at most the 4 batches of an epoch"):
        plan.require(5)


def test_training_rows_must_be_prefixes(small: Dataset) -> None:
    train = np.ones(len(small), bool)
    train[int(small.offsets[4]) + 2] = False
    with pytest.raises(ValueError, match=f"user 4 leaves out row {small.offsets[4] + 2}"):
        BatchPlan(small, BUDGET, WINDOW, seed=0, train=train)
    with pytest.raises(ValueError, match="nobody has two events to train on: take a longer log"):
        BatchPlan(small, BUDGET, WINDOW, seed=0, train=np.zeros(len(small), bool))
    with pytest.raises(ValueError, match="train: expected bool"):
        BatchPlan(small, BUDGET, WINDOW, seed=0, train=np.ones(3, bool))


@pytest.mark.parametrize(
    ("token_budget", "window", "overlap", "says"),
    [(10, 1, 0, "window"), (10, 11, 0, "token_budget"), (10, 10, 10, "overlap"), (10, 10, -1, "overlap")],
)
def test_sizes_are_checked(small: Dataset, token_budget: int, window: int, overlap: int, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        BatchPlan(small, token_budget, window, 0, overlap=overlap)


@pytest.mark.parametrize("history", [0, 8, None, WINDOW - 1])
def test_evaluation_shows_every_target_once_with_its_history(small: Dataset, history: int | None) -> None:
    targets = temporal_split(small).test
    promised = WINDOW // 2 if history is None else history
    seen: list[int] = []
    for batch in evaluation_batches(small, targets, BUDGET, WINDOW, history=history):
        check_batch(small, batch, BUDGET, WINDOW)
        rows = batch.rows.numpy()
        position = np.arange(len(rows)) - np.repeat(batch.offsets[:-1].numpy(), np.diff(batch.offsets.numpy()))
        marked = batch.is_target.numpy()
        available = rows - small.offsets[small.user[rows]]
        assert (position[marked] >= np.minimum(promised, available[marked])).all()
        assert marked[batch.offsets[1:].numpy() - 1].all(), "a window ends at a target"
        seen += rows[marked].tolist()
    assert seen == np.flatnonzero(targets).tolist()


@given(data=st.data())
def test_cut_windows_partition_their_ranges(data: st.DataObject) -> None:
    window = data.draw(st.integers(2, 9))
    overlap = data.draw(st.integers(0, window - 1))
    users = data.draw(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 30)), min_size=1, max_size=4))
    phase = data.draw(st.one_of(st.none(), st.lists(st.floats(0, 0.999), min_size=len(users), max_size=len(users))))
    floor = np.cumsum([0, *[before + length for before, length in users[:-1]]])
    first = floor + np.array([before for before, _ in users])
    last = first + np.array([length for _, length in users])
    windows = cut_windows(
        first, last, floor, window=window, overlap=overlap, phase=None if phase is None else np.array(phase)
    )
    targets = [row for t, e in zip(windows.target, windows.end, strict=True) for row in range(t, e)]
    assert targets == [row for f, e in zip(first, last, strict=True) for row in range(f, e)]
    assert (windows.lengths <= window).all() and (windows.end > windows.target).all()
    for start, target in zip(windows.start, windows.target, strict=True):
        mine = floor[np.searchsorted(floor, target, side="right") - 1]
        assert start == max(mine, target - overlap)


def test_history_windows_end_with_their_event(small: Dataset) -> None:
    ends = np.array([0, 3, int(small.offsets[5]), int(small.offsets[6]) - 1])
    windows = history_windows(small, ends, window=10)
    assert windows.end.tolist() == (ends + 1).tolist()
    assert windows.lengths.tolist()[:3] == [1, 4, 1]
    batch = BatchBuilder(small).build(windows)
    assert batch.is_target.sum() == 4
    assert batch.rows[batch.is_target].tolist() == ends.tolist()


def test_a_batch_of_no_windows(small: Dataset) -> None:
    none = np.zeros(0, np.int64)
    batch = BatchBuilder(small).build(Windows(none, none, none))
    assert batch.offsets.tolist() == [0] and batch.max_length == 0 and len(batch) == 0
    assert batch.context.shape == (4, 0) and batch.feedback.shape == (0, 4)


def test_batches_move_between_devices(small: Dataset) -> None:
    batch = next(BatchPlan(small, BUDGET, WINDOW, seed=0).batches(0))
    moved = batch.to("meta")
    assert moved.items.device.type == "meta" and moved.max_length == batch.max_length


def test_temporal_split(small: Dataset) -> None:
    split = temporal_split(small, validation_share=0.1, test_share=0.2, gap=1800)
    assert split.test.mean() == pytest.approx(0.2, abs=0.01)
    assert split.validation.mean() == pytest.approx(0.1, abs=0.02)
    t = small.time
    assert t[split.train].max() + 1800 <= t[split.validation].min()
    assert t[split.validation].max() + 1800 <= t[split.test].min()
    assert not (split.train & split.validation).any() and not (split.validation & split.test).any()
    without_gap = temporal_split(small, validation_share=0.1, test_share=0.2)
    assert (without_gap.train | without_gap.validation | without_gap.test).all()


def test_yambda_split_holds_days_at_the_end(small: Dataset) -> None:
    split = yambda_split(small)
    end, t = int(small.time.max()), small.time
    np.testing.assert_array_equal(split.test, t >= end - 86_400)
    np.testing.assert_array_equal(split.validation, (t >= end - 2 * 86_400 - 1800) & (t < end - 86_400 - 1800))
    np.testing.assert_array_equal(split.train, t < end - 2 * 86_400 - 3600)


def test_leave_last_out(small: Dataset) -> None:
    split = leave_last_out(small)
    lengths = np.diff(small.offsets)
    for user in range(small.info.users):
        rows = slice(int(small.offsets[user]), int(small.offsets[user + 1]))
        if lengths[user] >= 3:
            assert np.flatnonzero(split.test[rows]).tolist() == [lengths[user] - 1]
            assert np.flatnonzero(split.validation[rows]).tolist() == [lengths[user] - 2]
        else:
            assert split.train[rows].all()
    assert (split.train ^ split.validation ^ split.test).all()


def test_splits_refuse(small: Dataset) -> None:
    with pytest.raises(ValueError, match="shares in"):
        temporal_split(small, validation_share=0.5, test_share=0.5)
    with pytest.raises(ValueError, match="the test part is empty"):
        split_at(small, int(small.time.min()) + 9000, int(small.time.max()) + 1)
    with pytest.raises(ValueError, match="validation_start <= test_start"):
        split_at(small, 9, 8)
    with pytest.raises(ValueError, match="least_events"):
        leave_last_out(small, least_events=2)
    with pytest.raises(ValueError, match="no user has 100000 events"):
        leave_last_out(small, least_events=100_000)


def test_prefetch_keeps_values_order_and_errors() -> None:
    assert list(prefetch(range(50))) == list(range(50))
    assert list(prefetch([])) == []

    def failing() -> Iterator[int]:
        yield 1
        raise KeyError("lost")

    values = prefetch(failing())
    assert next(values) == 1
    with pytest.raises(KeyError, match="lost"):
        next(values)


def test_prefetch_works_ahead_and_stops() -> None:
    produced: list[int] = []

    def count() -> Iterator[int]:
        for value in range(1000):
            produced.append(value)
            yield value

    values = prefetch(count(), depth=3)
    assert next(values) == 0
    deadline = time.monotonic() + 5
    while len(produced) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert 4 <= len(produced) <= 6
    values.close()  # type: ignore[attr-defined]
    ended = len(produced)
    time.sleep(0.05)
    assert len(produced) == ended < 10


def test_prepare_is_one_door(tmp_path: Path) -> None:
    info = prepare("synthetic", None, tmp_path / "s", preset="small", users=12, events_per_user=30.0, chunk_users=5)
    assert info.users == 12 and info.name == "synthetic-small"
    assert load_dataset(tmp_path / "s").info == info
    with pytest.raises(FileExistsError):
        prepare("synthetic", None, tmp_path / "s", preset="small")
    assert prepare("synthetic", None, tmp_path / "s", overwrite=True, preset="small", users=3).users == 3


def test_prepare_names_what_it_does_not_know(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="one of yambda, kuairand, movielens, table, synthetic, found 'netflix'"):
        prepare("netflix", tmp_path, tmp_path / "out")
    with pytest.raises(ValueError, match="unknown option size of source 'kuairand'; it has: none"):
        prepare("kuairand", tmp_path, tmp_path / "out", size="50m")
    with pytest.raises(ValueError, match="unknown option tempo of source 'synthetic'"):
        prepare("synthetic", None, tmp_path / "out", tempo=3)
    with pytest.raises(ValueError, match="path: source 'yambda' needs"):
        prepare("yambda", None, tmp_path / "out")
    assert options_of("yambda") == ("format", "size", "skip_below_pct", "unsorted")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("events", "says"),
    [(3, "pretrain with --protocol all, which trains on every event and holds none out$"),
     (4, "pretrain with --protocol all, .*, or leave-last-out, which holds out the last two of each user$")],
)  # fmt: skip
def test_a_small_log_is_told_which_protocol_works(tmp_path: Path, events: int, says: str) -> None:
    row = np.arange(2 * events)
    with DatasetWriter(
        tmp_path / "mine", name="mine", source="my shop", context={}, feedback={"bought": BINARY}, item_features={},
        grades="", pair_window=60,
    ) as writer:  # fmt: skip
        writer.write_events({
            "user": row // events, "item": row % 3, "time": row % events // (events - 1), "organic": row < 0,
            "grade": row * 0, "feedback_bought": row % 2,
        })  # fmt: skip
        writer.write_users(["ann", "bob"])
        writer.write_items(["tea", "cup", "pot"], {})
    with pytest.raises(ValueError, match=rf"the \w+ part is empty; the events span 0 to 1: {says}"):
        temporal_split(load_dataset(tmp_path / "mine"))
