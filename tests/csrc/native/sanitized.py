"""The CPU libraries under the address and the undefined-behaviour sanitizer, and how to run Python with them."""

from __future__ import annotations

import dataclasses
import os
import subprocess
from pathlib import Path

from build_support import compile as native
from build_support import decide

REPOSITORY = Path(__file__).resolve().parents[3]
FLAGS = ("-g1", "-DARGUS_ONE_CLONE", "-fsanitize=address,undefined", "-fno-sanitize=vptr", "-fno-sanitize-recover=all")


def why_not() -> str | None:
    """Why nothing can be built with the sanitizers here, or None."""
    try:
        compiler = decide.find_compiler(os.environ)
    except decide.BuildError as error:
        return str(error)
    missing = [name for name in ("libasan.so", "libubsan.so") if not _runtime(compiler, name).is_file()]
    return f"the compiler has no {' and no '.join(missing)}" if missing else None


def build() -> dict[str, Path]:
    """The libraries by their key, "cpu" and "host"; what is up to date is kept from one run to the next."""
    compiler = decide.find_compiler(os.environ)
    libraries = [
        _instrumented(library) for library in (native.cpu_library(REPOSITORY), native.host_library(REPOSITORY))
    ]
    made = native.build(libraries, REPOSITORY, REPOSITORY / "build" / "sanitized", compiler, None)
    # That of the host has its Python's version in its key.
    return {key.partition("-")[0]: path for key, path in made.items()}


def environment() -> dict[str, str]:
    """That of a Python process which loads the libraries: torch and Python themselves are not instrumented."""
    compiler = decide.find_compiler(os.environ)
    runtimes = [str(_runtime(compiler, name)) for name in ("libasan.so", "libubsan.so")]
    return {
        **os.environ,
        "LD_PRELOAD": ":".join(runtimes),
        # Python frees little at its end. A size that no memory holds is an exception, as without the sanitizer.
        "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1:abort_on_error=1",
        "UBSAN_OPTIONS": "print_stacktrace=1:abort_on_error=1",
        "OMP_NUM_THREADS": "1",
    }


def _instrumented(library: native.Library) -> native.Library:
    # At -O3 the kernels take several times as long to compile, and what is read needlessly is left out.
    flags = ("-O0" if flag == "-O3" else flag for flag in library.compile_flags)
    return dataclasses.replace(
        library, compile_flags=(*flags, *FLAGS), link_flags=(*library.link_flags, "-fsanitize=address,undefined")
    )


def _runtime(compiler: decide.Compiler, name: str) -> Path:
    command = [compiler.program, f"-print-file-name={name}"]
    return Path(subprocess.check_output(command, text=True).strip()).resolve()
