"""The training loop: it learns, it is repeatable, and being killed or interrupted changes no number of a run."""

from __future__ import annotations

import json
import math
import os
import random
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from python_model.config import ModelConfig, TrainConfig
from python_model.data import description
from python_model.data.batches import BatchPlan
from python_model.data.schema import Dataset
from python_model.data.splits import temporal_split
from python_model.io import names
from python_model.model.argus import Argus
from python_model.model.optim import clip_gradients, rate_factor
from python_model.serving import bundle, score, session_files
from python_model.train import Trainer, TrainingDiverged, train
from python_model.training import checkpoint, tune
from python_model.training.progress import StepReport, Throughput, read_metrics
from tests.conftest import REPOSITORY
from tests.model.conftest import SMALL

MODEL = replace(SMALL, dropout=0.1)
PRETRAIN = TrainConfig(
    steps=24, batch_events=256, window=32, negatives_in_batch=32, negatives_uniform=16, warmup_steps=4,
    checkpoint_every=5, learning_rate=1e-2, table_learning_rate=1e-2, sketch_width=512,
)  # fmt: skip
FINETUNE = replace(PRETRAIN, stage="finetune", pretrain_weight=0.1)


def records(run: Path) -> list[dict[str, Any]]:
    """The log without what the clock says."""
    return [{key: value for key, value in record.items() if key != "seconds"} for record in read_metrics(run)]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return checkpoint.load_model(run).state_dict()


def assert_same_run(one: Path, other: Path) -> None:
    assert records(one) == records(other)
    first, second = weights(one), weights(other)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("form", ("simplified", "full"))
def test_both_stages_learn(tiny_service: Dataset, tmp_path: Path, form: str) -> None:
    reports: list[StepReport] = []
    before = train(
        "pretrain", tiny_service, tmp_path / "pretrain", replace(MODEL, form=form), PRETRAIN, progress=reports.append
    )
    assert [report.step for report in reports] == list(range(1, 25))
    losses = [report.losses["loss"] for report in reports]
    assert np.mean(losses[-5:]) < 0.9 * np.mean(losses[:5])
    after = train("finetune", tiny_service, tmp_path / "finetune", None, FINETUNE, init_from=before)
    accuracy = [record["pairwise_accuracy"] for record in read_metrics(tmp_path / "finetune")]
    assert np.mean(accuracy[-8:]) > 0.55
    model = checkpoint.load_model(after)
    assert model.stage == "finetune" and model.config.form == form
    assert model.config.lag == tiny_service.info.pair_window + 1
    assert not torch.equal(model.state_dict()["user_head.output.weight"], weights(before)["user_head.output.weight"])


@pytest.mark.parametrize("sparse", (False, True))
def test_equal_seeds_give_equal_runs_and_others_do_not(tiny_service: Dataset, tmp_path: Path, sparse: bool) -> None:
    model, config = replace(MODEL, sparse=sparse), replace(PRETRAIN, steps=6)
    for name, seed in (("one", 3), ("two", 3), ("three", 4)):
        train("pretrain", tiny_service, tmp_path / name, model, replace(config, seed=seed))
    assert_same_run(tmp_path / "one", tmp_path / "two")
    assert records(tmp_path / "one") != records(tmp_path / "three")


CHILD = """
import sys, torch
from tests.model.training.test_train import MODEL, PRETRAIN, FINETUNE
from python_model.data.schema import load_dataset
from python_model.train import train
from dataclasses import replace
torch.set_num_threads(1)
stage, data, out, sparse = sys.argv[1:5]
config = PRETRAIN if stage == "pretrain" else FINETUNE
train(stage, load_dataset(data), out, replace(MODEL, sparse=sparse == "True"), config)
"""


def start_child(stage: str, dataset: Dataset, run: Path, sparse: bool) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-c", CHILD, stage, str(dataset.path), str(run), str(sparse)]
    return subprocess.Popen(command, cwd=REPOSITORY, env=environment, stderr=subprocess.PIPE)


def wait_for_step(child: subprocess.Popen[bytes], run: Path, step: int) -> None:
    give_up = time.monotonic() + 120
    while len(read_metrics(run)) < step:
        assert child.poll() is None, child.stderr.read().decode() if child.stderr else ""
        assert time.monotonic() < give_up
        time.sleep(0.002)


