"""The CUDA kernels of causal_attention and hstu_attention as backends "cuda_on_host": the SIMT executor runs them."""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Callable, Sequence
from functools import cache, partial
from itertools import count
from typing import Any

import torch
from torch import Tensor

from argus_kernels.attention.dropout import dropped_below
from argus_kernels.attention.native import why_not_cuda
from argus_kernels.core import Backend
from argus_kernels.core.records import Given
from argus_kernels.ops.causal_attention import native as causal
from argus_kernels.ops.hstu_attention import native as hstu
from tests.csrc.simt import host_executor

DTYPES = {torch.float32: 0, torch.bfloat16: 2, torch.float16: 3}
SOURCES = (
    host_executor.REPOSITORY / "csrc/causal_attention/causal_attention_cuda.cu",
    host_executor.REPOSITORY / "csrc/hstu_attention/hstu_attention_cuda.cu",
    host_executor.HERE / "attention.cpp",
)
NO_WINDOW = 2**31 - 1
REACH_NUMBERS = 11
ADDRESSES = (
    *("offsets", "key_offsets", "visible", "position", "own_begin", "own_end", "prefix"),
    *("position_bias", "time_bias", "query_time", "key_time", "dropout_seed"),
)
"""Of attention::Arguments, in its order."""
OPTIONAL = (
    *("position_bias", "time_bias", "query_time", "key_time"),
    *("visible", "position", "own_begin", "own_end", "prefix", "key_offsets", "dropout_seed"),
)
"""The tensors of a native op that a call may leave out, in the order of its arguments."""
SEEDS = count()
"""Every call runs the threads in another order."""


class Heads(ctypes.Structure):
    """argus::attention::Heads."""

    _fields_ = (("data", ctypes.c_void_p), ("row_stride", ctypes.c_int64), ("head_stride", ctypes.c_int64))


class Arguments(ctypes.Structure):
    """argus::attention::Arguments."""

    _fields_ = (
        *((name, Heads) for name in ("q", "k", "v")),
        *((name, ctypes.c_void_p) for name in ADDRESSES),
        *((name, ctypes.c_int64) for name in ("rows", "key_rows")),
        *((name, ctypes.c_int32) for name in ("users", "heads", "key_heads", "width", "positions", "times", "window")),
        ("dropped_below", ctypes.c_uint32),
        *((name, ctypes.c_double) for name in ("kept_factor", "scale", "divisor")),
        ("dtype", ctypes.c_int),
    )


class Forward(ctypes.Structure):
    """argus::attention::Forward."""

    _fields_ = (("given", Arguments), ("out", ctypes.c_void_p), ("log_sum_exp", ctypes.c_void_p))


class Backward(ctypes.Structure):
    """argus::attention::Backward."""

    _fields_ = (
        ("given", Arguments),
        ("d_out", Heads),
        *(
            (name, ctypes.c_void_p)
            for name in ("out", "log_sum_exp", "d_log_sum_exp", "d_q", "d_k", "d_v", "d_position_bias", "d_time_bias")
        ),
        *((name, ctypes.c_void_p) for name in ("delta", "correction", "reach", "table_parts")),
        *((name, ctypes.c_void_p) for name in ("query_sums", "turns")),  # made by the loop's own launcher
    )


@cache
def library() -> ctypes.CDLL:
    """The launchers, compiled for the executor."""
    loaded = host_executor.load("attention", SOURCES)
    loaded.most_blocks.restype = ctypes.c_int64
    loaded.most_blocks.argtypes = [ctypes.c_int64, ctypes.c_int64]
    loaded.most_shared_bytes.restype = loaded.most_loop_bytes.restype = ctypes.c_int64
    return loaded


