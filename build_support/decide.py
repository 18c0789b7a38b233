"""Which native libraries a build makes, for which GPU architectures, and why.

Everything here is a function of the environment variables, the compilers on the machine and whether an NVIDIA
GPU is present; torch is not asked, because its CPU build reports no CUDA toolkit.

    ARGUS_NATIVE=0        build no native library: a pure-Python package on the reference backends
    ARGUS_CUDA=0 | 1      never | always build the CUDA library; 1 without nvcc is an error
    ARGUS_CUDA_ARCHS      architectures of the CUDA library, "80;90a;100"
    TORCH_CUDA_ARCH_LIST  the same in torch's spelling, "8.0;9.0a;10.0+PTX"; ARGUS_CUDA_ARCHS wins
    CUDA_HOME, CUDA_PATH  where the CUDA toolkit is; else the nvcc on PATH, else /usr/local/cuda
    CXX                   the C++ compiler; else c++, g++ or clang++ on PATH
    CXXFLAGS              further flags for it, after the build's own
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

Environment = Mapping[str, str]

DEFAULT_ARCHITECTURES = ("80", "90a", "100+PTX")
"""Ampere, Hopper with its wgmma instructions, Blackwell; PTX of the newest for what comes after."""


class BuildError(Exception):
    """The requested build is impossible; the message is one sentence for the user."""


@dataclass(frozen=True)
class Compiler:
    """A C++ compiler: the command to run and the first line of its --version."""

    command: str
    version: str

    @property
    def program(self) -> str:
        """The compiler itself, without a launcher such as ccache in front."""
        words = self.command.split()
        launched = Path(words[0]).name in ("ccache", "sccache") and len(words) > 1
        return words[1] if launched else words[0]


@dataclass(frozen=True)
class Toolkit:
    """A CUDA toolkit: nvcc, the directory it belongs to, its version and the architectures it can compile."""

    nvcc: Path
    root: Path
    version: str
    architectures: frozenset[str]


@dataclass(frozen=True)
class CudaDecision:
    """Whether the CUDA library is built, for which architectures ("80", "90a", "100+PTX"), and the reason."""

    build: bool
    reason: str
    architectures: tuple[str, ...] = ()


def _output_of(command: list[str]) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout + done.stderr if done.returncode == 0 else None


def flag(environment: Environment, name: str) -> bool | None:
    """The switch `name` as True or False, None if it is unset; values other than 0 and 1 are errors."""
    value = environment.get(name, "").strip()
    if value not in ("", "0", "1"):
        raise BuildError(f"{name} is {value!r}, expected 0 or 1")
    return None if value == "" else value == "1"


def find_compiler(environment: Environment) -> Compiler:
    """The C++20 compiler to use; raises BuildError if there is none."""
    candidates = [environment["CXX"]] if environment.get("CXX") else ["c++", "g++", "clang++"]
    for command in candidates:
        if shutil.which(command.split()[0], path=environment.get("PATH")) is None:
            continue
        version = _output_of([*command.split(), "--version"])
        if version is None:
            continue
        if _output_of([*command.split(), "-std=c++20", "-fsyntax-only", "-x", "c++", "/dev/null"]) is None:
            raise BuildError(
                f"the C++ compiler {command} ({version.splitlines()[0]}) does not accept -std=c++20; "
                "install g++ 12 or later, name one in CXX, or set ARGUS_NATIVE=0 for pure Python"
            )
        return Compiler(command, version.splitlines()[0])
    raise BuildError(
        f"no C++ compiler found (looked for {', '.join(candidates)}); install one (g++ or clang++), "
        "name it in CXX, or set ARGUS_NATIVE=0 for a pure-Python package"
    )


def _toolkit_root(nvcc: Path) -> Path | None:
    # The nvcc on PATH may be a symbolic link or a shell wrapper around the real one; in both cases its dry run prints
    # its toolkit.
    report = _output_of([str(nvcc), "--dryrun", "-x", "cu", "/dev/null"])
    found = re.search(r"^#\$ TOP=(.+)$", report or "", re.MULTILINE)
    return Path(found.group(1)).resolve() if found else None


def find_toolkit(environment: Environment) -> Toolkit | None:
    """The CUDA toolkit of this machine; None if no working nvcc is found."""
    homes = [environment[name] for name in ("CUDA_HOME", "CUDA_PATH") if environment.get(name)]
    if homes:
        candidates = [Path(home) / "bin" / "nvcc" for home in homes]
    else:
        on_path = shutil.which("nvcc", path=environment.get("PATH"))
        candidates = ([Path(on_path)] if on_path else []) + [Path("/usr/local/cuda/bin/nvcc")]
    for nvcc in candidates:
        root = _toolkit_root(nvcc) if nvcc.exists() else None
        if root is None:
            continue
        release = re.search(r"release (\d+\.\d+)", _output_of([str(nvcc), "--version"]) or "")
        codes = re.findall(r"sm_(\w+)", _output_of([str(nvcc), "--list-gpu-code"]) or "")
        # --list-gpu-code omits 90a and similar names even if the toolkit can compile them.
        accelerated = {f"{code}a" for code in codes if code.isdigit() and int(code) >= 90}
        real = root / "bin" / "nvcc"
        return Toolkit(
            nvcc=real if real.exists() else nvcc,
            root=root,
            version=release.group(1) if release else "unknown",
            architectures=frozenset(codes) | accelerated,
        )
    return None


def gpu_present() -> bool:
    """Whether the NVIDIA driver lists a GPU."""
    return "GPU 0:" in (_output_of(["nvidia-smi", "-L"]) or "")


def parse_architectures(text: str, variable: str) -> tuple[str, ...]:
    """Architectures out of "80;90a;100+PTX" or torch's "8.0 9.0a 10.0+PTX", as ("80", "90a", "100+PTX")."""
    result = []
    for word in re.split(r"[;,\s]+", text.strip()):
        found = re.fullmatch(r"(\d+)(?:\.(\d))?([af]?)(\+PTX)?", word)
        if found is None:
            raise BuildError(f"{variable} names the architecture {word!r}, expected one like 80, 90a, 8.0 or 10.0+PTX")
        major, minor, suffix, ptx = found.groups(default="")
        result.append(f"{major}{minor}{suffix}{ptx}")
    return tuple(dict.fromkeys(result))


