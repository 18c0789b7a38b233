"""Events at the same second come in another order in every pass; nothing else moves."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from python_model.config import TrainConfig
from python_model.data.batches import BatchPlan, JaggedBatch
from python_model.data.feedback import BINARY
from python_model.data.schema import Dataset, DatasetWriter, load_dataset
from python_model.data.stochastic_length import StochasticLength
from python_model.training.start import batch_source

TIMES = np.array([5, 5, 5, 5, 9, 9, 12, 20, 5, 5, 5, 31])
USERS = np.array([0] * 8 + [1] * 4)
GAPS = np.array([-1, 0, 0, 0, 1, 0, 1, 1, -1, 0, 0, 2])


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Two users who rate pages; item, page and like of an event are its row, its row and its row's parity."""
    path = tmp_path_factory.mktemp("ties") / "pages"
    rows = np.arange(12)
    with DatasetWriter(
        path, name="pages", source="test", context={"gap": 8, "page": 12}, feedback={"like": BINARY}, item_features={},
        grades="like", pair_window=1, derived=("gap",),
    ) as writer:  # fmt: skip
        writer.write_events(
            {
                "user": USERS.astype(np.int32), "item": rows.astype(np.int32), "time": TIMES.astype(np.int64),
                "organic": rows % 3 == 0, "grade": (rows % 5).astype(np.int8), "context_gap": GAPS.astype(np.int32),
                "context_page": rows.astype(np.int32), "feedback_like": (rows % 2).astype(np.int16),
            }
        )  # fmt: skip
        writer.write_users(np.arange(2))
        writer.write_items(rows, {})
    return load_dataset(path)


def orders(batch: JaggedBatch) -> list[int]:
    """The items of the batch, in its order, after checking that everything of an event came along."""
    rows = batch.rows.numpy()
    assert batch.items.tolist() == rows.tolist() == batch.context[1].tolist()
    assert batch.feedback[:, 0].tolist() == (rows % 2).tolist() and batch.grade.tolist() == (rows % 5).tolist()
    assert batch.organic.tolist() == (rows % 3 == 0).tolist()
    return [int(row) for row in rows]


def test_only_events_of_the_same_second_change_places(pages: Dataset) -> None:
    found = set()
    for epoch in range(40):
        (batch,) = BatchPlan(pages, 32, 16, seed=1, shuffled_ties=True).batches(epoch)
        user = {int(one): part for one, part in zip(batch.users, _by_user(batch), strict=True)}
        assert [sorted(user[0][:4]), sorted(user[0][4:6]), user[0][6:]] == [[0, 1, 2, 3], [4, 5], [6, 7]]
        assert sorted(user[1][:3]) == [8, 9, 10] and user[1][3] == 11
        found |= {tuple(user[0][:4]), tuple(user[1][:3])}
        # Times and what follows from them stay: the first event of a page has the gap, whichever it is.
        place = torch.cat([torch.arange(8), torch.arange(8, 12)] if int(batch.users[0]) == 0 else
                          [torch.arange(8, 12), torch.arange(8)])  # fmt: skip
        assert batch.context[0].tolist() == GAPS[place].tolist() and batch.time.tolist() == TIMES[place].tolist()
    assert len(found) > 20


def _by_user(batch: JaggedBatch) -> list[list[int]]:
    rows, offsets = orders(batch), batch.offsets.tolist()
    return [rows[a:b] for a, b in pairwise(offsets)]


def test_the_order_is_a_function_of_seed_and_epoch_and_resumes(small: Dataset) -> None:
    plan = BatchPlan(small, 512, 48, seed=3, shuffled_ties=True)
    whole = [batch.items.tolist() for batch in plan.batches(1)]
    assert [batch.items.tolist() for batch in plan.batches(1, 3)] == whole[3:]
    # Windows and their order in an epoch do not depend on it.
    plain = BatchPlan(small, 512, 48, seed=3)
    assert [batch.offsets.tolist() for batch in plain.batches(1)] == [b.offsets.tolist() for b in plan.batches(1)]


def test_it_goes_with_subsequences(pages: Dataset) -> None:
    plan = BatchPlan(pages, 32, 8, seed=0, shuffled_ties=True, shortening=StochasticLength(1.0, 8))
    for epoch in range(5):
        for batch in plan.batches(epoch):
            assert all(sorted(part, key=lambda row: TIMES[row]) == part for part in _by_user(batch))


def test_a_run_takes_it_from_its_settings(pages: Dataset) -> None:
    found = {}
    for shuffled in (False, True):
        config = TrainConfig(batch_events=16, window=16, protocol="all", shuffle_ties=shuffled)
        source = batch_source(pages, config)
        steps = source.walk(source.start(), [0], 1)
        found[shuffled] = [next(steps).batches[0].items.tolist() for _ in range(4)]
    assert all(items == sorted(items, key=lambda row: (row >= 8) != (items[0] >= 8)) for items in found[False])
    assert found[True] != found[False]
