"""The lines of the quickstart, exactly as they are printed, lead to recommendations that can be read."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

from tests import quickstart_lines as quickstart

MAX_LINES = 12


def test_the_quickstart_is_short_and_the_same_everywhere() -> None:
    found = quickstart.blocks()
    assert "docs/quickstart.md" in found
    assert len(set(found.values())) == 1
    assert len(found["docs/quickstart.md"].strip().splitlines()) <= MAX_LINES


@pytest.mark.slow
def test_its_lines_end_with_readable_recommendations_and_a_service(tmp_path: Path) -> None:
    if missing := [name for name in ("bash", "curl") if shutil.which(name) is None]:
        pytest.skip(f"the lines are for {missing[0]}")
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, arguments in (("argus", " -m python_model"), ("python", "")):
        (commands / name).write_text(f'#!/bin/sh\nexec "{sys.executable}"{arguments} "$@"\n')
        (commands / name).chmod(0o755)
    path = os.pathsep.join([str(quickstart.REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {
        "PATH": f"{commands}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "1", "PYTHONPATH": path
    }  # fmt: skip
    printed = quickstart.run(tmp_path / "shop", environment)
    quickstart.require_results(tmp_path / "shop", printed)