def causal_attention_cuda(
    q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, scale: float, window: int = 0, dropout: float = 0.0,
    *others: Any, loaded: Callable[[], ctypes.CDLL] = library,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """What the CUDA library does with these arguments, its launch included; RuntimeError with the executor's report."""
    history = _history(q, k, v, offsets, others)
    out, log_sum_exp = _like(q), _statistic(q)
    _poison(out, log_sum_exp)
    given = _arguments(history, scale, 1.0, window, dropout)
    _run("causal_attention_on_host", Forward(given, *_addresses(out, log_sum_exp)), loaded())
    return out, log_sum_exp


def hstu_attention_cuda(
    q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, alpha: float, divisor: float, window: int = 0,
    dropout: float = 0.0, *others: Any, loaded: Callable[[], ctypes.CDLL] = library,
) -> Tensor:  # fmt: skip
    """What the CUDA library does with these arguments."""
    out = _like(q)
    _poison(out)
    given = _arguments(_history(q, k, v, offsets, others), alpha, divisor, window, dropout)
    _run("hstu_attention_on_host", Forward(given, *_addresses(out, None)), loaded())
    return out


def causal_attention_cuda_backward(
    d_out: Tensor, d_log_sum_exp: Tensor, out: Tensor, log_sum_exp: Tensor, q: Tensor, k: Tensor, v: Tensor,
    offsets: Tensor, scale: float, window: int = 0, dropout: float = 0.0, need_position_bias: bool = False,
    need_time_bias: bool = False, *others: Any, loaded: Callable[[], ctypes.CDLL] = library,
) -> list[Tensor]:  # fmt: skip
    """What the CUDA library does with these arguments."""
    history = _history(q, k, v, offsets, others)
    results = _results(history, need_position_bias, need_time_bias)
    statistics = [torch.empty_like(log_sum_exp) for _ in range(2)]
    scratch = _scratch(history)
    _poison(*results, *statistics, *scratch)
    call = Backward(
        _arguments(history, scale, 1.0, window, dropout),
        _heads(d_out),
        *_addresses(out, log_sum_exp, d_log_sum_exp, *results, *statistics, *scratch),
    )
    _run("causal_attention_backward_on_host", call, loaded())
    return [result for result in results if result is not None]


def hstu_attention_cuda_backward(
    d_out: Tensor, q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, alpha: float, divisor: float, window: int = 0,
    dropout: float = 0.0, need_position_bias: bool = False, need_time_bias: bool = False, *others: Any,
    loaded: Callable[[], ctypes.CDLL] = library,
) -> list[Tensor]:  # fmt: skip
    """What the CUDA library does with these arguments."""
    history = _history(q, k, v, offsets, others)
    results = _results(history, need_position_bias, need_time_bias)
    scratch = _scratch(history)
    _poison(*results, *scratch)
    call = Backward(
        _arguments(history, alpha, divisor, window, dropout),
        _heads(d_out),
        *_addresses(None, None, None, *results, None, None, *scratch),
    )
    _run("hstu_attention_backward_on_host", call, loaded())
    return [result for result in results if result is not None]


def _history(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, others: Sequence[Any]) -> dict[str, Any]:
    """The tensors of a call by name, None where they are left out."""
    return {"q": q, "k": k, "v": v, "offsets": offsets, **dict(itertools.zip_longest(OPTIONAL, others))}


def _tables(history: dict[str, Any]) -> list[Tensor | None]:
    return [history["position_bias"], history["time_bias"]]


def _like(tensor: Tensor) -> Tensor:
    return torch.empty_like(tensor, memory_format=torch.contiguous_format)


def _statistic(q: Tensor) -> Tensor:
    rows, heads, _ = q.shape
    return torch.empty(heads, rows)


def _results(history: dict[str, Any], need_position_bias: bool, need_time_bias: bool) -> list[Tensor | None]:
    """Memory for the gradients of q, k, v and the tables, None for those that are not wanted."""
    tables = zip(_tables(history), (need_position_bias, need_time_bias), strict=True)
    return [
        *(_like(history[name]) for name in ("q", "k", "v")),
        *(torch.empty(table.shape) if needed and table is not None else None for table, needed in tables),
    ]


def _scratch(history: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """What each block of queries sees, and parts of the tables' gradients."""
    q, offsets = history["q"], history["offsets"]
    blocks = library().most_blocks(q.shape[0], offsets.shape[0] - 1)
    entries = sum(0 if table is None else table.shape[1] for table in _tables(history))
    return torch.empty(blocks, REACH_NUMBERS, dtype=torch.int32), torch.empty(blocks, q.shape[1], entries)


def _poison(*tensors: Tensor | None) -> None:
    """Fresh memory of a GPU may hold anything."""
    for tensor in tensors:
        if tensor is not None:
            tensor.fill_(torch.nan if tensor.is_floating_point() else 2**30)


def _addresses(*tensors: Tensor | None) -> tuple[int | None, ...]:
    return tuple(None if tensor is None else tensor.data_ptr() for tensor in tensors)


def _heads(tensor: Tensor) -> Heads:
    return Heads(tensor.data_ptr(), tensor.stride(0), tensor.stride(1))


def _arguments(history: dict[str, Any], scale: float, divisor: float, window: int, dropout: float) -> Arguments:
    q, k, v, offsets = (history[name] for name in ("q", "k", "v", "offsets"))
    tensors = history if history["key_offsets"] is not None else {**history, "key_offsets": offsets}
    rows, heads, width = q.shape
    return Arguments(
        *map(_heads, (q, k, v)),
        *_addresses(*(tensors[name] for name in ADDRESSES)),
        *(rows, k.shape[0], offsets.shape[0] - 1, heads, k.shape[1], width),
        *(0 if table is None else table.shape[1] for table in _tables(history)),
        min(window, NO_WINDOW) if window > 0 else NO_WINDOW,
        dropped_below(dropout),
        1 / (1 - dropout),
        scale,
        divisor,
        DTYPES[q.dtype],
    )


def _run(function: str, call: ctypes.Structure, loaded: ctypes.CDLL | None = None) -> None:
    report = ctypes.create_string_buffer(host_executor.REPORT_BYTES)
    arguments = (ctypes.byref(call), ctypes.c_uint64(next(SEEDS)), report, ctypes.c_size_t(len(report)))
    getattr(loaded or library(), function)(*arguments)
    if report.value:
        raise RuntimeError(report.value.decode())


def _why_not(given: Given) -> list[str]:
    # Everything the CUDA backend wants, but on the CPU.
    return [reason for reason in why_not_cuda(given) if "expected cuda" not in reason]


CAUSAL_ATTENTION = Backend(
    "cuda_on_host",
    partial(causal.forward, launch=causal_attention_cuda),
    partial(causal.backward, launch=causal_attention_cuda_backward),
    _why_not,
    host_executor.why_not,
)
HSTU_ATTENTION = Backend(
    "cuda_on_host",
    partial(hstu.forward, launch=hstu_attention_cuda),
    partial(hstu.backward, launch=hstu_attention_cuda_backward),
    _why_not,
    host_executor.why_not,
)
