"""Compiles the native libraries: writes one ninja file for all of them and runs it.

    _ops_cpu.so          LibTorch stable ABI; csrc/common/cpu/*.cpp and csrc/<op>/*.cpp
    _ops_cuda.so         LibTorch stable ABI; csrc/<op>/*.cu and csrc/<op>/<op>.cpp
    _host.<abi>.so       pybind11; csrc/host/*.cpp, once for each Python

An op's <op>.cpp (checks, allocation, registration) goes into both op libraries; with ARGUS_CUDA_LIBRARY defined
it registers the CUDA kernels, without it the schema and the CPU kernels. The folders csrc/attention and csrc/common
are headers that ops include; code for one processor or architecture is in .../cpu, .../cuda and .../cuda/sm90.
"""

from __future__ import annotations

import fcntl
import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from build_support.decide import BuildError, Compiler, CudaDecision, Toolkit
from build_support.pythons import Interpreter, describe

TORCH_FLOOR = "0x020a000000000000"
"""TORCH_TARGET_VERSION: the libraries use what torch 2.10 has and run under it and everything after."""

NOT_OPS = ("attention", "common", "host", "simt")


@dataclass(frozen=True)
class Library:
    """One shared library: its file name, sources (relative to the source tree) and flags."""

    key: str
    file: str
    sources: tuple[str, ...]
    compile_flags: tuple[str, ...]
    link_flags: tuple[str, ...] = ()
    nvcc_flags: tuple[str, ...] = field(default=())


def package_directory(name: str) -> Path:
    """The folder of the installed package `name`, without importing it."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise BuildError(
            f"building the native libraries needs {name}; install it first and build with "
            "--no-build-isolation, or set ARGUS_NATIVE=0 for a pure-Python package"
        )
    return Path(spec.submodule_search_locations[0])


def _sources(root: Path, pattern: str) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.glob(pattern))


def op_sources(root: Path) -> tuple[list[str], list[str]]:
    """The sources of _ops_cpu and of _ops_cuda."""
    cpu, cuda = _sources(root, "csrc/common/cpu/*.cpp"), []
    for folder in sorted(path for path in (root / "csrc").iterdir() if path.is_dir()):
        if folder.name in NOT_OPS:
            continue
        cpu += _sources(root, f"csrc/{folder.name}/*.cpp")
        kernels = _sources(root, f"csrc/{folder.name}/*.cu")
        if kernels:
            cuda += [*kernels, f"csrc/{folder.name}/{folder.name}.cpp"]
    return cpu, cuda


def _common_flags() -> list[str]:
    # No contraction: a multiply and an add round equally on every instruction set, so results do not depend on the
    # machine; kernels use a fused multiply-add explicitly.
    ours = ["-std=c++20", "-O3", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-Wall", "-Wno-psabi", "-Icsrc"]
    return [*ours, *shlex.split(os.environ.get("CXXFLAGS", ""))]


def _include(folder: Path, name: str) -> list[str]:
    # The prefix map keeps this machine's paths out of the libraries: the headers' checks print __FILE__.
    return [f"-isystem{folder}", f"-fmacro-prefix-map={folder}={name}"]


def _torch_flags(torch: Path) -> list[str]:
    return [*_include(torch / "include", "torch"), f"-DTORCH_TARGET_VERSION={TORCH_FLOOR}"]


def _undefined_allowed() -> list[str]:
    return ["-undefined", "dynamic_lookup"] if sys.platform == "darwin" else []


def _static_conversions() -> list[str]:
    # float16's conversions from the compiler's own archive: libgcc_s has them from GCC 12 on only, and a machine with
    # an older one could not load the library.
    return ["-lgcc"] if sys.platform == "linux" else []


def cpu_library(root: Path) -> Library:
    """The ops' CPU kernels."""
    torch = package_directory("torch")
    return Library(
        key="cpu",
        file="_ops_cpu.so",
        sources=tuple(op_sources(root)[0]),
        compile_flags=(*_common_flags(), *_torch_flags(torch)),
        link_flags=(
            f"-L{torch / 'lib'}",
            "-ltorch",
            "-ltorch_cpu",
            "-lc10",
            *_static_conversions(),
            *_undefined_allowed(),
        ),
    )


def host_library(root: Path, interpreter: Interpreter | None = None) -> Library:
    """The pybind11 module for numpy arrays, for one Python (default: the running one)."""
    pybind = package_directory("pybind11") / "include"
    interpreter = describe(sys.executable) if interpreter is None else interpreter
    return Library(
        key=f"host-{interpreter.version}",
        file=f"_host{interpreter.suffix}",
        sources=tuple(_sources(root, "csrc/host/*.cpp")),
        compile_flags=(*_common_flags(), *_include(pybind, "pybind11"), *_include(interpreter.include, "python")),
        link_flags=("-pthread", *_undefined_allowed()),
    )


def _cuda_runtime(toolkit: Toolkit) -> Path:
    for folder in (toolkit.root / "lib64", *sorted(toolkit.root.glob("targets/*/lib")), toolkit.root / "lib"):
        if (folder / "libcudart_static.a").exists():
            return folder
    raise BuildError(f"the CUDA toolkit at {toolkit.root} has no libcudart_static.a; install its development files")


