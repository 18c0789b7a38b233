"""pack_events: the compiled form is the definition, and the plan keeps its promises."""

from __future__ import annotations

from itertools import pairwise
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from argus_kernels import host, host_reference
from argus_kernels.core import native
from argus_kernels.host import Plan, pack_events, user_offsets


@pytest.fixture(scope="module")
def compiled() -> ModuleType:
    reason = native.why_not("host")
    if reason is not None:
        pytest.skip(reason)
    import argus_kernels._host as module

    return module


@st.composite
def cases(draw: st.DrawFn) -> dict[str, Any]:
    lengths = draw(st.lists(st.integers(0, 30), max_size=12))
    window = draw(st.integers(1, 35))
    order = draw(st.permutations(range(len(lengths))))
    return {
        "offsets": np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        "token_budget": window + draw(st.integers(0, 40)),
        "window": window,
        "stride": draw(st.integers(1, window)),
        "mode": draw(st.sampled_from(["all", "last"])),
        "order": np.array(order[: draw(st.integers(0, len(lengths)))], dtype=np.int64),
        "max_users": draw(st.none() | st.integers(1, 4)),
        "min_events": draw(st.integers(0, 5)),
    }


@given(case=cases())
def test_compiled_equals_definition(compiled: ModuleType, case: dict[str, Any]) -> None:
    arguments = [case[name] for name in ("offsets", "order", "token_budget", "window", "stride")]
    arguments += [case["max_users"] or 2**31 - 1, case["min_events"], case["mode"] == "last"]
    for found, expected in zip(compiled.plan_batches(*arguments), host_reference.plan_batches(*arguments), strict=True):
        assert found.dtype == expected.dtype == np.int64
        np.testing.assert_array_equal(found, expected)


@given(case=cases())
def test_plan_keeps_its_limits_and_fills_batches(case: dict[str, Any]) -> None:
    plan = pack_events(**case)
    lengths = plan.ends - plan.starts
    assert (lengths >= 1).all() and (lengths <= case["window"]).all()
    limit = case["max_users"] or 2**31
    for batch in plan:
        assert 1 <= len(batch.users) <= limit
        assert batch.offsets.dtype == np.int32
        assert 1 <= batch.offsets[-1] <= case["token_budget"]
    for index, (before, after) in enumerate(pairwise(plan)):
        full = len(before.users) == limit
        grown = before.offsets[-1] + (after.ends[0] - after.starts[0])
        assert full or grown > case["token_budget"], f"batch {index} was closed early"
    np.testing.assert_array_equal(plan.tokens, [batch.offsets[-1] for batch in plan])


@given(case=cases())
def test_every_event_is_new_exactly_once(case: dict[str, Any]) -> None:
    plan = pack_events(**{**case, "mode": "all"})
    fresh = [np.arange(s + c, e) for s, e, c in zip(plan.starts, plan.ends, plan.contexts, strict=True)]
    found = np.concatenate([np.zeros(0, dtype=np.int64), *fresh])
    offsets = case["offsets"]
    expected = [
        np.arange(offsets[user], offsets[user + 1])
        for user in case["order"]
        if offsets[user + 1] - offsets[user] >= max(1, case["min_events"])
    ]
    np.testing.assert_array_equal(found, np.concatenate([np.zeros(0, dtype=np.int64), *expected]))


@given(case=cases())
def test_last_is_the_newest_window_of_all(case: dict[str, Any]) -> None:
    everything = pack_events(**{**case, "mode": "all"})
    newest = pack_events(**{**case, "mode": "last"})
    last = {
        user: (s, e) for user, s, e in zip(*[getattr(everything, n) for n in ("users", "starts", "ends")], strict=True)
    }
    assert last == {user: (s, e) for user, s, e in zip(newest.users, newest.starts, newest.ends, strict=True)}
    assert not newest.contexts.any()


@given(case=cases())
def test_gather_is_indexing_by_rows(case: dict[str, Any]) -> None:
    plan = pack_events(**case)
    events = int(case["offsets"][-1])
    rng = np.random.default_rng(0)
    columns: dict[str, np.ndarray] = {
        "item": rng.integers(0, 9, events).astype(np.int32),
        "organic": rng.random(events) < 0.5,
        "vector": rng.random((events, 3)).astype(np.float16),
        "strided": rng.random((events, 4))[:, ::2],
        "grade": rng.integers(-1, 9, events).astype(np.int8),
    }
    owner = np.repeat(np.arange(len(case["offsets"]) - 1), np.diff(case["offsets"]))
    for batch in plan:
        gathered = batch.gather_columns(columns)
        assert list(gathered) == list(columns)
        for name, column in columns.items():
            assert gathered[name].dtype == column.dtype
            np.testing.assert_array_equal(gathered[name], column[batch.rows])
        np.testing.assert_array_equal(batch.gather(owner), np.repeat(batch.users, np.diff(batch.offsets)))


