"""Attention on sm_90's loops (TMA, wgmma) as backends "cuda_loop_on_host" of the SIMT executor.

As in the CUDA library a kernel of mma.sync sums the gradients of bias tables before the backward loop.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from typing import Any

import pytest
from torch import Tensor

from argus_kernels.core import Backend, Op
from argus_kernels.ops.causal_attention import OP as CAUSAL
from argus_kernels.ops.causal_attention import native as causal
from argus_kernels.ops.hstu_attention import OP as HSTU
from argus_kernels.ops.hstu_attention import native as hstu
from tests.csrc.simt import attention_on_host, host_executor

NAME = "cuda_loop_on_host"


@cache
def library(op: Op) -> ctypes.CDLL:
    """The op's launcher, compiled for the executor."""
    name = f"attention_loop_{op.name.removesuffix('_attention')}"
    return host_executor.load(name, (host_executor.HERE / f"{name}.cpp",))


@cache
def backward_library(op: Op) -> ctypes.CDLL:
    """The launcher of the op's backward loop, compiled for the executor."""
    name = f"attention_backward_{op.name.removesuffix('_attention')}"
    return host_executor.load(name, (host_executor.HERE / f"{name}.cpp",))


def _backward(op: Op, launch: Callable[..., Any]) -> Callable[..., Any]:
    return partial(launch, loaded=partial(backward_library, op))


def _launched(op: Op, launch: Callable[..., Any]) -> Callable[..., Any]:
    return partial(launch, loaded=partial(library, op))


BACKENDS: dict[Op, Backend] = {
    CAUSAL: replace(
        attention_on_host.CAUSAL_ATTENTION,
        name=NAME,
        forward=partial(causal.forward, launch=_launched(CAUSAL, attention_on_host.causal_attention_cuda)),
        backward=partial(causal.backward, launch=_backward(CAUSAL, attention_on_host.causal_attention_cuda_backward)),
    ),
    HSTU: replace(
        attention_on_host.HSTU_ATTENTION,
        name=NAME,
        forward=partial(hstu.forward, launch=_launched(HSTU, attention_on_host.hstu_attention_cuda)),
        backward=partial(hstu.backward, launch=_backward(HSTU, attention_on_host.hstu_attention_cuda_backward)),
    ),
}


def register(monkeypatch: pytest.MonkeyPatch) -> None:
    """Adds the backends to their ops for a test; skips it where there is no executor."""
    for op, backend in BACKENDS.items():
        reason = backend.available()
        if reason is not None:
            pytest.skip(reason)
        monkeypatch.setattr(op, "backends", (*op.backends, backend))


def wide(arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments in float64."""
    return {
        name: one.double() if isinstance(one, Tensor) and one.is_floating_point() else one
        for name, one in arguments.items()
    }
