"""One number in the place of a tile's biases, in the Triton attention kernels: where all its pairs share an entry."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from argus_kernels import causal_attention, hstu_attention
from argus_kernels.attention.relative_bias import threshold_values
from argus_kernels.core.triton_support import available, launch

pytest.importorskip("triton")
import triton
import triton.language as tl

from argus_kernels.attention.triton.launch import upper_edges
from argus_kernels.attention.triton.records import Biases, Shape
from argus_kernels.attention.triton.tiles import shared_time_bucket

pytestmark = pytest.mark.skipif(available() is not None, reason=str(available()))
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SIDE, BUCKETS = 64, 90
"""float16 has tiles of 64 on one side and 16 or 32 on the other."""
EDGE = threshold_values(BUCKETS)[60]
FAR = 2**62


def blocks(*firsts: int, step: int = 1) -> Tensor:
    """Times of as many tiles: each counts up from its first."""
    return torch.cat([first + step * torch.arange(SIDE) for first in firsts])


TIMES = {
    "one bucket": (blocks(0, EDGE + SIDE, 3 * EDGE),) * 2,
    "two buckets": (blocks(0, EDGE, 3 * EDGE),) * 2,
    "backwards": (blocks(3 * EDGE, EDGE + 2 * SIDE, 0, step=-1),) * 2,
    "wrapping": (
        torch.tensor([-FAR - 5, FAR - 10] * (3 * SIDE // 2)),
        torch.tensor([-FAR + 10, FAR + 5] * (3 * SIDE // 2)),
    ),
}


def results(op: Any, times: tuple[Tensor, Tensor], positions: int, backend: str, cut: int) -> list[Tensor]:
    """Output and gradients of one user, without its last `cut` events."""
    length = 3 * SIDE - cut
    generator = torch.Generator().manual_seed(positions)
    dtype = torch.float64 if backend == "reference" else torch.float16
    q, k, v, above = torch.randn(4, length, 1, 4, generator=generator).half().to(DEVICE, dtype).unbind()
    tables = torch.randn(1, positions, generator=generator), torch.randn(1, BUCKETS, generator=generator)
    position_bias, time_bias = (one.half().to(DEVICE, dtype) for one in tables)
    leaves = [one.requires_grad_() for one in (q, k, v)]
    query_time, key_time = (one[:length].to(DEVICE) for one in times)
    out = op(
        *leaves, torch.tensor([0, length], dtype=torch.int32, device=DEVICE), position_bias=position_bias,
        time_bias=time_bias, query_time=query_time, key_time=key_time, backend=backend,
    )  # fmt: skip
    return [one.detach().double() for one in (out, *torch.autograd.grad(out, leaves, above))]


@pytest.mark.parametrize(
    ("op", "positions", "cut", "name"),
    [
        *((causal_attention, 33, 7, name) for name in TIMES),
        (causal_attention, 1, 0, "one bucket"),
        (hstu_attention, 34, 0, "one bucket"),
    ],
)
def test_attention_with_tiles_of_one_bucket_and_of_several(op: Any, positions: int, cut: int, name: str) -> None:
    expected = results(op, TIMES[name], positions, "reference", cut)
    found = results(op, TIMES[name], positions, "triton", cut)
    torch.testing.assert_close(found, expected, atol=2e-2, rtol=2e-2)


@triton.jit
def shared(result: Any, time: Any, key_time: Any, biases: Any, SHAPE: tl.constexpr, COUNT: tl.constexpr) -> None:
    own, other = tl.load(time + tl.arange(0, COUNT)), tl.load(key_time + tl.arange(0, COUNT))
    tl.store(result, shared_time_bucket(own[:, None], other[None, :], biases, SHAPE))


def test_the_bucket_that_a_tile_shares() -> None:
    edges = upper_edges(BUCKETS, torch.device(DEVICE))
    biases = Biases(None, 0, None, 0, None, None, edges)
    for time, key_time, expected in (
        ([EDGE, EDGE + 9], [0, -9], 60),
        ([0, -9], [EDGE, EDGE + 9], 60),
        ([EDGE, EDGE + 9], [0, 1], -1),
        ([5, 5], [5, 4], 0),
        ([5, 9], [9, 5], -1),
        ([FAR - 1, FAR - 1], [1, 1], BUCKETS - 1),
        ([-FAR - 5, FAR - 10], [-FAR + 10, FAR + 5], -1),
    ):
        result = torch.zeros(1, dtype=torch.int32, device=DEVICE)
        arguments = {
            "result": result,
            "time": torch.tensor(time, device=DEVICE),
            "key_time": torch.tensor(key_time, device=DEVICE),
            "biases": biases,
            "SHAPE": Shape(True, False, 0, BUCKETS, 16, 16, True),
            "COUNT": 2,
        }
        launch(shared, (1,), arguments, warps=1, stages=1)
        assert result.item() == expected, (time, key_time)
