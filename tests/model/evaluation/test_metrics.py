"""Each metric against its definition written as a plain loop, and the edges where a metric is not defined."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from python_model.evaluation import metrics


def rank_by_loop(scores: np.ndarray, target: int) -> int:
    rank = 1
    for item, score in enumerate(scores):
        if item != target and score >= scores[target]:
            rank += 1
    return rank


def ndcg_by_loop(ranks: list[int], k: int) -> float:
    total = 0.0
    for rank in ranks:
        if rank <= k:
            total += 1.0 / math.log2(1 + rank)
    return total / len(ranks)


def auc_by_loop(scores: np.ndarray, labels: np.ndarray) -> float:
    wins = pairs = 0.0
    for positive in scores[labels == 1]:
        for negative in scores[labels == 0]:
            pairs += 1
            wins += 1.0 if positive > negative else 0.5 if positive == negative else 0.0
    return wins / pairs


def pairs_by_loop(
    scores: np.ndarray, grades: np.ndarray, offsets: np.ndarray, times: np.ndarray, window: int
) -> list[tuple[int, int, int]]:
    counts = []
    for user in range(len(offsets) - 1):
        pairs = concordant = ties = 0
        for a in range(offsets[user], offsets[user + 1]):
            for b in range(offsets[user], offsets[user + 1]):
                if grades[b] < 0 or grades[a] <= grades[b] or abs(times[a] - times[b]) > window:
                    continue
                pairs += 1
                concordant += int(scores[a] > scores[b])
                ties += int(scores[a] == scores[b])
        counts.append((pairs, concordant, ties))
    return counts


def test_ranks_equal_the_loop_with_ties_against_the_target() -> None:
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 6, size=(40, 15)).astype(np.float32)
    targets = rng.integers(0, 15, size=40)
    ranking = metrics.rank_scores(torch.from_numpy(scores), torch.from_numpy(targets))
    assert ranking.rank.tolist() == [rank_by_loop(row, target) for row, target in zip(scores, targets, strict=True)]
    expected = [math.log(sum(math.exp(s) for s in row)) - row[t] for row, t in zip(scores, targets, strict=True)]
    np.testing.assert_allclose(ranking.log_loss, expected, rtol=1e-6)


def test_a_collapsed_predictor_ranks_last() -> None:
    ranking = metrics.rank_scores(torch.zeros(3, 50), torch.tensor([0, 20, 49]))
    assert ranking.rank.tolist() == [50, 50, 50]
    np.testing.assert_allclose(ranking.log_loss, math.log(50))


@pytest.mark.parametrize("block_scores", [1, 37, 1 << 20])
def test_blocked_ranking_does_not_depend_on_the_block(block_scores: int) -> None:
    generator = torch.Generator().manual_seed(1)
    queries, items = torch.randn(23, 8, generator=generator), torch.randn(31, 8, generator=generator)
    targets = torch.randint(31, (23,), generator=generator)
    blocked = metrics.rank_catalogue(queries, items, targets, 3.0, block_scores)
    scores = (queries.double() @ items.double().T * 3.0).numpy()
    assert blocked.rank.tolist() == [rank_by_loop(row, t) for row, t in zip(scores, targets.tolist(), strict=True)]
    log_loss = np.log(np.exp(scores).sum(1)) - scores[np.arange(23), targets]
    np.testing.assert_allclose(blocked.log_loss, log_loss, rtol=1e-4, atol=1e-5)


def test_no_events_rank_to_nothing() -> None:
    empty = metrics.rank_catalogue(torch.zeros(0, 4), torch.zeros(5, 4), torch.zeros(0, dtype=torch.int64))
    assert len(empty.rank) == len(empty.log_loss) == 0


def test_recall_and_ndcg_equal_the_loop() -> None:
    rank = np.array([1, 2, 3, 10, 11, 200])
    assert metrics.recall_gains(rank, 10).mean() == pytest.approx(4 / 6)
    assert metrics.ndcg_gains(rank, 10).mean() == pytest.approx(ndcg_by_loop(rank.tolist(), 10))
    assert metrics.ndcg_gains(np.array([1]), 10).tolist() == [1.0]


def test_normalized_entropy_of_the_base_rate_is_one_and_of_certainty_zero() -> None:
    labels = np.array([0, 0, 0, 1, 2, 2])
    share = np.log(np.array([3, 1, 2]) / 6)
    assert metrics.normalized_entropy(np.tile(share, (6, 1)), labels) == pytest.approx(1.0)
    certain = np.full((6, 3), -np.inf)
    certain[np.arange(6), labels] = 0.0
    assert metrics.normalized_entropy(certain, labels) == 0.0


def test_normalized_entropy_equals_the_loop() -> None:
    rng = np.random.default_rng(3)
    probability = rng.dirichlet(np.ones(4), size=30)
    labels = rng.integers(0, 4, size=30)
    loss = -sum(math.log(probability[i, c]) for i, c in enumerate(labels)) / 30
    base = -sum(s * math.log(s) for s in (np.bincount(labels, minlength=4) / 30) if s > 0)
    assert metrics.normalized_entropy(np.log(probability), labels) == pytest.approx(loss / base)


@pytest.mark.parametrize("labels", [[], [1, 1, 1]])
def test_normalized_entropy_is_not_defined_without_two_classes(labels: list[int]) -> None:
    values = np.array(labels, np.int64)
    assert math.isnan(metrics.normalized_entropy(np.zeros((len(values), 2)), values))


@given(
    st.lists(st.tuples(st.integers(-4, 4), st.booleans()), min_size=2, max_size=60).filter(
        lambda rows: len({label for _, label in rows}) == 2
    )
)
@settings(max_examples=60, deadline=None)
def test_auc_equals_the_loop(rows: list[tuple[int, bool]]) -> None:
    scores, labels = np.array([s for s, _ in rows], np.float64), np.array([int(label) for _, label in rows])
    assert metrics.auc(scores, labels) == pytest.approx(auc_by_loop(scores, labels))


def test_auc_is_not_defined_with_one_class() -> None:
    assert math.isnan(metrics.auc(np.array([1.0, 2.0]), np.array([1, 1])))


@given(
    st.lists(st.lists(st.tuples(st.integers(-3, 3), st.integers(-1, 3), st.integers(0, 20)), max_size=9), max_size=5),
    st.integers(0, 12),
)
@settings(max_examples=80, deadline=None)
def test_pairs_equal_the_loop(users: list[list[tuple[int, int, int]]], window: int) -> None:
    offsets = np.cumsum([0, *(len(user) for user in users)])
    rows = [event for user in users for event in sorted(user, key=lambda event: event[2])]
    scores, grades, times = (np.array([row[c] for row in rows], np.int64) for c in range(3))
    found = metrics.count_pairs(scores.astype(np.float32), grades, offsets, times, window)
    expected = pairs_by_loop(scores, grades, offsets, times, window)
    assert list(zip(found.pairs.tolist(), found.concordant.tolist(), found.ties.tolist(), strict=True)) == expected
    total = sum(e[0] for e in expected)
    if total:
        assert found.accuracy == pytest.approx(sum(e[1] + 0.5 * e[2] for e in expected) / total)
    else:
        assert math.isnan(found.accuracy)


def test_pairs_agree_with_the_training_loss() -> None:
    argus_kernels = pytest.importorskip("argus_kernels")
    if not hasattr(argus_kernels, "pairwise_loss"):
        pytest.skip("argus_kernels has no pairwise_loss")
    rng = np.random.default_rng(5)
    offsets = np.array([0, 0, 30, 31, 80])
    times = np.concatenate([np.sort(rng.integers(0, 500, n)) for n in np.diff(offsets)])
    scores, grades = rng.normal(size=80).astype(np.float32), rng.integers(0, 4, 80)
    _, pairs, concordant = argus_kernels.pairwise_loss(
        torch.from_numpy(scores),
        torch.from_numpy(grades),
        torch.from_numpy(offsets).int(),
        torch.from_numpy(times),
        100,
    )
    found = metrics.count_pairs(scores, grades, offsets, times, 100)
    assert (found.total, int(found.concordant.sum())) == (int(pairs), int(concordant))


def test_standard_error_equals_the_spread_over_repeated_samples() -> None:
    rng = np.random.default_rng(8)
    means, errors = [], []
    for _ in range(400):
        weights = rng.integers(1, 6, size=200).astype(np.float64)
        gains = rng.binomial(weights.astype(np.int64), np.clip(rng.normal(0.5, 0.2, 200), 0, 1)).astype(np.float64)
        means.append(gains.sum() / weights.sum())
        errors.append(metrics.clustered_standard_error(gains, weights))
    assert np.mean(errors) == pytest.approx(np.std(means), rel=0.15)


def test_standard_error_needs_two_users() -> None:
    assert math.isnan(metrics.clustered_standard_error(np.array([1.0, 0.0]), np.array([2.0, 0.0])))


@pytest.mark.parametrize("metric", ["rank", "auc", "pairs", "entropy"])
def test_nan_scores_are_refused(metric: str) -> None:
    with pytest.raises(ValueError, match="NaN"):
        if metric == "rank":
            metrics.rank_scores(torch.tensor([[0.0, float("nan")]]), torch.tensor([0]))
        elif metric == "auc":
            metrics.auc(np.array([0.0, np.nan]), np.array([0, 1]))
        elif metric == "pairs":
            metrics.count_pairs(np.array([0.0, np.nan]), np.array([0, 1]), np.array([0, 2]), np.array([0, 1]), 5)
        else:
            metrics.normalized_entropy(np.array([[0.0, np.nan], [0.0, 0.0]]), np.array([1, 0]))
