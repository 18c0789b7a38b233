"""The machine, its copy bandwidth and its matrix rates."""

from __future__ import annotations

from benchmarks.gpu_session.context import Context
from benchmarks.harness import results
from benchmarks.harness.ceilings import Ceilings, measure_ceilings
from benchmarks.harness.runner import Environment

DTYPES = ("fp32", "bf16")


def run(context: Context) -> None:
    """Measures the ceilings and reports them with the machine, the versions and the commit."""
    found = measure_ceilings(context.device, DTYPES, seconds=0.05 if context.rehearse else 0.5)
    context.say(
        "machine",
        machine=results.machine(context.device),
        versions=results.versions(),
        commit=results.source_commit(),
        copy_bytes_per_second=found.copy_bytes_per_second,
        flops_per_second=found.flops_per_second,
    )


def environment(context: Context) -> Environment:
    """The results of that step; measured now, briefly, if it has none."""
    for line in context.found().of("machine"):
        ceilings = Ceilings(line["copy_bytes_per_second"], line["flops_per_second"])
        return Environment(ceilings, line["machine"], line["versions"], line["commit"])
    ceilings = measure_ceilings(context.device, DTYPES, seconds=0.05)
    return Environment(ceilings, results.machine(context.device), results.versions(), results.source_commit())
