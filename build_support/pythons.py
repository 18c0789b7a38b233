"""The Pythons that the pybind11 module `_host` is built for: the running one, or those that ARGUS_PYTHONS lists."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from build_support.decide import BuildError

VERSIONS = ("3.10", "3.11", "3.12", "3.13", "3.14")
"""The Pythons that a wheel for every Python carries `_host` for."""

_QUESTION = """
import json, sys, sysconfig
name = sysconfig.get_config_var("EXT_SUFFIX")
print(json.dumps(["%d.%d" % sys.version_info[:2], sysconfig.get_paths()["include"], name]))
"""


@dataclass(frozen=True)
class Interpreter:
    """A Python: its program, its version ("3.12"), where its C headers lie and how its extension modules are named."""

    program: str
    version: str
    include: Path
    suffix: str

    @property
    def why_not(self) -> str | None:
        """Why nothing can be compiled for it; None if it can be."""
        if (self.include / "Python.h").exists():
            return None
        return f"the C headers of Python {self.version} ({self.include}/Python.h; a package such as python3-dev)"


def describe(program: str) -> Interpreter:
    """The Python that `program` starts; raises BuildError if it starts none."""
    try:
        answer = subprocess.run([program, "-I", "-c", _QUESTION], capture_output=True, text=True, timeout=60)
        version, include, suffix = json.loads(answer.stdout)
    except (OSError, subprocess.TimeoutExpired, ValueError):
        raise BuildError(f"ARGUS_PYTHONS lists {program!r}, which is no working Python") from None
    return Interpreter(program, version, Path(include), suffix)


def chosen(environment: Mapping[str, str]) -> tuple[Interpreter, ...]:
    """The Pythons of ARGUS_PYTHONS (programs, separated as in PATH), else the running one.

    Raises:
        BuildError: a program that is no Python, or two of one version.
    """
    programs = [program for program in environment.get("ARGUS_PYTHONS", "").split(os.pathsep) if program.strip()]
    interpreters = tuple(describe(program) for program in programs or [sys.executable])
    suffixes = [one.suffix for one in interpreters]
    if twice := [one for one in interpreters if suffixes.count(one.suffix) > 1]:
        listed = " and ".join(one.program for one in twice)
        raise BuildError(f"ARGUS_PYTHONS lists Python {twice[0].version} more than once: {listed}")
    return interpreters


def for_every_python(environment: Mapping[str, str]) -> bool:
    """Whether the wheel is to serve every Python (ARGUS_PYTHONS is set) and not only the running one."""
    return bool(environment.get("ARGUS_PYTHONS", "").strip(os.pathsep + " "))


def on_this_machine(environment: Mapping[str, str]) -> dict[str, Interpreter]:
    """A Python of each of VERSIONS that has C headers, by version: on PATH, of pyenv, of uv, of a manylinux image."""
    home = Path(environment.get("HOME", "/nonexistent"))
    pyenv = Path(environment.get("PYENV_ROOT", home / ".pyenv")) / "versions"
    result = {}
    for version in VERSIONS:
        digits = version.replace(".", "")
        candidates = [
            shutil.which(f"python{version}", path=environment.get("PATH")),
            *sorted(pyenv.glob(f"{version}.*/bin/python")),
            *sorted((home / ".local/share/uv/python").glob(f"cpython-{version}.*/bin/python{version}")),
            *sorted(Path("/opt/python").glob(f"cp{digits}-cp{digits}/bin/python")),
        ]
        for candidate in candidates:
            if candidate is None:
                continue
            try:
                found = describe(str(candidate))
            except BuildError:
                continue  # pyenv's programs on PATH stand for Pythons that are not chosen
            if found.version == version and found.why_not is None:
                result[version] = found
                break
    return result
