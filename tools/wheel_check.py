"""What a freshly installed wheel must do: load its libraries, compute forward and backward, be compiled whole, be fast.

tools/test_wheel.sh runs `python tools/wheel_check.py ENVIRONMENT` in that environment.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import argus_kernels
from argus_kernels import causal_attention, decode_linear, host
from argus_kernels.core import native


def close(left: Tensor, right: Tensor) -> None:
    """Fails unless the two agree to float32's accuracy."""
    torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-5)


def attention(backend: str, events: int) -> tuple[Callable[[], Tensor], list[Tensor]]:
    """Causal attention of two users forward and backward, and the tensors that get gradients."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = inputs = [torch.randn(events, 2, 32, generator=generator).requires_grad_() for _ in range(3)]
    offsets = torch.tensor([0, events // 3, events], dtype=torch.int32)

    def step() -> Tensor:
        for one in inputs:
            one.grad = None
        out = causal_attention(q, k, v, offsets, backend=backend)
        out.square().sum().backward()
        return out.detach()

    return step, inputs


def milliseconds(call: Callable[[], Any]) -> float:
    """The shortest of five calls."""
    call()
    times = []
    for _ in range(5):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return 1e3 * min(times)


def check_compiled_decode_linear() -> None:
    """decode_linear as one piece of a traced graph, in float32 and under autocast."""
    x, weight, bias = torch.randn(3, 64), torch.randn(48, 64), torch.randn(48)
    compiled = torch.compile(decode_linear, fullgraph=True, backend="aot_eager")
    close(compiled(x, weight, bias), torch.nn.functional.linear(x, weight, bias))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        close(compiled(x, weight, bias), decode_linear(x, weight, bias))


def main(environment: str) -> None:
    """Checks everything; raises where something is wrong."""
    place = Path(argus_kernels.__file__).resolve()
    if not place.is_relative_to(Path(environment).resolve()):
        raise SystemExit(f"wheel_check: argus_kernels comes from {place}, expected one in {environment}")
    if reason := native.why_not("cpu"):
        raise SystemExit(f"wheel_check: {reason}")
    forward, inputs = attention("cpp", 300)
    truth, expected = attention("reference", 300)
    close(forward(), truth())
    for one, other in zip(inputs, expected, strict=True):
        assert one.grad is not None and other.grad is not None
        close(one.grad, other.grad)
    check_compiled_decode_linear()
    times = {backend: milliseconds(attention(backend, 1024)[0]) for backend in ("cpp", "reference")}
    print(
        f"argus_kernels {argus_kernels.__version__}, torch {torch.__version__}, host helpers {host.backend()}: "
        f"attention forward and backward over 1,024 events {times['cpp']:.2f} ms, "
        f"in plain PyTorch {times['reference']:.2f} ms"
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
