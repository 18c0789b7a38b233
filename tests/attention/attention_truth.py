"""Independent formulations that the attention ops are tested against: dense, per user, with Python's own arithmetic."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from argus_kernels.core import Backend

jagged_lengths = st.lists(st.sampled_from([0, 0, 1, 2, 3, 7, 15, 16, 17, 33]), min_size=0, max_size=5)


def exact_backends(backends: Sequence[Backend]) -> list[str]:
    """Those that compute in float64 here; the others are held to the definition by tests/core/test_ops.py."""
    return [backend.name for backend in backends if backend.name in ("cpp", "reference") and not backend.available()]


def packed_offsets(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).int()


def bucket(difference: int, buckets: int) -> int:
    """The time bucket as the formula has it, in float64."""
    return min(int(math.log(max(abs(difference), 1)) / 0.301), buckets - 1)


def dense_mask(length: int, visible: list[int] | None, window: int | None) -> Tensor:
    """bool [length, length], pair by pair."""
    mask = torch.zeros(length, length, dtype=torch.bool)
    for i in range(length):
        limit = i if visible is None else visible[i]
        for j in range(length):
            mask[i, j] = (j == i or j < limit) and (window is None or i - j < window)
    return mask


def dense_bias(
    length: int,
    heads: int,
    position_bias: Tensor | None,
    time_bias: Tensor | None,
    query_time: list[int] | None,
    key_time: list[int] | None,
) -> Tensor:
    """float64 [heads, length, length], differentiable in the tables."""
    bias = torch.zeros(heads, length, length, dtype=torch.float64)
    if position_bias is not None:
        last = position_bias.shape[1] - 1
        index = [[min(max(i - j, 0), last) for j in range(length)] for i in range(length)]
        bias = bias + position_bias.double()[:, torch.tensor(index, dtype=torch.long).view(length, length)]
    if time_bias is not None:
        assert query_time is not None and key_time is not None
        index = [[bucket(q - k, time_bias.shape[1]) for k in key_time] for q in query_time]
        bias = bias + time_bias.double()[:, torch.tensor(index, dtype=torch.long).view(length, length)]
    return bias


def user_parts(offsets: Tensor, user: int, *tensors: Tensor | None) -> list[Any]:
    """One user's rows of packed tensors."""
    rows = slice(int(offsets[user]), int(offsets[user + 1]))
    return [None if tensor is None else tensor[rows] for tensor in tensors]


def drawn(
    lengths: list[int],
    seed: int,
    *,
    heads: int = 2,
    width: int = 3,
    padding: int = 0,
    mask: str = "causal",
    positions: int = 0,
    times: int = 0,
    window: int | None = None,
) -> dict[str, Any]:
    """An attention op's arguments in float64, drawn from `seed`; differentiable ones require gradients."""
    generator = torch.Generator().manual_seed(seed)
    total = sum(lengths) + padding

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()

    arguments: dict[str, Any] = {name: normal(total, heads, width) for name in ("q", "k", "v")}
    arguments["offsets"] = packed_offsets(lengths)
    if mask == "lagged":
        place = torch.cat([torch.arange(n) for n in [*lengths, padding]]).int()
        share = torch.rand(total, generator=generator)
        arguments["visible"] = (share * (place + 1)).int().clamp(max=place)
    if positions:
        arguments["position_bias"] = normal(heads, positions)
    if times:
        arguments["time_bias"] = normal(heads, times)
        arguments["query_time"] = torch.randint(-(10**6), 10**6, (total,), generator=generator)
        arguments["key_time"] = torch.randint(-(10**6), 10**6, (total,), generator=generator)
    if window:
        arguments["window"] = window
    return arguments


def gradients(result: Tensor, arguments: dict[str, Any], seed: int = 7) -> dict[str, Tensor]:
    """Gradients of every leaf among the arguments, for a normal gradient of the result."""
    leaves = {n: t for n, t in arguments.items() if isinstance(t, Tensor) and t.requires_grad}
    above = torch.randn(result.shape, generator=torch.Generator().manual_seed(seed), dtype=result.dtype)
    found = torch.autograd.grad(result, list(leaves.values()), above, allow_unused=True)
    return {
        name: torch.zeros_like(leaf) if gradient is None else gradient
        for (name, leaf), gradient in zip(leaves.items(), found, strict=True)
    }