@pytest.mark.parametrize(
    ("stage", "sparse"), [("pretrain", True), pytest.param("finetune", False, marks=pytest.mark.slow)]
)
def test_a_killed_run_resumes_bit_for_bit(tiny_service: Dataset, tmp_path: Path, stage: str, sparse: bool) -> None:
    model, config = replace(MODEL, sparse=sparse), PRETRAIN if stage == "pretrain" else FINETUNE
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    train(stage, tiny_service, whole, model, config)
    step = random.SystemRandom().randrange(1, config.steps - 1)
    child = start_child(stage, tiny_service, killed, sparse)
    wait_for_step(child, killed, step)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL, f"the run ended before it was killed at step {step}"
    assert step <= len(records(killed)) < config.steps
    # What a kill in the middle of a write leaves behind.
    with (killed / "metrics.jsonl").open("a") as log:
        log.write('{"stage": "pre')
    train(stage, tiny_service, killed, model, config, resume=True)
    assert_same_run(whole, killed)
    assert [record["step"] for record in records(killed)] == list(range(1, config.steps + 1))


def test_ctrl_c_finishes_the_step_saves_and_resumes(tiny_service: Dataset, tmp_path: Path) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    train("pretrain", tiny_service, whole, MODEL, PRETRAIN)

    def press(report: StepReport) -> None:
        if report.step == 7:
            os.kill(os.getpid(), signal.SIGINT)

    previous = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train("pretrain", tiny_service, stopped, MODEL, PRETRAIN, progress=press)
    assert signal.getsignal(signal.SIGINT) is previous
    assert checkpoint.describe(stopped)["step"] == 7
    train("pretrain", tiny_service, stopped, MODEL, PRETRAIN, resume=True)
    assert_same_run(whole, stopped)


def test_training_works_outside_the_main_thread(tiny_service: Dataset, tmp_path: Path) -> None:
    config = replace(PRETRAIN, steps=2)
    worker = threading.Thread(target=train, args=("pretrain", tiny_service, tmp_path / "run", MODEL, config))
    worker.start()
    worker.join()
    assert checkpoint.describe(tmp_path / "run")["step"] == 2


def test_resuming_a_finished_run_changes_nothing(tiny_service: Dataset, tmp_path: Path) -> None:
    config = replace(PRETRAIN, steps=3)
    train("pretrain", tiny_service, tmp_path / "run", MODEL, config)
    before = records(tmp_path / "run")
    train("pretrain", tiny_service, tmp_path / "run", MODEL, config, resume=True)
    assert records(tmp_path / "run") == before


def test_resume_without_a_checkpoint_starts(tiny_service: Dataset, tmp_path: Path) -> None:
    train("pretrain", tiny_service, tmp_path / "run", MODEL, replace(PRETRAIN, steps=2), resume=True)
    assert len(records(tmp_path / "run")) == 2


class TestRefusals:
    def test_a_run_is_not_overwritten(self, tiny_service: Dataset, tmp_path: Path) -> None:
        config = replace(PRETRAIN, steps=2)
        train("pretrain", tiny_service, tmp_path, MODEL, config)
        with pytest.raises(FileExistsError, match="holds a training run: pass --resume or choose another directory"):
            train("pretrain", tiny_service, tmp_path, MODEL, config)

    def test_resuming_with_other_settings(self, tiny_service: Dataset, tmp_path: Path) -> None:
        config = replace(PRETRAIN, steps=2)
        train("pretrain", tiny_service, tmp_path, MODEL, config)
        with pytest.raises(ValueError, match=r"train_config differs: learning_rate was 0\.01, now 0\.5"):
            train("pretrain", tiny_service, tmp_path, MODEL, replace(config, learning_rate=0.5), resume=True)
        with pytest.raises(ValueError, match=r"model_config differs: dropout was 0\.1, now 0\.2"):
            train("pretrain", tiny_service, tmp_path, replace(MODEL, dropout=0.2), config, resume=True)
        train("pretrain", tiny_service, tmp_path, MODEL, replace(config, checkpoint_every=1), resume=True)

    def test_finetuning_may_change_the_lag_but_not_the_shape(self, tiny_service: Dataset, tmp_path: Path) -> None:
        start = train("pretrain", tiny_service, tmp_path / "pretrain", MODEL, replace(PRETRAIN, steps=2))
        config = replace(FINETUNE, steps=2)
        tuned = train(
            "finetune",
            tiny_service,
            tmp_path / "tuned",
            replace(MODEL, lag=10**6, dropout=0.0),
            config,
            init_from=start,
        )
        assert checkpoint.load_model(tuned).config.lag == 10**6
        with pytest.raises(ValueError, match="model_config differs: layers was 2, now 3"):
            train("finetune", tiny_service, tmp_path / "no", replace(MODEL, layers=3), config, init_from=start)

    def test_a_window_longer_than_the_model_takes(self, tiny_service: Dataset, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="window is 32, expected at most the model's max_events 16"):
            train("pretrain", tiny_service, tmp_path, replace(MODEL, max_events=16), PRETRAIN)

    def test_a_loss_that_is_not_finite_stops_the_run(self, tiny_service: Dataset, tmp_path: Path) -> None:
        trainer_of = tmp_path / "run"
        train("pretrain", tiny_service, trainer_of, MODEL, replace(PRETRAIN, steps=5, checkpoint_every=5))
        config = replace(PRETRAIN, learning_rate=1e30, table_learning_rate=1e30, warmup_steps=0)
        with pytest.raises(TrainingDiverged, match=r"step \d+: loss is .*\(10 in a row\).*learning rate"):
            train("pretrain", tiny_service, tmp_path / "diverging", MODEL, config)
        logged = records(tmp_path / "diverging")
        assert all(math.isfinite(record["loss"]) for record in logged if not record.get("skipped"))
        assert sum(record.get("skipped", False) for record in logged) == 9

    def test_another_stage_in_the_settings(self, tiny_service: Dataset, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="train_config is for stage 'pretrain', expected 'finetune'"):
            train("finetune", tiny_service, tmp_path, MODEL, PRETRAIN)


