"""The error rule for an op: every sample and dtype, repeated bit for bit, NaN in the padding."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor

from argus_kernels.core import Op, Sample
from argus_kernels.testing import captured_arguments, judged, run_op, small_samples
from benchmarks.gpu_session.cases import op_of, tile_samples, with_nan_padding
from benchmarks.gpu_session.context import Context, poisoned, resume_at
from benchmarks.gpu_session.interpreter import prepare
from benchmarks.harness.ceilings import DTYPES
from benchmarks.harness.verify import first_line

POOLED, MAX_DRAWS = 12, 12
"""Draws of a sample are pooled until each result has that many elements; how many draws at most."""


def run(context: Context, ops: str, backends: str, dtypes: str = "bf16,fp32,fp16") -> None:
    """Judges each backend of each op in each dtype (names with commas between them) on one sample after the other."""
    names = backends.split(",")
    if "triton" in names:
        prepare()
    work = [
        (op, backend, *one)
        for op in map(op_of, ops.split(","))
        for backend in names
        for one in _work(op, backend, context.rehearse)
        if one[1] in dtypes.split(",")
    ]
    for index, (op, backend, sample, dtype) in list(enumerate(work))[context.start :]:
        if context.left() < 0:
            context.leave_out(f"{len(work) - index} samples of {ops}", "the step's time was over")
            return
        started = time.monotonic()
        verdict = _verdict(op, backend, sample, DTYPES[dtype], context.device)
        took = round(time.monotonic() - started, 3)
        context.say("verdict", op=op.name, backend=backend, case=sample.name, dtype=dtype, seconds=took, **verdict)
        broken = poisoned(context.device)
        if broken:
            context.say("fault", op=op.name, backend=backend, case=sample.name, dtype=dtype, reason=broken)
            resume_at(index + 1)


def _work(op: Op, backend: str, rehearse: bool) -> list[tuple[Sample, str]]:
    """Several tiles first, in bfloat16 first: if the time runs out, the most important results are known."""
    tiles, small = tile_samples(op.name, rehearse), small_samples(op)
    if rehearse:
        # Samples of several tiles take half a minute in Triton's interpreter.
        wide = [(sample, "fp32") for sample in tiles] if backend != "triton" else []
        return [*wide, *((small[0], dtype) for dtype in ("bf16", "fp16"))]
    return [(sample, dtype) for samples in (tiles, small) for dtype in ("bf16", "fp32", "fp16") for sample in samples]


def _verdict(op: Op, backend: str, sample: Sample, dtype: torch.dtype, device: str) -> dict[str, Any]:
    """An outcome, and one sentence for each failure."""
    try:
        arguments = sample.draw(dtype, 0, device)
        reasons = op.backend(backend).reasons(captured_arguments(op, arguments))
        if reasons:
            return {"outcome": "not served", "sentences": reasons}
        verdicts = judged(op, sample, backend, dtype, device=device, enough=POOLED, most=MAX_DRAWS).values()
        wrong = [verdict.sentence for verdict in verdicts if not verdict.passed]
        wrong += _repeated(op, backend, sample, dtype, arguments)
    except Exception as error:  # a kernel may fail in any way: the reason is the result
        return {"outcome": "failed", "sentences": [first_line(error)]}
    return {"outcome": "wrong", "sentences": wrong} if wrong else {"outcome": "passed"}


def _repeated(op: Op, backend: str, sample: Sample, dtype: torch.dtype, arguments: dict[str, Any]) -> list[str]:
    """The changes from a second run and from NaN in the rows of padding; empty if there are none."""
    first = run_op(op, sample, arguments, backend, dtype=dtype).results
    wrong = [
        f"{name}: a second run gave other bits"
        for name, value in run_op(op, sample, arguments, backend, dtype=dtype).results.items()
        if not _same(value, first[name])
    ]
    padded = with_nan_padding(arguments)
    if padded is not None:
        wrong += [
            f"{name}: NaN in rows of padding changed it"
            for name, value in run_op(op, sample, padded, backend, dtype=dtype).results.items()
            if not _same(value, first[name])
        ]
    return wrong


def _same(left: Tensor, right: Tensor) -> bool:
    return torch.equal(left.isnan(), right.isnan()) and torch.equal(torch.nan_to_num(left), torch.nan_to_num(right))
