"""`varlen`: torch.nn.attention.varlen, torch's own attention over packed users; 16 bit on CUDA, without biases."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.harness.cases import Case
from benchmarks.peers import attention_layout as layout
from benchmarks.peers.base import Peer, first_reason, needs_cuda


def why_not(case: Case) -> str | None:
    """Wrong device, dtype or arguments, or a torch without it."""
    missing = importlib.util.find_spec("torch.nn.attention.varlen") is None
    return first_reason(
        needs_cuda(case),
        f"torch {torch.__version__} has no torch.nn.attention.varlen" if missing else None,
        "takes 16-bit dtypes only" if case.dtype == torch.float32 else None,
        "takes no bias" if layout.has_bias(case) else None,
        layout.only_causal(case),
    )


def build(case: Case) -> Callable[[], Any]:
    """One call on the packed rows."""
    from torch.nn.attention.varlen import varlen_attn

    given = case.arguments
    longest = given["max_length"]
    offsets = given["offsets"]
    # A left window of −1 and a right one of 0 is the causal mask.
    return lambda: varlen_attn(
        given["q"], given["k"], given["v"], offsets, offsets, longest, longest, window_size=(-1, 0)
    )


PEER = Peer("varlen", ("causal_attention",), build, why_not)
