"""Takes golden vectors, one line each; on a CPU those of the executor's twins."""

from __future__ import annotations

import tempfile
from pathlib import Path

from benchmarks.gpu_session import golden
from benchmarks.gpu_session.context import Context
from build_support.decide import BuildError


def run(context: Context) -> None:
    """Builds the kernels and reports every vector."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            library = golden.build(context.device, Path(folder))
        except BuildError as error:
            context.leave_out("golden vectors", str(error))
            return
        for vector in golden.vectors(context.device, library):
            context.say("golden", **vector.as_values())
