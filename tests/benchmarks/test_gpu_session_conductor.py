"""How a GPU session spends its time: shares, processes that overrun or break, and nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmarks.gpu_session import lines, plan, tools
from benchmarks.gpu_session.cli import app
from benchmarks.gpu_session.conductor import KILLED, REPOSITORY, Conductor, Step, Task
from benchmarks.gpu_session.context import RESUME, Context


def shell(name: str, program: str) -> Task:
    return Task(name, command=("bash", "-c", program))


def step(name: str, seconds: float, *tasks: Task, jobs: int = 1) -> Step:
    return Step(name, seconds, seconds, lambda context: tasks, jobs, jobs)


def conduct(out: Path, seconds: float, *steps: Step) -> lines.Lines:
    Conductor(out, "cpu", True, seconds).run(steps)
    return lines.read(out)


def alive(marker: str) -> list[int]:
    """The processes whose command line has the marker."""
    found = []
    for place in Path("/proc").iterdir():
        if place.name.isdigit() and int(place.name) != os.getpid():
            try:
                if marker.encode() in (place / "cmdline").read_bytes():
                    found.append(int(place.name))
            except OSError:
                continue
    return found


def wait_until_gone(marker: str, seconds: float = 30) -> None:
    ends = time.monotonic() + seconds
    while alive(marker):
        assert time.monotonic() < ends, f"{len(alive(marker))} processes are left"
        time.sleep(0.02)


def test_unused_time_goes_to_the_later_steps(tmp_path: Path) -> None:
    found = conduct(tmp_path, 40, step("short", 10, shell("a", "true")), step("second", 10), step("third", 20))
    budgets = {line["step"]: line["budget"] for line in found.of("step")}
    assert budgets["short"] == pytest.approx(10, abs=0.5)
    assert budgets["second"] == pytest.approx(13, abs=0.5), "a third of what is left"
    assert budgets["third"] == pytest.approx(40, abs=1)
    assert [line["outcome"] for line in found.of("step")] == ["done"] * 3


def test_a_step_that_overruns_is_killed_with_all_its_processes_and_noted(tmp_path: Path) -> None:
    marker = f"83.{os.getpid()}1"
    slow = shell("slow", f"sleep {marker} & sleep {marker}; true")
    steps = (step("over", 0.6, slow, shell("never", "true")), step("next", 1.4, shell("a", "true")))
    started = time.monotonic()
    found = conduct(tmp_path, 2, *steps)
    assert time.monotonic() - started < 2
    wait_until_gone(marker)
    over, after = found.of("step")
    assert over["outcome"] == "cut off" and over["tasks"] == {KILLED: 1} and over["seconds"] < 1
    assert after["outcome"] == "done"
    assert [line["what"] for line in found.of("left_out")] == ["never"]


def test_what_a_process_leaves_running_ends_with_it(tmp_path: Path) -> None:
    marker = f"84.{os.getpid()}1"
    found = conduct(tmp_path, 5, step("a", 1, shell("leaves", f"sleep {marker} >/dev/null 2>&1 & true")))
    assert [line["outcome"] for line in found.of("task")] == ["done"]
    wait_until_gone(marker)


def test_processes_that_fail_are_named_with_their_last_line(tmp_path: Path) -> None:
    tasks = (
        shell("bad", "echo first; echo 'ValueError: q' >&2; exit 3"),
        shell("dead", "kill -SEGV $$"),
        shell("c", ""),
    )
    found = conduct(tmp_path, 5, step("a", 1, *tasks, jobs=3))
    outcomes = {line["task"]: (line["outcome"], line.get("reason")) for line in found.of("task")}
    assert outcomes["bad"] == ("failed with exit status 3", "ValueError: q")
    assert outcomes["dead"][0] == "ended by SIGSEGV" and outcomes["c"] == ("done", None)
    log = (tmp_path / "session.log").read_text()
    assert "=== a: bad: failed with exit status 3\nfirst\nValueError: q" in log


def test_a_process_whose_context_broke_goes_on_behind_the_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "program"
    program.write_text(
        f'#!/usr/bin/env bash\necho "$@" >> {tmp_path}/calls\n'
        f'[[ "$*" == *"--start 0"* ]] && {{ echo resume 3; exit {RESUME}; }}; exit 0\n'
    )
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    (tmp_path / "out").mkdir()
    found = conduct(tmp_path / "out", 5, step("error_rule", 1, Task("toy", ("toy", "cuda"))))
    assert [line["outcome"] for line in found.of("task")] == ["resumed", "done"]
    calls = [line for line in (tmp_path / "calls").read_text().splitlines() if "step error_rule toy cuda" in line]
    assert "--start 0" in calls[0] and "--start 3" in calls[1]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_nothing_outlives_the_conductor(tmp_path: Path, how: signal.Signals) -> None:
    marker = f"85.{os.getpid()}{how.value}"
    program = (
        "import sys; from pathlib import Path\n"
        "from benchmarks.gpu_session.conductor import Conductor, Step, Task\n"
        f"tasks = [Task(str(i), command=('bash', '-c', 'sleep {marker} & sleep {marker}; true')) for i in range(3)]\n"
        "Conductor(Path(sys.argv[1]), 'cpu', True, 60).run([Step('a', 1, 1, lambda context: tasks, 3, 3)])\n"
    )
    conductor = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], cwd=REPOSITORY, stderr=subprocess.DEVNULL
    )
    ends = time.monotonic() + 20
    while len(alive(f"sleep\0{marker}")) < 6:
        assert time.monotonic() < ends
        time.sleep(0.02)
    conductor.send_signal(how)
    conductor.wait()
    wait_until_gone(marker)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--device", "tpu"], "device is 'tpu', expected one of cuda, cpu"),
        (["--device", "cpu"], "device is cpu, and a rehearsal is on the CPU: --device cpu --rehearse, or neither"),
        (["--rehearse"], "device is cuda, and a rehearsal is on the CPU"),
        (["--seconds", "-1"], "seconds is -1.0, expected a number above 0"),
        (["--seconds", "nan"], "seconds is nan, expected a number above 0"),
        (["--step", "training", "--step", "dance"], "step is 'dance', expected one of prepare, build"),
        (["--libraries", "/nonexistent"], "libraries is /nonexistent, expected _ops_*.so"),
    ],
)
def test_refusals_are_one_sentence_and_make_nothing(arguments: list[str], sentence: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["run", "--out", str(tmp_path / "out"), *arguments])
    assert done.exit_code == 2 and sentence in done.output and len(done.output.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_folder_with_results_is_refused(tmp_path: Path) -> None:
    lines.append(tmp_path, "mine")
    done = CliRunner().invoke(app, ["run", "--out", str(tmp_path)])
    assert done.exit_code == 2 and "holds the results of another session; name a new folder" in done.output
    assert len(lines.read(tmp_path).whole) == 1


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = CliRunner().invoke(app, ["run", "--out", str(tmp_path / "file")])
    assert done.exit_code == 2 and "expected a folder, found something else there" in done.output


def test_a_full_disk_ends_the_session_with_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "write", lambda descriptor, content: len(content) // 2)
    done = CliRunner().invoke(app, ["run", "--out", str(tmp_path), "--device", "cpu", "--rehearse"])
    assert done.exit_code == 1 and "gpu_session: cannot go on: " in done.output
    assert "bytes of a line were written" in done.output


def context(out: Path, device: str = "cuda", rehearse: bool = False) -> Context:
    return Context(out, device, rehearse, "toy", time.monotonic() + 10)


def test_the_plan_names_the_ops_and_cases_that_there_are() -> None:
    from argus_kernels import OPS

    served = {op.name for op in OPS if {"cuda", "triton"} <= {backend.name for backend in op.backends}}
    assert set(plan.OPS) == served
    cases = {(op.name, sample.name) for op in OPS for sample in op.samples() if sample.production}
    named = [*plan.TIMED["cuda"], *plan.TUNING_CASES.items(), *((op, case) for op, _, case, _ in plan.PROFILED)]
    assert not set(named) - cases
    assert len(plan.PROFILED) == 6


def test_every_op_backend_and_dtype_is_judged_on_a_gpu(tmp_path: Path) -> None:
    found = [task.arguments for task in plan.error_rule(context(tmp_path))]
    assert len(set(found)) == len(found) == 4 * len(plan.OPS)
    assert {(op, backend) for op, backend, *_ in found} == {
        (op, name) for op in plan.OPS for name in ("cuda", "triton")
    }
    assert [one[2:] for one in found if one[:2] == ("causal_attention", "triton")] == [("bf16",), ("fp32",), ("fp16",)]


def test_the_build_runs_only_where_the_libraries_do_not_load(tmp_path: Path) -> None:
    lines.append(tmp_path, "libraries", reasons={"cpu": None, "cuda": None, "host": "for another Python"})
    assert plan.build(context(tmp_path)) == []
    lines.append(tmp_path, "libraries", reasons={"cpu": None, "cuda": "_ops_cuda.so was not built", "host": None})
    (task,) = plan.build(context(tmp_path))
    assert dict(task.environment) == {"ARGUS_CUDA": "1", "ARGUS_CUDA_ARCHS": "90a"}
    assert plan.build(context(tmp_path, "cpu", rehearse=True)) == []


def test_tools_that_are_missing_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "find_tool", lambda name: None)
    assert plan.sanitizer(context(tmp_path)) == [] and plan.profile(context(tmp_path)) == []
    reasons = [line["reason"] for line in lines.read(tmp_path).of("left_out")]
    assert reasons == [f"{name} is neither on PATH nor in /usr/local/cuda/bin" for name in ("compute-sanitizer", "ncu")]
    monkeypatch.setattr(plan, "find_tool", lambda name: f"/bin/{name}")
    assert len(plan.sanitizer(context(tmp_path))) == 2 * len(plan.OPS)
    assert [task.arguments for task in plan.profile(context(tmp_path))] == list(plan.PROFILED)


def test_what_the_tools_say_is_read() -> None:
    assert tools.sanitizer_summary("=========     RACECHECK SUMMARY: 0 hazards displayed\n") is not None
    assert tools.sanitizer_summary("Killed") is None
    assert tools.profiled_kernels("==ERROR== no permission") == []
    rows = '"ID","Kernel Name","Metric Name","Metric Unit","Metric Value"\n"0","k","Registers Per Thread","","168"\n'
    assert tools.profiled_kernels(rows) == [{"kernel": "k", "metrics": {"Registers Per Thread": ["168", ""]}}]
