"""Interleaving, repetitions and stages, with a clock that the test moves."""

from __future__ import annotations

import time
from itertools import pairwise
from typing import Any

import pytest

from benchmarks.harness.timing import Budget, CpuTimer, Subject, measure


class DriftingTimer:
    """Every repetition takes what the subject is told to, times a factor that grows over the measurement."""

    def __init__(self, milliseconds: dict[str, float], drift: float = 0.0) -> None:
        self.milliseconds = milliseconds
        self.drift = drift
        self.order: list[str] = []

    def once(self, subject: Subject) -> tuple[float, ...]:
        factor = 1 + self.drift * len(self.order)
        self.order.append(subject.name)
        return tuple(self.milliseconds[subject.name] * factor for _ in subject.stages)


def subjects(*names: str, stages: int = 1) -> list[Subject]:
    return [Subject(name, (lambda value: value,) * stages) for name in names]


def test_equal_subjects_take_turns_in_changing_order() -> None:
    timer = DriftingTimer({"a": 10.0, "b": 10.0, "c": 10.0})
    measure(subjects("a", "b", "c"), timer, Budget(0.2, 3, 100))
    rounds = [tuple(timer.order[index : index + 3]) for index in range(3, len(timer.order), 3)]
    assert len(rounds) == 20
    assert all(sorted(order) == ["a", "b", "c"] for order in rounds)
    assert len(set(rounds)) > 1


def test_a_drifting_clock_hits_all_alike() -> None:
    timer = DriftingTimer({"a": 10.0, "b": 10.0}, drift=0.05)
    found = measure(subjects("a", "b"), timer, Budget(0.4, 3, 100))
    assert found["a"].total.p50 / found["b"].total.p50 == pytest.approx(1.0, abs=0.05)


def test_a_fast_subject_is_spread_over_the_whole_measurement() -> None:
    timer = DriftingTimer({"fast": 1.0, "slow": 100.0})
    measure(subjects("fast", "slow"), timer, Budget(0.5, 5, 100))
    order = timer.order[2:]
    assert order.count("slow") == 5 and order.count("fast") == 100
    places = [index for index, name in enumerate(order) if name == "slow"]
    assert all(later - earlier > 5 for earlier, later in pairwise([*places[::2]]))
    assert places[0] < 25 and places[-1] > 75


@pytest.mark.parametrize(("milliseconds", "expected"), [(0.001, 200), (10.0, 100), (5000.0, 5)])
def test_repetitions_fit_the_budget_within_limits(milliseconds: float, expected: int) -> None:
    found = measure(subjects("a"), DriftingTimer({"a": milliseconds}), Budget(1.0, 5, 200))
    assert len(found["a"].repeats) == expected


def test_what_takes_long_is_timed_once() -> None:
    budget = Budget(10.0, 3, 100, once_from=2.0)
    timer = DriftingTimer({"a": 2500.0, "b": 1900.0})
    found = measure(subjects("a", "b"), timer, budget, warm={"a": (2500.0,), "b": (1900.0,)})
    assert {name: len(timing.repeats) for name, timing in found.items()} == {"a": 1, "b": 5}
    assert len(measure(subjects("a"), timer, budget)["a"].repeats) == 1


def test_a_warm_subject_is_not_warmed_up() -> None:
    timer = DriftingTimer({"a": 10.0})
    found = measure(subjects("a"), timer, Budget(0.1, 3, 100), warm={"a": (20.0,)})
    assert len(timer.order) == len(found["a"].repeats) == 5


def test_a_slow_warm_up_counts_as_a_repetition() -> None:
    timer = DriftingTimer({"a": 5000.0})
    found = measure(subjects("a"), timer, Budget(1.0, 3, 100), warm={"a": (4000.0,)})
    assert found["a"].repeats == [(4000.0,), (5000.0,), (5000.0,)]


def test_same_seed_same_order() -> None:
    orders = []
    for seed in (1, 1, 2):
        timer = DriftingTimer({"a": 10.0, "b": 10.0})
        measure(subjects("a", "b"), timer, Budget(0.2, 3, 100), seed=seed)
        orders.append(timer.order)
    assert orders[0] == orders[1] != orders[2]


def test_names_must_differ() -> None:
    with pytest.raises(ValueError, match="different names, found a, a"):
        measure(subjects("a", "a"), DriftingTimer({"a": 1.0}))


def test_cpu_timer_times_each_stage_and_hands_values_on() -> None:
    seen: list[Any] = []

    def first(value: Any) -> int:
        seen.append(value)
        time.sleep(0.02)
        return 7

    def second(value: Any) -> None:
        seen.append(value)

    times = CpuTimer().once(Subject("chain", (first, second)))
    assert seen == [None, 7]
    assert times[0] >= 20 > times[1]


def test_stages_and_total() -> None:
    found = measure(subjects("a", stages=2), DriftingTimer({"a": 4.0}), Budget(0.1, 3, 10))["a"]
    assert found.stage(0).p50 == found.stage(1).p50 == 4.0
    assert found.total.p50 == 8.0
