"""Loads the compiled libraries once, when first asked for, or says why one cannot be loaded.

    cpu   _ops_cpu.so, the ops' C++ kernels: torch.ops.argus_native
    cuda  _ops_cuda.so, the ops' CUDA C++ kernels under the same names; needs a CUDA build of torch
    host  the pybind11 module argus_kernels._host that argus_kernels.host stands on

Importing this module loads nothing. ARGUS_NATIVE_DISABLE=1, or a list such as "cuda,host", makes the libraries it
names behave as if they had not been built.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import json
import os
import sys
import sysconfig
import threading
from pathlib import Path
from typing import Any, Literal, get_args

import torch

Library = Literal["cpu", "cuda", "host"]
LIBRARIES: tuple[Library, ...] = get_args(Library)
TORCH_FLOOR = (2, 10)

INTERFACE = "2d293bbc9e02"
"""`interface()` of the library that this Python code calls; a test has the new value where an op's arguments change."""

_PACKAGE = Path(__file__).resolve().parent.parent
_PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
_FILES: dict[Library, str] = {
    "cpu": "_ops_cpu.so",
    "cuda": "_ops_cuda.so",
    "host": f"_host{sysconfig.get_config_var('EXT_SUFFIX')}",
}

_lock = threading.Lock()
_outcome: dict[Library, str | None] = {}
"""What became of each library that was asked for: None if it is loaded, else the reason why not."""


@functools.cache
def build_info() -> dict[str, Any]:
    """The record of the build: versions, compiler, and per library whether and why it was built; {} without one."""
    path = _PACKAGE / "_build_info.json"
    if not path.exists():
        return {}
    info: dict[str, Any] = json.loads(path.read_text())
    return info


def load(library: Library) -> bool:
    """Loads `library` unless that was tried before; whether it is usable."""
    return why_not(library) is None


def why_not(library: Library) -> str | None:
    """Why `library` is not usable, in one sentence; None if it is (it is loaded then)."""
    if library not in _FILES:
        raise ValueError(f"library is {library!r}, expected one of {', '.join(LIBRARIES)}")
    if library in _disabled(os.environ.get("ARGUS_NATIVE_DISABLE", "")):
        return f"{_FILES[library]} is switched off by ARGUS_NATIVE_DISABLE"
    if library not in _outcome:
        with _lock:
            if library not in _outcome:
                _outcome[library] = _try_to_load(library)
    return _outcome[library]


def require(library: Library) -> None:
    """Loads `library`, or raises RuntimeError with the reason why it cannot be."""
    reason = why_not(library)
    if reason is not None:
        raise RuntimeError(f"argus_kernels: {reason}")


@functools.cache
def op(name: str) -> Any:
    """The op `argus_native::name` of the loaded libraries; looked up once: the way through torch.ops takes 0.6 µs.

    It is what torch's OpOverload calls, whose own call takes 0.3 µs; the overload where a torch names that otherwise.
    """
    overload = getattr(torch.ops.argus_native, name).default
    return getattr(overload, "_op", overload)


@functools.lru_cache(maxsize=16)
def _disabled(setting: str) -> frozenset[str]:
    names = {name.strip() for name in setting.split(",")} - {"", "0"}
    unknown = names - {"1", *LIBRARIES}
    if unknown:
        expected = f"1, or a list of {', '.join(LIBRARIES)}"
        raise ValueError(f"ARGUS_NATIVE_DISABLE names {', '.join(sorted(unknown))}, expected {expected}")
    return frozenset(LIBRARIES) if "1" in names else frozenset(names)


def _try_to_load(library: Library) -> str | None:
    path = _PACKAGE / _FILES[library]
    if not path.exists():
        return _why_missing(library)
    if library == "host":
        return _try_to_import()
    installed = tuple(int(part) for part in torch.__version__.split(".")[:2])
    if installed < TORCH_FLOOR:
        return f"{path.name} needs torch {TORCH_FLOOR[0]}.{TORCH_FLOOR[1]} or later, and this is {torch.__version__}"
    if library == "cuda":
        if torch.version.cuda is None:
            return f"{path.name} is not loaded: torch {torch.__version__} is not a CUDA build"
        # The schemas and the ops that need no GPU are registered by the CPU library.
        if "cpu" not in _outcome:
            _outcome["cpu"] = _try_to_load("cpu")
        if _outcome["cpu"] is not None:
            return f"{path.name} needs {_FILES['cpu']}: {_outcome['cpu']}"
    try:
        torch.ops.load_library(str(path))
    except OSError as error:
        return f"{path.name} could not be loaded: {error.__cause__ or error}"
    if library == "cpu" and interface() != INTERFACE:
        return f"{path.name} was built from another version of csrc: its ops take other arguments; {_how_to_rebuild()}"
    return None


def interface() -> str:
    """A digest of the names, arguments and results of all loaded ops `argus_native::…`."""
    prefix = "argus_native::"
    names = sorted(name for name in torch._C._dispatch_get_all_op_names() if name.startswith(prefix))
    lines = []
    for name in names:
        schema = torch._C._get_schema(name, "")
        arguments = [f"{one.type} {one.name}{'=' * one.has_default_value()}" for one in schema.arguments]
        lines.append(f"{name}({', '.join(arguments)}) -> {', '.join(str(one.type) for one in schema.returns)}")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:12]


def _how_to_rebuild() -> str:
    """For a checkout, whose Python code may change while its libraries stay."""
    root = _PACKAGE.parent
    if (root / "setup.py").exists():
        return f"run `python setup.py build_ext --inplace` in {root}"
    return "install the package again"


def _try_to_import() -> str | None:
    try:
        importlib.import_module("argus_kernels._host")
    except ImportError as error:
        return f"{_FILES['host']} could not be imported: {error}"
    return None


def _why_missing(library: Library) -> str:
    record = build_info().get("libraries", {}).get(library)
    name = _FILES[library]
    if record is None:
        others = sorted(path.name for path in _PACKAGE.glob("_host.*.so")) if library == "host" else []
        if others:
            return f"{name} was not built, only {', '.join(others)}: it was built for another Python"
        return f"{name} was not built, and there is no record of a build; install the package with pip"
    if library == "host" and record["built"] and _PYTHON not in record.get("pythons", [_PYTHON]):
        listed = ", ".join(record["pythons"])
        return f"{name} is not in this package, which has it for Python {listed}; build the package on Python {_PYTHON}"
    if record["built"]:
        built_by = build_info().get("python", "unknown")
        return f"{name} was built, for Python {built_by}, but is not in {_PACKAGE}; install the package again"
    return f"{name} was not built: {record['reason']}"