def _chosen_architectures(environment: Environment, toolkit: Toolkit) -> tuple[tuple[str, ...], str]:
    for variable in ("ARGUS_CUDA_ARCHS", "TORCH_CUDA_ARCH_LIST"):
        text = environment.get(variable, "").strip()
        if not text:
            continue
        chosen = parse_architectures(text, variable)
        unknown = [name for name in chosen if name.removesuffix("+PTX") not in toolkit.architectures]
        if unknown:
            raise BuildError(
                f"{variable} asks for {', '.join(unknown)}, which nvcc {toolkit.version} at {toolkit.root} "
                f"cannot compile; it knows {', '.join(sorted(toolkit.architectures))}"
            )
        return chosen, f"{variable} is set"
    known = tuple(name for name in DEFAULT_ARCHITECTURES if name.removesuffix("+PTX") in toolkit.architectures)
    left_out = [name for name in DEFAULT_ARCHITECTURES if name not in known]
    note = f"; nvcc {toolkit.version} is too old for {', '.join(left_out)}" if left_out else ""
    return known, f"default architectures{note}"


def decide_cuda(environment: Environment, toolkit: Toolkit | None, gpu: bool) -> CudaDecision:
    """Whether to build the CUDA library: yes if nvcc is found and architectures are named or a GPU is present.

    Args:
        environment: the environment variables.
        toolkit: what `find_toolkit` found.
        gpu: what `gpu_present` said.

    Raises:
        BuildError: ARGUS_CUDA=1 without nvcc, or an architecture that is malformed or unknown to nvcc.
    """
    forced = flag(environment, "ARGUS_CUDA")
    if forced is False:
        return CudaDecision(False, "ARGUS_CUDA=0")
    if toolkit is None:
        places = "CUDA_HOME" if environment.get("CUDA_HOME") else "PATH or /usr/local/cuda"
        if forced:
            raise BuildError(
                f"ARGUS_CUDA=1 asks for the CUDA library, but no working nvcc is in {places}; "
                "install the CUDA toolkit or point CUDA_HOME at it"
            )
        return CudaDecision(False, f"no working nvcc in {places}")
    named = any(environment.get(name, "").strip() for name in ("ARGUS_CUDA_ARCHS", "TORCH_CUDA_ARCH_LIST"))
    if not (forced or named or gpu):
        return CudaDecision(
            False,
            f"nvcc {toolkit.version} is here, but there is no GPU and no architecture list; "
            "set ARGUS_CUDA=1 or ARGUS_CUDA_ARCHS to build it",
        )
    architectures, why = _chosen_architectures(environment, toolkit)
    if forced:
        why = f"ARGUS_CUDA=1, {why}"
    elif not named:
        why = f"an NVIDIA GPU is present, {why}"
    return CudaDecision(True, why, architectures)
