"""ncu over one call of an op: duration, throughputs, occupancy and registers of its kernels."""

from __future__ import annotations

import subprocess

from benchmarks.gpu_session import tools
from benchmarks.gpu_session.context import Context
from benchmarks.gpu_session.plan import find_tool

SECTIONS = ("SpeedOfLight", "LaunchStats", "Occupancy", "WarpStateStats")
MAX_KERNELS = 6
"""Of a call; each is run once for every pass that the metrics need."""


def run(context: Context, op: str, backend: str, case: str, part: str) -> None:
    """Reports ncu's measurements, one line per kernel."""
    program = find_tool("ncu")
    assert program is not None
    sections = [word for name in SECTIONS for word in ("--section", name)]
    command = (
        program, "--clock-control", "none", "--profile-from-start", "off", "--launch-count", str(MAX_KERNELS),
        *sections, "--csv", "--page", "details",
    )  # fmt: skip
    call = f"{op} {backend} {case} {part}"
    try:
        status, output = tools.watch(context, command, op, backend, case, part)
    except subprocess.TimeoutExpired:
        context.leave_out(f"profile of {call}", "the step's time was over")
        return
    kernels = tools.profiled_kernels(output)
    for kernel in kernels:
        context.say("profiled", op=op, backend=backend, case=case, part=part, **kernel)
    if status != 0 or not kernels:
        context.leave_out(f"profile of {call}", f"ncu ended with {status} and told of {len(kernels)} kernels")
        print(output[-6000:])
