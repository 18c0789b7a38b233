"""The Triton kernels of causal_attention and hstu_attention across tiles: masks, windows, biases, packing, refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from argus_kernels import causal_attention, explain, hstu_attention
from argus_kernels.attention.relative_bias import threshold_values
from argus_kernels.attention.samples import HistoryCase
from argus_kernels.core.triton_support import available

pytestmark = pytest.mark.skipif(available() is not None, reason=str(available()))
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

# Tiles of float32 are 32 events: the users end inside a tile, on its edge and past it.
CASES = [
    HistoryCase("plain", (70, 0, 32, 1), heads=1, width=16, padding=2),
    HistoryCase("lagged", (75,), heads=2, width=5, mask="lagged", position_buckets=40, time_buckets=60),
    HistoryCase("candidates_window", (66, 9), heads=1, mask="candidates", window=35, time_buckets=9),
    HistoryCase("short_window", (100,), heads=1, window=20, position_buckets=3),
]


def results(op: Any, case: HistoryCase, backend: str, arguments: dict[str, Any]) -> dict[str, Tensor]:
    """Output and gradients by name."""
    leaves = {name: arguments[name].detach().clone().requires_grad_() for name in case.grad()}
    out = op(**{**arguments, **leaves}, backend=backend)
    generator = torch.Generator().manual_seed(1)
    above = torch.randn(out.shape, generator=generator).to(DEVICE)
    found = torch.autograd.grad(out, list(leaves.values()), above)
    return {"out": out.detach(), **dict(zip(leaves, found, strict=True))}


def drawn(case: HistoryCase) -> dict[str, Any]:
    arguments = case.make(torch.Generator().manual_seed(0), torch.float32)
    return {name: value.to(DEVICE) if isinstance(value, Tensor) else value for name, value in arguments.items()}


@pytest.mark.parametrize("op", [causal_attention, hstu_attention], ids=lambda op: op.__name__)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_histories_of_several_tiles(op: Any, case: HistoryCase) -> None:
    arguments = drawn(case)
    expected = results(op, case, "reference", arguments)
    for name, found in results(op, case, "triton", arguments).items():
        torch.testing.assert_close({name: found}, {name: expected[name]}, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("op", [causal_attention, hstu_attention], ids=lambda op: op.__name__)
def test_a_users_numbers_do_not_depend_on_the_batch(op: Any) -> None:
    """Bit for bit, alone and between others."""
    case = HistoryCase("batch", (5, 40, 33), heads=1, width=4)
    arguments = drawn(case) | ({"divisor": 64.0} if op is hstu_attention else {})
    alone = {name: value[5:45] if name in "qkv" else value for name, value in arguments.items()}
    alone |= {"offsets": torch.tensor([0, 40], dtype=torch.int32, device=DEVICE), "max_length": 40}
    together, single = (op(**given, backend="triton") for given in (arguments, alone))
    assert torch.equal(together[5:45], single)


def test_time_buckets_are_exact_at_their_edges() -> None:
    """One bucket's bias is 1, the others' 0; keys lie on the edges and beside them."""
    buckets = 120
    edges = [edge for edge in threshold_values(buckets) if 2 < edge < 2**62]
    distances = torch.tensor([0, *(edge + shift for edge in edges[::4] for shift in (-1, 0))])
    count = distances.numel()
    q = torch.zeros(count + 1, 1, 2, device=DEVICE)
    time = torch.cat([-distances, torch.zeros(1, dtype=torch.int64)]).to(DEVICE)
    bias = torch.arange(buckets, dtype=torch.float32, device=DEVICE)[None] / 16
    arguments: dict[str, Any] = {"time_bias": bias, "query_time": time, "key_time": time, "return_log_sum_exp": True}
    offsets = torch.tensor([0, count + 1], dtype=torch.int32, device=DEVICE)
    _, ours = causal_attention(q, q, q, offsets, backend="triton", **arguments)
    _, expected = causal_attention(q, q, q, offsets, backend="reference", **arguments)
    torch.testing.assert_close(ours, expected, atol=2e-6, rtol=2e-6)


def test_wide_heads_are_refused() -> None:
    q = torch.zeros(3, 1, 257, dtype=torch.float64)
    verdicts = explain(causal_attention, q, q, q, torch.tensor([0, 3], dtype=torch.int32))
    (found,) = [one for one in verdicts if one.backend == "triton"]
    assert "head width is 257, expected at most 256" in found.reasons
    assert "q is float64, expected one of float32, bfloat16, float16" in found.reasons
