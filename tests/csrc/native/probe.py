"""csrc/common compiled for ctypes, so that its pieces are tested without an op around them."""

from __future__ import annotations

import ctypes
import dataclasses
import os
from functools import cache
from pathlib import Path

import pytest

from build_support import compile as native
from build_support import decide

REPOSITORY = Path(__file__).resolve().parents[3]
SOURCES = ("csrc/common/cpu/matmul.cpp", "csrc/common/cpu/matmul_pack.cpp", "tests/csrc/native/probe.cpp")


@cache
def library_path() -> Path:
    """Compiles the library where its sources have changed; skips the test where there is no compiler.

    It is built as the ops' library and in its folder: their common sources need not be compiled again.
    """
    try:
        compiler = decide.find_compiler(os.environ)
    except decide.BuildError as error:
        pytest.skip(str(error))
    probe = dataclasses.replace(native.cpu_library(REPOSITORY), file="probe.so", sources=SOURCES, link_flags=())
    return native.build([probe], REPOSITORY, REPOSITORY / "build" / "native", compiler, None)["cpu"]


@cache
def library() -> ctypes.CDLL:
    """The compiled probe."""
    loaded = ctypes.CDLL(str(library_path()))
    loaded.bfloat16_unit.restype = ctypes.c_char_p
    return loaded


def sizes(*values: int) -> ctypes.Array[ctypes.c_int64]:
    """An int64 array for the probe's functions."""
    return (ctypes.c_int64 * len(values))(*values)
