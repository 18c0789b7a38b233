"""The portable kernels on another processor: compiled for aarch64, run under qemu, the same bits as on x86-64."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from build_support import compile as native
from build_support import decide
from tests import kept_objects

REPOSITORY = Path(__file__).resolve().parents[3]
CROSS = "aarch64-linux-gnu-g++"
EMULATOR = "qemu-aarch64"
SOURCES = [
    "tests/csrc/native/portable_kernels.cpp",
    "csrc/common/cpu/matmul.cpp",
    "csrc/common/cpu/matmul_pack.cpp",
    "csrc/decode_linear/decode_linear_cpu.cpp",
    "csrc/pairwise_loss/pairwise_loss_cpu.cpp",
    "csrc/rowwise_adagrad/rowwise_adagrad_cpu.cpp",
    "csrc/host/hash.cpp",
    "csrc/host/pack.cpp",
    "csrc/host/sketch.cpp",
]
FLAGS = ["-std=c++20", "-O2", "-ffp-contract=off", "-Wall", "-Wno-psabi", "-Icsrc", "-pthread"]


def compiled(compiler: str, sources: list[str], *flags: str) -> list[Path]:
    """The objects of the sources, two at a time, kept from run to run; of -fsyntax-only empty files."""
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout
    folder = kept_objects.folder("aarch64")

    def one(source: str) -> Path:
        read = [path.read_bytes() for path in kept_objects.read_by(REPOSITORY / source, [REPOSITORY / "csrc"])]
        own = [flag for flag in flags if not flag.startswith("-isystem")]
        digest = kept_objects.digest(compiler, version, torch.__version__, *FLAGS, *own, *read)
        target = folder / f"{source.replace('/', '_')}-{Path(compiler).name}-{digest}.o"

        def build(fresh: Path) -> None:
            fresh.touch()
            command = [compiler, *FLAGS, *flags, "-c", source, "-o", str(fresh)]
            done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr

        kept_objects.make(target, build)
        return target

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(one, sources))


def program(compiler: str, folder: Path, *flags: str) -> Path:
    """The kernels with `main`, linked statically where they are for another processor."""
    folder.mkdir()
    objects = [str(path) for path in compiled(compiler, SOURCES)]
    subprocess.run([compiler, *objects, "-o", str(folder / "kernels"), "-pthread", *flags], check=True)
    return folder / "kernels"


def require(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not on PATH; Debian has it in g++-aarch64-linux-gnu and qemu-user")
    return found


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() != "x86_64", reason="compares with x86-64")
def test_the_same_bits_on_aarch64(tmp_path: Path) -> None:
    cross, emulator = require(CROSS), require(EMULATOR)
    here = program(decide.find_compiler(os.environ).program, tmp_path / "x86")
    there = program(cross, tmp_path / "aarch64", "-static")
    portable = {**os.environ, "ARGUS_CPU_ISA": "portable"}
    expected = subprocess.run([here], env=portable, capture_output=True, text=True, check=True).stdout
    found = subprocess.run([emulator, there], capture_output=True, text=True, check=True).stdout
    assert len(expected.splitlines()) > 12
    assert found.splitlines() == expected.splitlines()


@pytest.mark.slow
def test_every_source_of_the_cpu_library_compiles_for_aarch64() -> None:
    cross = require(CROSS)
    flags = [
        f"-isystem{native.package_directory('torch') / 'include'}",
        f"-DTORCH_TARGET_VERSION={native.TORCH_FLOOR}",
        "-fPIC",
        "-fsyntax-only",
    ]
    cpu, _ = native.op_sources(REPOSITORY)
    assert len(compiled(cross, cpu, *flags)) == len(cpu)
