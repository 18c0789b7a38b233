"""Nothing that argus_kernels.host is given reads or writes past an array, and no state that is wrong is taken."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from argus_kernels import host, host_reference
from argus_kernels.core import native
from argus_kernels.host import Batch, FrequencySketch, Plan, pack_events, user_offsets

NAN, INF = float("nan"), float("inf")
LARGEST = 2**63 - 1


def rows(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


@pytest.fixture(params=["compiled", "numpy"])
def module(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Both forms of the module's functions; the public ones use the same."""
    if request.param == "numpy":
        monkeypatch.setenv("ARGUS_NATIVE_DISABLE", "host")
        return host_reference
    reason = native.why_not("host")
    if reason is not None:
        pytest.skip(reason)
    import argus_kernels._host as compiled

    return compiled


@pytest.mark.parametrize(
    ("starts", "ends", "message"),
    [
        (rows(-10), rows(5), r"starts\[0\] is -10, expected 0 to ends\[0\] = 5"),
        (rows(0, 900), rows(950, 5), r"starts\[1\] is 900, expected 0 to ends\[1\] = 5"),
        (rows(0), rows(1001), r"ends\[0\] is 1001, expected 0 to 1000"),
        (rows(0, LARGEST), rows(3, -(2**63)), r"ends\[1\] is -9223372036854775808, expected 0 to 1000"),
    ],
)
def test_gather_rows_stays_in_the_column(module: ModuleType, starts: Any, ends: Any, message: str) -> None:
    with pytest.raises(ValueError, match="^gather_rows: " + message):
        module.gather_rows(np.arange(1000), starts, ends)


def batch(starts: np.ndarray, ends: np.ndarray, offsets: np.ndarray | None = None) -> Batch:
    if offsets is None:
        with np.errstate(over="ignore"):
            offsets = np.concatenate([[0], np.cumsum(ends - starts)]).astype(np.int32)
    return Batch(np.zeros_like(starts), starts, ends, np.zeros_like(starts), offsets)


def windows(**changed: np.ndarray) -> Batch:
    """Two windows, of five events and of two."""
    given = {"users": rows(3, 4), "starts": rows(0, 7), "ends": rows(5, 9), "contexts": rows(5, 0)} | changed
    return Batch(**given, offsets=np.array([0, 5, 7], np.int32))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: batch(rows(-10), rows(5)), r"starts\[0\] is -10, expected 0 to ends\[0\] = 5"),
        (lambda: batch(rows(0, 900), rows(950, 5)), r"starts\[1\] is 900, expected 0 to ends\[1\] = 5"),
        (lambda: batch(rows(0), rows(5, 6)), "ends has 2 values, expected 1 as users"),
        (lambda: batch(rows(0).astype(np.int32), rows(5)), "users is int32"),
        (lambda: batch(rows(0), rows(5), np.array([0, 4], np.int32)), "offsets are not 0 and the running sum"),
        (lambda: batch(rows(0), rows(5), rows(0, 5)), "offsets is int64"),
        (lambda: windows(users=rows(3, -1)), r"users\[1\] is -1, expected 0 or more"),
        (lambda: windows(users=rows(-(2**63), 0)), r"users\[0\] is -9223372036854775808, expected 0 or more"),
        (lambda: windows(contexts=rows(0, -1)), r"contexts\[1\] is -1, expected 0 to 2"),
        (lambda: windows(contexts=rows(6, 0)), r"contexts\[0\] is 6, expected 0 to 5"),
    ],
)
def test_a_batch_that_cannot_be_is_refused(make: Callable[[], Batch], message: str) -> None:
    with pytest.raises(ValueError, match="^Batch: " + message):
        make()


def test_a_plan_of_nobody_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^Plan: users\[0\] is -1, expected 0 or more"):
        Plan(rows(0, 1), rows(-1), rows(0), rows(5), rows(0), 8)
    assert windows().rows.tolist() == [0, 1, 2, 3, 4, 7, 8]


def test_a_batch_changed_afterwards_gathers_nothing_else(module: ModuleType) -> None:
    changed = batch(rows(0), rows(5))
    changed.starts[0] = -10
    with pytest.raises(ValueError, match=r"starts\[0\] is -10"):
        changed.gather(np.arange(100))


