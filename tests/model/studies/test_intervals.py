"""Intervals over users and seeds, on planted results."""

from __future__ import annotations

import numpy as np
import pytest

from python_model.studies.intervals import (
    Interval,
    as_numbers,
    difference,
    interval,
    interval_cell,
    interval_table,
    ratio,
)
from python_model.studies.trials import TrialResult
from tests.model.studies.planted import planted

METRIC = "ndcg@10"


def row(name: str, users: np.ndarray, seeds: int = 2, wobble: float = 0.0) -> list[TrialResult]:
    return [planted(name, {METRIC: users + wobble * seed}, seed=seed) for seed in range(seeds)]


def interval_of(results: list[TrialResult]) -> Interval:
    found = interval(results, METRIC)
    assert found is not None
    return found


def difference_of(results: list[TrialResult], others: list[TrialResult]) -> Interval:
    found = difference(results, others, METRIC)
    assert found is not None
    return found


def test_the_interval_holds_the_mean_of_the_population() -> None:
    random = np.random.default_rng(0)
    held = 0
    for _ in range(60):
        found = interval(row("a", 0.3 + 0.1 * random.normal(size=40)), METRIC, draws=400)
        assert found is not None
        held += found.low < 0.3 < found.high
    assert 50 <= held <= 60


def test_users_that_are_equal_leave_nothing_to_chance() -> None:
    found = interval_of(row("a", np.full(10, 0.25)))
    assert (found.value, found.low, found.high) == pytest.approx((0.25, 0.25, 0.25))
    with_seeds = interval_of(row("a", np.full(10, 0.25), wobble=0.1))
    assert (with_seeds.value, with_seeds.low, with_seeds.high) == pytest.approx((0.3, 0.25, 0.35))


def test_a_ratio_is_over_the_same_users() -> None:
    users = np.random.default_rng(1).uniform(0.1, 0.5, 30)
    found = ratio(row("b", 1.3 * users), row("a", users), METRIC)
    assert found is not None and (found.value, found.low, found.high) == pytest.approx((1.3, 1.3, 1.3))
    assert ratio(row("b", users), row("a", np.zeros(30)), METRIC) is None
    assert ratio([], row("a", users), METRIC) is None


def test_a_difference_is_over_the_same_users() -> None:
    random = np.random.default_rng(1)
    users = 0.3 + 0.2 * random.normal(size=30)
    better = users + 0.02 + 0.001 * random.normal(size=30)
    found = difference_of(row("b", better), row("a", users))
    assert found.has_sign and found.high - found.low < 0.002
    apart = [interval_of(one) for one in (row("b", better), row("a", users))]
    assert apart[0].overlaps(apart[1]), "the users differ more than the rows do"
    none = difference_of(row("b", users), row("a", users))
    assert none == Interval(0.0, 0.0, 0.0) and not none.has_sign
    assert not Interval(3.0, 2.5, 3.5).overlaps(Interval(1.0, 0.5, 2.4))


def test_a_row_without_training_stands_for_every_seed() -> None:
    users = np.linspace(0.1, 0.5, 12)
    found = difference_of(row("trained", users, seeds=3), row("oracle", users - 0.1, seeds=1))
    assert found.value == pytest.approx(0.1) and found.low == pytest.approx(0.1)


def test_only_the_seeds_of_both_count() -> None:
    users = np.linspace(0.1, 0.5, 12)
    found = difference_of(row("b", users, seeds=3, wobble=0.1), row("a", users, seeds=2, wobble=0.1))
    assert found.value == pytest.approx(0.0)


def test_other_users_are_refused_and_unknown_metrics_are_none() -> None:
    with pytest.raises(ValueError, match="a, b: expected the same users"):
        difference(row("a", np.ones(3)), row("b", np.ones(4)), METRIC)
    assert interval(row("a", np.ones(3)), "feedback_ne") is None
    assert difference(row("a", np.ones(3)), [], METRIC) is None


def test_the_table_marks_what_is_not_shown() -> None:
    found = {"a": {METRIC: Interval(0.01, -0.02, 0.04), "recall@10": None}}
    assert interval_table(found, [METRIC, "recall@10"], "row", differences=True).splitlines()[2] == (
        "| `a` | ≈ +.0100 [−.0200, +.0400] | – |"
    )
    assert interval_cell(Interval(0.25, 0.2, 0.3)) == ".2500 [.2000, .3000]"
    assert as_numbers(found) == {"a": {METRIC: [0.01, -0.02, 0.04], "recall@10": None}}