def test_only_training_rows_are_seen(tiny_service: Dataset, tmp_path: Path) -> None:
    trainer = Trainer(tiny_service, tmp_path, Argus.for_dataset(MODEL, tiny_service), PRETRAIN)
    seen = np.zeros(len(tiny_service), bool)
    assert isinstance(trainer.plan, BatchPlan)
    for batches in islice(trainer._batches(), 2 * len(list(trainer.plan.batches(0)))):
        for batch in batches:
            seen[batch.rows.numpy()] = True
    assert seen.any()
    assert not (seen & ~temporal_split(tiny_service).train).any()


def test_the_rate_warms_up_and_comes_down() -> None:
    config = replace(PRETRAIN, steps=100, warmup_steps=10, final_fraction=0.1)
    factors = [rate_factor(step, config) for step in range(100)]
    assert factors[:10] == pytest.approx([0.1 * n for n in range(1, 11)])
    assert factors[9:] == sorted(factors[9:], reverse=True)
    assert factors[99] == pytest.approx(0.1, abs=2e-3)


def test_clipping_counts_sparse_and_dense_gradients_together() -> None:
    table, dense = torch.nn.Parameter(torch.zeros(4, 2)), torch.nn.Parameter(torch.zeros(2))
    rows = torch.tensor([[1, 1, 3]])
    table.grad = torch.sparse_coo_tensor(rows, torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 4.0]]), (4, 2))
    dense.grad = torch.tensor([0.0, 12.0])
    assert clip_gradients([table, dense], 1.3) == pytest.approx(13.0)
    assert table.grad.to_dense()[1, 0] == pytest.approx(0.3) and dense.grad[1] == pytest.approx(1.2)
    assert clip_gradients([table, dense], 100.0) == pytest.approx(1.3)
    assert dense.grad[1] == pytest.approx(1.2)


def test_throughput_counts_the_recent_steps() -> None:
    pace = Throughput()
    time.sleep(0.05)
    rate, left = pace.step(100, 3)
    assert 100 / rate == pytest.approx(left / 3) and 0.05 <= left / 3 < 5


def test_the_log_is_json_with_the_settings_beside_it(tiny_service: Dataset, tmp_path: Path) -> None:
    config = replace(PRETRAIN, steps=3, log_every=2)
    run = train("pretrain", tiny_service, tmp_path, MODEL, config)
    logged = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in logged] == [2, 3]
    assert {"stage", "events", "seconds", "learning_rate", "loss", "next_item", "feedback_skip"} <= set(logged[0])
    assert any((tmp_path / "tensorboard").iterdir())
    described = checkpoint.describe(run)
    assert described["train_config"] == asdict(config) | {"batches_per_step": 1}
    assert ModelConfig.from_dict(described["model_config"]) == MODEL


def test_a_directory_that_another_command_made_is_left_alone(tiny_service: Dataset) -> None:
    before = sorted(path.name for path in tiny_service.path.iterdir())
    with pytest.raises(FileExistsError, match=r"holds a data set \(dataset.json\): choose another directory"):
        train("pretrain", tiny_service, tiny_service.path, MODEL, TrainConfig(steps=1))
    assert sorted(path.name for path in tiny_service.path.iterdir()) == before


def test_a_directory_of_something_else_is_left_alone(tiny_service: Dataset, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(FileExistsError, match="is not empty and holds no training run: choose another directory"):
        train("pretrain", tiny_service, tmp_path, MODEL, TrainConfig(steps=1))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    (tmp_path / "thesis.tex").rename(tmp_path / ".hidden")
    train("pretrain", tiny_service, tmp_path, MODEL, TrainConfig(steps=1))


def test_directories_are_known_by_the_files_that_commands_write() -> None:
    written = {description.INFO, bundle.INFO, session_files.STORE, score.JOB, tune.STUDY}
    assert names.MARKERS.keys() == written
