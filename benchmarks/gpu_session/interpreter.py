"""Triton's interpreter in a rehearsal."""

from __future__ import annotations

import importlib.util

from argus_kernels.core import triton_support


def prepare() -> None:
    """Prepares the interpreter if TRITON_INTERPRET=1 is set; otherwise does nothing."""
    if triton_support.interpreted() and importlib.util.find_spec("triton") is not None:
        from argus_kernels.testing.triton_interpreter import prepare_interpreter

        prepare_interpreter()
