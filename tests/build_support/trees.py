"""Copies of the source tree to build in, so that nothing is built in the tree itself."""

from __future__ import annotations

import shutil
from pathlib import Path

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
