"""Steps whose loss or gradient is not finite: nothing changes, they are counted and kept, and too many end the run."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

from python_model.data.batches import JaggedBatch
from python_model.data.schema import Dataset
from python_model.io.errors import DataError
from python_model.model.argus import Argus
from python_model.model.base import Recommender
from python_model.model.losses import PretrainLoss
from python_model.train import Trainer, TrainingDiverged, step_seed, train
from python_model.training import checkpoint, skipped_steps
from python_model.training.progress import StepReport, read_metrics
from tests.model.reliability.conftest import CONFIG, MODEL
from tests.model.training.test_train import assert_same_run, weights

Plant = Callable[[Recommender, Tensor], Tensor]


def nan_loss(model: Recommender, loss: Tensor) -> Tensor:
    return loss * torch.nan


def infinite_loss(model: Recommender, loss: Tensor) -> Tensor:
    return loss + torch.inf


def nan_gradient(model: Recommender, loss: Tensor) -> Tensor:
    """The loss stays as it is; the slope of a root at zero is infinite, times zero it is NaN."""
    return loss + (0.0 * next(model.parameters()).sum()).sqrt()


NOT_FINITE: dict[Plant, set[str]] = {
    nan_loss: {"loss", "gradient_norm"},
    infinite_loss: {"loss"},
    nan_gradient: {"gradient_norm"},
}


def plant(monkeypatch: pytest.MonkeyPatch, what: Plant, *steps: int) -> None:
    """Spoil the loss of some steps, counted from 1."""
    sound = PretrainLoss.__call__

    def spoilt(self: PretrainLoss, batch: JaggedBatch, step: int, states: Tensor | None = None) -> object:
        loss, parts = sound(self, batch, step, states)
        return (what(self.model, loss) if step + 1 in steps else loss), parts

    monkeypatch.setattr(PretrainLoss, "__call__", spoilt)


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("what", [nan_loss, infinite_loss, nan_gradient])
def test_a_skipped_step_changes_neither_weights_nor_optimisers(
    tiny_service: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: Plant, sparse: bool
) -> None:
    plant(monkeypatch, what, 4)
    model = Argus.for_dataset(replace(MODEL, sparse=sparse), tiny_service).train()
    trainer = Trainer(tiny_service, tmp_path, model, CONFIG)
    batches = trainer._batches()
    for _ in range(3):
        trainer._update(next(batches))
    before = {name: value.clone() for name, value in (model.state_dict() | trainer.optimisers.state()).items()}
    _, losses = trainer._update(next(batches))
    after = model.state_dict() | trainer.optimisers.state()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert (trainer.step, trainer.skipped.total, trainer.skipped.in_a_row) == (4, 1, 1)
    assert {"loss", "gradient_norm"} - losses.keys() == NOT_FINITE[what]
    trainer._update(next(batches))
    assert (trainer.skipped.total, trainer.skipped.in_a_row) == (1, 0)
    assert any(not torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_skipped_steps_are_logged_and_a_resumed_run_skips_the_same(
    tiny_service: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    plant(monkeypatch, nan_loss, 3, 7, 8)
    reports: list[StepReport] = []
    run = tmp_path / "whole"
    train("pretrain", tiny_service, run, MODEL, CONFIG, progress=reports.append)
    assert [report.step for report in reports if report.skipped] == [3, 7, 8]
    assert [record["step"] for record in read_metrics(run) if record.get("skipped")] == [3, 7, 8]
    assert all("loss" in record for record in read_metrics(run) if not record.get("skipped"))
    said = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert said[2] == (
        "Step 8 skipped: loss is nan, gradient_norm is nan; 2 in a row, training stops after 10; "
        f"its batch: {run}/skipped/step-00000008.parquet"
    )
    # A stop in the middle of a row of them: what counts the row is part of the checkpoint.
    stopped = tmp_path / "stopped"

    def stop(report: StepReport) -> None:
        if report.step == 7:
            signal_itself()

    with pytest.raises(KeyboardInterrupt):
        train("pretrain", tiny_service, stopped, MODEL, CONFIG, progress=stop)
    numbers = checkpoint.load_trainer(checkpoint.find(stopped)).numbers
    assert (numbers["skipped"], numbers["skipped_in_a_row"]) == (2, 1)
    train("pretrain", tiny_service, stopped, MODEL, CONFIG, resume=True)
    assert_same_run(run, stopped)
    assert checkpoint.load_trainer(checkpoint.find(stopped)).numbers["skipped"] == 3


def signal_itself() -> None:
    import os
    import signal

    os.kill(os.getpid(), signal.SIGINT)


def test_too_many_in_a_row_end_the_run(tiny_service: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, nan_loss, 3, *range(6, 13))
    config = replace(CONFIG, max_skipped_steps=4)
    with pytest.raises(TrainingDiverged) as caught:
        train("pretrain", tiny_service, tmp_path, MODEL, config)
    assert str(caught.value) == (
        "step 9: loss is nan, gradient_norm is nan, expected finite numbers (4 in a row); its batch: "
        f"{tmp_path}/skipped/step-00000009.parquet. A lower learning rate or a longer warm-up usually helps; last "
        f"checkpoint: {tmp_path}/checkpoints/step-00000004"
    )
    # The checkpoint due at step 8, in the middle of the row, was not written: step 4 would have had to go for it.
    assert checkpoint.describe(tmp_path)["step"] == 4
    assert all(value.isfinite().all() for value in weights(tmp_path).values())
    monkeypatch.undo()
    train("pretrain", tiny_service, tmp_path, MODEL, replace(config, max_skipped_steps=5), resume=True)
    assert [record["step"] for record in read_metrics(tmp_path)] == list(range(1, 13))


def test_the_first_step_may_be_the_last(tiny_service: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, nan_gradient, 1)
    with pytest.raises(TrainingDiverged, match=r"gradient_norm is nan.*\(1 in a row\).*none was written yet"):
        train("pretrain", tiny_service, tmp_path, MODEL, replace(CONFIG, max_skipped_steps=1))


def test_the_batch_that_was_kept_is_the_batch(
    tiny_service: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch, nan_loss, 2)
    trainer = Trainer(tiny_service, tmp_path, Argus.for_dataset(MODEL, tiny_service), CONFIG)
    batches = trainer._batches()
    trainer._update(next(batches))
    (batch,) = next(batches)
    weights_then = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer._update([batch])
    found, about = skipped_steps.read_batch(tmp_path / "skipped" / "step-00000002.parquet")
    assert about["step"] == 2 and about["loss"] == "nan"
    for one in fields(JaggedBatch):
        kept, meant = getattr(found, one.name), getattr(batch, one.name)
        assert kept == meant if one.name == "max_length" else torch.equal(kept, meant), one.name
    # The step can be done again from the file: same weights, same seed, same numbers.
    monkeypatch.undo()
    losses = []
    for again in (batch, found):
        trainer.model.load_state_dict(weights_then)
        torch.manual_seed(step_seed(CONFIG.seed, 1))
        sketch = trainer.sampler.sketch.state_dict()
        losses.append(trainer.loss(again, 1)[0])
        trainer.sampler.sketch.load_state_dict(sketch)
    assert losses[0].isfinite() and torch.equal(losses[0], losses[1])


def test_batches_that_are_kept_do_not_fill_the_disk(
    tiny_service: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(skipped_steps, "KEPT_BATCHES", 2)
    plant(monkeypatch, nan_loss, 2, 4, 5, 9)
    train("pretrain", tiny_service, tmp_path, MODEL, CONFIG)
    kept = sorted(path.name for path in (tmp_path / "skipped").iterdir())
    assert kept == ["step-00000005.parquet", "step-00000009.parquet"]


def test_a_file_that_is_no_batch(tmp_path: Path, tiny_service: Dataset) -> None:
    for file in (tmp_path / "none.parquet", tiny_service.path / "events.parquet"):
        with pytest.raises(DataError, match="expected the batch of a skipped step"):
            skipped_steps.read_batch(file)


def test_a_batch_with_a_hostile_description(tmp_path: Path, tiny_service: Dataset) -> None:
    batch = next(iter(Trainer(tiny_service, tmp_path, Argus.for_dataset(MODEL, tiny_service), CONFIG)._batches()))[0]
    file = tmp_path / "step.parquet"
    skipped_steps.write_batch(file, batch, tiny_service, {"step": 1})
    table = pq.read_table(file)
    for described in (b"[" * 200_000, b"{", b"\xff", b'{"a": 1, "a": 2}'):
        pq.write_table(table.replace_schema_metadata({b"argus_skipped_step": described}), file)
        with pytest.raises(DataError, match=r"step\.parquet: expected the batch of a skipped step"):
            skipped_steps.read_batch(file)
    for missing in ("window", "user", "time"):
        pq.write_table(table.drop_columns([missing]), file)
        with pytest.raises(DataError, match=r"step\.parquet: expected the batch of a skipped step"):
            skipped_steps.read_batch(file)
