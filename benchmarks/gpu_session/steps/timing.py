"""Times one case beside the best available peer; one line per pass and backend, as soon as it is known."""

from __future__ import annotations

import json

from benchmarks.gpu_session.cases import op_of, tile_samples
from benchmarks.gpu_session.context import Context
from benchmarks.gpu_session.plan import BACKENDS
from benchmarks.gpu_session.steps.machine import environment
from benchmarks.harness.cases import Spec, select
from benchmarks.harness.results import Record
from benchmarks.harness.runner import Run, Settings
from benchmarks.harness.timing import Budget

PEERS = (
    "sdpa_cudnn",
    "varlen",
    "flash_attn",
    "sdpa_padded",
    "linear_cross_entropy",
    "sparse_adagrad",
    "fbgemm",
    "eager",
)
"""Those that need no compiling, and no installing where a better one is there; `eager` is not timed for attention."""
SLOW_EAGER = ("causal_attention", "hstu_attention", "decode_attention")
"""Ops whose definition loops over users."""
BUDGET = Budget(seconds=1.0, min_repeats=5, max_repeats=50)
REHEARSAL = Budget(seconds=0.02, min_repeats=2, max_repeats=5)


def run(context: Context, op: str, case: str | None = None, kernels: str = "") -> None:
    """Verifies and times the case in bfloat16, in float32 in a rehearsal.

    kernels: if given, the process has its environment choose these of the CUDA backend's, which is timed alone; the
    lines then have their own kind, because their records have the keys of the usual ones.
    """
    spec = spec_of(op, case, "fp32" if context.rehearse else "bf16")
    backends = tuple(name for name in BACKENDS[context.device] if name != "triton" or context.device == "cuda")
    peers = tuple(name for name in PEERS if name != "eager" or op not in SLOW_EAGER)
    settings = Settings(
        device=context.device,
        budget=REHEARSAL if context.rehearse else BUDGET,
        backends=("cuda",) if kernels else backends,
        peers=() if kernels else peers,
    )

    def say(records: list[Record]) -> None:
        for record in records:
            found = json.loads(record.to_json())
            if kernels:
                context.say("record_of_kernels", kernels=kernels, record=found)
            else:
                context.say("record", record=found)

    session = Run([spec], settings, environment(context), on_pass=say)
    found = list(session.records())
    for (name, backend), reason in session.absent.items():
        context.leave_out(f"{name}[{backend}]", reason)
    if not any(found):
        context.leave_out(f"{op} {spec.sample.name}", "no backend serves it")


def spec_of(op: str, case: str | None, dtype: str) -> Spec:
    """The op's production case of that name, or its first sample of several tiles."""
    if case is None:
        return Spec(op_of(op), tile_samples(op, rehearse=True)[0], dtype)
    return select([op], [case], [dtype])[0]
