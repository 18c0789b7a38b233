"""The CUDA kernels of causal_attention and hstu_attention as backends "cuda_on_host": the SIMT executor runs them."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from itertools import count
from typing import Any

import torch
from torch import Tensor

from argus_kernels.core import Backend
from tests.simt import host_executor

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
SOURCES = (
    host_executor.REPOSITORY / "csrc/causal_attention/causal_attention_cuda.cu",
    host_executor.REPOSITORY / "csrc/hstu_attention/hstu_attention_cuda.cu",
    host_executor.HERE / "attention.cpp",
)
NO_WINDOW = 2**31 - 1
SEEDS = count()
"""Every call runs the threads in another order."""


class Heads(ctypes.Structure):
    """argus::history::Heads."""

    _fields_ = (("data", ctypes.c_void_p), ("row_stride", ctypes.c_int64), ("head_stride", ctypes.c_int64))


class Arguments(ctypes.Structure):
    """argus::history::Arguments."""

    _fields_ = (
        *((name, Heads) for name in ("q", "k", "v")),
        *(
            (name, ctypes.c_void_p)
            for name in ("offsets", "visible", "position_bias", "time_bias", "query_time", "key_time")
        ),
        ("rows", ctypes.c_int64),
        *((name, ctypes.c_int32) for name in ("users", "heads", "width", "positions", "times", "window")),
        *((name, ctypes.c_float) for name in ("scale", "divisor")),
        ("dtype", ctypes.c_int),
    )


class Forward(ctypes.Structure):
    """argus::history::Forward."""

    _fields_ = (("given", Arguments), ("out", ctypes.c_void_p), ("log_sum_exp", ctypes.c_void_p))


class Backward(ctypes.Structure):
    """argus::history::Backward."""

    _fields_ = (
        ("given", Arguments),
        ("d_out", Heads),
        *(
            (name, ctypes.c_void_p)
            for name in ("out", "log_sum_exp", "d_log_sum_exp", "d_q", "d_k", "d_v", "d_position_bias", "d_time_bias")
        ),
        *((name, ctypes.c_void_p) for name in ("delta", "correction", "visible_bounds", "table_parts")),
    )


def library() -> ctypes.CDLL:
    """The launchers, compiled for the executor."""
    return host_executor.load("attention", SOURCES)


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _heads(tensor: Tensor) -> Heads:
    return Heads(tensor.data_ptr(), tensor.stride(0), tensor.stride(1))


def _run(function: str, call: ctypes.Structure) -> None:
    report = ctypes.create_string_buffer(host_executor.REPORT_BYTES)
    arguments = (ctypes.byref(call), ctypes.c_uint64(next(SEEDS)), report, ctypes.c_size_t(len(report)))
    getattr(library(), function)(*arguments)
    if report.value:
        raise RuntimeError(report.value.decode())


class _Call:
    """One call's arguments as the launchers take them; keeps what they point to."""

    def __init__(self, values: tuple[Any, ...], scale: float, divisor: float, window: int | None) -> None:
        q, k, v, offsets, _, visible, position_bias, time_bias, query_time, key_time = values
        self.q, self.k, self.v = (_aligned(tensor) for tensor in (q, k, v))
        self.tables = [
            None if table is None else table.detach().float().contiguous() for table in (position_bias, time_bias)
        ]
        self.rest = [None if one is None else one.contiguous() for one in (offsets, visible, query_time, key_time)]
        positions, times = (0 if table is None else table.shape[1] for table in self.tables)
        self.rows, self.heads, self.width = q.shape
        self.users = offsets.shape[0] - 1
        self.arguments = Arguments(
            _heads(self.q),
            _heads(self.k),
            _heads(self.v),
            *map(_address, (self.rest[0], self.rest[1], *self.tables, *self.rest[2:])),
            *(self.rows, self.users, self.heads, self.width, positions, times),
            NO_WINDOW if window is None else min(window, NO_WINDOW),
            scale,
            divisor,
            DTYPES[q.dtype],
        )


