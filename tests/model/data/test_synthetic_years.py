"""The synthetic service with a long memory: each option shows in the data, and the oracle knows what it is worth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from python_model.data.schema import Dataset
from python_model.data.splits import temporal_split
from python_model.data.synthetic import OracleScores, SyntheticConfig, generate, preset
from python_model.data.synthetic.config import MEMORY, UNFAMILIAR
from python_model.data.synthetic.tastes import START, season_number
from python_model.evaluation.metrics import count_pairs, ndcg_gains, rank_scores

PLAIN = preset("small", users=30, events_per_user=500.0, days=1461, clusters=16, drift=0.5)
MEMORIES: dict[str, Any] = {
    "seasonality": 0.8, "weekday_tastes": 0.8, "hour_tastes": 0.8, "cycles": 0.5, "loyalty": 0.5, "discovery": 0.5,
}  # fmt: skip
YEARS = replace(
    preset("years"), users=30, events_per_user=500.0, days=1461, clusters=16, artists=5, tracks=5, expectation=-0.2
)


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Callable[[SyntheticConfig], OracleScores]:
    made: dict[SyntheticConfig, OracleScores] = {}

    def of(config: SyntheticConfig) -> OracleScores:
        if config not in made:
            out = tmp_path_factory.mktemp("years") / "data"
            generate(out, config)
            made[config] = OracleScores(out)
        return made[config]

    return of


def season(dataset: Dataset) -> np.ndarray:
    return season_number(dataset.time, int(dataset.info.params.get("seasons", 12)))


def agreement(dataset: Dataset, key: np.ndarray) -> float:
    """How much more often two organic events of a user, a year apart or more, share a cluster where the keys agree."""
    cluster = dataset.item_column("item_cluster")[dataset.item]
    same = [np.zeros(0), np.zeros(0)]
    for begin, end in zip(dataset.offsets[:-1], dataset.offsets[1:], strict=True):
        rows = np.arange(begin, end)[dataset.organic[begin:end]]
        one, other = np.triu_indices(len(rows), 1)
        far = dataset.time[rows[other]] - dataset.time[rows[one]] > 86_400 * 330
        one, other = rows[one[far]], rows[other[far]]
        equal = cluster[one] == cluster[other]
        for kind, chosen in enumerate((key[one] != key[other], key[one] == key[other])):
            same[kind] = np.append(same[kind], equal[chosen])
    return float(same[1].mean() - same[0].mean())


def of_seasons(dataset: Dataset) -> float:
    return agreement(dataset, season(dataset) % 12)


def of_weekdays(dataset: Dataset) -> float:
    return agreement(dataset, dataset.context("day_of_week"))


def of_hours(dataset: Dataset) -> float:
    return agreement(dataset, dataset.context("hour") // 6)


def liked_before(dataset: Dataset, ago: Callable[[np.ndarray], np.ndarray]) -> float:
    """Share of the last year's organic events whose item the user liked before, `ago` of the seasons between."""
    number, like = season(dataset), dataset.feedback("like") == 1
    rows = np.flatnonzero(dataset.organic & (dataset.time > START + 3 * 365 * 86_400))
    found = []
    for row in rows:
        past = slice(int(dataset.offsets[dataset.user[row]]), row)
        then = like[past] & ago(number[row] - number[past])
        found.append((dataset.item[past][then] == dataset.item[row]).any())
    return float(np.mean(found))


def of_cycles(dataset: Dataset) -> float:
    """Likes of the same season of earlier years, against those of half a year beside it."""
    in_season = liked_before(dataset, lambda ago: (ago > 0) & (ago % 12 == 0))
    return in_season - liked_before(dataset, lambda ago: (ago > 0) & (ago % 12 == 6))


def of_loyalty(dataset: Dataset) -> float:
    """Likes that are more than a year old."""
    return liked_before(dataset, lambda ago: ago > 12)


def of_discovery(dataset: Dataset) -> float:
    """Share of the recommended events of the last year whose item is new to the user."""
    first = np.unique(dataset.user.astype(np.int64) * dataset.info.items + dataset.item, return_index=True)[1]
    new = np.zeros(len(dataset), bool)
    new[first] = True
    return float(new[~dataset.organic & (dataset.time > START + 3 * 365 * 86_400)].mean())


@pytest.mark.parametrize(
    ("option", "statistic", "least"),
    [
        ("seasonality", of_seasons, 0.05),
        pytest.param("weekday_tastes", of_weekdays, 0.05, marks=pytest.mark.slow),
        pytest.param("hour_tastes", of_hours, 0.05, marks=pytest.mark.slow),
        pytest.param("cycles", of_cycles, 0.15, marks=pytest.mark.slow),
        ("loyalty", of_loyalty, 0.15),
        pytest.param("discovery", of_discovery, 0.15, marks=pytest.mark.slow),
    ],
)
def test_each_option_shows_in_the_data(
    make: Callable[[SyntheticConfig], OracleScores], option: str, statistic: Callable[[Dataset], float], least: float
) -> None:
    without = statistic(make(PLAIN).dataset)
    given = statistic(make(replace(PLAIN, **{option: MEMORIES[option]})).dataset)
    print(option, without, given)
    assert given - without > least


def test_discovery_recommends_only_new_items(make: Callable[[SyntheticConfig], OracleScores]) -> None:
    dataset = make(YEARS).dataset
    shown = np.flatnonzero(dataset.context("source") == UNFAMILIAR)
    assert dataset.info.context["source"] == 5 and len(shown) > 300
    assert not dataset.organic[shown].any()
    for row in shown:
        assert dataset.item[row] not in dataset.item[dataset.offsets[dataset.user[row]] : row]


