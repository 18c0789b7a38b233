"""A program that is forked ends as one that is started."""

from __future__ import annotations

import os
from pathlib import Path

from tests import warm


def test_its_output_its_errors_and_its_end_are_given() -> None:
    done = warm.python(["-c", "import sys; print('out'); print('error', file=sys.stderr); sys.exit(3)"])
    assert (done.returncode, done.stdout, done.stderr) == (3, "out\n", "error\n")
    assert warm.python(["-c", "raise ValueError('no')"]).stderr.endswith("ValueError: no\n")
    assert warm.python(["-c", "import sys; sys.exit('why')"]).returncode == 1
    assert warm.python(["-c", "import os; os.kill(os.getpid(), 9)"]).returncode == -9


def test_each_begins_anew_in_its_folder_and_environment(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "mine.py").write_text("import sys; print(__name__, sys.argv[1:])")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "own"), "OF_THIS_ONE": "1"}
    program = "import os, sys; print(os.getcwd(), os.environ.get('OF_THIS_ONE'), 'argus_kernels' in sys.modules)"
    for _ in range(2):
        done = warm.python(["-c", program + "; import argus_kernels"], environment, tmp_path)
        assert done.stdout.split() == [str(tmp_path.resolve()), "1", "False"], done.stderr
    assert warm.python(["-c", program]).stdout.split()[1] == "None"
    assert warm.python(["-m", "mine", "a"], environment).stdout == "__main__ ['a']\n"
    assert warm.python(["--", str(tmp_path / "own" / "mine.py"), "b"]).stdout == "__main__ ['b']\n"
