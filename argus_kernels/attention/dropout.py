"""Attention dropout from a counter-based generator: what is dropped depends on (seed, head, position, key) alone.

So the same events drop whoever shares the batch, whichever backend computes, and again in the backward pass, which
stores no mask. The generator is Philox2x32 with 10 rounds (Salmon et al., "Parallel Random Numbers: As Easy as 1, 2,
3", 2011), which passes BigCrush. One call of it serves two neighbouring keys:

    stream = philox(counter = (low and high 32 bits of the user's seed), key = head), the first word
    word   = philox(counter = (position mod 2^32, key // 2), key = stream), the word number key mod 2
    kept   = word ≥ dropped_below(dropout) = floor(dropout · 2^32)

A weight that is kept is divided by 1 − dropout, one that is dropped is multiplied by 0.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

MULTIPLIER = 0xD256D193
"""Philox2x32's factor."""
WEYL = 0x9E3779B9
"""What its key grows by a round: the golden ratio."""
ROUNDS = 10
_WORD = 0xFFFFFFFF


def philox(first: Tensor, second: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    """Both words of Philox2x32-10 for a counter and a key, 32-bit words in int64 tensors that broadcast."""
    for round_ in range(ROUNDS):
        product = first * MULTIPLIER
        # int64 products wrap; their low and high words are those of the unsigned product all the same.
        high, low = (product >> 32) & _WORD, product & _WORD
        first, second = high ^ ((key + round_ * WEYL) & _WORD) ^ second, low
    return first, second


def dropped_below(dropout: float) -> int:
    """Words below this are dropped."""
    return math.floor(dropout * 2.0**32)


def streams(seed: Tensor, heads: int) -> Tensor:
    """The generator's key of every head, int64 [heads, ...], for seeds int64 [...]."""
    head = torch.arange(heads, device=seed.device).view(heads, *(1 for _ in seed.shape))
    return philox(seed & _WORD, (seed >> 32) & _WORD, head)[0]


def kept(seed: Tensor, heads: int, position: Tensor, key_place: Tensor, dropout: float) -> Tensor:
    """Which weights stay: bool [heads, G, Lq, Lk], for seeds int64 [G], positions [G, Lq] and keys at places [Lk]."""
    stream = streams(seed, heads)[..., None, None]
    pair = torch.arange(int(key_place[0]) // 2, int(key_place[-1]) // 2 + 1, device=key_place.device)
    words = torch.stack(philox((position & _WORD)[..., None], pair, stream), -1).flatten(-2)
    first = int(key_place[0]) % 2
    return words[..., first : first + key_place.shape[0]] >= dropped_below(dropout)
