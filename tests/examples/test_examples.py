"""Every example runs, and says what it promises."""

from __future__ import annotations

import difflib
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from shutil import which

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
EXAMPLES = REPOSITORY / "examples"


def output_of(example: str, *options: str, first: Path | None = None) -> str:
    """What an example prints; AssertionError with its errors where it fails. first: a folder to search for programs."""
    command = [sys.executable, str(EXAMPLES / example), *options]
    path = os.pathsep.join([*([str(first)] if first else []), os.environ["PATH"]])
    done = subprocess.run(command, cwd=REPOSITORY, env=os.environ | {"PATH": path}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def losses(printed: str) -> tuple[float, float]:
    """First and last loss of "loss A → B in N steps"."""
    first, last = printed.split(" in ")[0].removeprefix("loss ").split(" → ")
    return float(first), float(last)


def test_ops_in_plain_torch() -> None:
    first, last = losses(output_of("ops_in_plain_torch.py", "--steps", "30"))
    assert last < 0.8 * first


def test_sasrec_in_plain_torch() -> None:
    first, last = losses(output_of("sasrec/plain.py", "--steps", "10"))
    assert last < first


def test_sasrec_with_ops_gives_the_same_results() -> None:
    printed = output_of("sasrec/compare.py", "--length", "96", "--users", "3", "--rounds", "1")
    assert "loss and gradients equal" in printed and "times as fast" in printed


def test_sasrec_changes_at_most_ten_lines() -> None:
    texts = [(EXAMPLES / "sasrec" / name).read_text().split('"""', 2)[2] for name in ("plain.py", "with_ops.py")]
    changes = list(difflib.ndiff(texts[0].splitlines(), texts[1].splitlines()))
    added = [line for line in changes if line.startswith("+ ") and line.strip() != "+"]
    assert len(added) == 7
    assert len(texts[0].strip().splitlines()) <= 150


@pytest.mark.slow
def test_export_through_aotinductor(tmp_path: Path) -> None:
    if which("c++") is None and which("g++") is None:
        pytest.skip("AOTInductor needs a C++ compiler")
    printed = output_of("export_aotinductor.py", "--out", str(tmp_path / "next_item.pt2"))
    assert "23 events of 3 users, scores within" in printed


@pytest.mark.slow
def test_own_scores(tmp_path: Path) -> None:
    """The page docs/howto/own_scores.md: its code compiles, and both backends agree."""
    compiler = which("c++")
    if compiler is None:
        pytest.skip("a policy struct needs a C++ compiler")
    # Optimised it compiles for a minute; what is tested is that it compiles and agrees.
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "c++").write_text(f'#!/bin/sh\nexec {compiler} "$@" -O0\n')
    (tmp_path / "bin" / "c++").chmod(0o755)
    printed = output_of("own_scores/thirds.py", "--out", str(tmp_path / "new"), first=tmp_path / "bin")
    assert printed == "output and gradients equal\n"


@pytest.mark.slow
@pytest.mark.skipif(find_spec("torch.distributed") is None, reason="this torch has no torch.distributed")
def test_two_ranks() -> None:
    assert output_of("two_ranks.py") == "2 ranks and one process: the same weights after 3 steps\n"
