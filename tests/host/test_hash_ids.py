"""hash_ids: the compiled form is the definition, the definition is the formula, and slots are spread evenly."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from argus_kernels import host, host_reference
from argus_kernels.core import native

IDS = arrays(np.int64, st.integers(0, 60), elements=st.integers(-1, 2**63 - 1))
SLOTS = st.one_of(st.integers(1, 100), st.integers(1, 2**32 - 1))


@pytest.fixture(scope="module")
def compiled() -> ModuleType:
    reason = native.why_not("host")
    if reason is not None:
        pytest.skip(reason)
    import argus_kernels._host as module

    return module


def test_keys_are_the_published_splitmix64_stream() -> None:
    expected = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert host_reference.hash_keys(0, 3).tolist() == expected


def test_mix_against_python_integers() -> None:
    for x in (0, 1, 2**32, 2**63, 2**64 - 1, 0x0123456789ABCDEF):
        word = x
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            word = (word ^ (word >> shift)) * factor % 2**64
        word ^= word >> 31
        assert int(host_reference.mix(np.array([x], dtype=np.uint64))[0]) == word


@given(IDS, SLOTS, st.integers(-(2**63), 2**63 - 1))
def test_definition_is_the_formula(ids: np.ndarray, slots: int, seed: int) -> None:
    keys = host_reference.hash_keys(seed, 3)
    found = host_reference.hash_ids(ids, keys, slots)
    for k, key in enumerate(keys.tolist()):
        for i, identifier in enumerate(ids.tolist()):
            word = np.array([(identifier + key) % 2**64], dtype=np.uint64)
            expected = -1 if identifier < 0 else int(host_reference.mix(word)[0]) * slots >> 64
            assert found[k, i] == expected


@given(ids=IDS, slots=SLOTS, hashes=st.integers(1, 8), seed=st.integers(-(2**63), 2**63 - 1))
def test_compiled_equals_definition(compiled: ModuleType, ids: np.ndarray, slots: int, hashes: int, seed: int) -> None:
    keys = host_reference.hash_keys(seed, hashes)
    np.testing.assert_array_equal(compiled.hash_ids(ids, keys, slots), host_reference.hash_ids(ids, keys, slots))


def test_compiled_equals_definition_across_threads(compiled: ModuleType) -> None:
    ids = np.random.default_rng(0).integers(-1, 2**63 - 1, 1_200_001)
    keys = host_reference.hash_keys(7, 2)
    np.testing.assert_array_equal(compiled.hash_ids(ids, keys, 999_983), host_reference.hash_ids(ids, keys, 999_983))


@pytest.mark.parametrize("isa", ["portable", "avx2"])
def test_every_instruction_set_gives_the_same_slots(compiled: ModuleType, isa: str) -> None:
    ids = np.arange(-1, 4000) * 0x9E3779B9 % 2**62
    keys = host_reference.hash_keys(0, 3)
    program = (
        "import sys, numpy as np; sys.path.insert(0, sys.argv[1]); import _host;"
        "ids, keys = np.frombuffer(sys.stdin.buffer.read(), np.int64)[:4001], np.array(sys.argv[2:], dtype=np.uint64);"
        "sys.stdout.buffer.write(_host.hash_ids(ids, keys, 12345).tobytes())"
    )
    command = [sys.executable, "-c", program, str(Path(str(compiled.__file__)).parent), *map(str, keys.tolist())]
    done = subprocess.run(
        command, env={**os.environ, "ARGUS_CPU_ISA": isa}, input=ids.tobytes(), capture_output=True, check=True
    )
    assert done.stdout == compiled.hash_ids(ids, keys, 12345).tobytes()


def test_missing_stays_missing_and_the_rest_is_in_range() -> None:
    slots = host.hash_ids(np.array([-1, 0, 1, 2**63 - 1, -1]), 4, 10)
    assert slots.shape == (4, 5)
    assert (slots[:, [0, 4]] == -1).all()
    assert ((slots[:, 1:4] >= 0) & (slots[:, 1:4] < 10)).all()


def test_more_hashes_keep_the_first_ones() -> None:
    ids = np.arange(1000)
    np.testing.assert_array_equal(host.hash_ids(ids, 5, 777)[:2], host.hash_ids(ids, 2, 777))


def test_ids_that_agree_in_float64_differ() -> None:
    ids = np.array([2**62, 2**62 + 1])
    slots = host.hash_ids(ids, 8, 2**31)
    assert (slots[:, 0] != slots[:, 1]).all()


def test_slots_are_uniform_and_hashes_independent() -> None:
    count, slots = 200_000, 64
    first, second = host.hash_ids(np.arange(count), 2, slots, seed=5)
    for values, bins in ((first, slots), (second, slots), (first * slots + second, slots * slots)):
        observed = np.bincount(values, minlength=bins)
        chi_square = ((observed - count / bins) ** 2 / (count / bins)).sum()
        # The mean of a chi-square is its degrees of freedom, the variance twice that; 6 sigma either side.
        assert abs(chi_square - (bins - 1)) < 6 * np.sqrt(2 * (bins - 1))


def test_another_seed_gives_another_hash() -> None:
    ids = np.arange(1000)
    assert (host.hash_ids(ids, 1, 2**20, seed=0) != host.hash_ids(ids, 1, 2**20, seed=1)).mean() > 0.99


def test_no_ids() -> None:
    assert host.hash_ids(np.zeros(0, dtype=np.int64), 3, 10).shape == (3, 0)


def test_strided_ids() -> None:
    ids = np.arange(100)
    np.testing.assert_array_equal(host.hash_ids(ids[::3], 2, 50), host.hash_ids(ids[::3].copy(), 2, 50))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"ids": np.array([1, 2], dtype=np.int32)}, r"ids is int32 \[2\], expected int64 \[n\]"),
        ({"ids": np.array([[1, 2]])}, r"ids is int64 \[1, 2\], expected int64 \[n\]"),
        ({"ids": [1, 2]}, "ids is list, expected a numpy array of int64"),
        ({"ids": np.array([3, -1, -2])}, r"ids\[2\] is -2, expected -1 \(missing\) or more"),
        ({"num_hashes": 0}, "num_hashes is 0, expected 1 to 32"),
        ({"num_hashes": 33}, "num_hashes is 33, expected 1 to 32"),
        ({"table_size": 0}, "table_size is 0, expected 1 to 4294967295"),
        ({"table_size": 2**32}, "table_size is 4294967296, expected 1 to 4294967295"),
        ({"table_size": 10.0}, "table_size is 10.0, expected an integer"),
        ({"seed": 2**63}, "seed is 9223372036854775808"),
    ],
)
def test_bad_input(changed: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"ids": np.array([1, 2]), "num_hashes": 2, "table_size": 10, "seed": 0}
    with pytest.raises(ValueError, match="^hash_ids: " + message):
        host.hash_ids(**{**arguments, **changed})


def test_without_the_compiled_module(monkeypatch: pytest.MonkeyPatch) -> None:
    ids = np.arange(-1, 100)
    here = host.hash_ids(ids, 2, 31)
    monkeypatch.setenv("ARGUS_NATIVE_DISABLE", "host")
    assert host.backend() == "numpy"
    np.testing.assert_array_equal(host.hash_ids(ids, 2, 31), here)
