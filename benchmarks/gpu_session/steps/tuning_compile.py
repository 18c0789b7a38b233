"""Compiles configurations into Triton's cache, in many processes at once, so that timing need not wait for it."""

from __future__ import annotations

from argus_kernels.core import tuning
from benchmarks.gpu_session.context import Context
from benchmarks.gpu_session.plan import parts_of_compiling
from benchmarks.gpu_session.steps.tuning import spec_of, tunables
from benchmarks.harness.verify import Judge
from benchmarks.tune import run_once


def run(context: Context, op: str, part: str) -> None:
    """Runs the op once under every n-th configuration; a failure recurs in the timing step, which reports it."""
    case = spec_of(op, context).draw(0, context.device).fresh()
    judge = Judge(case)
    for number, (tunable, config) in enumerate(
        (one, config) for one in tunables(op, context) for config in one.configs
    ):
        if number % parts_of_compiling() != int(part) or context.left() < 0:
            continue
        with tuning.forced(tunable.kernel, config):
            judge.verdict(tunable.backend)
            try:
                run_once(tunable, case)
            except Exception as error:  # a configuration may fail in any way
                print(f"{tunable.kernel} {dict(config)}: {error}")