def _aligned(tensor: Tensor) -> Tensor:
    chunk = 16 // tensor.element_size()
    fits = tensor.stride(2) == 1 and tensor.stride(0) % chunk == 0 and tensor.stride(1) % chunk == 0
    return tensor if fits and tensor.data_ptr() % 16 == 0 else tensor.contiguous()


def _forward(op: str, call: _Call, statistics: bool) -> tuple[Tensor, Tensor]:
    out = torch.full(call.q.shape, torch.nan, dtype=call.q.dtype)
    log_sum_exp = torch.full((call.heads, call.rows), torch.nan)
    _run(f"{op}_on_host", Forward(call.arguments, out.data_ptr(), log_sum_exp.data_ptr() if statistics else None))
    return out, log_sum_exp


def causal_attention(*values: Any) -> tuple[Tensor, Tensor]:
    """The forward pass as the CUDA library runs it."""
    *history, scale, window = values
    return _forward("causal_attention", _Call(tuple(history), scale, 1.0, window), statistics=True)


def hstu_attention(*values: Any) -> Tensor:
    """The forward pass as the CUDA library runs it."""
    *history, alpha, divisor, window = values
    return _forward("hstu_attention", _Call(tuple(history), alpha, divisor, window), statistics=False)[0]


def _backward(
    op: str, call: _Call, gradients: list[Tensor], outputs: list[Tensor], needs: dict[str, bool]
) -> list[Tensor | None]:
    """All gradients; scratch is full of NaN, as fresh device memory may be."""
    blocks = library().most_blocks(ctypes.c_int64(call.rows), ctypes.c_int64(call.users))
    normalised = len(outputs) > 1
    d_out = _aligned(gradients[0])
    statistics = [outputs[1].contiguous(), gradients[1].contiguous()] if normalised else [None, None]
    d_qkv = [torch.full(call.q.shape, torch.nan, dtype=call.q.dtype) for _ in range(3)]
    d_tables = [
        torch.full_like(table, torch.nan) if table is not None and needs[name] else None
        for name, table in zip(("position_bias", "time_bias"), call.tables, strict=True)
    ]
    entries = call.arguments.positions + call.arguments.times
    scratch = [torch.full((call.heads, call.rows), torch.nan) for _ in range(2)]
    bounds = torch.full((blocks, 2), 2**30, dtype=torch.int32)
    parts = torch.full((blocks, call.heads, entries), torch.nan)
    _run(
        f"{op}_backward_on_host",
        Backward(
            call.arguments,
            _heads(d_out),
            outputs[0].data_ptr() if normalised else None,
            *map(_address, (*statistics, *d_qkv, *d_tables, *scratch, bounds, parts)),
        ),
    )
    return [*d_qkv, *d_tables]


def causal_attention_backward(
    gradients: list[Tensor], outputs: list[Tensor], needs: dict[str, bool], *values: Any
) -> list[Tensor | None]:
    """The backward pass as the CUDA library runs it."""
    *history, scale, window = values
    call = _Call(tuple(history), scale, 1.0, window)
    return _in_their_dtypes(_backward("causal_attention", call, gradients, outputs, needs), history)


def hstu_attention_backward(
    gradients: list[Tensor], outputs: list[Tensor], needs: dict[str, bool], *values: Any
) -> list[Tensor | None]:
    """The backward pass as the CUDA library runs it."""
    *history, alpha, divisor, window = values
    call = _Call(tuple(history), alpha, divisor, window)
    return _in_their_dtypes(_backward("hstu_attention", call, gradients, outputs, needs), history)


def _in_their_dtypes(gradients: list[Tensor | None], history: list[Any]) -> list[Tensor | None]:
    inputs = (history[0], history[1], history[2], history[6], history[7])
    return [None if found is None else found.to(one.dtype) for found, one in zip(gradients, inputs, strict=True)]


CAUSAL_ATTENTION = Backend(
    "cuda_on_host", causal_attention, causal_attention_backward, available=host_executor.why_not
)
HSTU_ATTENTION = Backend("cuda_on_host", hstu_attention, hstu_attention_backward, available=host_executor.why_not)