@pytest.mark.parametrize("bounds", [rows(), rows(0), rows(0, 2), rows(1, 1), rows(0, 1, 1), rows(0, LARGEST)])
def test_a_plan_that_cannot_be_is_refused(bounds: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"^Plan: batch_offsets do not rise from 0 to the number of windows, 1"):
        Plan(bounds, rows(0), rows(0), rows(5), rows(0), 8)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"offsets": rows(0, 2**62)}, "the histories have 4611686018427387904 windows, expected at most"),
        ({"offsets": rows(0, 5, 3)}, r"offsets\[2\] is 3 after 5, expected no fall"),
        ({"offsets": rows()}, "offsets is empty"),
        ({"offsets": rows(-3, 5)}, r"offsets\[0\] is -3"),
        ({"order": rows(1)}, r"order\[0\] is 1, expected 0 to 0"),
        ({"order": rows(-1)}, r"order\[0\] is -1"),
        ({"window": 0}, "window is 0"),
        ({"window": -(2**63)}, "window is -9223372036854775808"),
        ({"stride": 0}, "stride is 0"),
        ({"stride": 2}, "stride is 2, expected 1 to 1"),
        ({"token_budget": 0}, "token_budget is 0"),
        ({"max_users": 0}, "max_users is 0"),
        ({"min_events": -1}, "min_events is -1"),
        ({"offsets": np.zeros((2, 2), np.int64)}, r"offsets has shape \[2, 2\]"),
    ],
)
def test_the_compiled_plan_refuses_by_itself(changed: dict[str, Any], message: str) -> None:
    if native.why_not("host") is not None:
        pytest.skip("no compiled module")
    import argus_kernels._host as compiled

    given: dict[str, Any] = {"offsets": rows(0, 5), "order": rows(0), "token_budget": 1, "window": 1, "stride": 1}
    given |= {"max_users": 9, "min_events": 0, "last_only": False, **changed}
    with pytest.raises(ValueError, match="^plan_batches: " + message):
        compiled.plan_batches(**given)


def test_more_windows_than_memory_holds_are_refused(module: ModuleType) -> None:
    with pytest.raises(
        ValueError, match=r"^pack_events: the histories have 4611686018427387904 windows, expected at most 268435456"
    ):
        pack_events(rows(0, 2**62), 1, 1)


def sketch_arguments(**changed: Any) -> dict[str, Any]:
    given: dict[str, Any] = {"table": np.zeros((2, 8)), "keys": host_reference.hash_keys(0, 2), "ids": rows(1, 2)}
    return {**given, **changed}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"table": np.zeros(8)}, r"table has shape \[8\], expected \[depth, width\]"),
        ({"table": np.zeros((33, 8)), "keys": host_reference.hash_keys(0, 33)}, "the table's depth is 33"),
        ({"table": np.zeros((0, 8)), "keys": host_reference.hash_keys(0, 0)}, "the table's depth is 0"),
        ({"table": np.zeros((2, 0))}, "the table's width is 0"),
        ({"keys": host_reference.hash_keys(0, 1)}, r"keys has shape \[1\], expected \[2\]"),
        ({"ids": np.zeros((2, 2), np.int64)}, r"ids has shape \[2, 2\]"),
        ({"weights": np.ones(1)}, r"weights has shape \[1\], expected \[2\]"),
    ],
)
def test_the_compiled_sketch_refuses_by_itself(changed: dict[str, Any], message: str) -> None:
    if native.why_not("host") is not None:
        pytest.skip("no compiled module")
    import argus_kernels._host as compiled

    given = {"weights": None, "total": 0.0, **sketch_arguments(**changed)}
    with pytest.raises(ValueError, match="^sketch_update: " + message):
        compiled.sketch_update(**given)
    if "weights" not in changed:
        with pytest.raises(ValueError, match="^sketch_estimate: " + message):
            compiled.sketch_estimate(**sketch_arguments(**changed))


def test_a_read_only_table_and_a_column_of_objects_are_refused() -> None:
    if native.why_not("host") is not None:
        pytest.skip("no compiled module")
    import argus_kernels._host as compiled

    table = np.zeros((2, 8))
    table.flags.writeable = False
    with pytest.raises(ValueError, match=r"^sketch_update: table is read-only"):
        compiled.sketch_update(**sketch_arguments(table=table), weights=None, total=0.0)
    with pytest.raises(ValueError, match=r"^gather_rows: column holds Python objects"):
        compiled.gather_rows(np.array([None, {}]), rows(0), rows(2))
    with pytest.raises(ValueError, match=r"^gather_rows: column is not contiguous"):
        compiled.gather_rows(np.arange(9)[::2], rows(0), rows(2))
    with pytest.raises(ValueError, match=r"^hash_ids: slots is -1, expected 1 to 4294967295"):
        compiled.hash_ids(rows(1), host_reference.hash_keys(0, 1), -1)


def counted() -> FrequencySketch:
    sketch = FrequencySketch(16, 3, seed=5)
    sketch.update(rows(1, 2, 2, 3), np.array([0.5, 1.0, 2.0, 4.0]))
    return sketch


@pytest.mark.parametrize(
    "copied", [lambda s: pickle.loads(pickle.dumps(s)), copy.deepcopy, copy.copy], ids=["pickle", "deepcopy", "copy"]
)
def test_a_sketch_is_copied_as_its_state(copied: Callable[[FrequencySketch], FrequencySketch]) -> None:
    first = counted()
    second = copied(first)
    for sketch in (first, second):
        sketch.update(rows(2, 9))
    assert first.total == second.total == 9.5
    np.testing.assert_array_equal(first.state_dict()["table"], second.state_dict()["table"])
    first.update(rows(7))
    assert second.total == 9.5


