"""Builds the native libraries in place, for one architecture, and reports whether they load then."""

from __future__ import annotations

import subprocess
import sys

from benchmarks.gpu_session.conductor import REPOSITORY
from benchmarks.gpu_session.context import Context
from benchmarks.gpu_session.steps import prepare


def run(context: Context) -> None:
    """Compiles according to ARGUS_CUDA and ARGUS_CUDA_ARCHS; the compiler's output is this process's output."""
    subprocess.run([sys.executable, "setup.py", "-q", "build_ext", "--inplace"], cwd=REPOSITORY, check=True)
    prepare.run(context, "libraries")
