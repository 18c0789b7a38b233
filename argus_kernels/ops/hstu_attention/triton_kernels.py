"""hstu_attention in Triton: the launchers of the kernels in `argus_kernels.attention.triton.launch`, with SiLU."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from argus_kernels.attention.arguments import History
from argus_kernels.attention.triton import launch
from argus_kernels.attention.triton.launch import Attention
from argus_kernels.core.triton_support import CompileCase

TUNABLES = launch.tunables("hstu_attention")


def forward(given: History) -> Tensor:
    """Computes out [T, H, Dh] in q's dtype."""
    return launch.forward(Attention(*given))[0]


def backward(
    gradients: Sequence[Tensor], outputs: Sequence[Tensor], needs: dict[str, bool], given: History
) -> list[Tensor | None]:
    """Gradients of q, k, v, position_bias and time_bias."""
    return launch.backward(Attention(*given), needs, gradients[0])


def compile_cases() -> list[CompileCase]:
    """Head width 64 plain, with biases and a window, and with the whole rule; for the command also others."""

    def case(given: str, width: int, dtype: torch.dtype, *, twin: bool = False) -> CompileCase:
        def call() -> None:
            record = launch.meta_history(width, dtype, given, divisor=8192.0)
            out = forward(record)
            tables = given != "plain"
            backward([out], [out], {"position_bias": tables, "time_bias": tables}, record)

        return CompileCase(f"{given}-{dtype}-{width}".replace("torch.", ""), call, twin=twin)

    half, single = torch.bfloat16, torch.float32
    return [
        case("plain", 64, half),
        case("everything", 64, half),
        case("rule", 64, half),
        *(case("plain", width, half, twin=True) for width in (16, 32, 128, 256)),
        *(case("rule", width, dtype, twin=True) for width, dtype in ((128, half), (64, single))),
        *(case("plain", width, single, twin=True) for width in (64, 128)),
        case("plain", 64, torch.float16, twin=True),
    ]
