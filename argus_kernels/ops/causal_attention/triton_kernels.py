"""causal_attention in Triton: the launchers of the kernels in `argus_kernels.attention.triton.launch`, with softmax."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from argus_kernels.attention.arguments import History
from argus_kernels.attention.triton import launch
from argus_kernels.attention.triton.launch import Attention
from argus_kernels.core.triton_support import CompileCase

TUNABLES = launch.tunables("causal_attention")


def forward(given: History) -> tuple[Tensor, Tensor]:
    """Computes out [T, H, Dh] in q's dtype and log_sum_exp [H, T] in float32."""
    out, log_sum_exp = launch.forward(Attention(*given))
    assert log_sum_exp is not None
    return out, log_sum_exp


def backward(
    gradients: Sequence[Tensor], outputs: Sequence[Tensor], needs: dict[str, bool], given: History
) -> list[Tensor | None]:
    """Gradients of q, k, v, position_bias and time_bias."""
    return launch.backward(Attention(*given), needs, gradients[0], outputs[0], outputs[1], gradients[1])


def compile_cases() -> list[CompileCase]:
    """Head widths 64 and 128 plain, float32, biases with a window, and the whole rule; for the command also others."""

    def case(given: str, width: int, dtype: torch.dtype, *, twin: bool = False) -> CompileCase:
        def call() -> None:
            record = launch.meta_history(width, dtype, given, width**-0.5)
            out = forward(record)
            tables = given != "plain"
            backward(out, out, {"position_bias": tables, "time_bias": tables}, record)

        return CompileCase(f"{given}-{dtype}-{width}".replace("torch.", ""), call, twin=twin)

    half, single = torch.bfloat16, torch.float32
    return [
        case("plain", 64, half),
        case("plain", 128, half),
        case("plain", 32, single),
        case("everything", 64, half),
        case("rule", 64, half),
        case("rule", 128, half),
        case("rule", 64, single),
        case("everything", 64, single, twin=True),
        *(case("plain", width, half, twin=True) for width in (16, 32, 256)),
        *(case("plain", width, single, twin=True) for width in (64, 128, 256)),
        case("everything", 128, half, twin=True),
        case("rule", 128, single, twin=True),
        case("plain", 64, torch.float16, twin=True),
    ]
