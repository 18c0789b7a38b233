"""csrc/common compiled for ctypes, so that its pieces are tested without an op around them."""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import os
import shlex
import subprocess
from functools import cache
from pathlib import Path

import pytest

from build_support import decide

REPOSITORY = Path(__file__).resolve().parents[2]
SOURCES = ("csrc/common/matmul.cpp", "csrc/common/matmul_pack.cpp", "tests/native/probe.cpp")
FLAGS = ("-std=c++20", "-O3", "-fPIC", "-shared", "-fvisibility=hidden", "-ffp-contract=off", "-Wno-psabi", "-Icsrc")


@cache
def library_path() -> Path:
    """Compiles the library, once for each state of its sources; skips the test where there is no compiler."""
    try:
        compiler = decide.find_compiler(os.environ)
    except decide.BuildError as error:
        pytest.skip(str(error))
    files = [*(REPOSITORY / name for name in SOURCES), *sorted((REPOSITORY / "csrc/common").glob("*.h"))]
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:16]
    folder = REPOSITORY / "build" / "probe"
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"probe-{digest}.so"
    with open(folder / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            fresh = target.with_suffix(".new")
            command = [*shlex.split(compiler.command), *FLAGS, *SOURCES, "-o", str(fresh)]
            subprocess.run(command, cwd=REPOSITORY, check=True)
            os.replace(fresh, target)
    return target


@cache
def library() -> ctypes.CDLL:
    """The compiled probe."""
    loaded = ctypes.CDLL(str(library_path()))
    loaded.bfloat16_unit.restype = ctypes.c_char_p
    return loaded


def sizes(*values: int) -> ctypes.Array[ctypes.c_int64]:
    """An int64 array for the probe's functions."""
    return (ctypes.c_int64 * len(values))(*values)
