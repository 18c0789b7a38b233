"""What only the compiled attention over packed histories promises: the same bits anywhere, long users cut in pieces."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention, silu

from argus_kernels import causal_attention, hstu_attention
from argus_kernels.attention.relative_bias import threshold_values
from argus_kernels.core import native
from tests.attention.attention_truth import packed_offsets

OPS = [causal_attention, hstu_attention]
LENGTHS = [1100, 0, 1, 64, 65, 4100]
"""Users of one piece of work and of several, in blocks of either size."""


@pytest.fixture(autouse=True)
def _library() -> None:
    reason = native.why_not("cpu")
    if reason is not None:
        pytest.skip(reason)


def batch(lengths: list[int], dtype: torch.dtype, heads: int = 2, width: int = 64, seed: int = 0) -> dict[str, Any]:
    """A batch with both tables, two rows of padding and times that mostly rise."""
    generator = torch.Generator().manual_seed(seed)
    total = sum(lengths) + 2
    arguments: dict[str, Any] = {
        name: torch.randn(total, heads, width, generator=generator).to(dtype).requires_grad_() for name in "qkv"
    }
    for name, entries in (("position_bias", 100), ("time_bias", 64)):
        arguments[name] = torch.randn(heads, entries, generator=generator).to(dtype).requires_grad_()
    times = torch.randint(-30, 5_000, (total + 1,), generator=generator).cumsum(0)
    return arguments | {
        "offsets": packed_offsets(lengths),
        "max_length": max(lengths),
        "query_time": times[1:].clone(),
        "key_time": times[:-1].clone(),
    }


def results(op: Callable[..., Any], arguments: dict[str, Any], backend: str = "cpp") -> list[Tensor]:
    """The output and all gradients, for a gradient of the output drawn from a fixed seed."""
    out = op(**arguments, backend=backend)
    leaves = [value for value in arguments.values() if isinstance(value, Tensor) and value.requires_grad]
    above = torch.randn(out.shape, generator=torch.Generator().manual_seed(5)).to(out.dtype)
    return [out, *torch.autograd.grad(out, leaves, above)]


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_threads_change_no_bit(op: Callable[..., Any], dtype: torch.dtype) -> None:
    arguments = batch(LENGTHS, dtype, width=16)
    alone = results(op, arguments)
    for threads in (4, 3, 1):
        torch.set_num_threads(threads)
        for one, other in zip(alone, results(op, arguments), strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("window", [None, 1000])
def test_users_cut_into_pieces(window: int | None) -> None:
    """Output and gradients of 4,400 events, which several tasks share, are torch's own."""
    length = 4400
    q, k, v = (torch.randn(length, 1, 4, dtype=torch.float64).requires_grad_() for _ in range(3))
    place = torch.arange(length)
    back = place[:, None] - place
    mask = (back >= 0) & (back < (window or length))
    query, key, value = (tensor.transpose(0, 1) for tensor in (q, k, v))
    expected = scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(0, 1)
    out = causal_attention(q, k, v, packed_offsets([length]), window=window, backend="cpp")
    torch.testing.assert_close(out, expected, rtol=1e-11, atol=1e-11)
    above = torch.randn(out.shape, dtype=torch.float64)
    ours, truth = (torch.autograd.grad(result, (q, k, v), above) for result in (out, expected))
    torch.testing.assert_close(ours, truth, rtol=1e-10, atol=1e-10)


def test_hstu_users_cut_into_pieces() -> None:
    length = 4400
    q, k, v = (torch.randn(length, 1, 4, dtype=torch.float64).requires_grad_() for _ in range(3))
    weights = silu(q[:, 0] @ k[:, 0].T).tril() / length
    expected = (weights @ v[:, 0])[:, None]
    out = hstu_attention(q, k, v, packed_offsets([length]), backend="cpp")
    torch.testing.assert_close(out, expected, rtol=1e-11, atol=1e-11)
    above = torch.randn(out.shape, dtype=torch.float64)
    ours, truth = (torch.autograd.grad(result, (q, k, v), above) for result in (out, expected))
    torch.testing.assert_close(ours, truth, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("op", OPS)
def test_views_of_one_projection(op: Callable[..., Any]) -> None:
    """Strided q, k and v give the bits of their contiguous copies."""
    lengths = [150, 3]
    whole = torch.randn(153, 3, 2, 40, dtype=torch.float32)
    strided = results(
        op, dict(zip("qkv", whole.requires_grad_().unbind(1), strict=True)) | {"offsets": packed_offsets(lengths)}
    )
    dense = results(
        op,
        dict(zip("qkv", (part.detach().contiguous().requires_grad_() for part in whole.unbind(1)), strict=True))
        | {"offsets": packed_offsets(lengths)},
    )
    for one, other in zip(strided, dense, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("width", [1, 31, 96, 129, 256])
@pytest.mark.parametrize("op", OPS)
def test_head_widths(op: Callable[..., Any], width: int) -> None:
    arguments = batch([90, 7], torch.float64, heads=1, width=width)
    for ours, truth in zip(results(op, arguments), results(op, arguments, "reference"), strict=True):
        torch.testing.assert_close(ours, truth, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("together", [1, 40], ids=["alone", "in one block"])
def test_time_buckets_at_every_edge(together: int) -> None:
    """Each distance at and beside an edge reads its own entry, whether a row's distances are alike or spread wide."""
    buckets = 150
    edges = [edge for edge in threshold_values(buckets) if edge < 2**62]
    distances = sorted({max(edge + shift, 0) for edge in edges for shift in (-1, 0, 1)})
    expected = [sum(edge <= max(distance, 1) for edge in edges) - 1 for distance in distances]
    table = (torch.arange(buckets, dtype=torch.float64)[None] / 8).requires_grad_()
    seen = []
    for first in range(0, len(distances), together):
        # Users of `together` + 1 events: event 0 is the key, at time 0; each later one sees it and itself only.
        here = torch.tensor([0, *distances[first : first + together]])
        q = torch.zeros(len(here), 1, 1, dtype=torch.float64)
        v = torch.zeros(len(here), 1, 1, dtype=torch.float64)
        v[0] = 1
        visible = torch.ones(len(here), dtype=torch.int32)
        visible[0] = 0
        key_time = here.clone()
        out = causal_attention(
            q, q, v, packed_offsets([len(here)]), visible=visible, time_bias=table, query_time=here,
            key_time=key_time, backend="cpp",
        )[1:, 0, 0]  # fmt: skip
        # out = e^entry / (e^entry + e^entry of bucket 0), and the entries are an eighth apart.
        seen += ((out / (1 - out)).log() * 8).round().int().tolist()
    assert seen == expected


SCRIPT = """
import torch
from tests.attention.test_attention_cpp import OPS, batch, results
for op in OPS:
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        arguments = batch([200, 3, 0, 70], dtype, width=24)
        for ours, truth in zip(results(op, arguments), results(op, arguments, "reference"), strict=True):
            error = float((ours.detach().double() - truth.detach().double()).norm() / truth.detach().double().norm())
            assert error < (2 if dtype.itemsize == 2 else 10) * torch.finfo(dtype).eps, (op.__name__, dtype, error)
print("right")
"""


@pytest.mark.slow
@pytest.mark.parametrize("isa", ["portable", "avx2", "avx512"])
def test_instruction_sets(isa: str) -> None:
    environment = {**os.environ, "ARGUS_CPU_ISA": isa}
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == "right", done.stderr
