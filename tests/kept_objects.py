"""What tests compile, kept from one run to the next under a digest of all that it was made of.

It lies in build/ of this tree, or in the folder ARGUS_TEST_CACHE, which several trees may share: .ci/run, which begins
with a new clone each time, names one.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
NEWEST = 8
"""How many versions of one thing stay: those of a few trees that share the folder."""


def folder(name: str) -> Path:
    """The folder for one kind of things, made where it is not there."""
    chosen = Path(os.environ.get("ARGUS_TEST_CACHE") or REPOSITORY / "build") / name
    chosen.mkdir(parents=True, exist_ok=True)
    return chosen


def digest(*parts: str | bytes) -> str:
    """Names a version: of the compiler's command and version, its flags and the text of every file that it reads."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def read_by(source: Path, folders: Sequence[Path]) -> list[Path]:
    """A source and all that it includes of this tree, headers of headers too; folders: those that are searched."""
    found, left = {source}, [source]
    while left:
        for name in re.findall(r'^#include "([^"]+)"', left.pop().read_text(), re.MULTILINE):
            new = {path for folder in folders if (path := folder / name).exists()} - found
            found |= new
            left += new
    return sorted(found)


def make(target: Path, build: Callable[[Path], None], wait: bool = True) -> bool:
    """Calls `build` with the path to write where `target` (<name>-<digest>.<suffix>) is not there yet.

    Each name has a lock of its own, so that two processes make two things side by side and none of them twice. False
    where another process is at it and `wait` is false.
    """
    name = target.stem.rpartition("-")[0]
    with open(target.parent / f".{name}{target.suffix}.lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        if target.exists():
            os.utime(target)
            return True
        fresh = target.with_suffix(".new")
        build(fresh)
        os.replace(fresh, target)
        _forget(target.parent, name, target.suffix)
    return True


def _forget(place: Path, name: str, suffix: str) -> None:
    """Removes the versions that were used longest ago, and what lies beside them under the same digest."""
    found = [path for path in place.glob(f"{name}-*{suffix}") if path.stem.rpartition("-")[0] == name]
    for old in sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)[NEWEST:]:
        for one in place.glob(f"{old.stem}.*"):
            one.unlink()
