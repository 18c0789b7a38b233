"""Checkpoints: whole or not there, the last few kept, damage named."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from python_model.config import TrainConfig
from python_model.data.schema import Dataset
from python_model.io.errors import DataError
from python_model.model.argus import Argus
from python_model.train import train
from python_model.training import checkpoint
from tests.model.conftest import SMALL, random_batch, small_model

CONFIG = TrainConfig(
    steps=6, batch_events=128, window=16, negatives_in_batch=16, negatives_uniform=8, checkpoint_every=2, keep=2,
    sketch_width=128,
)  # fmt: skip


@pytest.fixture(scope="module")
def trained(tiny_service: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained") / "run"
    train("pretrain", tiny_service, out, SMALL, CONFIG)
    return out


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


def test_the_last_two_are_kept_and_the_newest_is_found(trained: Path) -> None:
    names = sorted(path.name for path in (trained / "checkpoints").iterdir())
    assert names == ["latest", "step-00000004", "step-00000006"]
    assert checkpoint.find(trained).name == "step-00000006"
    assert checkpoint.find(trained / "checkpoints" / "step-00000004").name == "step-00000004"


def test_a_description_is_plain_values(trained: Path, tiny_service: Dataset) -> None:
    described = checkpoint.describe(trained)
    assert (described["stage"], described["step"], described["protocol"]) == ("pretrain", 6, "temporal")
    assert described["dataset"] == tiny_service.info.name
    json.dumps(described)


def test_a_loaded_model_says_the_same(tmp_path: Path) -> None:
    model = small_model("full")
    description = checkpoint.Description("pretrain", 1, model.config, CONFIG, model.features, {"name": "random"})
    checkpoint.save(tmp_path, model, description, checkpoint.TrainerState({}, {}), keep=1)
    loaded = checkpoint.load_model(tmp_path)
    batch = random_batch([5, 0, 7])
    with torch.no_grad():
        assert torch.equal(loaded.next_item_queries(batch), model.next_item_queries(batch))
        assert torch.equal(loaded.ranking_scores(batch), model.ranking_scores(batch, "next_item"))
    assert not loaded.training and loaded.stage == "pretrain"


def test_settings_without_shape_may_change_on_loading(trained: Path) -> None:
    assert checkpoint.load_model(trained, lag=30).config.lag == 30


@pytest.mark.parametrize("file", [checkpoint.MODEL, checkpoint.TRAINER])
@pytest.mark.parametrize("size", [0, 5, 0.5])
def test_a_truncated_file_is_named(run: Path, file: str, size: float) -> None:
    path = checkpoint.find(run) / file
    whole = path.stat().st_size
    os.truncate(path, int(size * whole) if size == 0.5 else int(size))
    with pytest.raises(DataError, match=f"{file}: damaged or truncated"):
        checkpoint.load_model(run) if file == checkpoint.MODEL else checkpoint.load_trainer(checkpoint.find(run))


@pytest.mark.parametrize("file", [checkpoint.MODEL, checkpoint.CONFIG])
def test_a_missing_file_is_named(run: Path, file: str) -> None:
    (checkpoint.find(run) / file).unlink()
    with pytest.raises(DataError, match=r"not found: the checkpoint is incomplete|which is not there"):
        checkpoint.load_model(run)


def test_a_damaged_description_is_named(run: Path) -> None:
    path = checkpoint.find(run) / checkpoint.CONFIG
    text = path.read_text()
    for damaged, message in [
        (text[: len(text) // 2], "expected JSON"),
        ("[]", "expected a JSON object, found an array"),
        (text.replace('"format": 1', '"format": 9'), "expected format 1, found 9"),
        (text.replace('"stage"', '"phase"', 1), "this key is missing"),
        (text.replace('"layers": 2', '"layers": 0'), "layers is 0"),
    ]:
        path.write_text(damaged)
        with pytest.raises(DataError, match=message):
            checkpoint.load_model(run)


def test_weights_of_another_configuration_are_refused(trained: Path, tiny_service: Dataset) -> None:
    directory = checkpoint.find(trained)
    with pytest.raises(DataError, match=r"tensor 'feedback_embedding|'encoder.blocks.2|'event_embedding"):
        checkpoint.load_weights(Argus.for_dataset(replace(SMALL, form="full"), tiny_service), directory)
    with pytest.raises(DataError, match=r"expected shape \[\d+, 12\], found \[\d+, 8\]"):
        checkpoint.load_weights(Argus.for_dataset(replace(SMALL, item_width=12), tiny_service), directory)


def test_no_checkpoint_at_all(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no checkpoint: expected a run of"):
        checkpoint.load_model(tmp_path)


def test_a_kill_before_the_rename_leaves_the_previous_one(
    run: Path, tiny_service: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Argus.for_dataset(SMALL, tiny_service)
    description = checkpoint.Description("pretrain", 9, SMALL, CONFIG, model.features, {"name": "x"})

    def killed(source: object, target: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "rename", killed)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(run, model, description, checkpoint.TrainerState({}, {}), keep=1)
    monkeypatch.undo()
    assert checkpoint.describe(run)["step"] == 6
    checkpoint.load_model(run)
    checkpoint.save(run, model, description, checkpoint.TrainerState({}, {}), keep=1)
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["latest", "step-00000009"]
