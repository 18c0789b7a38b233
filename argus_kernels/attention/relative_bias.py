"""The bias buckets that the attention ops share: how far apart a query and a key are, in events and in time.

Every backend takes its thresholds from here, so that all of them agree at every edge.
"""

from __future__ import annotations

from decimal import ROUND_CEILING, Decimal, localcontext
from functools import lru_cache

import torch
from torch import Tensor

LOG_STEP = "0.301"
"""Width of a time bucket in ln seconds, as a decimal: bucket(x) = min(floor(ln(max(|x|, 1)) / 0.301), N − 1)."""

_LARGEST = torch.iinfo(torch.int64).max
_ESTIMATE_MARGIN = 1e-3
_SEARCHED = 16_384
"""Up to so many differences a binary search over the edges is faster: 18 µs against 50 for one, 44 against 64 for 4,096
(129 buckets, one core)."""


@lru_cache(maxsize=16)
def threshold_values(buckets: int) -> tuple[int, ...]:
    """Entry b is the smallest integer x ≥ 0 whose time bucket is at least b; int64's maximum where none is below it."""
    values = [0]
    with localcontext() as context:
        context.prec = 60
        for bucket in range(1, buckets):
            edge = (Decimal(LOG_STEP) * bucket).exp().to_integral_value(rounding=ROUND_CEILING)
            values.append(min(int(edge), _LARGEST))
    return tuple(values[:buckets])


def time_thresholds(buckets: int, device: torch.device | str | None = None) -> Tensor:
    """The time buckets' lower edges, int64 [buckets], rising: bucket b holds thresholds[b] ≤ |x| < thresholds[b + 1].

    Worked out in 60-digit decimals, because float64 no longer resolves the integers near an edge past 2^53. Entries
    that no difference below int64's maximum reaches hold that maximum.
    """
    return torch.tensor(threshold_values(buckets), dtype=torch.int64, device=device)


def time_buckets(difference: Tensor, buckets: int) -> Tensor:
    """The time bucket of every difference in seconds (int64, its sign is ignored), int64 of the same shape.

    The differences must themselves fit int64: times further apart than that wrap around.
    """
    distance = difference.abs().clamp(1, _LARGEST - 1)
    # Not while tracing: a branch on the size would compile again for each side of it.
    if not torch.compiler.is_compiling() and difference.numel() <= _SEARCHED:
        return torch.bucketize(distance, time_thresholds(buckets, difference.device)[1:], right=True)
    # A float32 logarithm, lowered a little, is the bucket or the one below it; the integer edge above decides. For a
    # million differences that is 2.4 times faster than torch.bucketize, which searches the edges for every element.
    estimate = (distance.to(torch.float32).log() / float(LOG_STEP) - _ESTIMATE_MARGIN).clamp(0, buckets - 1).long()
    upper = torch.cat([time_thresholds(buckets, difference.device)[1:], difference.new_full((1,), _LARGEST)])
    return estimate + (distance >= upper.take(estimate))


def position_buckets(position: Tensor, key_place: Tensor, buckets: int) -> Tensor:
    """min(max(position − j, 0), buckets − 1) for positions [..., Lq] and keys at places j [Lk]: int64 [..., Lq, Lk]."""
    return (position[..., None] - key_place).clamp(0, buckets - 1)
