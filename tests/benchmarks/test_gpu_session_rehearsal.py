"""The whole GPU session on a CPU: without what a GPU machine lacks, within its budgets, and cut off at any moment."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import pytest

from benchmarks.gpu_session import golden, lines, plan

REPOSITORY = Path(__file__).resolve().parents[2]
SECONDS = 600
"""More than it takes beside other tests: a step that is cut off has hung."""
PROCESSOR_SECONDS = {step.name: step.rehearsal_seconds for step in plan.STEPS}
"""The budget of each step on two cores, which other processes on the machine do not use up."""
SCALE = int(os.environ.get("ARGUS_FUZZ_SCALE", "1"))
MISSING = ("polars", "faiss", "ray", "expecttest", "fbgemm_gpu", "liger_kernel", "cut_cross_entropy", "flash_attn")
"""What the machine with the GPU does not have."""
ABSENT = f"""
from importlib.machinery import PathFinder

find_spec = PathFinder.find_spec

def find_what_is_there(name, path=None, target=None):
    return None if name.partition(".")[0] in {MISSING!r} else find_spec(name, path, target)

PathFinder.find_spec = staticmethod(find_what_is_there)
"""
MARK = "ARGUS_TEST_SESSION"
# A session takes a minute; the conductor's own tests run it on steps that are made up.
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    """Every process of a session starts without the packages, and can be found by its mark."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "sitecustomize.py").write_text(ABSENT)
    path = os.pathsep.join([str(folder), str(REPOSITORY)])
    return {**os.environ, "PYTHONPATH": path, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", MARK: str(folder)}


def command(name: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "benchmarks.gpu_session", name, *arguments]


def running(environment: Mapping[str, str]) -> list[int]:
    """All processes of a session that are there, by the mark in their environment."""
    mark, found = f"{MARK}={environment[MARK]}".encode(), []
    for place in Path("/proc").iterdir():
        try:
            if place.name.isdigit() and mark in (place / "environ").read_bytes():
                found.append(int(place.name))
        except OSError:
            continue
    return found


def wait_until_gone(environment: Mapping[str, str]) -> None:
    ends = time.monotonic() + 15
    while running(environment):
        assert time.monotonic() < ends, f"processes {running(environment)} are left"
        time.sleep(0.05)


def start(out: Path, environment: Mapping[str, str], *arguments: str) -> subprocess.Popen[bytes]:
    given = ("--out", str(out), "--device", "cpu", "--rehearse", "--seconds", str(SECONDS), *arguments)
    return subprocess.Popen(
        command("run", *given), cwd=REPOSITORY, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )


@pytest.mark.timeout(SECONDS + 60)
def test_the_rehearsal_runs_every_step_within_its_budget(tmp_path: Path, environment: Mapping[str, str]) -> None:
    out = tmp_path / "out"
    session = start(out, environment)
    _, errors = session.communicate()
    assert session.returncode == 0, errors.decode()
    wait_until_gone(environment)
    found = lines.read(out)
    log = (out / "session.log").read_text() if (out / "session.log").exists() else ""
    assert found.damaged == 0
    steps = {line["step"]: line for line in found.of("step")}
    assert list(steps) == [step.name for step in plan.STEPS]
    for name, line in steps.items():
        assert line["outcome"] == "done", f"{name}: {line}\n{log}"
        assert line["processor_seconds"] <= PROCESSOR_SECONDS[name], line
    assert {line["outcome"] for line in found.of("task")} == {"done"}, log

    verdicts = list(found.of("verdict"))
    assert {line["outcome"] for line in verdicts} == {"passed", "not served"}, verdicts
    passed = {(line["op"], line["backend"]) for line in verdicts if line["outcome"] == "passed"}
    assert passed == {(op, backend) for op in plan.OPS for backend in plan.BACKENDS["cpu"]}
    records = {(line["record"]["op"], line["record"]["pass"]) for line in found.of("record")}
    assert records == {
        ("causal_attention", "forward"), ("causal_attention", "backward"), ("causal_attention", "forward_backward"),
        ("rowwise_adagrad_", "step"),
    }  # fmt: skip
    assert all(line["record"]["verified"] for line in found.of("record"))
    assert [line["dropped"] for line in found.of("trial")] == [None, None]
    assert {line["backend"] for line in found.of("training") if line["ms"]} == set(plan.TRAINED["cpu"])
    assert len(list(found.of("golden"))) == len(list(golden.problems())) and len(list(found.of("doctor"))) == 1
    bound = list(found.of("bound"))
    assert {line["op"] for line in bound} == (
        set(plan.OPS) if find_spec("argus_kernels.testing.mock_driver") else set()
    )
    assert not [sentence for line in bound for sentence in line["second_compiles"]]
    left = {line["what"] for line in found.of("left_out")}
    assert {"compute-sanitizer", "ncu"} <= left and not [what for what in left if "golden" in what]

    files = [path for path in out.rglob("*") if path.is_file()]
    assert len(files) <= 8 and all(path.stat().st_size < 4 << 20 for path in files)
    report_works(out, environment)


def report_works(out: Path, environment: Mapping[str, str]) -> str:
    done = subprocess.run(command("report", str(out)), cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return (out / "report" / "report.md").read_text()


@pytest.mark.parametrize("seed", range(2 * SCALE))
def test_what_was_measured_is_there_when_the_session_is_killed(
    seed: int, tmp_path: Path, environment: Mapping[str, str]
) -> None:
    draw = random.Random(seed)
    out, names = tmp_path / "out", [step.name for step in plan.STEPS]
    # A session that begins with another step each time is cut in another one.
    first = draw.choice(["prepare", "machine", "error_rule", "golden", "timing", "tuning", "training"])
    session = start(out, environment, *(f"--step={name}" for name in names[names.index(first) :]))
    time.sleep(draw.uniform(0.5, 6))
    before = lines.read(out) if (out / lines.FILE).exists() else lines.Lines()
    session.send_signal(signal.SIGKILL)
    session.communicate()
    wait_until_gone(environment)
    if not (out / lines.FILE).exists():
        return
    found = lines.read(out)
    assert found.whole[: len(before.whole)] == before.whole
    assert found.damaged <= 2, "one process of a step may be cut in its line, and rehearsals run two at once"
    page = report_works(out, environment)
    assert "A rehearsal of at most" in page
    started, ended = (len(list(found.of(kind))) for kind in ("step_started", "step"))
    assert started - ended <= 1 and page.count("cut off with the session") == started - ended


def test_a_killed_process_of_a_step_is_noted_and_the_session_goes_on(
    tmp_path: Path, environment: Mapping[str, str]
) -> None:
    out = tmp_path / "out"
    session = start(out, environment, "--step=prepare", "--step=machine")
    ends, child = time.monotonic() + 30, None
    while child is None:
        assert time.monotonic() < ends
        for number in running(environment):
            try:
                arguments = Path(f"/proc/{number}/cmdline").read_bytes().decode().split("\0")
            except OSError:
                continue
            if "step" in arguments and "doctor" in arguments:
                child = number
    os.kill(child, signal.SIGKILL)
    _, errors = session.communicate()
    assert session.returncode == 0, errors.decode()
    wait_until_gone(environment)
    found = lines.read(out)
    outcomes = {line["task"]: line["outcome"] for line in found.of("task")}
    assert outcomes == {"doctor": "ended by SIGKILL", "libraries": "done", "machine": "done"}
    assert re.search(r"\| prepare \| doctor \| ended by SIGKILL \|", report_works(out, environment))
