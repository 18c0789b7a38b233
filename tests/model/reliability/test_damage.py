"""Checkpoints that were damaged after they were written: named, never believed; a run resumes from the one before."""

from __future__ import annotations

import json
import logging
import random
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from python_model.cli import app
from python_model.data.schema import Dataset, DatasetWriter, event_schema, load_dataset
from python_model.data.synthetic import generate, preset
from python_model.io.errors import DataError
from python_model.io.integrity import CHECKSUMS
from python_model.train import train
from python_model.training import checkpoint
from tests.model.reliability.conftest import CONFIG, MODEL, flip_bit, steps, truncate
from tests.model.training.test_train import assert_same_run

FILES = (checkpoint.MODEL, checkpoint.TRAINER, checkpoint.CONFIG, checkpoint.STATE, CHECKSUMS)


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_cut_file_makes_a_run_resume_from_the_checkpoint_before(
    run: Path, file: str, share: float, caplog: pytest.LogCaptureFixture
) -> None:
    truncate(checkpoint.find(run) / file, share)
    found = checkpoint.recover(run)
    assert found == run / "checkpoints" / "step-00000008"
    (said,) = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert f"step-00000012/{file}: " in said and said.endswith(f"Resuming from {found} instead")


@pytest.mark.parametrize("file", FILES)
def test_a_missing_file_does_too(run: Path, file: str) -> None:
    (checkpoint.find(run) / file).unlink()
    assert checkpoint.recover(run).name == "step-00000008"


def test_every_flipped_bit_is_found(run: Path) -> None:
    directory, dice = checkpoint.find(run), random.Random(0)
    for file in FILES:
        path = directory / file
        for _ in range(12):
            bit = dice.randrange(8 * path.stat().st_size)
            flip_bit(path, bit)
            assert checkpoint.damage(directory) is not None, f"{file}, bit {bit}"
            flip_bit(path, bit)
    assert checkpoint.damage(directory) is None


def test_resuming_from_the_one_before_ends_with_the_same_numbers(tiny_service: Dataset, whole: Path, run: Path) -> None:
    flip_bit(checkpoint.find(run) / checkpoint.TRAINER, 12_345)
    train("pretrain", tiny_service, run, MODEL, CONFIG, resume=True)
    assert_same_run(whole, run)
    assert checkpoint.damage(checkpoint.find(run)) is None and steps(run) == [8, 12]


def test_nothing_else_takes_an_older_checkpoint_by_itself(run: Path) -> None:
    flip_bit(checkpoint.find(run) / checkpoint.MODEL, 54_321)
    with pytest.raises(DataError, match=r"damaged: expected the checksum .* before it is .*step-00000008"):
        checkpoint.load_model(run)
    assert checkpoint.load_model(run / "checkpoints" / "step-00000008").stage == "pretrain"


def test_the_start_of_fine_tuning_is_checked(tiny_service: Dataset, run: Path, tmp_path: Path) -> None:
    flip_bit(checkpoint.find(run) / checkpoint.MODEL, 54_321)
    config = replace(CONFIG, stage="finetune")
    with pytest.raises(DataError, match=r"model\.safetensors: damaged: expected the checksum"):
        train("finetune", tiny_service, tmp_path / "tuned", None, config, init_from=run)
    assert not checkpoint.exists(tmp_path / "tuned")


def test_evaluating_a_damaged_run_says_so_in_one_sentence(tiny_service: Dataset, run: Path) -> None:
    truncate(checkpoint.find(run) / checkpoint.MODEL, 0.5)
    result = CliRunner().invoke(app, ["evaluate", str(tiny_service.path), str(run)])
    assert result.exit_code == 2 and result.stdout == ""
    assert "model.safetensors: damaged or truncated: expected" in result.stderr and result.stderr.count("\n") == 1


def test_no_checkpoint_is_whole(tiny_service: Dataset, run: Path) -> None:
    for directory in (run / "checkpoints").glob("step-*"):
        truncate(directory / checkpoint.STATE, 0.5)
    with pytest.raises(DataError, match=r"no checkpoint is whole: .*12/state\.json.*08/state\.json"):
        train("pretrain", tiny_service, run, MODEL, CONFIG, resume=True)


