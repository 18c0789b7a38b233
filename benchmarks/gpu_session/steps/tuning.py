"""Tries the configurations of an op's Triton kernels on one case; a line for each of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from argus_kernels.core.tuning import Tunable
from benchmarks import tune
from benchmarks.gpu_session.context import Context, poisoned, resume_at
from benchmarks.gpu_session.interpreter import prepare
from benchmarks.gpu_session.plan import TUNING_CASES
from benchmarks.gpu_session.steps import timing
from benchmarks.harness.cases import Spec
from benchmarks.harness.timing import Budget

BUDGET = Budget(seconds=0.3, min_repeats=5, max_repeats=30)
REHEARSAL = Budget(seconds=0.0, min_repeats=1, max_repeats=1)


def run(context: Context, op: str) -> None:
    """Tries all configurations of the forward kernel, then those of the others."""
    prepare()
    spec, index = spec_of(op, context), 0
    for tunable in tunables(op, context):
        first = max(context.start - index, 0)
        index += min(first, len(tunable.configs))
        if first >= len(tunable.configs):
            continue
        for trial in tune.trials(tunable, spec, context.device, REHEARSAL if context.rehearse else BUDGET, first):
            index += 1
            context.say(
                "trial",
                op=op,
                kernel=tunable.kernel,
                case=spec.sample.name,
                index=trial.index,
                config=dict(trial.config),
                keys=[asdict(key) for key in trial.keys],
                ms=trial.ms,
                dropped=trial.dropped,
            )
            if poisoned(context.device):
                resume_at(index)
            if context.left() < 0:
                context.leave_out(f"tuning of {op} after {tunable.kernel} {trial.index}", "the step's time was over")
                return


def tunables(op: str, context: Context) -> Sequence[Tunable]:
    """The kernels of an op with configurations to choose from; in a rehearsal two of the first kernel's."""
    found = tune.declared([op])[op]
    if not context.rehearse:
        return found
    first = found[0]
    return [Tunable(first.kernel, first.backend, first.configs[:2], first.backward)]


def spec_of(op: str, context: Context) -> Spec:
    """The case that the op is tuned on, in bfloat16; a small one that the interpreter can run in a rehearsal."""
    return timing.spec_of(op, None, "fp16") if context.rehearse else timing.spec_of(op, TUNING_CASES[op], "bf16")
