"""The CUDA kernel of rowwise_adagrad_ and its launcher as the backend "cuda_on_host", for tests only."""

from __future__ import annotations

import ctypes

import torch

from argus_kernels.core import Backend
from argus_kernels.core.records import Given
from argus_kernels.ops.rowwise_adagrad import native
from argus_kernels.ops.rowwise_adagrad.arguments import Arguments
from tests.csrc.simt import host_executor

DTYPES = {torch.float32: 0, torch.bfloat16: 2, torch.float16: 3}
SOURCES = (
    host_executor.REPOSITORY / "csrc/rowwise_adagrad/rowwise_adagrad_cuda.cu",
    host_executor.HERE / "rowwise_adagrad.cpp",
)


class Params(ctypes.Structure):
    """argus::rowwise_adagrad::Params."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("table", "state", "gradients", "rows", "order", "piece_sums")),
        *((name, ctypes.c_int64) for name in ("table_rows", "table_stride", "count", "width")),
        *((name, ctypes.c_int) for name in ("table_dtype", "state_dtype", "gradient_dtype")),
        *((name, ctypes.c_double) for name in ("lr", "eps", "weight_decay")),
    )


def rowwise_adagrad(given: Arguments) -> None:
    """What the CUDA library does with these arguments, its launch included; RuntimeError with the executor's report."""
    if given.row_gradients.numel() == 0:
        return
    ordered, order = given.rows.sort(stable=True)
    gradients = given.row_gradients.contiguous()
    params = Params(
        table=given.table.data_ptr(),
        state=given.state.data_ptr(),
        gradients=gradients.data_ptr(),
        rows=ordered.data_ptr(),
        order=order.data_ptr(),
        table_rows=given.table.shape[0],
        table_stride=given.table.stride(0),
        count=given.rows.shape[0],
        width=given.table.shape[1],
        table_dtype=DTYPES[given.table.dtype],
        state_dtype=DTYPES[given.state.dtype],
        gradient_dtype=DTYPES[gradients.dtype],
        lr=given.lr,
        eps=given.eps,
        weight_decay=given.weight_decay,
    )
    host_executor.run("rowwise_adagrad", SOURCES, "rowwise_adagrad_on_host", params)


def _why_not(given: Given) -> list[str]:
    # Everything the CUDA backend wants, but on the CPU.
    return [reason for reason in native.why_not_cuda(given) if "expected cuda" not in reason]


BACKEND = Backend(host_executor.BACKEND, rowwise_adagrad, why_not=_why_not, available=host_executor.why_not)
