"""What building the native libraries needs, looked for before anything is imported that may be missing."""

from __future__ import annotations

import importlib.util
import re
import shutil
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version

from build_support import decide, pythons
from build_support.decide import BuildError

SETUPTOOLS = 77
PACKAGES = ("torch>=2.10", "pybind11>=2.13", "ninja")
"""What compiling needs beside setuptools."""


def native_wanted(environment: Mapping[str, str]) -> bool:
    """Whether to build any native library at all."""
    return decide.flag(environment, "ARGUS_NATIVE") is not False


def _number(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text.partition("+")[0])[:2])


def _absent(requirement: str, environment: Mapping[str, str]) -> bool:
    name, _, least = requirement.partition(">=")
    if name == "ninja" and shutil.which("ninja", path=environment.get("PATH")) is not None:
        return False
    if importlib.util.find_spec(name) is None:
        return True
    try:
        return bool(least) and _number(version(name)) < _number(least)
    except PackageNotFoundError:
        return False


def absent_packages(environment: Mapping[str, str]) -> list[str]:
    """The Python packages that a build needs and this environment lacks, as pip takes them."""
    wanted = (f"setuptools>={SETUPTOOLS}", *(PACKAGES if native_wanted(environment) else ()))
    return [requirement for requirement in wanted if _absent(requirement, environment)]


def require(environment: Mapping[str, str]) -> None:
    """Raises BuildError, in one sentence that names everything missing, where this environment cannot build."""
    packages = absent_packages(environment)
    needs = [f"Python packages (pip install {' '.join(repr(one) if '>' in one else one for one in packages)})"]
    needs = needs if packages else []
    alone = None
    if native_wanted(environment):
        try:
            decide.find_compiler(environment)
        except BuildError as error:
            alone = error
            needs.append("a C++20 compiler (g++ 12 or later, clang++; CXX names one)")
        needs += [reason for one in pythons.chosen(environment) if (reason := one.why_not)]
    if alone is not None and len(needs) == 1:
        raise alone
    if needs:
        listed = ", ".join(needs[:-1]) + " and " + needs[-1] if len(needs) > 1 else needs[0]
        pure = ", or set ARGUS_NATIVE=0 for a pure-Python package" if native_wanted(environment) else ""
        raise BuildError(
            f"building argus-kernels without build isolation needs {listed}; install what is missing{pure}"
        )
