"""FrequencySketch: the compiled form is the definition, and an estimate is never below the count."""

from __future__ import annotations

import threading
from collections import Counter
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from argus_kernels import host_reference
from argus_kernels.core import native
from argus_kernels.host import FrequencySketch

FEW_IDS = arrays(np.int64, st.integers(0, 150), elements=st.integers(-2, 40))
WEIGHTS = st.floats(0, 1e6, allow_subnormal=False)


@pytest.fixture(scope="module")
def compiled() -> ModuleType:
    reason = native.why_not("host")
    if reason is not None:
        pytest.skip(reason)
    import argus_kernels._host as module

    return module


def zipf_ids(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).zipf(1.3, count) % 5000


def true_counts(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    counted = Counter(ids[ids >= 0].tolist())
    return np.array(list(counted), dtype=np.int64), np.array(list(counted.values()), dtype=np.float64)


@given(ids=FEW_IDS, weighted=st.booleans(), width=st.integers(1, 30), depth=st.integers(1, 6), data=st.data())
def test_compiled_equals_definition(
    compiled: ModuleType, ids: np.ndarray, weighted: bool, width: int, depth: int, data: st.DataObject
) -> None:
    weights = data.draw(arrays(np.float64, len(ids), elements=WEIGHTS)) if weighted else None
    keys = host_reference.hash_keys(11, depth)
    tables = [np.zeros((depth, width)), np.zeros((depth, width))]
    totals = [
        module.sketch_update(table, keys, ids, weights, 0.5)
        for module, table in zip((compiled, host_reference), tables, strict=True)
    ]
    assert totals[0] == totals[1]
    np.testing.assert_array_equal(tables[0], tables[1])
    asked = np.arange(-2, 60)
    np.testing.assert_array_equal(
        compiled.sketch_estimate(tables[0], keys, asked), host_reference.sketch_estimate(tables[1], keys, asked)
    )


def test_compiled_equals_definition_on_a_long_stream(compiled: ModuleType) -> None:
    ids = zipf_ids(20_011)
    keys = host_reference.hash_keys(3, 4)
    tables = [np.zeros((4, 257)), np.zeros((4, 257))]
    for module, table in zip((compiled, host_reference), tables, strict=True):
        assert module.sketch_update(table, keys, ids, None, 0.0) == 20_011
    np.testing.assert_array_equal(tables[0], tables[1])


def test_an_estimate_is_never_below_the_count_and_within_the_bound() -> None:
    ids = zipf_ids(50_000)
    sketch = FrequencySketch(width=512, depth=4)
    sketch.update(ids)
    known, counts = true_counts(ids)
    excess = sketch.estimate(known) - counts
    assert (excess >= 0).all()
    assert excess.max() > 0, "no collision at all: the test proves nothing"
    assert (excess > np.e * sketch.total / 512).mean() <= np.exp(-4)


def test_conservative_update_is_at_most_the_plain_sketch_and_often_less() -> None:
    ids = zipf_ids(30_000)
    sketch = FrequencySketch(width=256, depth=4)
    sketch.update(ids)
    plain = np.zeros((4, 256))
    for row, slots in zip(plain, host_reference.hash_ids(ids, host_reference.hash_keys(0, 4), 256), strict=True):
        np.add.at(row, slots, 1.0)
    known, _ = true_counts(ids)
    plain_estimates = host_reference.sketch_estimate(plain, host_reference.hash_keys(0, 4), known)
    estimates = sketch.estimate(known)
    assert (estimates <= plain_estimates).all()
    assert (estimates < plain_estimates).mean() > 0.5


def test_a_wide_sketch_counts_exactly() -> None:
    ids = np.repeat(np.array([0, 1, 7, 2**40, 2**62, 2**62 + 1]), [1, 2, 3, 4, 5, 6])
    sketch = FrequencySketch(width=2**16)
    sketch.update(np.random.default_rng(0).permutation(ids))
    assert sketch.estimate(np.array([0, 1, 7, 2**40, 2**62, 2**62 + 1, 5])).tolist() == [1, 2, 3, 4, 5, 6, 0]
    assert sketch.total == 21


def test_counts_beyond_the_integers_of_float32() -> None:
    sketch = FrequencySketch(width=64)
    sketch.update(np.array([5]), np.array([2.0**24]))
    sketch.update(np.array([5]))
    assert sketch.estimate(np.array([5])).item() == 2**24 + 1


def test_one_stream_in_any_pieces() -> None:
    ids = zipf_ids(3000)
    whole, pieces = FrequencySketch(100), FrequencySketch(100)
    whole.update(ids)
    for piece in np.split(ids, [1, 33, 1000, 1000]):
        pieces.update(piece)
    np.testing.assert_array_equal(whole.state_dict()["table"], pieces.state_dict()["table"])


def test_missing_ids_are_passed_over() -> None:
    with_missing, without = FrequencySketch(50), FrequencySketch(50)
    with_missing.update(np.array([-1, 3, -1, -7, 4]))
    without.update(np.array([3, 4]))
    assert with_missing.total == without.total == 2
    np.testing.assert_array_equal(with_missing.state_dict()["table"], without.state_dict()["table"])
    assert with_missing.estimate(np.array([-1, 3])).tolist() == [0, 1]


def test_merge_counts_both_streams() -> None:
    first, second = FrequencySketch(300), FrequencySketch(300)
    ids = [zipf_ids(4000, seed=1), zipf_ids(3000, seed=2)]
    first.update(ids[0])
    second.update(ids[1])
    before = second.state_dict()["table"]
    first.merge(second)
    assert first.total == 7000
    known, counts = true_counts(np.concatenate(ids))
    assert (first.estimate(known) >= counts).all()
    np.testing.assert_array_equal(second.state_dict()["table"], before)


def test_merge_with_itself_doubles() -> None:
    sketch = FrequencySketch(64)
    sketch.update(np.array([1, 1, 2]))
    sketch.merge(sketch)
    assert sketch.estimate(np.array([1, 2])).tolist() == [4, 2]
    assert sketch.total == 6


@pytest.mark.parametrize("changed", [{"width": 65}, {"depth": 3}, {"seed": 1}])
def test_merge_of_another_shape_is_refused(changed: dict[str, int]) -> None:
    (name,) = changed
    with pytest.raises(ValueError, match=f"FrequencySketch.merge: {name} of the other sketch is"):
        FrequencySketch(64, 4).merge(FrequencySketch(**{"width": 64, "depth": 4, **changed}))


def test_merge_with_something_else_is_refused() -> None:
    with pytest.raises(ValueError, match="other is dict, expected a FrequencySketch"):
        FrequencySketch(64).merge({})  # type: ignore[arg-type]


def test_decay_scales_counts_and_total() -> None:
    sketch = FrequencySketch(64)
    sketch.update(np.array([1, 1, 1, 1, 2]))
    sketch.decay(0.5)
    assert sketch.estimate(np.array([1, 2])).tolist() == [2.0, 0.5]
    assert sketch.total == 2.5
    sketch.decay(0.0)
    assert sketch.total == 0


@pytest.mark.parametrize("factor", [-0.1, 1.1, float("nan")])
def test_decay_outside_zero_to_one_is_refused(factor: float) -> None:
    with pytest.raises(ValueError, match=r"factor is .*, expected 0 to 1"):
        FrequencySketch(64).decay(factor)


def test_log_q_is_the_logarithm_of_the_share() -> None:
    sketch = FrequencySketch(2**12)
    sketch.update(np.array([3] * 6 + [4] * 2))
    found = sketch.log_q(np.array([3, 4, 99, -1]))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, np.log(np.array([6, 2, 1, 1]) / 8), rtol=1e-6)


