"""Builds the native libraries of argus_kernels; the metadata is in pyproject.toml.

Which libraries are built and why is decided in build_support/decide.py (its docstring lists the environment
variables), printed, and written into argus_kernels/_build_info.json for the package to read.
"""

from __future__ import annotations

import json
import os
import platform
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
from build_support import decide  # noqa: E402

if int(setuptools_version.split(".")[0]) < 77:
    raise SystemExit(f"error: building argus-kernels needs setuptools 77 or later, and this is {setuptools_version}")

PACKAGE = "argus_kernels"
INFO = "_build_info.json"
MODULES = {"cpu": f"{PACKAGE}._ops_cpu", "cuda": f"{PACKAGE}._ops_cuda", "host": f"{PACKAGE}._host"}


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

    extensions: list[Extension]
    build_info: dict[str, Any]
    built: dict[str, Path]

    def get_ext_filename(self, fullname: str) -> str:
        """The op libraries do not depend on a Python version, so their names carry no version tag."""
        parts = fullname.split(".")
        if parts[-1].startswith("_ops_"):
            return str(Path(*parts).with_suffix(".so"))
        return super().get_ext_filename(fullname)

    def build_extensions(self) -> None:
        """Decides, prints, compiles and copies."""
        try:
            info, built = build_native()
        except decide.BuildError as error:
            raise SetupError(str(error)) from None
        self.extensions = [extension for extension in self.extensions if extension.name in built]
        self.build_info, self.built = info, built
        for extension in self.extensions:
            target = Path(self.get_ext_fullpath(extension.name))
            target.parent.mkdir(parents=True, exist_ok=True)
            self.copy_file(str(built[extension.name]), str(target))
        write_info(Path(self.build_lib) / PACKAGE, info)

    def copy_extensions_to_source(self) -> None:
        """In an editable install the libraries and the record are placed beside the sources."""
        folder = ROOT / PACKAGE
        remove_stale(folder, {path.name for path in self.built.values()})
        for path in self.built.values():
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
        if native_wanted():
            return
        print("argus-kernels: no native library (ARGUS_NATIVE=0)")
        libraries = {key: {"built": False, "reason": "ARGUS_NATIVE=0"} for key in MODULES}
        folder = ROOT / PACKAGE if self.editable_mode else Path(self.build_lib) / PACKAGE
        remove_stale(folder, set())
        write_info(folder, {"libraries": libraries})


def build_native() -> tuple[dict[str, Any], dict[str, Path]]:
    """Builds the libraries; the record of the build, and the file of each module that was built."""
    compiler = decide.find_compiler(os.environ)
    toolkit = decide.find_toolkit(os.environ)
    cuda = decide.decide_cuda(os.environ, toolkit, decide.gpu_present())
    libraries = [native.cpu_library(ROOT), native.host_library(ROOT)]
    reasons = {"cpu": compiler.version, "host": compiler.version, "cuda": cuda.reason}
    if cuda.build and toolkit is not None:
        libraries.append(native.cuda_library(ROOT, cuda, toolkit))
    built_keys = {library.key for library in libraries}
    records: dict[str, Any] = {}
    for key in MODULES:
        records[key] = {"built": key in built_keys, "reason": reasons[key]}
        detail = f" for {', '.join(cuda.architectures)}" if key == "cuda" and cuda.build else ""
        verb = "building" if key in built_keys else "not building"
        print(f"argus-kernels: {verb} {MODULES[key]}{detail} ({reasons[key]})", flush=True)
    for library in libraries:
        flags = library.compile_flags + library.nvcc_flags
        records[library.key]["flags"] = [flag for flag in flags if "/" not in flag]
    records["cuda"]["architectures"] = list(cuda.architectures)
    info = {
        "python": platform.python_version(),
        "torch": version("torch"),
        "torch_floor": "2.10",
        "compiler": compiler.version,
        "nvcc": toolkit.version if toolkit else None,
        "libraries": records,
    }
    paths = native.build(libraries, ROOT, ROOT / "build" / "native", compiler, toolkit)
    return info, {MODULES[key]: path for key, path in paths.items()}


def native_wanted() -> bool:
    """Whether to build any native library at all."""
    return decide.flag(os.environ, "ARGUS_NATIVE") is not False


setup(
    ext_modules=[Extension(name, sources=[]) for name in MODULES.values()] if native_wanted() else [],
    cmdclass={"build_ext": BuildNative, "build_py": BuildPython},
)
