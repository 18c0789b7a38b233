"""`--profile`: the same numbers as without it, times that add up, files that open, and a refusal before any step."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from python_model.config import ModelConfig, TrainConfig
from python_model.data.schema import Dataset
from python_model.train import train
from python_model.training.progress import read_metrics
from python_model.training.step_profile import StepProfile, Summary

MODEL = ModelConfig(
    layers=2, width=16, heads=2, item_width=8, feature_width=4, vector_width=8, position_buckets=8, time_buckets=40
)
TRAINING = TrainConfig(steps=5, batch_events=256, window=32, log_every=1, negatives_in_batch=16, negatives_uniform=16)


@pytest.fixture(scope="module")
def profiled(tiny_service: Dataset, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Summary]:
    """A run of which two steps were profiled."""
    run = tmp_path_factory.mktemp("profiled") / "run"
    found: list[Summary] = []
    train("pretrain", tiny_service, run, MODEL, TRAINING, profile=StepProfile(run, 2, found.append))
    assert len(found) == 1
    return run, found[0]


def test_profiling_changes_no_number(profiled: tuple[Path, Summary], tiny_service: Dataset, tmp_path: Path) -> None:
    train("pretrain", tiny_service, tmp_path / "plain", MODEL, TRAINING)
    losses = [[record["loss"] for record in read_metrics(run)] for run in (profiled[0], tmp_path / "plain")]
    assert losses[0] == losses[1]
    assert len(losses[0]) == TRAINING.steps


def test_times_add_up(profiled: tuple[Path, Summary]) -> None:
    _, found = profiled
    phases = {line.name: line for line in found.phases}
    assert phases.keys() == {"data", "forward", "backward", "optimiser"}
    assert all(line.calls == 1 for line in phases.values())
    within = phases["forward"].cpu_ms + phases["backward"].cpu_ms
    modules = sum(line.cpu_ms for line in found.modules)
    assert 0.5 * within < modules <= 1.001 * within
    assert [line.cpu_ms for line in found.ops] == sorted((line.cpu_ms for line in found.ops), reverse=True)


def test_every_layer_has_its_forward_and_backward(profiled: tuple[Path, Summary]) -> None:
    _, found = profiled
    by_name = {line.name: line for line in found.modules}
    for layer in range(MODEL.layers):
        assert by_name[f"model.encoder.blocks.{layer}"].calls == 1
        assert by_name[f"model.encoder.blocks.{layer}"].cpu_ms > 0
    calls = {line.name: line.calls for line in found.ops}
    assert calls["aten::native_layer_norm_backward"] == calls["aten::native_layer_norm"]


def test_the_files_hold_the_same(profiled: tuple[Path, Summary]) -> None:
    run, found = profiled
    assert (run / "profile/table.txt").read_text() == found.text()
    trace = json.loads(gzip.decompress((run / "profile/trace.json.gz").read_bytes()))
    names = [event.get("name") for event in trace["traceEvents"]]
    assert names.count("phase: backward") == 2


def test_a_run_that_is_too_short_is_refused_before_its_first_step(tiny_service: Dataset, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--profile 4 needs 6 steps \(2 to warm up\), the run has 5 left"):
        train("pretrain", tiny_service, tmp_path / "run", MODEL, TRAINING, profile=StepProfile(tmp_path / "run", 4))
    assert read_metrics(tmp_path / "run") == []
