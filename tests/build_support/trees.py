"""Copies of the source tree to build in, so that nothing is built in the tree itself, and what was built of it."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from build_support import compile as native
from build_support import decide

REPOSITORY = Path(__file__).resolve().parents[2]
FOLDERS = ("argus_kernels", "python_model", "build_support", "csrc", "benchmarks", "docs")


def copy_of_tree(target: Path) -> Path:
    """Copies what a build reads into the new folder `target`, without anything compiled."""
    ignored = shutil.ignore_patterns(".venv", ".git", "build", "dist", "*.egg-info", "*.so", "__pycache__", ".*_cache")
    target.mkdir()
    for path in REPOSITORY.iterdir():
        if path.name in FOLDERS:
            shutil.copytree(path, target / path.name, ignore=ignored)
        elif path.is_file() and not path.name.startswith(".git"):
            shutil.copy2(path, target / path.name)
    return target


@contextmanager
def compiled_here() -> Iterator[Path | None]:
    """The folder of the objects of this tree's build, while no other build runs; None where some are out of date."""
    libraries = [native.cpu_library(REPOSITORY), native.host_library(REPOSITORY)]
    directory = REPOSITORY / "build" / "native"
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, open(directory / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        rules = Path(folder) / "as-here.ninja"
        rules.write_text(native.ninja_text(libraries, Path("build/native"), decide.find_compiler(os.environ), None))
        command = [native.ninja_program(), "-n", "-f", str(rules)]
        answer = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True).stdout
        yield directory if "no work to do" in answer else None
