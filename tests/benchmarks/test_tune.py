"""Tuning: the fastest right configuration wins, a wrong one never does, and refusals are one sentence."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import typer
from torch import Tensor
from typer.testing import CliRunner

import argus_kernels
from argus_kernels.core import Backend, Op, Sample, tuning
from argus_kernels.core.tuning import Key, Tunable
from benchmarks import tune
from benchmarks.harness import cases
from benchmarks.harness.timing import Budget

KERNEL = "doubled/forward"
CONFIGS = ({"sleep_us": 3000, "wrong": 0}, {"sleep_us": 0, "wrong": 1}, {"sleep_us": 500, "wrong": 0}, {"crash": 1})


class Doubled(NamedTuple):
    """The record of the op below."""

    x: Tensor


def tuned_forward(given: Doubled) -> Tensor:
    """Twice x, as fast and as right as the configuration says."""
    x = given.x
    config = tuning.configuration(KERNEL, width=x.shape[1], dtype=x.dtype, size=x.shape[0], default=CONFIGS[0])
    if config.get("crash"):
        raise RuntimeError("out of resources: shared memory")
    time.sleep(config["sleep_us"] * 1e-6)
    return 2 * x + config["wrong"]


def _sample(name: str, rows: int, production: bool) -> Sample:
    def make(generator: torch.Generator, dtype: torch.dtype) -> dict[str, Any]:
        return {"x": torch.randn(rows, 8, generator=generator).to(dtype)}

    return Sample(name, make, production=production)


DOUBLED = Op(
    "doubled",
    arguments=Doubled,
    returns="Tensor",
    fake=lambda given: torch.empty_like(given.x),
    backends=(Backend("triton", tuned_forward), Backend("reference", lambda given: 2 * given.x)),
    samples=lambda: [_sample("small", 4, False), _sample("rows_300", 300, True), _sample("rows_900", 900, True)],
)


def doubled(x: Tensor, *, backend: str | None = None) -> Tensor:
    """The op's public function."""
    result: Tensor = DOUBLED(Doubled(x), backend=backend)
    return result


@pytest.fixture
def toy_op(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(cases, "OPS", (DOUBLED,))
    monkeypatch.setattr(argus_kernels, "doubled", doubled, raising=False)
    yield


def choices(said: list[str]) -> list[tune.Choice]:
    tunable = Tunable(KERNEL, "triton", CONFIGS)
    budget = Budget(0.05, min_repeats=3)
    return tune.tune({"doubled": [tunable]}, "cpu", ("fp32",), budget, said.append)


def test_the_fastest_right_configuration_wins(toy_op: None) -> None:
    said: list[str] = []
    (choice,) = choices(said)
    assert choice.key == Key(KERNEL, 8, "float32", 1024), "both cases fall into one bucket"
    assert choice.config == CONFIGS[2]
    assert choice.default_ms is not None and choice.default_ms > choice.ms
    dropped = [line for line in said if "dropped" in line]
    assert len(dropped) == 4
    assert any("max error" in line for line in dropped)
    assert any("out of resources" in line for line in dropped)


def test_the_default_stays_where_nothing_is_clearly_faster() -> None:
    tunable = Tunable(KERNEL, "triton", CONFIGS)
    key = Key(KERNEL, 8, "float32", 1024)
    assert tune._choose(tunable, key, {0: [1.0, 1.0], 2: [0.995, 0.999]}).config == CONFIGS[0]
    assert tune._choose(tunable, key, {0: [1.0, 1.0], 2: [0.9, 0.95]}).config == CONFIGS[2]
    assert tune._choose(tunable, key, {0: [1.0, 1.0], 2: [0.1]}).config == CONFIGS[0], "not right on every case"


def test_every_configuration_is_told_as_soon_as_it_is_known(toy_op: None) -> None:
    tunable = Tunable(KERNEL, "triton", CONFIGS)
    spec = cases.select(["doubled"], ["rows_300"], ["fp32"])[0]
    budget = Budget(0.01, min_repeats=2)
    found = tune.trials(tunable, spec, "cpu", budget)
    first = next(found)
    assert first.index == 0 and first.ms is not None and first.ms >= 3
    assert [(trial.index, trial.ms is None, trial.keys != ()) for trial in found] == [
        (1, True, False), (2, False, True), (3, True, False),
    ]  # fmt: skip
    # A process that goes on behind a fault does not run the default again.
    assert [trial.index for trial in tune.trials(tunable, spec, "cpu", budget, start=2)] == [2, 3]


def test_the_choices_are_saved_after_every_case(toy_op: None) -> None:
    saved: list[list[tune.Choice]] = []
    tunable = Tunable(KERNEL, "triton", CONFIGS)
    budget = Budget(0.01, min_repeats=2)
    choices = tune.tune({"doubled": [tunable]}, "cpu", ("fp32",), budget, save=saved.append)
    assert len(saved) == 2 and saved[-1] == choices and len(saved[0]) == 1


def test_the_table_is_what_kernels_read(toy_op: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "toy-1.json"
    other = {"kernel": "other/forward", "width": 64, "dtype": "bfloat16", "size": 256, "config": {"warps": 4}}
    stale = other | {"kernel": KERNEL, "width": 8, "dtype": "float32"}
    path.write_text(json.dumps({"format": 1, "gpu": "NVIDIA Toy 1", "entries": [other, stale]}))
    tune.write_table(path, "NVIDIA Toy 1", choices([]))
    table = tuning.load_table(path)
    assert table == {
        Key("other/forward", 64, "bfloat16", 256): {"warps": 4},
        Key(KERNEL, 8, "float32", 1024): CONFIGS[2],
    }
    monkeypatch.setenv("ARGUS_TUNING", str(tmp_path))
    tuning.lookup.cache_clear()
    assert tuning.lookup("toy-1", KERNEL, 8, "float32", 1024) == CONFIGS[2]


def run_command(*arguments: str) -> Any:
    app = typer.Typer()
    tune.register(app)
    return CliRunner().invoke(app, list(arguments))


def test_refusals_are_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = run_command("--op", "attention")
    assert wrong.exit_code == 2 and "op is 'attention', expected one of" in wrong.output
    monkeypatch.setattr(tune, "declared", lambda ops: {})
    nothing = run_command("--op", "pairwise_loss")
    assert nothing.exit_code == tune.NOTHING_TO_TUNE
    assert nothing.output.strip() == "tune: nothing to tune: no triton_kernels.py of pairwise_loss lists TUNABLES"
    monkeypatch.setattr(tune, "declared", lambda ops: {"doubled": (Tunable(KERNEL, "triton", CONFIGS),)})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    blind = run_command()
    assert blind.exit_code == tune.NOTHING_TO_TUNE
    assert "torch sees no GPU" in blind.output and len(blind.output.strip().splitlines()) == 1


def test_what_rooms_declare_is_well_formed() -> None:
    for op, tunables in tune.declared().items():
        for tunable in tunables:
            assert tunable.kernel.startswith(f"{op.rstrip('_')}/")
            assert tunable.configs