@pytest.mark.parametrize("text", ["step-00000099\n", "", "\0\0\0\0", "../../etc\n", None])
def test_latest_names_nothing(run: Path, text: str | None, caplog: pytest.LogCaptureFixture) -> None:
    pointer = run / "checkpoints" / checkpoint.LATEST
    pointer.unlink() if text is None else pointer.write_text(text)
    with pytest.raises(DataError, match=r"latest: names .*; the newest checkpoint is .*step-00000012"):
        checkpoint.load_model(run)
    assert checkpoint.exists(run) and checkpoint.recover(run).name == "step-00000012"
    assert "latest: names no checkpoint" in caplog.text


def test_a_new_run_does_not_take_the_place_of_one_without_latest(tiny_service: Dataset, run: Path) -> None:
    (run / "checkpoints" / checkpoint.LATEST).unlink()
    with pytest.raises(FileExistsError, match="holds a training run"):
        train("pretrain", tiny_service, run, MODEL, CONFIG)


def test_a_damaged_line_of_the_log_is_named(tiny_service: Dataset, run: Path) -> None:
    log = run / "metrics.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    log.write_text("".join([lines[0], '{"stage": "pre\n', *lines[2:]]))
    with pytest.raises(DataError, match=r"metrics\.jsonl: line 2 is damaged"):
        train("pretrain", tiny_service, run, MODEL, CONFIG, resume=True)


class TestOtherRuns:
    def test_another_configuration(self, tiny_service: Dataset, run: Path) -> None:
        with pytest.raises(ValueError, match="model_config differs: width was 16, now 32"):
            train("pretrain", tiny_service, run, replace(MODEL, width=32), CONFIG, resume=True)

    def test_the_weights_of_another_configuration(self, run: Path, tmp_path: Path, tiny_service: Dataset) -> None:
        """A file swapped by hand fits neither its checksum nor the configuration."""
        train("pretrain", tiny_service, tmp_path / "wide", replace(MODEL, width=32), replace(CONFIG, steps=1))
        shutil.copy(checkpoint.find(tmp_path / "wide") / checkpoint.MODEL, checkpoint.find(run) / checkpoint.MODEL)
        with pytest.raises(DataError, match=r"model\.safetensors: damaged or truncated: expected"):
            checkpoint.load_model(run)

    def test_another_vocabulary(self, run: Path, tmp_path: Path) -> None:
        generate(tmp_path / "data", preset("demo", users=60, events_per_user=40.0, days=20, clusters=4, artists=5))
        with pytest.raises(ValueError, match="trained on another vocabulary"):
            train("pretrain", load_dataset(tmp_path / "data"), run, MODEL, CONFIG, resume=True)

    def test_other_events_of_the_same_number(self, tiny_service: Dataset, run: Path, tmp_path: Path) -> None:
        """The same users, items and counts: only the fingerprint of the events tells the data sets apart."""
        changed = rewritten(tiny_service, tmp_path / "data", {"organic": ~tiny_service.organic})
        with pytest.raises(ValueError, match=r"dataset differs: fingerprint was '[0-9a-f]{8}', now '[0-9a-f]{8}'"):
            train("pretrain", changed, run, MODEL, CONFIG, resume=True)

    def test_the_same_events_written_anew(self, tiny_service: Dataset, run: Path, tmp_path: Path) -> None:
        again = rewritten(tiny_service, tmp_path / "data", {}, chunk=97)
        assert again.info.fingerprint == tiny_service.info.fingerprint != ""
        train("pretrain", again, run, MODEL, CONFIG, resume=True)


def rewritten(dataset: Dataset, out: Path, changes: dict[str, np.ndarray], chunk: int = 10**9) -> Dataset:
    """A copy of a data set with some columns of its events changed, written in chunks."""
    info = dataset.info
    with DatasetWriter(
        out, name=info.name, source=info.source, context=info.context, feedback=info.feedback,
        item_features=info.item_features, grades=info.grades, pair_window=info.pair_window, has_oracle=info.has_oracle,
        params=info.params, negative=info.negative, positive=info.positive,
    ) as writer:  # fmt: skip
        columns = {name: dataset.column(name) for name in event_schema(info).names} | changes
        for start in range(0, len(dataset), chunk):
            writer.write_events({name: values[start : start + chunk] for name, values in columns.items()})
        writer.write_users(dataset.user_ids)
        features = {name: dataset.item_column(f"item_{name}") for name in info.item_features}
        writer.write_items(dataset.item_column("item_id"), features)
    assert json.loads((out / "dataset.json").read_text())["events"] == info.events
    return load_dataset(out)
