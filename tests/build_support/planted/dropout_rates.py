"""Run without the interpreter: what another rate of dropout would compile again in both attention ops."""

from __future__ import annotations

import json

import torch

from argus_kernels.attention.triton.launch import meta_history
from argus_kernels.ops.causal_attention import triton_kernels as causal
from argus_kernels.ops.hstu_attention import triton_kernels as hstu
from argus_kernels.testing.mock_driver import Launch, mocked, second_compiles

RATES = (0.0, 2.0**-32, 0.1, 0.25, 0.3, 0.5, 0.9)
"""The words below which weights drop are 1, odd, multiples of 16, and more than an int32 holds."""
TABLES = {"position_bias": True, "time_bias": True}


def both_passes(rate: float, divisor: float | None) -> list[Launch]:
    """What forward and backward of an op launch."""
    given = meta_history(32, torch.bfloat16, "rule", divisor=divisor)._replace(dropout=rate)
    if rate == 0:
        given = given._replace(dropout_seed=None)
    with mocked() as launches:
        if divisor is None:
            out = causal.forward(given)
            causal.backward(out, out, TABLES, given)
        else:
            hstu.backward([hstu.forward(given)], [], TABLES, given)
    return launches


def again(divisor: float | None, *rates: float) -> list[str]:
    """What rates would compile again."""
    return second_compiles({f"rate {rate}": both_passes(rate, divisor) for rate in rates})


print(
    json.dumps(
        {
            "rates": again(None, *RATES[1:]) + again(8.0, *RATES[1:]),
            "on and off": again(None, *RATES[:2]),
        }
    )
)
