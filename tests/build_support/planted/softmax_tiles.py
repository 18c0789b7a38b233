"""Both passes of sampled_softmax_loss in every tile that its forward pass may be tuned to, for the compile gates."""

from __future__ import annotations

import torch

from argus_kernels.core import tuning
from argus_kernels.core.triton_support import CompileCase
from argus_kernels.ops.sampled_softmax_loss import triton_kernels

FORWARD = triton_kernels.TUNABLES[0]


def _case(config: tuning.Config) -> CompileCase:
    def call() -> None:
        with tuning.forced(FORWARD.kernel, config):
            triton_kernels.compile_case("", torch.bfloat16).call()

    return CompileCase(" × ".join(str(size) for size in config.values()), call)


def compile_cases() -> list[CompileCase]:
    """Every configuration with owners, the costliest scores, at width 256."""
    return [_case(config) for config in FORWARD.configs]
