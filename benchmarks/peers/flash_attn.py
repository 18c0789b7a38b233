"""`flash_attn`: the flash-attn library's attention over packed users; 16 bit on CUDA, without biases."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from benchmarks.harness.cases import Case
from benchmarks.peers import attention_layout as layout
from benchmarks.peers.base import Peer, first_reason, needs_cuda, not_installed


def why_not(case: Case) -> str | None:
    """Wrong device, dtype or arguments, or not installed."""
    return first_reason(
        needs_cuda(case),
        "takes 16-bit dtypes only" if case.dtype == torch.float32 else None,
        "takes no bias tables" if layout.has_bias(case) else None,
        layout.only_causal(case),
        not_installed("flash_attn", "flash-attn"),
    )


def build(case: Case) -> Callable[[], Any]:
    """One call on the packed rows."""
    from flash_attn import flash_attn_varlen_func

    given = case.arguments
    offsets, longest = given["offsets"], given["max_length"]
    q, k, v = given["q"], given["k"], given["v"]
    return lambda: flash_attn_varlen_func(q, k, v, offsets, offsets, longest, longest, causal=True)


PEER = Peer("flash_attn", ("causal_attention",), build, why_not)