def test_numpy_gather_equals_compiled(compiled: ModuleType) -> None:
    column = np.arange(60).reshape(20, 3)
    starts, ends = np.array([5, 0, 19]), np.array([9, 2, 20])
    np.testing.assert_array_equal(
        compiled.gather_rows(column, starts, ends), host_reference.gather_rows(column, starts, ends)
    )
    none = np.zeros(0, dtype=np.int64)
    for module in (compiled, host_reference):
        assert module.gather_rows(column, none, none).shape == (0, 3)


def test_windows_by_hand() -> None:
    plan = pack_events(np.array([0, 10, 13]), token_budget=8, window=4, stride=3)
    assert plan.users.tolist() == [0, 0, 0, 1]
    assert list(zip(plan.starts.tolist(), plan.ends.tolist(), strict=True)) == [(0, 4), (3, 7), (6, 10), (10, 13)]
    assert plan.contexts.tolist() == [0, 1, 1, 0]
    assert plan.batch_offsets.tolist() == [0, 2, 4]
    assert plan.fill == 15 / 16
    assert plan[1].offsets.tolist() == [0, 4, 7]
    assert plan[-1].rows.tolist() == [6, 7, 8, 9, 10, 11, 12]
    with pytest.raises(IndexError, match="batch 2 of a plan of 2 batches"):
        plan[2]


@pytest.mark.parametrize("offsets", [[0], [0, 0, 0]])
def test_no_events_no_batches(offsets: list[int]) -> None:
    plan = pack_events(np.array(offsets), token_budget=8, window=4)
    assert len(plan) == 0
    assert list(plan) == []
    assert plan.fill == 0.0
    assert plan.starts.dtype == np.int64


def test_without_the_compiled_module(monkeypatch: pytest.MonkeyPatch) -> None:
    offsets = np.array([0, 3, 50, 51])
    here = pack_events(offsets, 20, 10, stride=7)
    monkeypatch.setenv("ARGUS_NATIVE_DISABLE", "1")
    assert host.backend() == "numpy"
    there = pack_events(offsets, 20, 10, stride=7)
    for name in ("batch_offsets", "users", "starts", "ends", "contexts"):
        np.testing.assert_array_equal(getattr(here, name), getattr(there, name))
    np.testing.assert_array_equal(there[0].gather(np.arange(51)), there[0].rows)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"offsets": np.array([0, 3], dtype=np.int32)}, r"offsets is int32 \[2\], expected int64"),
        ({"offsets": np.zeros(0, dtype=np.int64)}, "offsets is empty"),
        ({"offsets": np.array([1, 3])}, r"offsets\[0\] is 1, expected 0"),
        ({"offsets": np.array([0, 3, 2])}, r"offsets\[2\] is 2 after 3, expected no fall"),
        ({"window": -1}, "window is -1, expected 1 to"),
        ({"window": 0}, "window is 0, expected 1 to"),
        ({"window": 9}, r"token_budget is 8, expected 9 to .* \(window to"),
        ({"stride": 5}, r"stride is 5, expected 1 to 4 \(1 to window\)"),
        ({"stride": 0}, "stride is 0, expected 1 to 4"),
        ({"max_users": 0}, "max_users is 0"),
        ({"min_events": -1}, "min_events is -1"),
        ({"mode": "first"}, "mode is 'first', expected 'all' or 'last'"),
        ({"order": np.array([0, 2])}, r"order\[1\] is 2, expected 0 to 1"),
        ({"order": np.array([1, 1])}, "order names user 1 more than once"),
        ({"order": np.array([0.0])}, "order is float64"),
    ],
)
def test_bad_input(changed: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"offsets": np.array([0, 3, 5]), "token_budget": 8, "window": 4}
    with pytest.raises(ValueError, match="^pack_events: " + message):
        pack_events(**{**arguments, **changed})


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (np.arange(4), r"column has shape \[4\], expected at least 5 rows"),
        (np.array(3), r"column has shape \[\]"),
        (np.array([None] * 5), "column is object, expected plain numbers"),
    ],
)
def test_bad_column(column: np.ndarray, message: str) -> None:
    plan: Plan = pack_events(np.array([0, 3, 5]), token_budget=8, window=4)
    with pytest.raises(ValueError, match="Batch.gather: " + message):
        plan[0].gather(column)


def test_user_offsets() -> None:
    assert user_offsets(np.array([0, 0, 2, 2, 2], dtype=np.int32)).tolist() == [0, 2, 2, 5]
    assert user_offsets(np.array([1], dtype=np.int16), num_users=4).tolist() == [0, 0, 1, 1, 1]
    assert user_offsets(np.zeros(0, dtype=np.int64)).tolist() == [0]


@pytest.mark.parametrize(
    ("users", "num_users", "message"),
    [
        (np.array([0, 2, 1]), None, r"users\[2\] is 1 after 2, expected an ascending column"),
        (np.array([-1, 0]), None, r"users\[0\] is -1, expected 0 or more"),
        (np.array([0, 5]), 5, r"users\[1\] is 5, expected less than num_users = 5"),
        (np.array([0.0]), None, "users is float64"),
    ],
)
def test_bad_user_column(users: np.ndarray, num_users: int | None, message: str) -> None:
    with pytest.raises(ValueError, match="^user_offsets: " + message):
        user_offsets(users, num_users)
