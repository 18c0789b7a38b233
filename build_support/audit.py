"""What the native libraries may ask of a machine: no Python, no torch beyond the floor, no C library after the tag's.

    python -m build_support.audit WHEEL_OR_LIBRARY...      prints what is wrong, exit status 1 if anything is
    python -m build_support.audit --record TORCH           rewrites torch_2_10_symbols.txt from an unpacked torch 2.10

torch's stable C functions are those that its headers `torch/csrc/stable/c/shim.h` and
`torch/csrc/inductor/aoti_torch/c/shim.h` declare, and those that its stable operators (`torch/csrc/stable/ops.h`) call.
torch_2_10_symbols.txt holds those of torch 2.10.0, the floor.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from build_support.decide import BuildError

FLOOR_SYMBOLS = Path(__file__).with_name("torch_2_10_symbols.txt")
SHIM_HEADERS = (
    "torch/csrc/stable/c/shim.h", "torch/csrc/inductor/aoti_torch/c/shim.h", "torch/csrc/stable/ops.h"
)  # fmt: skip
GLIBC = re.compile(r"GLIBC_(\d+)\.(\d+)")
TAG = re.compile(r"manylinux_(\d+)_(\d+)_")


@dataclass(frozen=True)
class Needed:
    """A symbol that a library takes from others, and the version it asks for ("GLIBC_2.27", or empty)."""

    name: str
    version: str


def needed(library: Path) -> list[Needed]:
    """The undefined dynamic symbols of a library, weak ones left out (it loads without them)."""
    program = shutil.which("nm")
    if program is None:
        raise BuildError("the audit of the native libraries needs nm; install binutils")
    done = subprocess.run([program, "-D", "--undefined-only", str(library)], capture_output=True, text=True)
    if done.returncode != 0:
        raise BuildError(f"nm cannot read {library}: {done.stderr.strip()}")
    strong = re.findall(r"^\s+U (\S+)$", done.stdout, re.MULTILINE)
    return [Needed(name, version) for name, _, version in (symbol.partition("@") for symbol in strong)]


def floor_symbols() -> frozenset[str]:
    """The stable C functions of torch 2.10.0."""
    lines = FLOOR_SYMBOLS.read_text().splitlines()
    return frozenset(line for line in lines if line and not line.startswith("#"))


def complaints(library: Path, glibc: tuple[int, int] | None = None) -> list[str]:
    """What an op library or a `_host` asks for and must not, a sentence each.

    glibc: the newest C library whose symbols it may use; None allows any.
    """
    symbols = needed(library)
    found = []
    if not library.name.startswith("_host"):
        python = sorted(one.name for one in symbols if re.match(r"_?Py[A-Z_]", one.name))
        if python:
            found.append(f"{library.name} uses Python: {', '.join(python)}")
        known = floor_symbols()
        torch = sorted(one.name for one in symbols if _of_torch(one.name) and one.name not in known)
        if torch:
            found.append(f"{library.name} uses what torch 2.10 has not declared stable: {', '.join(torch)}")
    if glibc is not None:
        newer = sorted(f"{one.name}@{one.version}" for one in symbols if _newer(one.version, glibc))
        if newer:
            found.append(f"{library.name} needs a C library after {glibc[0]}.{glibc[1]}: {', '.join(newer)}")
    return found


def _of_torch(name: str) -> bool:
    # Mangled names: a namespace of torch, at any depth of the symbol.
    return name.startswith(("aoti_", "torch_")) or bool(re.match(r"_Z.*(3c10|2at|5torch|5caffe2)", name))


def _newer(version: str, glibc: tuple[int, int]) -> bool:
    found = GLIBC.fullmatch(version.lstrip("@"))
    return found is not None and (int(found[1]), int(found[2])) > glibc


def glibc_of(wheel: Path) -> tuple[int, int] | None:
    """The oldest C library that a wheel's name promises to run with; None if it promises none."""
    found = [(int(major), int(minor)) for major, minor in TAG.findall(wheel.name)]
    return min(found, default=None)


def libraries_of(wheel: Path, folder: Path) -> Iterator[Path]:
    """Unpacks the shared libraries of a wheel into `folder`."""
    with zipfile.ZipFile(wheel) as opened:
        for name in opened.namelist():
            if name.endswith(".so") or ".so." in name:
                yield Path(opened.extract(name, folder))


def audit(path: Path) -> list[str]:
    """The complaints about a library, or about every library of a wheel."""
    if path.suffix != ".whl":
        return complaints(path)
    with tempfile.TemporaryDirectory() as folder:
        return [one for library in libraries_of(path, Path(folder)) for one in complaints(library, glibc_of(path))]


def declared(headers: Path) -> set[str]:
    """The C functions that torch's stable headers below `headers` declare or call."""
    texts = [(headers / name).read_text() for name in SHIM_HEADERS]
    return {name for text in texts for name in re.findall(r"\b((?:aoti_torch|torch)_\w+)\s*\(", text)}


def record(torch: Path) -> None:
    """Rewrites the list of the floor from the headers of an unpacked torch."""
    version = re.search(r"__version__ = '([^']+)'", (torch / "version.py").read_text())
    if version is None or not version[1].startswith("2.10."):
        raise BuildError(f"{torch} is torch {version[1] if version else 'unknown'}, expected 2.10")
    names = sorted(declared(torch / "include"))
    head = f"# The C functions that {', '.join(SHIM_HEADERS)} of torch {version[1].partition('+')[0]} have.\n"
    head += "# Written by `python -m build_support.audit --record TORCH`.\n"
    FLOOR_SYMBOLS.write_text(head + "\n".join(names) + "\n")
    print(f"{len(names)} symbols written to {FLOOR_SYMBOLS}")


def main(arguments: Sequence[str]) -> int:
    """Audits wheels and libraries."""
    parser = argparse.ArgumentParser(prog="python -m build_support.audit", description=__doc__)
    parser.add_argument("paths", nargs="*", type=Path, metavar="WHEEL_OR_LIBRARY")
    parser.add_argument("--record", type=Path, metavar="TORCH", help="the folder of an unpacked torch 2.10")
    given = parser.parse_args(arguments)
    if given.record is not None:
        record(given.record)
    found = [f"{path.name}: {one}" for path in given.paths for one in audit(path)]
    print("\n".join(found) if found else f"{len(given.paths)} audited, nothing found")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
