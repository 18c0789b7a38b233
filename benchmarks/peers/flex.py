"""`flex`: FlexAttention, compiled, over all packed rows as one sequence; a block mask keeps users apart.

The biases are a score modification that reads the tables. The block mask is made once, outside the timed call, because
all layers of a step share it. On the CPU torch has only its forward pass.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from argus_kernels.attention.relative_bias import LOG_STEP
from argus_kernels.core.varlen import user_of_row
from benchmarks.harness.cases import Case
from benchmarks.peers import attention_layout as layout
from benchmarks.peers.base import Peer


def why_no_gradients(case: Case) -> str | None:
    """No backward pass on the CPU."""
    return "FlexAttention has no backward pass on the CPU" if case.device == "cpu" else None


def build(case: Case) -> Callable[[], Any]:
    """One compiled call on the packed rows."""
    given = _without_gradients(case.arguments) if case.device == "cpu" else case.arguments
    total = given["q"].shape[0]
    user = user_of_row(given["offsets"], total)

    def same_user_before(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return (i >= j) & (user[i] == user[j])

    mask = create_block_mask(same_user_before, None, None, total, total, device=case.device)
    compiled = torch.compile(flex_attention, dynamic=False)
    score = _score_modification(given) if layout.has_bias(case) else None

    def attend() -> Tensor:
        q, k, v = (given[name].transpose(0, 1)[None] for name in ("q", "k", "v"))
        out: Tensor = compiled(q, k, v, score_mod=score, block_mask=mask)
        return out[0].transpose(0, 1)

    return attend


def _without_gradients(arguments: dict[str, Any]) -> dict[str, Any]:
    """On the CPU FlexAttention refuses inputs that ask for gradients, whether or not any are recorded."""
    return {name: value.detach() if isinstance(value, Tensor) else value for name, value in arguments.items()}


def _score_modification(given: dict[str, Any]) -> Callable[..., Tensor]:
    """Adds the biases; the time bucket by a logarithm in float32, which may miss a bucket's edge by rounding."""
    position, time = given.get("position_bias"), given.get("time_bias")
    query_time, key_time = given.get("query_time"), given.get("key_time")

    def score(value: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        if position is not None:
            value = value + position[h, torch.clamp(i - j, 0, position.shape[1] - 1)]
        if time is not None and query_time is not None and key_time is not None:
            distance = (query_time[i] - key_time[j]).abs().clamp_min(1).to(torch.float32)
            bucket = (distance.log() * (1 / float(LOG_STEP))).to(torch.int64)
            value = value + time[h, torch.clamp(bucket, 0, time.shape[1] - 1)]
        return value

    return score


def why_not(case: Case) -> str | None:
    """Masks that this peer does not build, or a head width that is no power of two."""
    width = case.arguments["q"].shape[2]
    if not math.log2(width).is_integer() or width < 16:
        return f"head width {width} is not a power of two of at least 16"
    return layout.only_causal(case)


PEER = Peer("flex", ("causal_attention",), build, why_not, why_no_gradients, compiles=True)
