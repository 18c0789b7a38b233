"""Dropout in the Triton attention kernels: the generator of `argus_kernels.attention.dropout`, word for word."""

from __future__ import annotations

from typing import Any, NamedTuple

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


class Dropout(NamedTuple):
    """What drops of a user and query head: the generator's key, the words below which weights drop, and the factor."""

    stream: Any
    dropped_below: Any
    kept_factor: Any


def threshold_of(rate: float) -> int:
    """The first word that stays, as an argument that compiles a kernel once for all rates.

    Triton compiles again for another width of an integer, for 1 and for multiples of 16: this is odd and has 34 bits.
    """
    return 2 * (2**33 + dropout.dropped_below(rate)) + 1


@triton.jit
def dropout_of(rule, user, head, SHAPE: tl.constexpr):
    """What drops of a user and query head; 0 without dropout."""
    found = head * 0
    if SHAPE.drops:
        seed = tl.load(rule.seed + user)
        stream, _ = philox(seed.to(tl.uint32), (seed >> 32).to(tl.uint32), head.to(tl.uint32))
        found = Dropout(stream, (rule.threshold >> 1).to(tl.uint32), rule.kept_factor)
    return found


@triton.jit
def dropped(weights, position, key_place, dropout, SHAPE: tl.constexpr):
    """Weights after dropout, or what reaches them backward: multiplied by 0 or by 1 / (1 − rate).

    Every pair asks the generator for both words and takes one: see the README of causal_attention.
    """
    if SHAPE.drops:
        words = philox(position.to(tl.uint32), (key_place >> 1).to(tl.uint32), dropout.stream)
        word = tl.where((key_place & 1) == 1, words[1], words[0])
        weights *= tl.where(word >= dropout.dropped_below, dropout.kept_factor, 0.0)
    return weights
