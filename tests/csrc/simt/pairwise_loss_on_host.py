"""The backend "cuda_on_host" of pairwise_loss: its CUDA kernels and launchers on the SIMT executor; tests only."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from itertools import count
from typing import Any

import torch
from torch import Tensor

from argus_kernels.core import Backend
from argus_kernels.core.records import Given
from argus_kernels.ops.pairwise_loss import native
from argus_kernels.ops.pairwise_loss.arguments import Arguments
from tests.csrc.simt import host_executor

DTYPES = {torch.float32: 0, torch.bfloat16: 2, torch.float16: 3}
SOURCES = (
    host_executor.REPOSITORY / "csrc/pairwise_loss/pairwise_loss_cuda.cu",
    host_executor.HERE / "pairwise_loss.cpp",
)
SEEDS = count()
"""Every call runs the threads in another order."""
BLOCK_EVENTS = 32


class Params(ctypes.Structure):
    """argus::pairwise_loss::CudaParams."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("scores", "grades", "order", "sorted_times", "sorted_users")),
        *((name, ctypes.c_int64) for name in ("count", "window")),
        *((name, ctypes.c_int32) for name in ("users", "dtype")),
        *((name, ctypes.c_void_p) for name in ("sorted_scores", "sorted_grades", "begin", "end")),
        *((name, ctypes.c_void_p) for name in ("part_loss", "part_pairs", "part_concordant")),
        *((name, ctypes.c_void_p) for name in ("loss", "pairs", "concordant", "d_loss", "d_scores")),
    )


def _run(tensors: dict[str, Tensor], numbers: dict[str, int], backward: bool) -> None:
    size = tensors["scores"].shape[0]
    parts = -(-size // BLOCK_EVENTS)
    work = {
        "sorted_scores": torch.empty(size),
        "sorted_grades": torch.empty(size, dtype=torch.int64),
        "begin": torch.empty(size, dtype=torch.int32),
        "end": torch.empty(size, dtype=torch.int32),
        "part_loss": torch.empty(parts, dtype=torch.float64),
        "part_pairs": torch.empty(parts, dtype=torch.int64),
        "part_concordant": torch.empty(parts, dtype=torch.int64),
    }
    pointers: dict[str, Any] = {name: tensor.data_ptr() for name, tensor in (tensors | work).items()}
    params = Params(count=size, dtype=DTYPES[tensors["scores"].dtype], **numbers, **pointers)
    report = ctypes.create_string_buffer(host_executor.REPORT_BYTES)
    function = host_executor.load("pairwise_loss", SOURCES).pairwise_loss_on_host
    function(ctypes.byref(params), int(backward), ctypes.c_uint64(next(SEEDS)), report, ctypes.c_size_t(len(report)))
    if report.value:
        raise RuntimeError(report.value.decode())


def _inputs(given: Arguments) -> tuple[dict[str, Tensor], int]:
    *tensors, users = native.ordered_arguments(given)
    names = ("scores", "grades", "order", "sorted_users", "sorted_times")
    return dict(zip(names, tensors, strict=True)), users


def _results(scores: Tensor) -> dict[str, Tensor]:
    counts = {name: torch.zeros((), dtype=torch.int64) for name in ("pairs", "concordant")}
    return {"loss": torch.zeros(()), **counts, "d_loss": torch.zeros(()), "d_scores": torch.empty_like(scores)}


def forward(given: Arguments) -> tuple[Tensor, Tensor, Tensor]:
    """What the CUDA library does with these arguments; RuntimeError with the executor's report."""
    tensors, users = _inputs(given)
    results = _results(tensors["scores"])
    if given.scores.shape[0]:
        _run(tensors | results, {"users": users, "window": given.window}, backward=False)
    return results["loss"], results["pairs"], results["concordant"]


def backward(
    gradients: Sequence[Tensor],
    outputs: Sequence[Tensor],
    needs: dict[str, bool],
    given: Arguments,
) -> list[Tensor | None]:
    """The gradient of the scores."""
    tensors, users = _inputs(given)
    results = _results(tensors["scores"]) | {"d_loss": gradients[0].contiguous()}
    if given.scores.shape[0]:
        _run(tensors | results, {"users": users, "window": given.window}, backward=True)
    return [results["d_scores"]]


def _why_not(given: Given) -> list[str]:
    # Everything the CUDA backend wants, but on the CPU.
    return [reason for reason in native.why_not_cuda(given) if "expected cuda" not in reason]


PAIRWISE_LOSS = Backend("cuda_on_host", forward, backward, why_not=_why_not, available=host_executor.why_not)
