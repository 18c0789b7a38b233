"""Triton's interpreter in a rehearsal."""

from __future__ import annotations

import importlib.util

from argus_kernels.core import triton_support


def prepare() -> None:
    """Makes the interpreter ready where TRITON_INTERPRET=1 asks for it; does nothing elsewhere."""
    if triton_support.interpreted() and importlib.util.find_spec("triton") is not None:
        from argus_kernels.testing.triton_interpreter import prepare_interpreter

        prepare_interpreter()
