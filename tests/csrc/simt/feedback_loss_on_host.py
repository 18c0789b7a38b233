"""The backend "cuda_on_host" of feedback_loss: its CUDA kernels and launchers on the SIMT executor; tests only."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from itertools import count
from typing import Any

import torch
from torch import Tensor

from argus_kernels.core import Backend
from argus_kernels.core.records import Given
from argus_kernels.ops.feedback_loss import native
from argus_kernels.ops.feedback_loss.arguments import Arguments
from tests.csrc.simt import host_executor

DTYPES = {torch.float32: 0, torch.bfloat16: 2, torch.float16: 3}
SOURCES = (
    host_executor.REPOSITORY / "csrc/feedback_loss/feedback_loss_cuda.cu",
    host_executor.HERE / "feedback_loss.cpp",
)
SEEDS = count()
"""Every call runs the threads in another order."""
TILE_ROWS, MAX_PARTS = 64, 528


class Params(ctypes.Structure):
    """argus::feedback_loss::CudaParams."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("hidden", "weight", "bias", "targets", "task_weight", "row_weight")),
        *((name, ctypes.c_int64) for name in ("rows", "width")),
        *((name, ctypes.c_int32) for name in ("columns", "tasks", "dtype")),
        ("classes", ctypes.c_int32 * native.MAX_TASKS),
        *((name, ctypes.c_void_p) for name in ("part_loss", "part_weight", "scale", "loss")),
        *((name, ctypes.c_void_p) for name in ("d_loss", "d_weight_part", "d_bias_part")),
        *((name, ctypes.c_void_p) for name in ("d_hidden", "d_weight", "d_bias")),
    )


def _run(given: Arguments, d_loss: Tensor, backward: bool) -> dict[str, Tensor]:
    """The kernels' results by name."""
    hidden, weight, bias, targets, classes, task_weight, row_weight = given
    (rows, width), columns, tasks = hidden.shape, weight.shape[1], len(classes)
    parts = min(-(-rows // TILE_ROWS), MAX_PARTS)
    tensors = {
        "hidden": hidden.contiguous(),
        "weight": weight.contiguous(),
        "bias": bias.contiguous(),
        "targets": targets.contiguous(),
        "task_weight": None if task_weight is None else task_weight.contiguous(),
        "row_weight": None if row_weight is None else row_weight.contiguous(),
        "part_loss": torch.empty(parts * tasks, dtype=torch.float64),
        "part_weight": torch.empty(parts * tasks, dtype=torch.float64),
        "scale": torch.empty(tasks),
        "loss": torch.zeros(tasks),
        "d_loss": d_loss.contiguous(),
        "d_weight_part": torch.empty(parts * columns * width),
        "d_bias_part": torch.empty(parts * columns),
        "d_hidden": hidden.new_zeros(rows, width),
        "d_weight": hidden.new_zeros(width, columns),
        "d_bias": hidden.new_zeros(columns),
    }
    if rows and tasks:
        pointers: dict[str, Any] = {name: None if t is None else t.data_ptr() for name, t in tensors.items()}
        params = Params(rows=rows, width=width, columns=columns, tasks=tasks, dtype=DTYPES[hidden.dtype], **pointers)
        params.classes[:tasks] = classes
        _call(params, backward)
    return {name: tensor for name, tensor in tensors.items() if tensor is not None}


def _call(params: Params, backward: bool) -> None:
    report = ctypes.create_string_buffer(host_executor.REPORT_BYTES)
    function = host_executor.load("feedback_loss", SOURCES).feedback_loss_on_host
    function(ctypes.byref(params), int(backward), ctypes.c_uint64(next(SEEDS)), report, ctypes.c_size_t(len(report)))
    if report.value:
        raise RuntimeError(report.value.decode())


def forward(given: Arguments) -> Tensor:
    """What the CUDA library does with these arguments; RuntimeError with the executor's report."""
    return _run(given, torch.zeros(len(given.classes)), backward=False)["loss"]


def backward(
    gradients: Sequence[Tensor], outputs: Sequence[Tensor], needs: dict[str, bool], given: Arguments
) -> list[Tensor | None]:
    """The gradients of hidden, weight and bias."""
    found = _run(given, gradients[0], backward=True)
    return [found["d_hidden"], found["d_weight"], found["d_bias"]]


def _why_not(given: Given) -> list[str]:
    # Everything the CUDA backend wants, but on the CPU.
    return [reason for reason in native.why_not_cuda(given) if "expected cuda" not in reason]


FEEDBACK_LOSS = Backend("cuda_on_host", forward, backward, why_not=_why_not, available=host_executor.why_not)
