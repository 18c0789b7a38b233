"""What Triton's binder makes of every launch without a GPU: one compile for all batches, and how many launches."""

from __future__ import annotations

import json
import os
from importlib.util import find_spec
from typing import Any

import pytest

from argus_kernels import OPS
from tests import warm

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")
SCALE = int(os.environ.get("ARGUS_FUZZ_SCALE", "1"))
WITH_TRITON = {op.name for op in OPS if any(backend.name == "triton" for backend in op.backends)}


def lines(*words: str) -> list[dict[str, Any]]:
    """What a process without the interpreter prints, one JSON object a line."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = warm.python(words, environment)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.slow
def test_no_kernel_compiles_again_for_another_batch() -> None:
    found = lines("-m", "argus_kernels.testing.mock_driver", "--batches", str(min(8 * SCALE, 72)))
    assert {line["op"] for line in found} == WITH_TRITON
    assert not [f"{line['op']}: {again}" for line in found for again in line["second_compiles"]]


LAUNCHES = {
    ("causal_attention", "one_event"): (5, 5),
    ("causal_attention", "biases"): (6, 17),
    ("hstu_attention", "one_event"): (5, 4),
    ("decode_attention", "everything"): (2, 0),
    ("triple_embedding", "shared_table"): (14, 13),
    ("feedback_loss", "three_tasks"): (3, 27),
    ("sampled_softmax_loss", "standard"): (7, 65),
    ("pairwise_loss", "jagged"): (5, 0),
    ("rowwise_adagrad_", "repeated_rows"): (1, 1),
}
"""Launches of Triton, and of torch, of a forward and backward pass in float32, at most."""


def test_every_small_sample_binds() -> None:
    found = lines("-m", "argus_kernels.testing.mock_driver")
    assert {line["op"] for line in found} == WITH_TRITON
    expected = {
        (op.name, sample.name, dtype)
        for op in OPS
        for sample in op.samples()
        for dtype in ("float32", "bfloat16", "float16")
        if op.name in WITH_TRITON and not sample.production
    }
    assert {(line["op"], line["sample"], line["dtype"]) for line in found} == expected
    counted = {(line["op"], line["sample"]): line for line in found if line["dtype"] == "float32"}
    for case, (of_triton, of_torch) in LAUNCHES.items():
        assert len(counted[case]["triton"]) <= of_triton, case
        assert len(counted[case]["torch"]) <= of_torch, case


def test_the_driver_sees_what_makes_a_kernel_compile_again() -> None:
    (found,) = lines("--", "tests/build_support/planted/second_compile.py")
    assert found["sized"] == []
    assert found["specialised"] == [
        "specialised_kernel compiles again for one: rows",
        "specialised_kernel compiles again for sixteen: rows",
    ]
    assert found["constexpr"] == ["sized_kernel compiles again for large: BLOCK"]
    assert "more" in found["too many"] and "str" in found["text"]
    assert found["noted"] == {
        "signature": {"x": "*bf16", "rows": "i64", "stride": "i32", "BLOCK": "constexpr"},
        "constants": ["((3,), 64)"],
        "options": {"num_warps": 8, "num_stages": 2},
        "compiled": 1,
    }


def test_no_kernel_compiles_again_for_another_rate_of_dropout() -> None:
    (found,) = lines("--", "tests/build_support/planted/dropout_rates.py")
    assert found["rates"] == []
    # Three kernels and that of the tables, which are compiled without the generator where nothing drops.
    assert len(found["on and off"]) == 4


def test_ids_are_checked_in_one_launch() -> None:
    (found,) = lines("--", "tests/build_support/planted/check_ids.py")
    assert found["triton"] == ["check_kernel"] and found["torch"] == []
    assert found["assertions"] == 5 and found["stack"] == 0 and found["registers"] <= 32
    assert found["turned off"] == []
