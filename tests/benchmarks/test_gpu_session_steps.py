"""What the steps of a GPU session make of kernels that are wrong, fail, or break the GPU's context."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch

from argus_kernels.testing import run_op
from benchmarks.gpu_session import lines
from benchmarks.gpu_session.context import RESUME, Context
from benchmarks.gpu_session.steps import error_rule, machine

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

    monkeypatch.setattr(error_rule, "run_op", broken)


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
