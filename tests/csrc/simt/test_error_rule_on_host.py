"""The CUDA kernels of every op, held to the error rule on the CPU: small samples, and several tiles of every one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from argus_kernels.core import Op, Sample
from argus_kernels.testing import captured_arguments, judged, small_samples
from tests.csrc.simt.backends import BACKENDS, on_host
from tests.csrc.simt.host_executor import BACKEND

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
DRAWN: dict[str, tuple[list[int], int, int]] = {
    "decode_attention": ([5, 0, 90, 33], 0, 21),
    "feedback_loss": ([5, 0, 40], 4, 7),
    "pairwise_loss": ([5, 0, 40], 4, 2),
    "rowwise_adagrad_": ([5, 0, 90, 33], 4, 21),
    "sampled_softmax_loss": ([5, 0, 30], 4, 11),
    "triple_embedding": ([5, 0, 9, 3], 4, 21),
}


def small(op: Op) -> list[Sample]:
    assert op.drawn is not None
    return [*small_samples(op), *([op.drawn(*DRAWN[op.name])] if op.name in DRAWN else [])]


def name(value: Op | Sample | torch.dtype) -> str:
    return str(getattr(value, "name", value)).removeprefix("torch.")


def served(op: Op, sample: Sample) -> bool:
    """Attention's kernels take head widths that 8 divides, of which few samples are."""
    return not BACKENDS[op].why_not(captured_arguments(op, sample.draw(torch.float32)))


def small_cases(op: Op) -> list[Any]:
    """The small samples of an op that the executor serves; `make test` takes the first and the last in some dtypes."""
    found = [one for one in small(op) if served(op, one)]
    often = [(0, torch.float32), (0, torch.bfloat16), (len(found) - 1, torch.float32), (len(found) - 1, torch.float16)]
    return [
        pytest.param(
            op, one, dtype, id=f"{op.name}-{one.name}-{name(dtype)}",
            marks=[pytest.mark.slow] * ((place, dtype) not in often),
        )
        for place, one in enumerate(found)
        for dtype in DTYPES
    ]  # fmt: skip


SMALL = [case for op in BACKENDS for case in small_cases(op)]
TILES = [
    pytest.param(op, one, dtype, id=f"{op.name}-{one.name}-{name(dtype)}", marks=[pytest.mark.slow] * (i != j))
    for op in BACKENDS
    for i, one in enumerate(op.tiles(1))
    for j, dtype in enumerate(DTYPES)
    if i == j or j in (0, 1 + i % 2)
]
"""`make test` takes three samples of an op, each in another dtype; `make test-all` takes all samples in float32 and in
one of the two 16-bit dtypes, in turn: the tensor-core instructions of both are one template."""


@pytest.fixture(autouse=True)
def _with_backends() -> Iterator[None]:
    with on_host():
        yield


@pytest.mark.parametrize(("op", "sample", "dtype"), SMALL)
def test_small_samples(op: Op, sample: Sample, dtype: torch.dtype) -> None:
    for verdict in judged(op, sample, BACKEND, dtype, enough=12, most=12).values():
        assert verdict.passed, verdict.sentence


@pytest.mark.parametrize(("op", "sample", "dtype"), TILES)
def test_several_tiles(op: Op, sample: Sample, dtype: torch.dtype) -> None:
    for verdict in judged(op, sample, BACKEND, dtype, enough=24, least=2, most=2).values():
        assert verdict.passed, verdict.sentence
