"""Runs of two source trees in turns, each in processes of its own, for `python -m benchmarks compare COMMIT`."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks.harness.results import REPOSITORY, Record, read_records
from benchmarks.harness.signals import unwound_by_sigterm

NATIVE = ("csrc", "build_support", "setup.py")
"""What the compiled libraries are made of: where it is the same in both trees, those of this one serve."""


@contextmanager
def tree_of(named: str) -> Iterator[Path]:
    """A source tree: a directory, or a commit, which is checked out to a temporary folder and built.

    Raises ValueError if it is neither. SIGTERM during the block removes the checkout, and then ends the process.
    """
    if (Path(named) / "benchmarks").is_dir():
        yield Path(named).resolve()
        return
    commit = _git("rev-parse", "--verify", "--quiet", f"{named}^{{commit}}")
    if not commit:
        raise ValueError(f"{named}: expected a results file, a source tree or a commit")
    with unwound_by_sigterm(), tempfile.TemporaryDirectory(prefix="argus-benchmark-") as folder:
        tree = Path(folder) / commit[:12]
        try:
            _git("worktree", "add", "--detach", "--quiet", str(tree), commit)
            _build(tree, commit)
            yield tree
        finally:
            _git("worktree", "remove", "--force", str(tree))


def in_turns(
    trees: Sequence[Path], rounds: int, options: Sequence[str], say: Callable[[str], None] = lambda text: None
) -> list[list[list[Record]]]:
    """The runs of every tree, one per round; the order of the trees in each round is random."""
    found: list[list[list[Record]]] = [[] for _ in trees]
    order = random.Random(0)
    with tempfile.TemporaryDirectory(prefix="argus-benchmark-") as folder:
        for number in range(rounds):
            for which in order.sample(range(len(trees)), len(trees)):
                say(f"round {number + 1} of {rounds}, {trees[which]}")
                file = Path(folder) / f"{number}-{which}.jsonl"
                _run(trees[which], [*options, "--json", str(file)])
                found[which].append(read_records(file))
    return found


def _run(tree: Path, options: Sequence[str]) -> None:
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    command = [sys.executable, "-m", "benchmarks", "run", *options]
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        said = [line.strip("│ ") for line in (done.stderr or done.stdout).splitlines() if line.strip("│╭╮╰╯─ ")]
        raise ValueError(f"{tree}: `benchmarks run` ended with {done.returncode}: {' '.join(said[-2:])}")


def _build(tree: Path, commit: str) -> None:
    """Compiles the native code of a tree, or copies the libraries built here if the sources are the same."""
    if not _git("diff", "--name-only", commit, "--", *NATIVE):
        for file in (*(REPOSITORY / "argus_kernels").glob("*.so"), REPOSITORY / "argus_kernels" / "_build_info.json"):
            if file.is_file():
                shutil.copy2(file, tree / "argus_kernels")
        return
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    done = subprocess.run(command, cwd=tree, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(f"{tree}: cannot be built: {done.stderr.strip()[-300:]}")


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(REPOSITORY), *arguments], capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""
