"""Top-k recommendation against a plain ranking of the catalogue, with and without seen items."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from python_model.config import preset as model_preset
from python_model.data.batches import BatchBuilder, history_windows
from python_model.data.schema import Dataset, load_dataset
from python_model.data.synthetic import generate, preset
from python_model.evaluation.recommend import append_next_event, find_users, recommend
from python_model.model.argus import Argus


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    out = tmp_path_factory.mktemp("recommend") / "service"
    generate(out, preset("small", users=25, seed=4))
    return load_dataset(out)


@pytest.fixture(scope="module")
def model(dataset: Dataset) -> Argus:
    torch.manual_seed(1)
    return Argus.for_dataset(model_preset("tiny"), dataset).eval()


def plain_scores(model: Argus, dataset: Dataset, user: int, window: int) -> np.ndarray:
    """Scores [V] of one user alone, from the same model."""
    last = np.array([dataset.offsets[user + 1] - 1])
    batch = append_next_event(BatchBuilder(dataset).build(history_windows(dataset, last, window - 1)))
    with torch.inference_mode():
        return (model.next_item_queries(batch)[-1] @ model.item_matrix().T).numpy()


@pytest.mark.parametrize("block_scores", [1, 1 << 20])
def test_top_k_is_the_head_of_the_whole_ranking(model: Argus, dataset: Dataset, block_scores: int) -> None:
    users = np.array([3, 0, 24])
    found = recommend(model, dataset, users, k=7, window=64, block_scores=block_scores)
    for user, one in zip(users, found, strict=True):
        scores = plain_scores(model, dataset, user, 64)
        best = np.argsort(-scores, kind="stable")[:7]
        assert one.user_id == dataset.user_ids[user]
        np.testing.assert_allclose([item.score for item in one.items], scores[best], rtol=1e-4, atol=1e-5)
        assert {item.item_id for item in one.items} == set(dataset.item_column("item_id")[best].tolist())


def test_seen_items_are_left_out_on_request(model: Argus, dataset: Dataset) -> None:
    users = np.arange(dataset.info.users)
    found = recommend(model, dataset, users, k=dataset.info.items, window=64, exclude_seen=True)
    for user, one in zip(users, found, strict=True):
        seen = set(dataset.item[dataset.offsets[user] : dataset.offsets[user + 1]].tolist())
        assert len(one.items) == dataset.info.items - len(seen)
        assert all(item.plays == 0 for item in one.items)


def test_plays_and_reasons_come_from_the_history(model: Argus, dataset: Dataset) -> None:
    one = recommend(model, dataset, np.array([2]), k=dataset.info.items, window=64)[0]
    history = dataset.item[dataset.offsets[2] : dataset.offsets[3]]
    artist = dataset.item_column("item_artist")
    numbers = {value: number for number, value in enumerate(dataset.item_column("item_id").tolist())}
    for item in one.items:
        number = numbers[item.item_id]
        assert item.plays == int((history == number).sum())
        if item.plays:
            assert item.why.startswith("in the history")
        elif (artist[history] == artist[number]).any():
            count = int((artist[history] == artist[number]).sum())
            assert item.why.startswith(f"artist {artist[number]} in the history {'once' if count == 1 else count}")


def test_the_placeholder_is_one_unknown_event_at_the_end_of_each_window(dataset: Dataset) -> None:
    ends = dataset.offsets[1:4] - 1
    batch = BatchBuilder(dataset).build(history_windows(dataset, ends, 10))
    longer = append_next_event(batch, delay=60)
    assert longer.offsets.tolist() == [0, 11, 22, 33]
    last = longer.offsets[1:].long() - 1
    assert longer.items[last].tolist() == longer.grade[last].tolist() == [-1, -1, -1]
    assert (longer.feedback[last] == -1).all()
    assert longer.time[last].tolist() == (dataset.time[ends] + 60).tolist()
    assert longer.is_target.nonzero()[:, 0].tolist() == last.tolist()
    kept = ~longer.is_target
    for name in ("items", "time", "organic", "grade", "rows", "feedback"):
        assert torch.equal(getattr(longer, name)[kept], getattr(batch, name))
    assert torch.equal(longer.context[:, kept], batch.context)
    assert torch.equal(longer.context[:, last], batch.context[:, batch.offsets[1:].long() - 1])


def test_users_are_found_by_their_original_id(dataset: Dataset) -> None:
    ids = [str(value) for value in dataset.user_ids[[5, 1]]]
    assert find_users(dataset, ids).tolist() == [5, 1]


@pytest.mark.parametrize("bad", ["nobody", "999999", "-1", "1.5", ""])
def test_an_unknown_user_is_named(dataset: Dataset, bad: str) -> None:
    with pytest.raises(ValueError, match=f"user '{bad}' is not in"):
        find_users(dataset, [bad])


def test_bad_arguments(model: Argus, dataset: Dataset) -> None:
    with pytest.raises(ValueError, match="k: expected at least 1, found 0"):
        recommend(model, dataset, np.array([0]), k=0, window=64)
    with pytest.raises(ValueError, match="score: expected one of next_item, pair, found 'best'"):
        recommend(model, dataset, np.array([0]), window=64, score="best")