def test_the_season_is_a_context_where_it_matters(make: Callable[[SyntheticConfig], OracleScores]) -> None:
    dataset = make(YEARS).dataset
    assert dataset.info.context["season"] == 24
    np.testing.assert_array_equal(dataset.context("season"), season(dataset) % 24)
    plain = make(PLAIN).dataset.info
    assert "season" not in plain.context and plain.context["source"] == 4
    assert not set(MEMORY) & set(plain.params), "the files of a service without these options are as before"


def test_the_service_of_years_keeps_the_statistics(make: Callable[[SyntheticConfig], OracleScores]) -> None:
    statistics = make(YEARS).dataset.info.params["statistics"]
    assert statistics["skip_rate"] == pytest.approx(0.24, abs=0.03)
    assert statistics["mean_played_share"] == pytest.approx(0.73, abs=0.04)
    assert statistics["recommended_share"] == pytest.approx(0.44, abs=0.04)
    assert statistics["listens_per_session"] == pytest.approx(9, abs=1)
    assert preset("years").events_per_user == 8192 and preset("years").days > 5 * 365


def test_users_do_not_depend_on_the_chunks(tmp_path: Path) -> None:
    config = replace(YEARS, users=9, events_per_user=120.0)
    for name, chunk_users in (("whole", 1024), ("chunks", 2)):
        generate(tmp_path / name, config, chunk_users=chunk_users)
    for file in ("events.parquet", "oracle/session_taste.npy", "dataset.json"):
        assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "chunks" / file).read_bytes()


def test_the_oracle_is_calibrated(make: Callable[[SyntheticConfig], OracleScores]) -> None:
    """Hits at rank k come as often as the oracle says, on every surface, and so does the average log-loss."""
    oracle = make(YEARS)
    dataset = oracle.dataset
    rows = np.sort(np.random.default_rng(1).choice(len(dataset), 6_000, replace=False))
    probability = np.exp(oracle.next_item_scores(rows).astype(np.float64))
    np.testing.assert_allclose(probability.sum(axis=1), 1, atol=1e-5)
    ranked = -np.sort(-probability, axis=1)
    chosen = probability[np.arange(len(rows)), dataset.item[rows]]
    assert (chosen > 0).all()
    rank = (probability > chosen[:, None]).sum(axis=1)
    entropy = -(ranked * np.log(np.maximum(ranked, 1e-300))).sum(axis=1)
    for source in range(5):
        here = dataset.context("source")[rows] == source
        assert -np.log(chosen[here]).mean() == pytest.approx(entropy[here].mean(), abs=0.15)
        for k in (1, 3, 10):
            expected = ranked[here, :k].sum(axis=1)
            slack = 4.5 * np.sqrt((expected * (1 - expected)).sum()) / here.sum()
            assert (rank[here] < k).mean() == pytest.approx(expected.mean(), abs=slack)


def test_the_restricted_oracle_gains_with_its_context(make: Callable[[SyntheticConfig], OracleScores]) -> None:
    full = make(YEARS)
    dataset = full.dataset
    rows = np.flatnonzero(temporal_split(dataset).test)[:1200]
    _, starts = np.unique(dataset.user[rows], return_index=True)
    losses, gains, accuracies = [], [], []
    targets = torch.from_numpy(dataset.item[rows].astype(np.int64))
    for oracle in (*(OracleScores(dataset.path, context) for context in (8, 64, 512)), full):
        ranking = rank_scores(torch.from_numpy(oracle.next_item_scores(rows)), targets)
        losses.append(ranking.log_loss.mean())
        gains.append(ndcg_gains(ranking.rank, 10).mean())
        pairs = (dataset.grade[rows], np.append(starts, len(rows)), dataset.time[rows], dataset.info.pair_window)
        accuracies.append(count_pairs(oracle.utility(rows), *pairs).accuracy)
    print(losses, gains, accuracies)
    assert losses == sorted(losses, reverse=True) and losses[0] - losses[2] > 0.1
    assert gains[2] - gains[0] > 0.01 and gains[3] > gains[2]
    assert accuracies[0] < accuracies[2] < accuracies[3]


def test_the_restricted_oracle_sees_nothing_older(make: Callable[[SyntheticConfig], OracleScores]) -> None:
    """With one event of context nothing of loyalty, cycles or the taste is left: only the last event is known."""
    dataset = make(YEARS).dataset
    one = OracleScores(dataset.path, 1)
    rows = np.flatnonzero(temporal_split(dataset).test & (dataset.context("source") == 0))[:200]
    scores = one.next_item_scores(rows)
    assert np.isfinite(scores).all(), "without a past to repeat its share goes to the taste, whose mean is 0"
    skip = one.feedback_probabilities("skip", rows)
    assert skip.shape == (200,) and one.feedback_probabilities("share", rows).shape == (200, 5)
    with pytest.raises(ValueError, match="context is 0, expected at least 1 event"):
        OracleScores(dataset.path, 0)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"seasonality": 0.6, "hour_tastes": 0.5}, "seasonality, weekday_tastes, hour_tastes: .* at most 1, found 1.1"),
        ({"cycles": 0.6, "loyalty": 0.5}, "cycles, loyalty: expected shares that add up to at most 1, found 1.1"),
        ({"discovery": 1.5}, r"discovery is 1.5, expected a finite number in \[0, 1\]"),
        ({"seasons": 1}, r"seasons is 1, expected a whole number in \[2, 366\]"),
    ],
)
def test_shares_are_checked(changes: dict[str, float], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        preset("small", **changes)
