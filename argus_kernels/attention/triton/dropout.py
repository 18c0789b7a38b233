"""Dropout in the Triton attention kernels: the generator of `argus_kernels.attention.dropout`, word for word."""

from __future__ import annotations

import triton
import triton.language as tl

from argus_kernels.attention import dropout

MULTIPLIER = tl.constexpr(dropout.MULTIPLIER)
WEYL = tl.constexpr(dropout.WEYL)
ROUNDS = tl.constexpr(dropout.ROUNDS)


@triton.jit
def philox(first, second, key):
    """Both words of Philox2x32-10 for a counter and a key, uint32 that broadcast."""
    multiplier = tl.full([], MULTIPLIER, tl.uint32)
    for number in tl.static_range(ROUNDS):
        high = tl.umulhi(first, multiplier)
        own_key = key + tl.full([], (number * WEYL) & 0xFFFFFFFF, tl.uint32)
        first, second = high ^ own_key ^ second, first * multiplier
    return first, second


@triton.jit
def stream_of(rule, user, head, SHAPE: tl.constexpr):
    """The generator's key of a user and query head; 0 without dropout."""
    stream = head * 0
    if SHAPE.kept_factor != 1.0:
        seed = tl.load(rule.seed + user)
        stream, _ = philox(seed.to(tl.uint32), (seed >> 32).to(tl.uint32), head.to(tl.uint32))
    return stream


@triton.jit
def dropped(weights, position, key_place, stream, SHAPE: tl.constexpr):
    """Weights after dropout, or what reaches them backward: multiplied by 0 or by 1 / (1 − dropout).

    Every pair asks the generator for both words and takes one: see the README of causal_attention.
    """
    if SHAPE.kept_factor != 1.0:
        words = philox(position.to(tl.uint32), (key_place >> 1).to(tl.uint32), stream)
        word = tl.where((key_place & 1) == 1, words[1], words[0])
        weights *= tl.where(word >= tl.full([], SHAPE.dropped_below, tl.uint32), SHAPE.kept_factor, 0.0)
    return weights
