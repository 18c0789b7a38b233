"""The error rule over several tiles in every direction: on a GPU, and in Triton's interpreter where there is none."""

from __future__ import annotations

import pytest
import torch

from argus_kernels import OPS
from argus_kernels.core import Op, Sample
from argus_kernels.testing import captured_arguments, judged

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
OFTEN = 3
"""Samples of an op that every run takes, in float32; the others, which take the interpreter a minute, are slow."""

CASES = [
    pytest.param(
        op,
        backend.name,
        sample,
        dtype,
        id=f"{op.name}-{backend.name}-{sample.name}-{str(dtype).removeprefix('torch.')}",
        marks=[pytest.mark.slow] * (index >= OFTEN or dtype != torch.float32),
    )
    for op in OPS
    for backend in op.backends
    if backend.name in ("cuda", "triton")
    for index, sample in enumerate(op.tiles(1))
    for dtype in DTYPES
]


@pytest.mark.parametrize(("op", "backend", "sample", "dtype"), CASES)
def test_error_rule(op: Op, backend: str, sample: Sample, dtype: torch.dtype) -> None:
    arguments = sample.draw(dtype, 0, DEVICE)
    reasons = op.backend(backend).reasons(captured_arguments(op, arguments))
    if reasons:
        pytest.skip("; ".join(reasons))
    # A single draw where the interpreter computes: a tile takes it up to a second.
    draws = 3 if DEVICE == "cuda" else 1
    for verdict in judged(op, sample, backend, dtype, device=DEVICE, enough=200, least=draws, most=draws).values():
        assert verdict.passed, verdict.sentence
