"""What the steps of a GPU session make of kernels that are wrong, fail, or break the GPU's context."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch

from argus_kernels.testing import harness, run_op
from benchmarks.gpu_session import lines, plan
from benchmarks.gpu_session.context import RESUME, Context
from benchmarks.gpu_session.steps import error_rule, machine, profile, sanitizer, target, timing

OP, TASK = "pairwise_loss", ("pairwise_loss", "cpp")


def context(out: Path, start: int = 0, seconds: float = 60) -> Context:
    return Context(out, "cpu", True, "error_rule", time.monotonic() + seconds, start)


def verdicts(out: Path) -> list[dict[str, Any]]:
    return list(lines.read(out).of("verdict"))


def break_backend(monkeypatch: pytest.MonkeyPatch, change: Any) -> None:
    whole = run_op

    def broken(op: Any, sample: Any, arguments: Any, backend: str, **given: Any) -> Any:
        run = whole(op, sample, arguments, backend, **given)
        return change(run) if backend == "cpp" else run

    for module in (error_rule, harness):
        monkeypatch.setattr(module, "run_op", broken)


def test_right_kernels_pass(tmp_path: Path) -> None:
    error_rule.run(context(tmp_path), *TASK)
    found = verdicts(tmp_path)
    assert [line["case"] for line in found] == ["tiles", "tiles_out_of_order", "jagged", "jagged"]
    assert {line["outcome"] for line in found} == {"passed"}


def test_wrong_results_are_named_with_their_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def off(run: Any) -> Any:
        run.results["d_scores"] = run.results["d_scores"] * 1.1
        return run

    break_backend(monkeypatch, off)
    error_rule.run(context(tmp_path), *TASK)
    for line in verdicts(tmp_path):
        assert line["outcome"] == "wrong" and line["sentences"][0].startswith("d_scores fails: max error")


def test_results_that_change_and_padding_that_leaks_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = iter(range(1000))

    def restless(run: Any) -> Any:
        run.results["output 0"] = run.results["output 0"] * (1 + 1e-7 * (next(calls) % 2))
        return run

    break_backend(monkeypatch, restless)
    error_rule.run(context(tmp_path), *TASK)
    assert "output 0: a second run gave other bits" in verdicts(tmp_path)[0]["sentences"]
    monkeypatch.undo()
    monkeypatch.setattr(error_rule, "with_nan_padding", lambda given: {**given, "scores": given["scores"] + 1e-3})
    (tmp_path / lines.FILE).unlink()
    error_rule.run(context(tmp_path), *TASK)
    assert any("NaN in rows of padding changed it" in one for one in verdicts(tmp_path)[0]["sentences"])


def test_a_kernel_that_fails_does_not_stop_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(run: Any) -> Any:
        raise RuntimeError("pairwise_loss: kernel launch failed: invalid argument\nand a long trace")

    break_backend(monkeypatch, fail)
    error_rule.run(context(tmp_path), *TASK)
    assert [line["sentences"] for line in verdicts(tmp_path)] == [
        ["RuntimeError: pairwise_loss: kernel launch failed: invalid argument"]
    ] * 4


def test_a_broken_context_is_said_and_the_process_asks_to_go_on_behind_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(error_rule, "poisoned", lambda device: "CUDA error: an illegal memory access was encountered")
    for start in range(4):
        with pytest.raises(SystemExit) as ended:
            error_rule.run(context(tmp_path, start), *TASK)
        assert ended.value.code == RESUME and capsys.readouterr().out == f"resume {start + 1}\n"
    error_rule.run(context(tmp_path, 4), *TASK)
    assert len(verdicts(tmp_path)) == 4
    assert next(lines.read(tmp_path).of("fault"))["reason"].startswith("CUDA error: an illegal")


def test_what_the_time_does_not_allow_is_named(tmp_path: Path) -> None:
    error_rule.run(context(tmp_path, seconds=-1), *TASK)
    (line,) = lines.read(tmp_path).of("left_out")
    assert (line["what"], line["reason"]) == ("4 samples of pairwise_loss", "the step's time was over")


def test_the_ceilings_are_those_of_their_step(tmp_path: Path) -> None:
    lines.append(
        tmp_path, "machine", machine={"name": "toy"}, versions={"torch": torch.__version__}, commit="abc",
        copy_bytes_per_second=1e10, flops_per_second={"fp32": 1e11},
    )  # fmt: skip
    found = machine.environment(context(tmp_path))
    assert found.ceilings.flops_per_second == {"fp32": 1e11} and found.machine == {"name": "toy"}


SANITIZER = """========= COMPUTE-SANITIZER
========= Invalid __global__ read of size 4 bytes
=========     at 0x10 in kernel
========= ERROR SUMMARY: 1 error
"""
NCU = """==PROF== Connected to process 1
"ID","Process ID","Kernel Name","Section Name","Metric Name","Metric Unit","Metric Value"
"0","1","forward<64>","GPU Speed Of Light Throughput","Duration","us","1,234.5"
"1","1","sum","GPU Speed Of Light Throughput","Duration","us","7"
"""


def stand_in(folder: Path, monkeypatch: pytest.MonkeyPatch, says: str, then: str) -> Path:
    """A tool that writes down how it was called, says something, and goes on as told."""
    path = folder / "tool"
    path.write_text(f'#!/usr/bin/env bash\necho "$@" > {folder}/call\ncat <<"END"\n{says}END\n{then}\n')
    path.chmod(0o755)
    for module in (sanitizer, profile):
        monkeypatch.setattr(module, "find_tool", lambda name: str(path))
    return folder / "call"


def test_what_the_sanitizer_finds_is_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    call = stand_in(tmp_path, monkeypatch, SANITIZER, "exit 9")
    sanitizer.run(context(tmp_path), "pairwise_loss", "racecheck")
    (line,) = lines.read(tmp_path).of("sanitizer")
    assert (line["exit_status"], line["summary"]) == (9, "ERROR SUMMARY: 1 error")
    assert line["errors"] == ["Invalid __global__ read of size 4 bytes"]
    assert call.read_text().startswith("--tool racecheck --error-exitcode 9 --print-limit 20 ")
    assert "step target pairwise_loss cuda tiles both" in call.read_text()


def test_what_ncu_measures_is_a_line_for_each_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    call = stand_in(tmp_path, monkeypatch, NCU, "exit 0")
    profile.run(context(tmp_path), "causal_attention", "triton", "uniform_8192_head_64", "forward")
    found = list(lines.read(tmp_path).of("profiled"))
    assert [line["kernel"] for line in found] == ["forward<64>", "sum"]
    assert found[0]["metrics"] == {"Duration": ["1,234.5", "us"]}
    assert "--clock-control none" in call.read_text() and "uniform_8192_head_64 forward" in call.read_text()
    stand_in(tmp_path, monkeypatch, "==ERROR== no permission\n", "exit 1")
    profile.run(context(tmp_path), "causal_attention", "triton", "uniform_8192_head_64", "forward")
    assert [line["reason"] for line in lines.read(tmp_path).of("left_out")] == [
        "ncu ended with 1 and told of 0 kernels"
    ]


def test_a_tool_that_does_not_end_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(tmp_path, monkeypatch, "", "exec sleep 60")
    sanitizer.run(context(tmp_path, seconds=0.3), "pairwise_loss", "memcheck")
    profile.run(context(tmp_path, seconds=0.3), "pairwise_loss", "cuda", "events_1048576", "forward")
    left = [(line["what"], line["reason"]) for line in lines.read(tmp_path).of("left_out")]
    assert [what for what, _ in left] == [
        "memcheck of pairwise_loss",
        "profile of pairwise_loss cuda events_1048576 forward",
    ]
    assert {reason for _, reason in left} == {"the step's time was over"}


@pytest.mark.parametrize("op", ["causal_attention", "rowwise_adagrad_", "decode_attention"])
@pytest.mark.parametrize("part", ["forward", "backward", "both"])
def test_the_call_that_tools_watch_runs(op: str, part: str, tmp_path: Path) -> None:
    target.run(context(tmp_path), op, "cpp", "tiles", part)


def test_kernels_of_mma_sync_are_timed_beside_those_of_wgmma(tmp_path: Path) -> None:
    tasks = plan.timing(Context(tmp_path, "cuda", False, "timing", 0.0))
    switched = {task.arguments: dict(task.environment) for task in tasks if "mma.sync" in task.arguments}
    assert {arguments[:2] for arguments in switched} == {
        ("triple_embedding", "events_131072"), ("sampled_softmax_loss", "rows_65536_candidates_16384"),
        ("causal_attention", "uniform_8192_head_128"), ("causal_attention", "uniform_8192_head_64"),
        ("hstu_attention", "uniform_8192_head_64"),
    }  # fmt: skip
    assert all(environment["ARGUS_WGMMA"] == "0" for environment in switched.values())
    assert all("ARGUS_WGMMA" not in dict(task.environment) for task in tasks if task.arguments not in switched)
    alone = {task.arguments for task in tasks if dict(task.environment).get("ARGUS_CLUSTERS") == "0"}
    assert alone == {("sampled_softmax_loss", "rows_65536_candidates_16384", "blocks alone")}


def test_kernels_asked_for_by_kind_have_lines_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_record: Any
) -> None:
    class OneRecord:
        def __init__(self, specs: Any, settings: Any, environment: Any, on_pass: Any) -> None:
            self.absent: dict[Any, str] = {}
            assert settings.backends == ("cuda",) and settings.peers == ()
            self.on_pass = on_pass

        def records(self) -> Any:
            self.on_pass([make_record(1.0)])
            yield [make_record(1.0)]

    monkeypatch.setattr(timing, "Run", OneRecord)
    monkeypatch.setattr(timing, "environment", lambda context: None)
    timing.run(context(tmp_path), OP, None, "mma.sync")
    assert [(line["kind"], line["kernels"]) for line in lines.read(tmp_path).whole] == [
        ("record_of_kernels", "mma.sync")
    ]
