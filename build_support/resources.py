"""The resources of the compiled CUDA kernels: registers, spills, shared memory and matrix instructions per
architecture.

    python -m build_support.resources [folder]

compiles csrc/<op>/*.cu and writes the figures as cuda.md into the folder, benchmarks/results/static/ by default. No GPU
is needed; tests/build_support/test_compile_targets.py holds the limits.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from build_support.compile import NOT_OPS, nvcc_flags
from build_support.decide import DEFAULT_ARCHITECTURES, BuildError, Toolkit, find_compiler, find_toolkit

ROOT = Path(__file__).resolve().parents[1]
ARCHITECTURES = tuple(name.removesuffix("+PTX") for name in DEFAULT_ARCHITECTURES)
SHARED_LIMIT = {"80": 163 << 10, "90a": 227 << 10, "100": 227 << 10}
"""Bytes of shared memory that a block may have (CUDA programming guide, table of compute capabilities)."""
STATIC_SHARED_LIMIT = 48 << 10
FLAGS = nvcc_flags(DEFAULT_ARCHITECTURES)
"""Those of the library, so that what is measured is what is shipped."""
COUNTED = ("HMMA", "HGMMA", "UTMALDG", "UBLKCP", "UBLKRED", "LDSM", "LDGSTS", "LDG.E.128", "STG.E.128")
"""Instructions worth counting: mma, wgmma, TMA load, bulk copy and add, ldmatrix, cp.async, and global accesses of
16 bytes."""


@dataclass(frozen=True)
class Figures:
    """One kernel for one architecture; bytes are per thread, except shared memory, which is per block."""

    source: str
    kernel: str
    architecture: str
    registers: int
    stack_bytes: int
    spill_bytes: int
    shared_bytes: int
    instructions: dict[str, int]


def op_kernels(root: Path = ROOT) -> list[Path]:
    """The .cu files of the ops."""
    return sorted(path for path in root.glob("csrc/*/*.cu") if path.parent.name not in NOT_OPS)


def cuobjdump() -> str | None:
    """The cuobjdump on PATH, else the one that Triton carries."""
    found = shutil.which("cuobjdump")
    triton = find_spec("triton") if found is None else None
    if triton is not None and triton.submodule_search_locations:
        bundled = Path(triton.submodule_search_locations[0], "backends", "nvidia", "bin", "cuobjdump")
        found = str(bundled) if bundled.exists() else None
    return found


def measure(
    source: Path,
    toolkit: Toolkit,
    include: Sequence[Path] = (),
    kept: Path | None = None,
    flags: Sequence[str] = FLAGS,
) -> list[Figures]:
    """Compiles `source` for every architecture and reads its kernels' figures from ptxas and the machine code.

    Args:
        source: a .cu file.
        toolkit: whose nvcc compiles it, as `build_support.compile` does.
        include: further folders of headers.
        kept: the path where the object file is kept; if not given, it is deleted.
        flags: nvcc's flags; those of the library if not given.

    Raises:
        BuildError: nvcc refuses the source, or runs products of wgmma one after the other (C7508, C7510, C7515).
    """
    name = os.path.relpath(source, ROOT)
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "kernels.o" if kept is None else kept
        command = [str(toolkit.nvcc), "-ccbin", find_compiler(os.environ).program, *flags, "-Xptxas=-v"]
        words = [*command, *(f"-I{path}" for path in include), "-c", name, "-o", str(output)]
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
        if done.returncode != 0:
            raise BuildError(f"nvcc refuses {source}:\n{done.stdout}{done.stderr}")
        if "wgmma.mma_async instructions are serialized" in done.stdout + done.stderr:
            raise BuildError(f"ptxas serializes the wgmma of {source}:\n{done.stdout}{done.stderr}")
        counts = _instructions(output)
    return [
        Figures(name, kernel, architecture, registers, stack, spilled, shared, counts.get((kernel, architecture), {}))
        for kernel, architecture, registers, stack, spilled, shared in _ptxas_lines(
            _demangled(done.stdout + done.stderr)
        )
    ]


def _ptxas_lines(text: str) -> list[tuple[str, str, int, int, int, int]]:
    """Kernel, architecture, registers, stack, spilled and shared bytes out of ptxas -v."""
    pattern = (
        r"Compiling entry function '(?P<kernel>[^\n]+)' for 'sm_(?P<architecture>\w+)'\n"
        r"[^\n]*Function properties[^\n]*\n\s*(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, "
        r"(?P<loads>\d+) bytes spill loads\n[^\n]*Used (?P<registers>\d+) registers(?P<rest>[^\n]*)"
    )
    found = []
    for match in re.finditer(pattern, text):
        shared = re.search(r"(\d+) bytes smem", match["rest"])
        spilled = int(match["stores"]) + int(match["loads"])
        numbers = (int(match["registers"]), int(match["stack"]), spilled, int(shared[1]) if shared else 0)
        found.append((match["kernel"], match["architecture"], *numbers))
    return sorted(found, key=lambda one: (one[0], int(one[1].rstrip("af"))))


def _instructions(binary: Path) -> dict[tuple[str, str], dict[str, int]]:
    """How often each kernel's machine code has the instructions in COUNTED, by kernel and architecture."""
    program = cuobjdump()
    if program is None:
        return {}
    near = {**os.environ, "PATH": f"{Path(program).parent}{os.pathsep}{os.environ.get('PATH', '')}"}
    listing = subprocess.run([program, "-sass", str(binary)], capture_output=True, text=True, env=near, check=True)
    counted = "|".join(map(re.escape, COUNTED))
    pattern = rf"^[ \t]*(?:arch = sm_(\w+)|Function : (\S+))$|\*/ +(?:@!?U?P\w+ )?({counted})"
    counts: dict[tuple[str, str], Counter[str]] = {}
    architecture, kernel = "", ""
    for place in re.finditer(pattern, listing.stdout, re.MULTILINE):
        if place[1]:
            architecture = place[1]
        elif place[2]:
            kernel = place[2]
            counts[kernel, architecture] = Counter()
        else:
            counts[kernel, architecture][place[3]] += 1
    # Only the names: a listing has a million lines.
    names = _demangled("\n".join(kernel for kernel, _ in counts)).split("\n")
    return {(name, one[1]): dict(counted) for name, (one, counted) in zip(names, counts.items(), strict=True)}


