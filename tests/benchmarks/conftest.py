"""A small case of a real op, a fast environment, and records made by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from argus_kernels.core import Sample
from argus_kernels.ops import feedback_loss
from benchmarks.harness.cases import Spec
from benchmarks.harness.ceilings import Ceilings
from benchmarks.harness.results import PeerResult, Quantiles, Record
from benchmarks.harness.runner import Environment
from benchmarks.harness.timing import Budget


@pytest.fixture
def small_sample() -> Sample:
    """A weightless case of feedback_loss, small enough to run in milliseconds."""
    room = {sample.name: sample for sample in feedback_loss.OP.samples()}
    return room["three_tasks"]


@pytest.fixture
def small_spec(small_sample: Sample) -> Spec:
    return Spec(feedback_loss.OP, small_sample, "fp32")


@pytest.fixture
def environment() -> Environment:
    ceilings = Ceilings(1e10, {"fp32": 1e11, "bf16": 2e11})
    return Environment(ceilings, {"name": "test", "device": "cpu"}, {"torch": "0"}, "abc")


@pytest.fixture
def short() -> Budget:
    return Budget(seconds=0.01, min_repeats=3, max_repeats=5)


@pytest.fixture
def make_record() -> Callable[..., Record]:
    """A record with the given p50, relative spread and peers' times; further fields by name."""

    def make(
        p50: float, spread: float = 0.02, repeats: int = 30, peers: dict[str, float] | None = None, **changes: Any
    ) -> Record:
        fields: dict[str, Any] = {
            "op": "toy",
            "case": "large",
            "dtype": "fp32",
            "pass_": "forward",
            "backend": "cpp",
            "verified": True,
            "verified_on": "pieces",
            "ms": Quantiles(p50 * (1 - spread), p50, p50 * (1 + spread)),
            "repeats": repeats,
            "peak_bytes": 1024,
            "flops": 10,
            "bytes": 20,
            "peers": {name: PeerResult(ms, 0, ms / p50) for name, ms in (peers or {}).items()},
            "machine": {"name": "test"},
            "versions": {"torch": "0"},
            "commit": "abc",
        }
        return Record(**{**fields, **changes})

    return make