def test_log_q_of_an_empty_sketch_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing was counted yet"):
        FrequencySketch(64).log_q(np.array([1]))


def test_state_round_trip_goes_on_bit_for_bit() -> None:
    first = FrequencySketch(97, depth=3, seed=-5)
    first.update(zipf_ids(500))
    first.decay(0.9)
    second = FrequencySketch.from_state_dict(first.state_dict())
    for sketch in (first, second):
        sketch.update(zipf_ids(500, seed=3), np.linspace(0, 2, 500))
    assert first.total == second.total
    np.testing.assert_array_equal(first.state_dict()["table"], second.state_dict()["table"])


def test_state_is_a_copy() -> None:
    sketch = FrequencySketch(32)
    state = sketch.state_dict()
    sketch.update(np.array([1]))
    assert not state["table"].any()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"width": 31}, "width is 31, expected 32"),
        ({"seed": 9}, "seed is 9, expected 0"),
        ({"table": np.zeros((4, 31))}, r"table is float64 \[4, 31\], expected float64 \[4, 32\]"),
        ({"table": np.zeros((4, 32), dtype=np.float32)}, r"table is float32"),
        ({"total": None}, "no total in the state"),
    ],
)
def test_a_foreign_state_is_refused(changed: dict[str, Any], message: str) -> None:
    state = {**FrequencySketch(32).state_dict(), **changed}
    state = {name: value for name, value in state.items() if value is not None}
    with pytest.raises(ValueError, match=message):
        FrequencySketch(32).load_state_dict(state)


def test_threads_lose_no_count() -> None:
    sketch = FrequencySketch(1024)
    threads = [threading.Thread(target=sketch.update, args=(zipf_ids(20_000, seed=n),)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sketch.total == 80_000
    known, counts = true_counts(np.concatenate([zipf_ids(20_000, seed=n) for n in range(4)]))
    assert (sketch.estimate(known) >= counts).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"width": 0}, "width is 0, expected 1 to 4294967295"),
        ({"width": -3}, "width is -3"),
        ({"width": 2**32}, "width is 4294967296"),
        ({"width": 8, "depth": 0}, "depth is 0, expected 1 to 32"),
        ({"width": 8, "depth": 33}, "depth is 33, expected 1 to 32"),
        ({"width": 8.0}, "width is 8.0, expected an integer"),
    ],
)
def test_bad_shape(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match="^FrequencySketch: " + message):
        FrequencySketch(**arguments)


@pytest.mark.parametrize(
    ("ids", "weights", "message"),
    [
        (np.array([1.0]), None, r"ids is float64 \[1\], expected int64 \[n\]"),
        (np.array([1], dtype=np.int32), None, "ids is int32"),
        (np.array([1]), np.array([1]), "weights is int64"),
        (np.array([1, 2]), np.array([1.0]), "weights has 1 values, expected 2"),
        (np.array([1, 2]), np.array([1.0, -1.0]), r"weights\[1\] is -1.0, expected a finite number ≥ 0"),
        (np.array([1, 2]), np.array([np.nan, 1.0]), r"weights\[0\] is nan"),
    ],
)
def test_bad_update_changes_nothing(ids: np.ndarray, weights: np.ndarray | None, message: str) -> None:
    sketch = FrequencySketch(16)
    with pytest.raises(ValueError, match="^FrequencySketch.update: " + message):
        sketch.update(ids, weights)
    assert sketch.total == 0
    assert not sketch.state_dict()["table"].any()
