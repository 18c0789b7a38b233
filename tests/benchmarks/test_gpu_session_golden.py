"""The step that takes golden vectors: which GPUs run which, and what a vector that fails costs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.gpu_session import golden, lines, plan
from benchmarks.gpu_session.context import Context
from benchmarks.gpu_session.golden_vector import Problem
from benchmarks.gpu_session.steps import golden as step
from build_support.decide import BuildError

SM90 = [f"golden vectors of {part}" for part in ("wgmma", "TMA")]


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[Sequence[str]]:
    """The parts that were compiled, by a compiler that is not run."""
    found: list[Sequence[str]] = []

    def build(device: str, folder: Path, parts: Sequence[str]) -> Path:
        found.append(parts)
        return folder

    monkeypatch.setattr(golden, "build", build)
    return found


def context(out: Path, device: str = "cuda") -> Context:
    return Context(out, device, device == "cpu", "golden", time.monotonic() + 60)


def left_out(out: Path) -> list[tuple[str, str]]:
    return [(line["what"], line["reason"]) for line in lines.read(out).of("left_out")]


def taken(out: Path) -> set[str]:
    return {line["instruction"] for line in lines.read(out).of("golden")}


def zeros(problem: Problem, device: str, library: Path) -> np.ndarray:
    return np.zeros(1, np.float32)


def test_each_part_has_a_process_of_its_own_on_a_gpu(tmp_path: Path) -> None:
    assert tuple(golden.PARTS) == plan.GOLDEN == tuple(golden.SOURCES)
    assert [task.arguments for task in plan.golden(context(tmp_path))] == [(part,) for part in golden.PARTS]
    (task,) = plan.golden(context(tmp_path, "cpu"))
    assert task.arguments == (",".join(golden.PARTS),)
    assert next(one.jobs for one in plan.STEPS if one.name == "golden") == len(golden.PARTS)


@pytest.mark.parametrize("capability", [(8, 0), (10, 0), (9, 0)])
def test_instructions_of_sm90_are_left_out_elsewhere(
    capability: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, built: list[Sequence[str]]
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(golden, "evaluate", zeros)
    for task in plan.golden(context(tmp_path)):
        step.run(context(tmp_path), *task.arguments)
    hopper = capability == (9, 0)
    assert built == ([[part] for part in golden.PARTS] if hopper else [["instructions"]])
    served = golden.PARTS if hopper else ["instructions"]
    assert taken(tmp_path) == {instruction for part in served for instruction in golden.PARTS[part]}
    reason = f"compute capability is {capability[0]}.{capability[1]}, expected 9.0"
    assert left_out(tmp_path) == ([] if hopper else [(what, reason) for what in SM90])


def test_a_compiler_that_refuses_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(device: str, folder: Path, parts: Sequence[str]) -> Path:
        raise BuildError("nvcc refuses golden_tma.cu: no")

    monkeypatch.setattr(golden, "build", refuse)
    step.run(context(tmp_path, "cpu"), "wgmma,TMA")
    assert left_out(tmp_path) == [("golden vectors of wgmma, TMA", "nvcc refuses golden_tma.cu: no")]


@pytest.mark.parametrize("broken", [None, "CUDA error: illegal address"])
def test_a_vector_that_fails_is_left_out(
    broken: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, built: list[Sequence[str]]
) -> None:
    """Where the GPU's context survives, those behind it are taken."""
    asked = []

    def third_fails(problem: Problem, device: str, library: Path) -> np.ndarray:
        asked.append(problem.name())
        if len(asked) == 3:
            raise RuntimeError("cuTensorMapEncodeTiled: error 1\nmore")
        return zeros(problem, device, library)

    monkeypatch.setattr(golden, "evaluate", third_fails)
    monkeypatch.setattr(step, "poisoned", lambda device: broken)
    step.run(context(tmp_path, "cpu"), "TMA")
    problems = [problem.name() for problem in golden.problems(["TMA"])]
    assert len(set(problems)) == len(problems)
    first = (f"the golden vector {problems[2]}", "RuntimeError: cuTensorMapEncodeTiled: error 1")
    count = len(list(lines.read(tmp_path).of("golden")))
    if broken is None:
        assert left_out(tmp_path) == [first] and count == len(problems) - 1
    else:
        assert left_out(tmp_path) == [first, ("the other golden vectors of TMA", broken)] and count == 2
