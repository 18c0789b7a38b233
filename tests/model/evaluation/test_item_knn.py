"""Item-kNN against its definition written out, and as a row of the table."""

from __future__ import annotations

import math
from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from python_model.data.schema import Dataset
from python_model.data.splits import temporal_split
from python_model.evaluation import item_knn
from python_model.evaluation.evaluate import evaluate
from python_model.evaluation.item_knn import ItemKnn, most_similar


def slow_similarity(pairs: set[tuple[int, int]], items: int, shrinkage: float) -> np.ndarray:
    """The definition, pair by pair."""
    users = [{user for user, item in pairs if item == one} for one in range(items)]
    out = np.zeros((items, items))
    for i in range(items):
        for j in range(items):
            if i != j and users[i] & users[j]:
                out[i, j] = len(users[i] & users[j]) / (math.sqrt(len(users[i]) * len(users[j])) + shrinkage)
    return out


@given(
    pairs=st.sets(st.tuples(st.integers(0, 6), st.integers(0, 8)), max_size=30),
    shrinkage=st.sampled_from([0.0, 2.5]),
    neighbours=st.sampled_from([2, 9]),
    at_once=st.sampled_from([7, 1 << 22]),
)
def test_similarities_are_those_of_the_definition(
    pairs: set[tuple[int, int]], shrinkage: float, neighbours: int, at_once: int
) -> None:
    ordered = np.array(sorted(pairs), np.int64).reshape(-1, 2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(item_knn, "PAIRS_AT_ONCE", at_once)
        near, similarity = most_similar(ordered[:, 0], ordered[:, 1], 9, neighbours, shrinkage)
    expected = slow_similarity(pairs, 9, shrinkage)
    for item in range(9):
        best = np.sort(expected[item])[::-1][:neighbours]
        np.testing.assert_allclose(np.sort(similarity[item])[::-1], best, rtol=1e-6)
        np.testing.assert_allclose(similarity[item], expected[item][near[item]], rtol=1e-6)


def test_scores_add_up_over_the_history_and_impressions_over_its_lagged_part(tiny_service: Dataset) -> None:
    split = temporal_split(tiny_service)
    rows = np.flatnonzero(split.test)[::7]
    pairs = set(zip(tiny_service.user[split.train].tolist(), tiny_service.item[split.train].tolist(), strict=True))
    similarity = slow_similarity(pairs, tiny_service.info.items, 10.0)
    found = ItemKnn(tiny_service, split.train, neighbours=tiny_service.info.items, window=6).predict(rows)
    assert found.next_item is not None and found.ranking is not None and not found.feedback
    moved: dict[bool, int] = defaultdict(int)
    for place, row in enumerate(rows.tolist()):
        item, start = tiny_service.item[row], int(tiny_service.offsets[tiny_service.user[row]])
        scores = similarity[np.unique(tiny_service.item[max(start, row - 6) : row])].sum(axis=0)
        assert (
            (scores > scores[item] + 1e-5).sum() < found.next_item.rank[place] <= (scores > scores[item] - 1e-5).sum()
        )
        known = start + int(
            (tiny_service.time[start:row] <= tiny_service.time[row] - tiny_service.info.pair_window - 1).sum()
        )
        lagged = similarity[np.unique(tiny_service.item[max(start, known - 6) : known])].sum(axis=0)
        assert found.ranking[place] == pytest.approx(lagged[item], abs=1e-5)
        moved[known < row] += 1
    assert moved[True], "some impression has events within the window before it"


def test_a_row_of_the_table(tiny_service: Dataset) -> None:
    row = evaluate({}, tiny_service, item_knn=True).rows["item_knn"]
    popular = evaluate({}, tiny_service).rows["popularity"]
    assert row["ndcg@10"] > popular["ndcg@10"]  # type: ignore[operator]
    assert row["next_item_ne"] is None and row["feedback_auc"] is None


@pytest.mark.parametrize("wrong", [{"neighbours": 0}, {"window": 0}, {"shrinkage": float("nan")}])
def test_bad_settings(tiny_service: Dataset, wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="item-kNN: expected neighbours and window of at least 1"):
        ItemKnn(tiny_service, np.arange(9), **wrong)  # type: ignore[arg-type]
