"""The predictors without a model against their definitions, and the oracle as a ceiling."""

from __future__ import annotations

import math

import numpy as np
import pytest

from python_model.data.schema import Dataset, load_dataset
from python_model.data.splits import temporal_split
from python_model.data.synthetic import generate, preset
from python_model.evaluation import metrics
from python_model.evaluation.baselines import ItemAverage, Oracle, Popularity


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    out = tmp_path_factory.mktemp("baselines") / "service"
    generate(out, preset("small", users=80, seed=3))
    return load_dataset(out)


@pytest.fixture(scope="module")
def rows(dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
    split = temporal_split(dataset)
    return np.flatnonzero(split.train), np.flatnonzero(split.test)


def test_popularity_counts_training_events_only(dataset: Dataset, rows: tuple[np.ndarray, np.ndarray]) -> None:
    training, test = rows
    counts = [0] * dataset.info.items
    for row in training:
        counts[dataset.item[row]] += 1
    found = Popularity(dataset, training).predict(test)
    assert found.next_item is not None and found.ranking is not None
    for place, row in enumerate(test):
        item = dataset.item[row]
        better = sum(counts[other] >= counts[item] for other in range(len(counts)) if other != item)
        assert found.next_item.rank[place] == 1 + better
        probability = (counts[item] + 1) / (sum(counts) + len(counts))
        assert found.next_item.log_loss[place] == pytest.approx(-math.log(probability))
        assert found.ranking[place] == counts[item]


def test_popularity_is_a_distribution(dataset: Dataset, rows: tuple[np.ndarray, np.ndarray]) -> None:
    popularity = Popularity(dataset, rows[0])
    assert np.exp(popularity.log_probability).sum() == pytest.approx(1.0)
    for values in popularity.predict(rows[1]).feedback.values():
        np.testing.assert_allclose(np.exp(values).sum(axis=1), 1.0)


def test_item_average_pulls_rare_items_to_the_mean(dataset: Dataset, rows: tuple[np.ndarray, np.ndarray]) -> None:
    training, test = rows
    prior = 4.0
    found = ItemAverage(dataset, training, prior).predict(test)
    grades, items = dataset.grade[training].astype(float), dataset.item[training]
    overall = grades[grades >= 0].mean()
    likes = dataset.feedback("like")[training]
    base = (likes.sum() + 1) / (len(likes) + 2)
    assert found.ranking is not None
    for place, row in enumerate(test[:50]):
        own = grades[(items == dataset.item[row]) & (grades >= 0)]
        assert found.ranking[place] == pytest.approx((own.sum() + prior * overall) / (len(own) + prior))
        liked = likes[items == dataset.item[row]]
        expected = (liked.sum() + prior * base) / (len(liked) + prior)
        assert math.exp(found.feedback["like"][place, 1]) == pytest.approx(expected)


def test_the_oracle_is_a_distribution_and_beats_the_baselines(
    dataset: Dataset, rows: tuple[np.ndarray, np.ndarray]
) -> None:
    training, test = rows
    oracle = Oracle(dataset).predict(test)
    for values in oracle.feedback.values():
        np.testing.assert_allclose(np.exp(values).sum(axis=1), 1.0, atol=1e-6)
    assert oracle.next_item is not None
    for baseline in (Popularity(dataset, training), ItemAverage(dataset, training)):
        found = baseline.predict(test)
        assert found.next_item is not None
        assert oracle.next_item.log_loss.mean() < found.next_item.log_loss.mean()
        for task, log_p in found.feedback.items():
            labels = dataset.feedback(task)[test].astype(np.int64)
            entropy = metrics.normalized_entropy(log_p, labels)
            assert metrics.normalized_entropy(oracle.feedback[task], labels) < entropy
