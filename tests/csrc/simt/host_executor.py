"""Builds and runs the test libraries of device code on the CPU: the executor as it is, device code instrumented.

An op's CUDA kernels become its backend "cuda_on_host" in tests/csrc/simt/<op>_on_host.py, which fills the launchers'
parameters and calls them through `run`; tests/csrc/simt/<op>.cpp puts device buffers in the place of host pointers.

What was compiled is kept (tests/kept_objects.py), so that it is compiled once, not once a process.
"""

from __future__ import annotations

import ctypes
import os
import shlex
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from itertools import count
from pathlib import Path

from build_support import decide
from tests import kept_objects

REPOSITORY = Path(__file__).resolve().parents[3]
HERE = Path(__file__).parent
FOLDER = kept_objects.folder("simt")
EXECUTOR = tuple(sorted((REPOSITORY / "csrc/simt").glob("*.cpp")))
WARNINGS = ("-Wall", "-Werror", "-Wno-unknown-pragmas")
FLAGS = (
    "-std=c++20",
    "-g1",
    "-fPIC",
    "-fvisibility=hidden",
    "-ffp-contract=off",
    *WARNINGS,
    "-Icsrc",
    "-Itests/csrc/simt",
)
PLAIN = ("-O2",)
# The thread sanitizer's instrumentation, without its runtime, shows every load and store to the executor.
INSTRUMENTED = ("-O1", "-fsanitize=thread,undefined", "-fno-sanitize=vptr", "-x", "c++")
ADDRESS = ("-O0", "-fsanitize=address,undefined", "-fno-sanitize=vptr", "-fno-sanitize-recover=all", "-x", "c++")
REPORT_BYTES = 4096
BACKEND = "cuda_on_host"
SEEDS = count()
"""Every call runs the threads in another order."""


@cache
def why_not() -> str | None:
    """Why device code cannot be run here, or None; found once a process, because every test asks for every op."""
    try:
        compiler = decide.find_compiler(os.environ)
    except decide.BuildError as error:
        return str(error)
    defined = subprocess.run(
        [*shlex.split(compiler.command), "-dM", "-E", "-x", "c++", os.devnull], capture_output=True, text=True
    ).stdout
    if "__clang__" in defined or "__GNUC__" not in defined:
        return f"the executor's checks need g++, and the compiler is {compiler.version}"
    return None


@cache
def why_not_address() -> str | None:
    """Why nothing can be built with the address sanitizer, or None."""
    missing = why_not()
    if missing is not None:
        return missing
    for library in ("libasan.so", "libubsan.so"):
        place = subprocess.check_output([*_compiler(), f"-print-file-name={library}"], text=True).strip()
        if place == library:
            return f"the compiler has no {library}"
    return None


@contextmanager
def pessimistic(*libraries: ctypes.CDLL) -> Iterator[None]:
    """Launches of these libraries compute, in this block, as far off as the hardware may: csrc/simt/arithmetic.h."""
    for library in libraries:
        library.simt_set_pessimistic(1)
    try:
        yield
    finally:
        for library in libraries:
            library.simt_set_pessimistic(0)


@cache
def load(name: str, sources: Sequence[Path]) -> ctypes.CDLL:
    """The library made of the executor and of `sources`, which hold device code."""
    # The executor comes first: of a function template that both use, the linker keeps the copy without instrumentation.
    parts = [*((PLAIN, path) for path in EXECUTOR), *((INSTRUMENTED, path) for path in sources)]
    for flags, path in parts:
        # Those first that no other process is compiling.
        _object(FOLDER, flags, path, wait=False)
    objects = [_object(FOLDER, flags, path) for flags, path in parts]
    library = FOLDER / f"{name}-{kept_objects.digest(*(path.name for path in objects))}.so"
    _make(library, ["-shared", "-Wl,-Bsymbolic", *map(str, objects)])
    return ctypes.CDLL(str(library))


def run(name: str, sources: Sequence[Path], function: str, *structures: ctypes.Structure | ctypes.c_int64) -> None:
    """Calls `function(structures…, seed, report, bytes)` of a library; RuntimeError with the executor's report."""
    report = ctypes.create_string_buffer(REPORT_BYTES)
    pointers = [ctypes.byref(structure) for structure in structures]
    call = getattr(load(name, sources), function)
    call(*pointers, ctypes.c_uint64(next(SEEDS)), report, ctypes.c_size_t(len(report)))
    if report.value:
        raise RuntimeError(report.value.decode())


def load_cases(name: str, sources: Sequence[Path]) -> ctypes.CDLL:
    """A library of named cases, for `runner`."""
    library = load(name, sources)
    library.case_name.restype = ctypes.c_char_p
    library.case_run.argtypes = [ctypes.c_int, ctypes.c_uint64, ctypes.c_char_p, ctypes.c_size_t]
    library.case_run.restype = None
    return library


def runner(library: ctypes.CDLL, names: set[str]) -> Callable[[str, int], str]:
    """What runs a case of the library, whose cases are these, under a seed: gives what went wrong, or nothing."""
    indices = {library.case_name(index).decode(): index for index in range(library.case_count())}
    assert set(indices) == names

    def run_case(name: str, seed: int) -> str:
        report = ctypes.create_string_buffer(REPORT_BYTES)
        library.case_run(indices[name], seed, report, len(report))
        return report.value.decode()

    return run_case


def program(name: str, sources: Sequence[Path]) -> Path:
    """The executable made of the executor and of `sources`, all under the compiler's own sanitizers."""
    executor = [path for path in EXECUTOR if path.name != "instrument.cpp"]
    objects = [_object(kept_objects.folder("simt/address"), ADDRESS, path) for path in (*executor, *sources)]
    made = FOLDER / f"{name}-{kept_objects.digest(*(path.name for path in objects))}.run"
    _make(made, ["-fsanitize=address,undefined", *map(str, objects)])
    return made


@cache
def _found() -> decide.Compiler:
    return decide.find_compiler(os.environ)


def _compiler() -> list[str]:
    return shlex.split(_found().command)


def _object(folder: Path, flags: Sequence[str], source: Path, wait: bool = True) -> Path:
    read = [path.read_bytes() for path in kept_objects.read_by(source, (REPOSITORY / "csrc", HERE))]
    version = kept_objects.digest(*_compiler(), _found().version, *FLAGS, *flags, source.name, *read)
    target = folder / f"{source.parent.name}-{source.name}-{version}.o"
    _make(target, [*FLAGS, *flags, "-c", str(source)], wait)
    return target


def _make(target: Path, arguments: Sequence[str], wait: bool = True) -> None:
    """Compiles or links `target` where it is not there; without `wait`, also where another process is at it."""

    def build(fresh: Path) -> None:
        command = [*_compiler(), *arguments, "-o", str(fresh)]
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")

    kept_objects.make(target, build, wait)
