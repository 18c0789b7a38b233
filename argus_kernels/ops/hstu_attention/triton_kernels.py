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


def forward(*arguments: object) -> Tensor:
    """Computes out [T, H, Dh] in q's dtype; arguments in schema order."""
    return launch.forward(_given(*arguments))[0]


def backward(
    gradients: Sequence[Tensor], outputs: Sequence[Tensor], needs: dict[str, bool], *arguments: object
) -> list[Tensor | None]:
    """Gradients of q, k, v, position_bias and time_bias."""
    return launch.backward(_given(*arguments), needs, gradients[0])


def _given(*arguments: object) -> Attention:
    *packed, alpha, divisor, window = arguments
    history = History(*packed)  # type: ignore[arg-type]
    return Attention(
        "hstu_attention",
        history.q,
        history.k,
        history.v,
        history.offsets,
        history.visible,
        history.position_bias,
        history.time_bias,
        history.query_time,
        history.key_time,
        alpha,  # type: ignore[arg-type]
        divisor,  # type: ignore[arg-type]
        window,  # type: ignore[arg-type]
    )


def compile_cases() -> list[CompileCase]:
    """Head width 64 plain and with every argument; for the command also the other widths and dtypes."""

    def case(name: str, width: int, dtype: torch.dtype, *, biased: bool = False, twin: bool = False) -> CompileCase:
        def call() -> None:
            arguments = launch.meta_arguments(width, dtype, biased)
            window = 1024 if biased else None
            out = forward(*arguments, 1.0, 8192.0, window)
            needs = {"position_bias": biased, "time_bias": biased}
            backward([out], [out], needs, *arguments, 1.0, 8192.0, window)

        return CompileCase(f"{name}-{dtype}-{width}".replace("torch.", ""), call, twin=twin)

    half, single = torch.bfloat16, torch.float32
    return [
        case("plain", 64, half),
        case("everything", 64, half, biased=True),
        *(case("plain", width, half, twin=True) for width in (16, 32, 128, 256)),
        *(case("plain", width, single, twin=True) for width in (64, 128)),
        case("plain", 64, torch.float16, twin=True),
    ]