def spoiled(at: tuple[int, int], value: float) -> np.ndarray:
    table: np.ndarray = counted().state_dict()["table"]
    table[at] = value
    return table


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"total": NAN}, "total is nan, expected a finite number"),
        ({"total": INF}, "total is inf, expected a finite number"),
        ({"total": -1.0}, "total is -1.0, expected a finite number"),
        ({"total": "7"}, "total is '7', expected a finite number"),
        ({"total": None}, "total is None, expected a finite number"),
        ({"total": np.zeros(2)}, "total is array"),
        ({"total": 0.25}, "table holds a count of 4.0, expected at most the total 0.25"),
        ({"table": spoiled((1, 3), NAN)}, r"table\[1, 3\] is nan, expected a finite number"),
        ({"table": spoiled((2, 0), -1.0)}, r"table\[2, 0\] is -1.0, expected a finite number"),
        ({"table": spoiled((0, 15), INF)}, r"table\[0, 15\] is inf, expected a finite number"),
        ({"table": np.zeros((3, 16), np.float32)}, "table is float32"),
        ({"table": np.zeros((16, 3))}, r"table is float64 \[16, 3\], expected float64 \[3, 16\]"),
        ({"width": 16.5}, "width is 16.5, expected an integer"),
        ({"depth": "3"}, "depth is '3', expected an integer"),
        ({"seed": True}, "seed is True, expected an integer"),
        ({"seed": 6}, "seed is 6, expected 5"),
    ],
)
def test_a_state_that_is_wrong_changes_nothing(changed: dict[str, Any], message: str) -> None:
    sketch = counted()
    before = sketch.state_dict()
    with pytest.raises(ValueError, match="^FrequencySketch.load_state_dict: " + message):
        sketch.load_state_dict({**before, **changed})
    assert sketch.total == before["total"]
    np.testing.assert_array_equal(sketch.state_dict()["table"], before["table"])


def test_a_state_as_files_hold_it_is_taken() -> None:
    state = counted().state_dict()
    arrays = {name: np.asarray(value) for name, value in state.items()}
    assert FrequencySketch.from_state_dict(arrays).total == 7.5
    with pytest.raises(ValueError, match=r"the state is list, expected a mapping"):
        FrequencySketch.from_state_dict([1])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"width is 16.5, expected an integer"):
        FrequencySketch.from_state_dict({**state, "width": 16.5})


def test_sums_and_sizes_without_end_are_refused() -> None:
    sketch = counted()
    with pytest.raises(ValueError, match=r"weights add up to infinity"):
        sketch.update(rows(1, 2), np.array([1e308, 1e308]))
    assert sketch.total == 7.5
    heavy = FrequencySketch(16)
    heavy.update(rows(1), np.array([1.7e308]))
    with pytest.raises(ValueError, match=r"^FrequencySketch.merge: the totals add up to infinity"):
        heavy.merge(copy.copy(heavy))
    assert heavy.total == 1.7e308 and heavy.estimate(rows(1))[0] == 1.7e308
    with pytest.raises(ValueError, match=r"^FrequencySketch: 32 × 4294967295 counters take .* bytes"):
        FrequencySketch(2**32 - 1, 32)
    for factor in (NAN, -0.1, 1.1, "1", True):
        with pytest.raises(ValueError, match=r"^FrequencySketch.decay: factor is"):
            sketch.decay(factor)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("users", "num_users", "message"),
    [
        (np.array([2**63], np.uint64), None, "9223372036854775809 users take .* bytes, expected at most"),
        (np.array([2**64 - 1], np.uint64), None, "18446744073709551616 users take .* bytes"),
        (np.array([2**62]), None, "4611686018427387905 users take .* bytes"),
        (np.array([0]), 2**62, "4611686018427387904 users take .* bytes"),
        (rows(), -1, "num_users is -1, expected 0 to"),
        (rows(), 2.5, "num_users is 2.5, expected an integer"),
        (rows(), 2**64, "num_users is 18446744073709551616"),
    ],
)
def test_users_that_no_memory_holds_are_refused(users: np.ndarray, num_users: Any, message: str) -> None:
    with pytest.raises(ValueError, match="^user_offsets: " + message):
        user_offsets(users, num_users)


def test_users_of_every_integer_type() -> None:
    for dtype in (np.uint8, np.int8, np.uint16, np.int32, np.uint64):
        assert user_offsets(np.array([0, 2, 2], dtype)).tolist() == [0, 1, 1, 3]


def test_gathering_nothing_and_rows_of_no_bytes(module: ModuleType) -> None:
    assert module.gather_rows(np.zeros((0, 4)), rows(0), rows(0)).shape == (0, 4)
    assert module.gather_rows(np.zeros((5, 0)), rows(1, 2), rows(3, 2)).shape == (2, 0)
    assert module.gather_rows(np.arange(5), rows(), rows()).shape == (0,)
    assert host.backend() in ("compiled", "numpy")


def test_windows_in_strided_arrays(module: ModuleType) -> None:
    starts, ends = np.array([0, 9, 2, 9])[::2], np.array([2, 9, 3, 9])[::2]
    batch = Batch(rows(0, 1), starts, ends, rows(0, 0), np.array([0, 2, 3], np.int32))
    assert batch.gather(np.arange(10)).tolist() == [0, 1, 2]
