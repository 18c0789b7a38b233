"""Runs a tool of the CUDA toolkit over a call of an op, and parses its output."""

from __future__ import annotations

import csv
import io
import re
import subprocess
import sys
from collections.abc import Sequence

from benchmarks.gpu_session.context import Context


def watch(context: Context, tool: Sequence[str], *arguments: str) -> tuple[int, str]:
    """Runs the tool over the target (steps/target.py); returns its exit status and the output of both.

    Raises:
        subprocess.TimeoutExpired: the step's time was over first; the tool is killed.
    """
    target = [
        sys.executable, "-m", "benchmarks.gpu_session", "step", "target", *arguments, "--out", str(context.out),
        "--device", context.device, "--until", repr(context.until), *(["--rehearse"] if context.rehearse else []),
    ]  # fmt: skip
    timeout = max(context.left(), 0.1)
    done = subprocess.run(
        [*tool, *target], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=timeout
    )
    return done.returncode, done.stdout


def sanitizer_errors(output: str) -> list[str]:
    """The lines of compute-sanitizer's report that name an error or a hazard, without its prefix."""
    told = [line.removeprefix("=========").strip() for line in output.splitlines() if line.startswith("=========")]
    wanted = re.compile(r"^(Invalid|Error|Warning|Race|Potential|Program hit|Out-of-range|Misaligned|Uninitialized)")
    return [line for line in told if wanted.match(line)][:20]


def sanitizer_summary(output: str) -> str | None:
    """The last line of compute-sanitizer's report; None if the report is incomplete."""
    found = re.findall(r"^=+\s*((?:ERROR|RACECHECK) SUMMARY: .*)$", output, re.MULTILINE)
    return found[-1].strip() if found else None


def profiled_kernels(output: str) -> list[dict[str, object]]:
    """The kernels of ncu's `--csv --page details`: name, and by metric its value and unit."""
    lines = output.splitlines()
    first = next((index for index, line in enumerate(lines) if line.startswith('"ID"')), None)
    if first is None:
        return []
    kernels: dict[str, dict[str, object]] = {}
    for row in csv.DictReader(io.StringIO("\n".join(lines[first:]))):
        kernel = kernels.setdefault(row["ID"], {"kernel": row.get("Kernel Name", ""), "metrics": {}})
        metrics = kernel["metrics"]
        assert isinstance(metrics, dict)
        if row.get("Metric Name"):
            metrics[row["Metric Name"]] = [row.get("Metric Value"), row.get("Metric Unit")]
    return list(kernels.values())
