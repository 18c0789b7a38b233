"""compute-sanitizer over one small case of an op's CUDA kernels, forward and backward."""

from __future__ import annotations

import subprocess

from benchmarks.gpu_session import tools
from benchmarks.gpu_session.context import Context
from benchmarks.gpu_session.plan import find_tool


def run(context: Context, op: str, check: str) -> None:
    """Reports the findings of memcheck or racecheck."""
    program = find_tool("compute-sanitizer")
    assert program is not None
    command = (program, "--tool", check, "--error-exitcode", "9", "--print-limit", "20")
    try:
        status, output = tools.watch(context, command, op, "cuda", "tiles", "both")
    except subprocess.TimeoutExpired:
        context.leave_out(f"{check} of {op}", "the step's time was over")
        return
    summary = tools.sanitizer_summary(output)
    errors = tools.sanitizer_errors(output)
    context.say("sanitizer", op=op, check=check, exit_status=status, summary=summary, errors=errors)
    if status != 0:
        print(output[-6000:])