def _demangled(text: str) -> str:
    program = shutil.which("c++filt")
    return subprocess.run([program], input=text, capture_output=True, text=True).stdout if program else text


def table(figures: Sequence[Figures], toolkit: Toolkit) -> str:
    """The figures as a Markdown page."""
    lines = [
        "# What nvcc makes of the CUDA kernels",
        "",
        f"nvcc {toolkit.version}, written by `python -m build_support.resources`. Bytes of stack and spills are a",
        "thread's, of static shared memory a block's.",
        "",
        "| kernel | sm | registers | stack | spills | shared | instructions |",
        "|---|---|---:|---:|---:|---:|---|",
    ]
    for one in figures:
        counted = ", ".join(f"{count} × {name}" for name, count in one.instructions.items()) or "–"
        kernel = re.sub(r"^void |\(.*\)$", "", one.kernel).replace("|", r"\|")
        lines.append(
            f"| `{kernel}` | {one.architecture} | {one.registers} | {one.stack_bytes} | {one.spill_bytes} | "
            f"{one.shared_bytes} | {counted} |"
        )
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str]) -> None:
    """Compiles every kernel for every architecture and writes cuda.md (minutes)."""
    parser = argparse.ArgumentParser(prog="python -m build_support.resources", description=main.__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT / "benchmarks" / "results" / "static")
    folder: Path = parser.parse_args(arguments).folder
    toolkit = find_toolkit(os.environ)
    if toolkit is None:
        raise SystemExit("build_support.resources: no working nvcc in CUDA_HOME, on PATH or in /usr/local/cuda")
    figures = [one for source in op_kernels() for one in measure(source, toolkit)]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cuda.md").write_text(table(figures, toolkit))
    print(f"{len(figures)} kernels written to {folder}/cuda.md")


if __name__ == "__main__":
    main(sys.argv[1:])
