"""The error rule over several tiles in every direction: cpp, a GPU, and Triton's interpreter where there is none."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from argus_kernels import OPS
from argus_kernels.core import Op, Sample
from argus_kernels.testing import captured_arguments, judged
from tests.drawn_examples import examples

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
OFTEN, OFTEN_INTERPRETED = 3, 1
"""Samples of an op that every run takes, in float32."""


def marks(backend: str, index: int, dtype: torch.dtype) -> list[pytest.MarkDecorator]:
    """Slow is what Triton's interpreter takes minutes for; of cpp, in 16 bits alone, what is not taken often.

    A tile is the same in every dtype: after an op's first sample .ci/run interprets float32 alone.
    """
    if backend == "cpp":
        return [pytest.mark.slow] * (index >= OFTEN and dtype != torch.float32)
    further = index >= OFTEN_INTERPRETED and dtype != torch.float32 and DEVICE == "cpu"
    seldom = index >= OFTEN_INTERPRETED or dtype != torch.float32
    return [pytest.mark.slow] * seldom + [pytest.mark.interpreted] * (further and backend == "triton")


CASES = [
    pytest.param(
        op,
        backend.name,
        sample,
        dtype,
        id=f"{op.name}-{backend.name}-{sample.name}-{str(dtype).removeprefix('torch.')}",
        marks=marks(backend.name, index, dtype),
    )
    for op in OPS
    for backend in op.backends
    if backend.name in ("cuda", "triton", "cpp")
    for index, sample in enumerate(op.tiles(1))
    for dtype in DTYPES
]


@pytest.mark.parametrize(("op", "backend", "sample", "dtype"), CASES)
def test_error_rule(op: Op, backend: str, sample: Sample, dtype: torch.dtype) -> None:
    device = "cpu" if backend == "cpp" else DEVICE
    arguments = sample.draw(dtype, 0, device)
    reasons = op.backend(backend).reasons(captured_arguments(op, arguments))
    if reasons:
        pytest.skip("; ".join(reasons))
    # A single draw in `make test`, and where the interpreter computes: a tile takes it up to a second.
    draws = 1 if backend == "triton" and device == "cpu" else examples(3)
    for verdict in judged(op, sample, backend, dtype, device=device, enough=200, least=draws, most=draws).values():
        assert verdict.passed, verdict.sentence


@pytest.mark.slow
@pytest.mark.parametrize("level", ["portable", "avx2"])
def test_cpp_on_lower_instruction_sets(level: str) -> None:
    """Their float32 sums are rounded otherwise."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "slow or not slow"]
    environment = {**os.environ, "ARGUS_CPU_ISA": level}
    done = subprocess.run(
        [*command, "-k", "cpp and float32", __file__], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-3000:]
