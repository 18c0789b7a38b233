"""Builds the native libraries of argus_kernels; the metadata is in pyproject.toml.

Which libraries are built and why is decided in build_support/decide.py (its docstring lists the environment
variables), printed, and written into argus_kernels/_build_info.json for the package to read.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from setuptools import Extension, setup
from setuptools import __version__ as setuptools_version
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py
from setuptools.errors import SetupError

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT))

from build_support import compile as native  # noqa: E402
from build_support import decide, pythons, tools  # noqa: E402

if int(setuptools_version.split(".")[0]) < tools.SETUPTOOLS:
    raise SystemExit(
        f"error: building argus-kernels needs setuptools {tools.SETUPTOOLS} or later, and this is {setuptools_version}"
    )

from setuptools.command.bdist_wheel import bdist_wheel  # noqa: E402

PACKAGE = "argus_kernels"
INFO = "_build_info.json"
LIBRARIES = {"cpu": "_ops_cpu", "cuda": "_ops_cuda", "host": "_host"}


def package_version() -> str:
    """`argus_kernels.__version__`, with the label of ARGUS_VERSION_LABEL ("cu130") behind it."""
    text = (ROOT / PACKAGE / "__init__.py").read_text()
    found = re.search(r'^__version__ = "([^"]+)"$', text, re.MULTILINE)
    if found is None:
        raise SystemExit(f"error: {PACKAGE}/__init__.py defines no __version__")
    label = os.environ.get("ARGUS_VERSION_LABEL", "")
    if not re.fullmatch(r"[a-z0-9.]*", label):
        raise SystemExit(f"error: ARGUS_VERSION_LABEL is {label!r}, expected letters, digits and dots, such as cu130")
    return f"{found[1]}+{label}" if label else found[1]


def write_info(folder: Path, info: dict[str, Any]) -> None:
    """Writes the build record into `folder`; does not touch the file if nothing changed."""
    text = json.dumps(info, indent=2) + "\n"
    path = folder / INFO
    if not path.exists() or path.read_text() != text:
        path.write_text(text)


def remove_stale(folder: Path, kept: set[str]) -> None:
    """Removes libraries of an earlier build that this build did not make."""
    for pattern in ("_ops_cpu.so", "_ops_cuda.so", "_host.*.so"):
        for path in folder.glob(pattern):
            if path.name not in kept:
                path.unlink()


class BuildNative(build_ext):
    """Builds the decided libraries with ninja instead of distutils' compilers."""

    build_info: dict[str, Any]
    built: list[Path]

    def build_extensions(self) -> None:
        """Decides, prints, compiles and copies."""
        try:
            self.build_info, self.built = build_native()
        except decide.BuildError as error:
            raise SetupError(str(error)) from None
        folder = Path(self.build_lib) / PACKAGE
        folder.mkdir(parents=True, exist_ok=True)
        remove_stale(folder, {path.name for path in self.built})
        for path in self.built:
            self.copy_file(str(path), str(folder / path.name))
        write_info(folder, self.build_info)

    def get_outputs(self) -> list[str]:
        """The files in the build folder: there may be a `_host` for each of several Pythons."""
        return [str(Path(self.build_lib) / PACKAGE / path.name) for path in getattr(self, "built", [])]

    def get_output_mapping(self) -> dict[str, str]:
        """In an editable install, the file beside the sources that stands for each in the build folder."""
        return {output: str(ROOT / PACKAGE / Path(output).name) for output in self.get_outputs() if self.inplace}

    def copy_extensions_to_source(self) -> None:
        """In an editable install the libraries and the record are placed beside the sources."""
        folder = ROOT / PACKAGE
        remove_stale(folder, {path.name for path in self.built})
        for path in self.built:
            fresh = folder / f"{path.name}.{os.getpid()}.new"
            shutil.copy2(path, fresh)
            # A rename does not disturb processes that have the old library mapped.
            os.replace(fresh, folder / path.name)
        write_info(folder, self.build_info)


class BuildPython(build_py):
    """Records that nothing native was built if ARGUS_NATIVE=0."""

    def run(self) -> None:
        """Copies the Python files, then writes the record if build_ext will not."""
        super().run()
        if tools.native_wanted(os.environ):
            return
        print("argus-kernels: no native library (ARGUS_NATIVE=0)")
        libraries = {key: {"built": False, "reason": "ARGUS_NATIVE=0"} for key in LIBRARIES}
        folder = ROOT / PACKAGE if self.editable_mode else Path(self.build_lib) / PACKAGE
        remove_stale(folder, set())
        write_info(folder, {"libraries": libraries})


class BuildWheel(bdist_wheel):
    """A wheel with a `_host` for each Python that ARGUS_PYTHONS lists serves every Python, and its name says so."""

    def get_tag(self) -> tuple[str, str, str]:
        """The wheel's Python, ABI and platform tags."""
        python, abi, platform_tag = super().get_tag()
        every = tools.native_wanted(os.environ) and pythons.for_every_python(os.environ)
        return ("py3", "none", platform_tag) if every else (python, abi, platform_tag)


def build_native() -> tuple[dict[str, Any], list[Path]]:
    """Builds the libraries; the record of the build, and the files."""
    tools.require(os.environ)
    compiler = decide.find_compiler(os.environ)
    toolkit = decide.find_toolkit(os.environ)
    cuda = decide.decide_cuda(os.environ, toolkit, decide.gpu_present())
    interpreters = pythons.chosen(os.environ)
    libraries = {"cpu": [native.cpu_library(ROOT)]}
    libraries["host"] = [native.host_library(ROOT, interpreter) for interpreter in interpreters]
    if cuda.build and toolkit is not None:
        libraries["cuda"] = [native.cuda_library(ROOT, cuda, toolkit)]
    versions = [interpreter.version for interpreter in interpreters]
    details = {"cuda": cuda.architectures, "host": [f"Python {version}" for version in versions]}
    records: dict[str, Any] = {}
    for key, name in LIBRARIES.items():
        built = key in libraries
        records[key] = {"built": built, "reason": cuda.reason if key == "cuda" else compiler.version}
        if built:
            flags = libraries[key][0].compile_flags + libraries[key][0].nvcc_flags
            records[key]["flags"] = [flag for flag in flags if "/" not in flag]
        detail = f" for {', '.join(details[key])}" if built and key in details else ""
        verb = "building" if built else "not building"
        print(f"argus-kernels: {verb} {PACKAGE}.{name}{detail} ({records[key]['reason']})", flush=True)
    records["cuda"]["architectures"] = list(cuda.architectures)
    records["host"]["pythons"] = versions
    info = {
        "python": platform.python_version(),
        "torch": version("torch"),
        "torch_floor": "2.10",
        "compiler": compiler.version,
        "nvcc": toolkit.version if toolkit else None,
        "libraries": records,
    }
    every = [library for several in libraries.values() for library in several]
    paths = native.build(every, ROOT, ROOT / "build" / "native", compiler, toolkit)
    return info, list(paths.values())


setup(
    version=package_version(),
    # build_ext makes the files itself; the extension stands for them and makes the wheel one of this platform.
    ext_modules=[Extension(f"{PACKAGE}._native", sources=[])] if tools.native_wanted(os.environ) else [],
    cmdclass={"build_ext": BuildNative, "build_py": BuildPython, "bdist_wheel": BuildWheel},
)