CUDA_DEFINES = ("-DUSE_CUDA", "-DARGUS_CUDA_LIBRARY")


def nvcc_flags(architectures: Sequence[str]) -> tuple[str, ...]:
    """The flags of nvcc for kernels, for architectures such as "80", "90a" and "100+PTX".

    ARGUS_SM90A tells launchers that the library has code for TMA and wgmma, which compute capability 9.0 runs.
    """
    gencode = []
    for name in architectures:
        number = name.removesuffix("+PTX")
        code = f"sm_{number}" if number == name else f"[sm_{number},compute_{number}]"
        gencode.append(f"-gencode=arch=compute_{number},code={code}")
    ours = ("-std=c++20", "-O3", "-Icsrc", "-Xcompiler=-fPIC,-fvisibility=hidden")
    hopper = ("-DARGUS_SM90A",) if "90a" in {name.removesuffix("+PTX") for name in architectures} else ()
    return (*ours, *CUDA_DEFINES, *hopper, *gencode)


def cuda_library(root: Path, decision: CudaDecision, toolkit: Toolkit) -> Library:
    """The ops' CUDA kernels."""
    torch = package_directory("torch")
    return Library(
        key="cuda",
        file="_ops_cuda.so",
        sources=tuple(op_sources(root)[1]),
        compile_flags=(*_common_flags(), *_torch_flags(torch), *CUDA_DEFINES),
        nvcc_flags=nvcc_flags(decision.architectures),
        # With a CUDA build of torch libtorch_cuda comes with libtorch; --as-needed would drop that reference, and the
        # library would not load.
        link_flags=(
            "-Wl,--no-as-needed,--exclude-libs,ALL",
            f"-L{torch / 'lib'}",
            "-ltorch",
            "-ltorch_cpu",
            "-lc10",
            *_static_conversions(),
            f"-L{_cuda_runtime(toolkit)}",
            "-lcudart_static",
            "-lrt",
            "-lpthread",
            "-ldl",
        ),
    )


def _escaped(text: str) -> str:
    return text.replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


def _command(words: Iterable[str]) -> str:
    return " ".join(shlex.quote(word) for word in words).replace("$", "$$")


def ninja_text(libraries: list[Library], directory: Path, compiler: Compiler, toolkit: Toolkit | None) -> str:
    """The ninja file that compiles `libraries` into `directory`."""
    cxx = compiler.command
    lines = ["ninja_required_version = 1.5", f"builddir = {_escaped(str(directory))}", ""]
    for library in libraries:
        key = library.key
        flags = _command(library.compile_flags)
        lines += [f"rule cxx_{key}", f"  command = {cxx} -MD -MF $out.d {flags} -c $in -o $out"]
        lines += ["  depfile = $out.d", "  deps = gcc", "  description = c++ $in", ""]
        if library.nvcc_flags:
            assert toolkit is not None
            nvcc = _command([str(toolkit.nvcc), "-ccbin", compiler.program])
            lines += [f"rule nvcc_{key}"]
            lines += [f"  command = {nvcc} -MD -MF $out.d {_command(library.nvcc_flags)} -c $in -o $out"]
            lines += ["  depfile = $out.d", "  deps = gcc", "  description = nvcc $in", ""]
        link = f"{cxx} -shared $in -o $out {_command(library.link_flags)}"
        lines += [f"rule link_{key}", f"  command = {link}", "  description = link $out", ""]
        objects = []
        for source in library.sources:
            target = _escaped(str(directory / key / f"{source}.o"))
            rule = "nvcc" if source.endswith(".cu") else "cxx"
            lines.append(f"build {target}: {rule}_{key} {_escaped(source)}")
            objects.append(target)
        lines += [f"build {_escaped(str(directory / library.file))}: link_{key} {' '.join(objects)}", ""]
    return "\n".join(lines)


def ninja_program() -> str:
    """The ninja of this environment, else the one on PATH; raises BuildError if there is none."""
    if importlib.util.find_spec("ninja") is not None:
        from ninja import BIN_DIR

        return str(Path(BIN_DIR) / "ninja")
    found = shutil.which("ninja")
    if found is None:
        raise BuildError("building the native libraries needs ninja; install it (pip install ninja)")
    return found


def build(
    libraries: list[Library], root: Path, directory: Path, compiler: Compiler, toolkit: Toolkit | None
) -> dict[str, Path]:
    """Compiles what is out of date; returns the path of each library by its key. Concurrent runs are safe."""
    directory.mkdir(parents=True, exist_ok=True)
    relative = Path(os.path.relpath(directory, root))
    ninja_file = directory / "build.ninja"
    with open(directory / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        ninja_file.write_text(ninja_text(libraries, relative, compiler, toolkit))
        jobs = os.environ.get("MAX_JOBS") or str(os.cpu_count() or 1)
        command = [ninja_program(), "-f", str(relative / "build.ninja"), "-j", jobs]
        if subprocess.run(command, cwd=root).returncode != 0:
            raise BuildError("compiling the native libraries failed; the compiler's messages are above")
    return {library.key: directory / library.file for library in libraries}
