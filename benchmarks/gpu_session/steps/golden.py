"""Takes golden vectors, one line each; on a CPU those of the executor's twins."""

from __future__ import annotations

import tempfile
from pathlib import Path

from benchmarks.gpu_session import golden
from benchmarks.gpu_session.context import Context, poisoned
from benchmarks.gpu_session.golden_vector import Vector
from benchmarks.harness.verify import first_line
from build_support.decide import BuildError


def run(context: Context, parts: str) -> None:
    """Builds the kernels of the parts (names with commas between them) that this device runs; reports every vector."""
    served = []
    for part in parts.split(","):
        reason = golden.why_not(part, context.device)
        if reason is None:
            served.append(part)
        else:
            context.leave_out(f"golden vectors of {part}", reason)
    if not served:
        return
    with tempfile.TemporaryDirectory() as folder:
        try:
            library = golden.build(context.device, Path(folder), served)
        except BuildError as error:
            context.leave_out(f"golden vectors of {', '.join(served)}", str(error))
            return
        _take(context, served, library)


def _take(context: Context, parts: list[str], library: Path) -> None:
    """A problem that fails is left out; so are those behind it if it broke the GPU's context."""
    for problem in golden.problems(parts):
        try:
            result = golden.evaluate(problem, context.device, library)
        except RuntimeError as error:
            context.leave_out(f"the golden vector {problem.name()}", first_line(error))
            broken = poisoned(context.device)
            if broken is None:
                continue
            context.leave_out(f"the other golden vectors of {', '.join(parts)}", broken)
            return
        context.say("golden", **Vector(problem, result).as_values())
