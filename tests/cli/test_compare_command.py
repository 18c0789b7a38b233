"""`argus compare`: equal budgets, one table, nothing trained twice, a killed run goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from python_model.cli import app
from python_model.data.schema import load_dataset
from python_model.data.synthetic import generate, preset
from python_model.studies.compare import MODELS, MORE_MODELS, compare
from python_model.studies.study import Budget
from tests.model.conftest import encoder_parameters

runner = CliRunner()
QUICK = ["--steps", "3", "--finetune-steps", "2", "--batch-events", "256", "--window", "32", "--max-events", "150"]
SETTINGS = ["--set", "negatives_in_batch=16", "--set", "negatives_uniform=16", "--set", "warmup_steps=1"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("compare") / "service"
    generate(out, preset("demo", users=60, events_per_user=40.0, days=20, clusters=4, artists=4, tracks=4))
    return out


def rows(out: Path) -> dict[str, Any]:
    return {one["name"]: one for one in json.loads((out / "compare.json").read_text())["results"]}


def test_one_table_of_everything(data: Path, tmp_path: Path) -> None:
    command = ["compare", str(data), str(tmp_path), "--models", ",".join((*MODELS, *MORE_MODELS)), *QUICK, *SETTINGS]
    result = runner.invoke(app, command)
    assert result.exit_code == 0, result.output
    found = rows(tmp_path)
    assert list(found) == [*MODELS, *MORE_MODELS]
    events = [one["events"] for one in found.values()]
    assert max(events) < 1.05 * min(events), "equal steps of equal batches, full to a window"
    assert all(one["metrics"]["ndcg@10"] is not None for one in found.values())
    assert all(one["metrics"]["feedback_auc"] is not None for one in found.values())
    text = (tmp_path / "compare.md").read_text()
    for name in ("popularity", "item_average", "item_knn", "oracle", *found):
        assert f"| `{name}` |" in text
    assert "`argus` minus each" in text
    assert all((tmp_path / f"compare_{name}.svg").is_file() for name in ("ndcg", "pairwise_accuracy", "feedback_auc"))
    stamps = [file.stat().st_mtime_ns for file in tmp_path.glob("trials/*/result.json")]
    assert runner.invoke(app, command).exit_code == 0
    assert [file.stat().st_mtime_ns for file in tmp_path.glob("trials/*/result.json")] == stamps
    assert rows(tmp_path) == found


def test_budgets_and_shapes_are_equal(data: Path) -> None:
    study = compare(load_dataset(data), (*MODELS, *MORE_MODELS), Budget(steps=30, finetune_steps=12))
    trials = {trial.name: trial for trial in study.trials}
    argus = trials["argus"]
    assert argus.pretrain is not None
    for name, trial in trials.items():
        assert sum(stage.steps for stage in trial.stages) == 42, name
        assert trial.model.width == trial.model.item_width == argus.model.item_width, name
        assert abs(encoder_parameters(trial.model) / encoder_parameters(argus.model) - 1) < 0.05, name
        assert trial.pretrain is not None
        free = {"steps", "next_item_loss"}
        ours, theirs = asdict(argus.pretrain), asdict(trial.pretrain)
        assert {key for key in ours if ours[key] != theirs[key]} <= free, name
    assert trials["sasrec_bce"].pretrain.next_item_loss == "bce"  # type: ignore[union-attr]
    assert trials["argus_hstu"].model.encoder == trials["hstu"].model.model == "hstu"


@pytest.mark.slow
def test_a_killed_comparison_goes_on(data: Path, tmp_path: Path) -> None:
    options = ["compare", str(data), str(tmp_path), "--models", "sasrec,hstu", *QUICK, *SETTINGS]
    options += ["--set", "checkpoint_every=1", "--steps", "28"]
    with subprocess.Popen([sys.executable, "-m", "python_model", *options], stderr=subprocess.DEVNULL) as process:
        second = tmp_path / "trials" / "sasrec-seed-0" / "pretrain" / "checkpoints" / "latest"
        deadline = time.monotonic() + 120
        while not second.is_file() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
    assert second.is_file() and rows(tmp_path) == {}, "only what needs no training is written"
    result = runner.invoke(app, options)
    assert result.exit_code == 0, result.output
    assert list(rows(tmp_path)) == ["sasrec", "hstu"]
    metrics = tmp_path / "trials" / "sasrec-seed-0" / "pretrain" / "metrics.jsonl"
    assert [json.loads(line)["step"] for line in metrics.read_text().splitlines()] == list(range(1, 31))


def test_an_unknown_model_is_refused(data: Path, tmp_path: Path) -> None:
    result = runner.invoke(app, ["compare", str(data), str(tmp_path / "out"), "--models", "argus,bert4rec"])
    assert result.exit_code == 2 and "models: found bert4rec, expected some of argus, hstu" in result.stderr
