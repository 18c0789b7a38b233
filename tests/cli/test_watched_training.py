"""`argus pretrain` watches itself: its length, its validations, its best checkpoint, and going on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from python_model.cli import app
from python_model.data.schema import load_dataset
from python_model.data.synthetic import generate, preset
from python_model.training import checkpoint
from python_model.training.progress import read_metrics

SMALL = [
    "--recipe", "default", "--window", "16", "--batch-events", "128", "--set", "width=16", "--set", "layers=1",
    "--set", "negatives_in_batch=16", "--set", "negatives_uniform=8", "--set", "sketch_width=128",
]  # fmt: skip


def ran(*arguments: object, expect: int = 0) -> Any:
    result = CliRunner().invoke(app, [str(one) for one in arguments])
    assert result.exit_code == expect, f"{result.output} {result.exception!r}"
    return result


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("watched") / "data"
    generate(out, preset("demo", users=40, events_per_user=30.0, days=20, clusters=4, artists=4, tracks=4))
    return out


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "run"
    said = ran("pretrain", data, out, *SMALL, "--epochs", 1, "--seed", 3).stderr
    assert "validation: NDCG@10" in said and "learning rate" in said and "Best checkpoint: step" in said
    return out


def test_passes_are_recorded_with_the_steps_they_are(data: Path, run: Path) -> None:
    config = checkpoint.read_description(run).train_config
    assert config.epochs == 1.0 and config.steps == checkpoint.read_description(run).step > 1
    assert config.patience == 5 and config.validate_every == 1
    assert len([one for one in read_metrics(run) if "validation_next_item_ne" in one]) == config.steps + 1
    said = ran("pretrain", data, run.parent / "no", "--epochs", 1, "--steps", 3, expect=2).stderr
    assert said.startswith("argus: give either --steps or --epochs: found steps 3 and epochs 1.0")
    said = ran("pretrain", data, run.parent / "no", "--epochs", 0, expect=2).stderr
    assert "epochs is 0.0, expected a finite number in [0.001, 1000000]" in said


def test_the_length_is_chosen_from_the_data_and_said(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = load_dataset(data).info

    def begin(*given: Any, **named: Any) -> Any:
        assert given[4].steps == 200
        raise ValueError("the work begins")

    monkeypatch.setattr("python_model.train.train", begin)
    said = ran("pretrain", data, tmp_path / "out", *SMALL, expect=2).stderr
    assert f"{info.events:,} events of 40 users on 64 items: 200 steps, " in said and "the work begins" in said
    said = ran("pretrain", data, tmp_path / "out", *SMALL, "--protocol", "all", expect=2).stderr
    assert "No validation: --protocol all holds no events out" in said


def test_commands_take_the_best_checkpoint_or_the_latest(
    data: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The best is made another run's here, so that it can be told from the latest; that is not looked at."""
    import shutil

    monkeypatch.setattr("python_model.training.checkpoint.directory.of_another_run", lambda run, best: None)
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    shutil.rmtree(copy / "best")
    ran("pretrain", data, copy / "best", *SMALL, "--steps", 1, "--set", "validate_every=0", "--seed", 8)
    found = {}
    for which in ("best", "latest", None):
        option = [] if which is None else ["--checkpoint", which]
        ran("evaluate", data, copy, *option, "--json", tmp_path / f"{which}.json")
        found[which] = json.loads((tmp_path / f"{which}.json").read_text())["rows"]["pretrained"]
        ran("export", data, copy, tmp_path / f"export-{which}", *option)
        found[which]["step"] = json.loads((tmp_path / f"export-{which}" / "export.json").read_text())["step"]
        ran("recommend", data, copy, "--user", 1, *option)
    assert found["best"] == found[None] != found["latest"]
    assert (found["best"]["step"], found["latest"]["step"]) == (1, checkpoint.read_description(run).step)
    shutil.rmtree(copy / "best")
    said = ran("evaluate", data, copy, "--checkpoint", "best", expect=2).stderr
    assert "best: not found: the run has no best checkpoint" in said


def test_a_run_goes_on_past_its_end_and_on_other_data(data: Path, run: Path, tmp_path: Path) -> None:
    import shutil

    copy = Path(shutil.copytree(run, tmp_path / "run"))
    step = checkpoint.read_description(copy).step
    ran("pretrain", data, copy, "--resume", "--steps", step + 3)
    assert checkpoint.read_description(copy).step == step + 3
    assert checkpoint.read_description(copy).train_config.epochs is None
    said = ran("pretrain", data, copy, "--resume", "--steps", 2, expect=2).stderr
    assert f"steps is 2, expected more than the {step + 3} that the run has done" in said
    said = ran("pretrain", data, tmp_path / "next", "--from", run, *SMALL, "--steps", 2).stderr
    assert "64 items kept, 0 new, 0 of the run's gone and dropped" in said
    assert checkpoint.read_description(tmp_path / "next").step == 2


@pytest.mark.slow
def test_a_log_with_nothing_to_learn_ends_well_and_says_so(tmp_path: Path) -> None:
    """60,000 events of 1,000 equally likely items, default settings."""
    random = np.random.default_rng(0)
    count = 60_000
    columns = [random.integers(0, 1000, count), random.integers(0, 1000, count)]
    columns += [1_700_000_000 + np.sort(random.integers(0, 100 * 86_400, count)), random.integers(0, 2, count)]
    lines = "\n".join(f"{user},{item},{time},{like}" for user, item, time, like in zip(*columns, strict=True))
    (tmp_path / "log.csv").write_text(f"user,item,time,like\n{lines}\n")
    named = ["--user", "user", "--item", "item", "--time", "time", "--feedback", "like"]
    ran("prepare", "table", tmp_path / "log.csv", tmp_path / "data", *named)
    said = ran("pretrain", tmp_path / "data", tmp_path / "run", "--seed", 0).stderr
    assert "Nothing was found: the model predicts the next item no better than its frequency" in said
    assert "no better for 5 validations (--patience)" in said
    for part in ("validation", "test"):
        ran("evaluate", tmp_path / "data", tmp_path / "run", "--part", part, "--json", tmp_path / part)
        assert json.loads((tmp_path / part).read_text())["rows"]["pretrained"]["next_item_ne"] <= 1.01
