"""The CUDA kernels of sampled_softmax_loss and their launchers as the backend "cuda_on_host", for tests only."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from argus_kernels.core import Backend
from argus_kernels.core.records import Given
from argus_kernels.ops.sampled_softmax_loss import native
from argus_kernels.ops.sampled_softmax_loss.arguments import Arguments
from argus_kernels.ops.sampled_softmax_loss.reduced import with_reduced
from tests.csrc.simt import host_executor

DTYPES = {torch.float32: 0, torch.bfloat16: 2, torch.float16: 3}
SOURCES = (
    host_executor.REPOSITORY / "csrc/sampled_softmax_loss/sampled_softmax_loss_cuda.cu",
    host_executor.HERE / "sampled_softmax_loss.cpp",
)
TENSORS = (
    "query", "positive", "candidates", "positive_ids", "candidate_ids", "log_q", "positive_log_q", "scale",
    "row_weight", "query_owner", "candidate_owner",
)  # fmt: skip
LEAVES = ("query", "positive", "candidates", "scale")


class Parameters(ctypes.Structure):
    """argus::sampled_softmax_loss::Inputs."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in TENSORS),
        *((name, ctypes.c_int64) for name in ("rows", "drawn", "width")),
        ("dtype", ctypes.c_int),
        ("refined", ctypes.c_bool),
    )


class Outputs(ctypes.Structure):
    """argus::sampled_softmax_loss::Outputs."""

    _fields_ = tuple((name, ctypes.c_void_p) for name in ("loss", "lse", "statistics"))


class Gradients(ctypes.Structure):
    """argus::sampled_softmax_loss::Gradients."""

    _fields_ = tuple(
        (name, ctypes.c_void_p) for name in ("d_loss", "d_lse", "statistics", *(f"d_{name}" for name in LEAVES))
    )


class Words(ctypes.Structure):
    """Words in the test library."""

    _fields_ = (("words", ctypes.c_void_p),)


class Cut(ctypes.Structure):
    """How many blocks the plan wants, how many score gradients a strip of rows may hold, and whether sm_90's loop."""

    _fields_ = (("blocks", ctypes.c_int64), ("strip_elements", ctypes.c_int64), ("loop", ctypes.c_int64))


CUT = Cut(3, 1 << 16, 0)
"""Small enough that a few hundred rows make several chunks, splits and strips."""


def blocks(rows: int, drawn: int, width: int) -> tuple[int, int, int]:
    """Blocks that a GPU gets in the forward pass, for a strip's score gradients and for its d_query."""
    found = (ctypes.c_int64 * 3)()
    library = host_executor.load("sampled_softmax_loss", SOURCES)
    library.sampled_softmax_loss_blocks(ctypes.c_int64(rows), ctypes.c_int64(drawn), ctypes.c_int64(width), found)
    return found[0], found[1], found[2]


def parameters_of(given: Arguments) -> tuple[Parameters, Arguments]:
    given = given._replace(
        **{name: value.contiguous() for name in TENSORS if (value := getattr(given, name)) is not None}
    )
    pointers = {name: value.data_ptr() for name in TENSORS if (value := getattr(given, name)) is not None}
    rows, width = given.query.shape
    parameters = Parameters(
        rows=rows,
        drawn=given.candidates.shape[0],
        width=width,
        dtype=DTYPES[given.query.dtype],
        refined=given.form == "refined",
        **pointers,
    )
    return parameters, given


def left_out_words(given: Arguments) -> Tensor:
    """What a block of the product loop knows of its scores: a word for each 64 rows × 256 candidates, a bit for each
    8 × 64 of them, p · 8 + g for the p-th 64 candidates and the g-th 8 rows. [⌈rows / 64⌉, ⌈candidates / 256⌉]"""
    parameters, given = parameters_of(given)
    words = torch.zeros(-(-given.query.shape[0] // 64), -(-given.candidates.shape[0] // 256), dtype=torch.int32)
    found = Words(words=words.data_ptr())
    host_executor.run("sampled_softmax_loss", SOURCES, "sampled_softmax_loss_left_out", parameters, found)
    return words


def forward(given: Arguments) -> tuple[Tensor, Tensor, Tensor]:
    """What the CUDA library's forward pass does with these arguments; RuntimeError with the executor's report."""
    parameters, given = parameters_of(given)
    rows = given.query.shape[0]
    loss, lse, statistics = torch.empty(rows), torch.empty(rows), torch.empty(2, rows)
    if rows:
        outputs = Outputs(loss=loss.data_ptr(), lse=lse.data_ptr(), statistics=statistics.data_ptr())
        host_executor.run("sampled_softmax_loss", SOURCES, "sampled_softmax_loss_on_host", parameters, outputs, CUT)
    return loss, lse, statistics


def backward(
    gradients: Sequence[Tensor], outputs: Sequence[Tensor], needs: dict[str, bool], given: Arguments
) -> list[Tensor | None]:
    """The same of the backward pass."""
    parameters, given = parameters_of(given)
    found = [torch.zeros_like(getattr(given, name)) if needs[name] else None for name in LEAVES]
    if given.query.shape[0]:
        d_loss, d_lse, statistics = gradients[0].contiguous(), gradients[1].contiguous(), outputs[2].contiguous()
        pointers = {
            f"d_{name}": value.data_ptr() for name, value in zip(LEAVES, found, strict=True) if value is not None
        }
        structure = Gradients(
            d_loss=d_loss.data_ptr(), d_lse=d_lse.data_ptr(), statistics=statistics.data_ptr(), **pointers
        )
        host_executor.run(
            "sampled_softmax_loss", SOURCES, "sampled_softmax_loss_backward_on_host", parameters, structure, CUT
        )
    return found


def _why_not(given: Given) -> list[str]:
    # Everything the CUDA backend wants, but on the CPU.
    return [reason for reason in native.why_not_cuda(given) if "expected cuda" not in reason]


BACKEND = with_reduced(
    Backend(host_executor.BACKEND, forward, backward, why_not=_why_not, available=host_executor.why_not)
)
