"""The session script for a GPU machine: its rehearsal on the CPU, and what it does with a phase that fails."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
SCRIPT = REPOSITORY / "benchmarks" / "gpu_session.sh"
PHASES = ("build", "test", "bench", "tune", "end-to-end")


def session(out: Path | None, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if name not in ("OUT", "PYTHON")}
    variables = inherited | {"PYTHON": sys.executable, "OMP_NUM_THREADS": "1"} | environment
    command = ["bash", str(SCRIPT), *(["--out", str(out)] if out else []), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=variables, cwd="/", timeout=280)


def table(output: str) -> dict[str, str]:
    """Verdict by phase, out of the table at the end."""
    rows = output[output.rindex("phase ") :].splitlines()[1:]
    found = (re.match(r"(\S+)\s+(.+?)\s+\d+ s  ", row) for row in rows)
    return {match[1]: match[2] for match in found if match}


@pytest.mark.slow
def test_the_rehearsal_of_all_phases_passes(tmp_path: Path) -> None:
    done = session(tmp_path, "--dry-run", "all")
    assert done.returncode == 0, done.stdout + done.stderr
    verdicts = table(done.stdout)
    assert tuple(verdicts) == PHASES
    assert {verdicts[phase] for phase in PHASES if phase != "tune"} == {"passed"}
    assert verdicts["tune"] == "nothing to do"

    files = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    assert len(files) <= 8 and all(path.parent == tmp_path for path in files)
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+", path.name) for path in files)
    assert {path.name for path in files} == {
        "bench.jsonl", "doctor.json", "end_to_end.json", "session.log", "summary.tsv", "tests.xml",
    }  # fmt: skip
    assert json.loads((tmp_path / "doctor.json").read_text())["libraries"]["cpu"] == "loaded"
    records = [json.loads(line) for line in (tmp_path / "bench.jsonl").read_text().splitlines()]
    assert {record["op"] for record in records} == {"rowwise_adagrad_"}
    assert json.loads((tmp_path / "end_to_end.json").read_text())["rehearsal"] is True
    assert 'failures="0"' in (tmp_path / "tests.xml").read_text()


def interpreter(folder: Path, body: str) -> str:
    """A stand-in for Python that does what `body` says."""
    path = folder / "python-stand-in"
    path.write_text(f"#!/usr/bin/env bash\n{body}\n")
    path.chmod(0o755)
    return str(path)


def test_a_failed_phase_is_named_and_the_others_still_run(tmp_path: Path) -> None:
    fails_at_tests = interpreter(tmp_path, 'echo "ran $*"; [ "$2" != pytest ] || exit 4')
    out = tmp_path / "out"
    done = session(out, "--dry-run", "test", "end-to-end", PYTHON=fails_at_tests)
    assert done.returncode == 1
    assert table(done.stdout) == {"test": "failed (4)", "end-to-end": "passed"}
    assert (out / "summary.tsv").read_text().count("\n") == 2
    again = session(out, "--dry-run", "end-to-end", PYTHON=fails_at_tests)
    assert again.returncode == 0
    assert (out / "summary.tsv").read_text().count("\n") == 3, "a repeated phase adds its line"


def test_nothing_to_tune_is_no_failure(tmp_path: Path) -> None:
    done = session(tmp_path / "out", "tune", PYTHON=interpreter(tmp_path, "echo nothing to tune; exit 3"))
    assert done.returncode == 0
    assert table(done.stdout) == {"tune": "nothing to do"}


def test_the_real_session_asks_for_cuda_and_the_rehearsal_does_not(tmp_path: Path) -> None:
    echo = interpreter(tmp_path, 'echo "ran ARGUS_CUDA=$ARGUS_CUDA $*"')
    real = session(tmp_path / "real", "build", "bench", "end-to-end", PYTHON=echo).stdout
    assert "ran ARGUS_CUDA=1 setup.py -q build_ext --inplace" in real
    assert len(re.findall("--device cuda", real)) >= 2
    dry = session(tmp_path / "dry", "--dry-run", "build", "bench", "end-to-end", PYTHON=echo).stdout
    assert "ran ARGUS_CUDA=0 setup.py -q build_ext --build-lib" in dry
    assert "--inplace" not in dry and "--device cuda" not in dry


def test_results_go_to_the_folder_named_in_out(tmp_path: Path) -> None:
    echo = interpreter(tmp_path, "exit 0")
    done = session(None, "--dry-run", "end-to-end", PYTHON=echo, OUT=str(tmp_path / "named"))
    assert done.returncode == 0
    assert (tmp_path / "named" / "summary.tsv").exists()


@pytest.mark.parametrize("arguments", [(), ("--dry-run",), ("deploy",)])
def test_bad_arguments_show_the_usage(arguments: tuple[str, ...], tmp_path: Path) -> None:
    done = session(tmp_path / "out", *arguments)
    assert done.returncode == 2
    assert "PHASE: build test bench tune end-to-end" in done.stderr
    assert not (tmp_path / "out").exists()
