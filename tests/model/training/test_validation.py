"""Validation during training: its figures, the best checkpoint, patience, and that being killed changes none of it."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from python_model.data.schema import Dataset
from python_model.data.splits import make_split
from python_model.evaluation.evaluate import evaluate
from python_model.evaluation.inference import ModelPredictor
from python_model.io.errors import DataError
from python_model.train import Trainer, train
from python_model.training import checkpoint, runs
from python_model.training.progress import StepReport
from python_model.training.start import make_model
from tests.conftest import REPOSITORY
from tests.model.training.test_train import FINETUNE, MODEL, PRETRAIN, assert_same_run, records, wait_for_step

WATCHED = replace(PRETRAIN, validate_every=3)
METRIC = "validation_next_item_ne"


def best_weights(run: Path) -> dict[str, torch.Tensor]:
    return checkpoint.load_model(run / "best").state_dict()


def assert_same_watched(one: Path, other: Path) -> None:
    assert_same_run(one, other)
    first, second = best_weights(one), best_weights(other)
    assert all(torch.equal(first[name], second[name]) for name in first)
    states = [checkpoint.read_json(checkpoint.find(run) / checkpoint.STATE)["watch"] for run in (one, other)]
    assert states[0] == states[1]


@pytest.fixture(scope="module")
def watched(tiny_service: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("watched") / "run"
    train("pretrain", tiny_service, run, MODEL, WATCHED)
    return run


def test_validation_changes_no_weight(tiny_service: Dataset, watched: Path, tmp_path: Path) -> None:
    train("pretrain", tiny_service, tmp_path / "blind", MODEL, PRETRAIN)
    seen, blind = (checkpoint.load_model(run).state_dict() for run in (watched, tmp_path / "blind"))
    assert all(torch.equal(seen[name], blind[name]) for name in seen)
    assert not (tmp_path / "blind" / "best").exists()
    plain = [{key: v for key, v in one.items() if "validation" not in key} for one in records(watched)[1:]]
    assert plain == records(tmp_path / "blind")


def test_figures_are_those_of_evaluate(tiny_service: Dataset, watched: Path) -> None:
    """The evaluated users are all there are in so small a data set."""
    last = records(watched)[-1]
    predictor = ModelPredictor(checkpoint.load_model(watched), tiny_service, window=WATCHED.window)
    found = evaluate({"model": predictor}, tiny_service, part="validation", oracle=False)
    for name in ("next_item_ne", "feedback_ne", "ndcg@10", "recall@10", "feedback_auc"):
        assert last[f"validation_{name}"] == pytest.approx(found.rows["model"][name], rel=1e-5), name
    assert last["validation_popularity_ndcg@10"] == found.rows["popularity"]["ndcg@10"]


def test_the_pair_loss_is_that_of_the_pairs(tiny_service: Dataset, tmp_path: Path) -> None:
    train("finetune", tiny_service, tmp_path, MODEL, replace(FINETUNE, steps=2, validate_every=1))
    model = checkpoint.load_model(tmp_path / "checkpoints" / "step-00000002")
    rows = np.flatnonzero(make_split(tiny_service, "temporal").validation)
    scores = ModelPredictor(model, tiny_service, window=WATCHED.window, ranking_kind="pair").predict(rows).ranking
    assert scores is not None
    losses = []
    user, time_, grade = tiny_service.user[rows], tiny_service.time[rows], tiny_service.grade[rows]
    for a in range(len(rows)):
        near = (user == user[a]) & (abs(time_ - time_[a]) <= tiny_service.info.pair_window)
        worse = np.flatnonzero(near & (grade < grade[a]) & (grade >= 0))
        losses += [float(np.log1p(np.exp(scores[b] - scores[a]))) for b in worse]
    assert len(losses) > 10
    assert records(tmp_path)[-1]["validation_pair_loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    assert "validation pair loss" in runs.verdict(tmp_path)[0]


def test_the_new_model_and_every_third_step_and_the_last_are_evaluated(watched: Path) -> None:
    logged = records(watched)
    assert [one["step"] for one in logged] == list(range(WATCHED.steps + 1))
    assert [one["step"] for one in logged if METRIC in one] == list(range(0, 25, 3))


def test_the_best_is_kept_beside_the_latest_and_taken_by_default(watched: Path) -> None:
    values = {one["step"]: one[METRIC] for one in records(watched) if METRIC in one}
    best = checkpoint.chosen(watched)
    least = min(values.values())
    assert checkpoint.read_description(best).step == max(s for s, value in values.items() if value <= 1.001 * least)
    assert best.parent.parent == watched / "best"
    assert checkpoint.chosen(watched, "latest") == checkpoint.find(watched)
    assert checkpoint.chosen(best) == best
    assert runs.verdict(watched)[0].startswith("Best checkpoint: step ")


def test_a_run_without_validation_has_no_best(tiny_service: Dataset, tmp_path: Path) -> None:
    train("pretrain", tiny_service, tmp_path, MODEL, replace(PRETRAIN, steps=1))
    assert checkpoint.chosen(tmp_path) == checkpoint.find(tmp_path)
    with pytest.raises(DataError, match=r"best: not found: the run has no best checkpoint \(trained without"):
        checkpoint.chosen(tmp_path, "best")


def test_patience_ends_a_run_that_gets_no_better(tiny_service: Dataset, tmp_path: Path) -> None:
    """With a rate of 0 nothing gets better; of equal checkpoints the latest is kept."""
    config = replace(WATCHED, steps=200, validate_every=1, patience=2, learning_rate=0.0, table_learning_rate=0.0)
    reports: list[StepReport] = []
    train("pretrain", tiny_service, tmp_path, MODEL, config, progress=reports.append)
    assert reports[-1].step == 2 == checkpoint.read_description(tmp_path).step
    assert runs.verdict(tmp_path)[:2] == [
        "Stopped before step 200: no better for 2 validations (--patience)",
        f"Best checkpoint: step 2, validation next-item NE {records(tmp_path)[0][METRIC]:.4f}",
    ]
    before = records(tmp_path)
    train("pretrain", tiny_service, tmp_path, MODEL, config, resume=True)
    assert records(tmp_path) == before
    train("pretrain", tiny_service, tmp_path, MODEL, replace(config, patience=0, steps=4), resume=True)
    assert checkpoint.read_description(tmp_path).step == 4


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_a_resumed_run_is_watched_as_if_it_had_not_been_stopped(
    tiny_service: Dataset, tmp_path: Path, stage: str
) -> None:
    config = replace(WATCHED if stage == "pretrain" else replace(FINETUNE, validate_every=3), patience=4)

    def press(report: StepReport) -> None:
        if report.step in (4, 9, 12):
            os.kill(os.getpid(), signal.SIGINT)

    train(stage, tiny_service, tmp_path / "whole", MODEL, config)
    for _ in range(4):
        try:
            train(stage, tiny_service, tmp_path / "stopped", MODEL, config, resume=True, progress=press)
        except KeyboardInterrupt:
            continue
    assert_same_watched(tmp_path / "whole", tmp_path / "stopped")


CHILD = """
import sys, torch
from tests.model.training.test_validation import MODEL, WATCHED
from python_model.data.schema import load_dataset
from python_model.train import train
torch.set_num_threads(1)
train("pretrain", load_dataset(sys.argv[1]), sys.argv[2], MODEL, WATCHED, resume=True)
"""


@pytest.mark.slow
def test_a_killed_run_has_the_same_best(tiny_service: Dataset, watched: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-c", CHILD, str(tiny_service.path), str(tmp_path / "run")]
    child = subprocess.Popen(command, cwd=REPOSITORY, env=environment, stderr=subprocess.PIPE)
    wait_for_step(child, tmp_path / "run", random.SystemRandom().randrange(1, WATCHED.steps - 1))
    time.sleep(random.SystemRandom().random() * 0.02)
    child.kill()
    assert child.wait() == -signal.SIGKILL
    best = tmp_path / "run" / "best"
    if checkpoint.exists(best):
        assert checkpoint.damage(checkpoint.find(best)) is None
    train("pretrain", tiny_service, tmp_path / "run", MODEL, WATCHED, resume=True)
    assert_same_watched(watched, tmp_path / "run")


@pytest.mark.parametrize("how", ["gone", "damaged"])
def test_a_best_that_is_lost_is_chosen_anew(
    tiny_service: Dataset, tmp_path: Path, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    train("pretrain", tiny_service, tmp_path, MODEL, replace(WATCHED, steps=6))
    best = tmp_path / "best"
    if how == "gone":
        shutil.rmtree(best)
    else:
        os.truncate(checkpoint.find(best) / checkpoint.MODEL, 100)
        with pytest.raises(DataError, match=r"model\.safetensors"):
            checkpoint.load_model(checkpoint.chosen(tmp_path))
    train("pretrain", tiny_service, tmp_path, MODEL, replace(WATCHED, steps=9), resume=True)
    assert "the best checkpoint is chosen anew" in caplog.text
    assert checkpoint.damage(checkpoint.find(best)) is None and checkpoint.read_description(best).step == 9


def test_the_best_checkpoint_of_another_run_is_refused(
    tiny_service: Dataset, watched: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = tmp_path / "run"
    train("pretrain", tiny_service, run, MODEL, replace(WATCHED, steps=6, seed=WATCHED.seed + 1))
    own = checkpoint.chosen(run)
    shutil.rmtree(run / "best")
    shutil.copytree(watched / "best", run / "best")
    with pytest.raises(
        DataError, match=r"best/.*: of run [0-9a-f]{16}, expected [0-9a-f]{16} as in .*/step-00000006: "
    ):
        checkpoint.chosen(run)
    assert checkpoint.chosen(run, "latest") == checkpoint.find(run) != own
    train("pretrain", tiny_service, run, MODEL, replace(WATCHED, steps=9, seed=WATCHED.seed + 1), resume=True)
    assert "the best checkpoint is chosen anew" in caplog.text
    assert checkpoint.read_description(checkpoint.chosen(run)).step == 9


@pytest.mark.parametrize("value", [1, {}, {"metric": "x"}, None])
def test_a_damaged_state_of_the_watch_is_named(
    tiny_service: Dataset, watched: Path, tmp_path: Path, value: object
) -> None:
    import json

    from python_model.io.integrity import seal

    run = Path(shutil.copytree(watched, tmp_path / "run"))
    file = checkpoint.find(run) / checkpoint.STATE
    file.write_text(json.dumps({**json.loads(file.read_text()), "watch": value}))
    seal(file.parent)
    with pytest.raises(DataError, match=r"state\.json, column 'watch': expected an object of best"):
        train("pretrain", tiny_service, run, MODEL, WATCHED, resume=True)


class TestGoingOn:
    def test_more_steps_lay_the_schedule_anew(self, tiny_service: Dataset, tmp_path: Path) -> None:
        train("pretrain", tiny_service, tmp_path, MODEL, replace(WATCHED, steps=9))
        train("pretrain", tiny_service, tmp_path, MODEL, replace(WATCHED, steps=15), resume=True)
        logged = {one["step"]: one["learning_rate"] for one in records(tmp_path)}
        assert list(logged) == list(range(16))
        # The rate of a run of 9 steps is low at its end; that of a run of 15 goes on where such a run would be.
        assert logged[10] > 3 * logged[9]
        train("pretrain", tiny_service, tmp_path / "whole", MODEL, replace(WATCHED, steps=15))
        whole = {one["step"]: one["learning_rate"] for one in records(tmp_path / "whole")}
        assert [logged[step] for step in range(10, 16)] == [whole[step] for step in range(10, 16)]
        before = records(tmp_path)
        train("pretrain", tiny_service, tmp_path, MODEL, replace(WATCHED, steps=15), resume=True)
        assert records(tmp_path) == before

    def test_fewer_steps_than_done_are_refused(self, tiny_service: Dataset, watched: Path) -> None:
        with pytest.raises(ValueError, match="steps is 20, expected more than the 24 that the run has done"):
            train("pretrain", tiny_service, watched, MODEL, replace(WATCHED, steps=20), resume=True)


def test_scores_that_are_nan_are_no_validation(tiny_service: Dataset, tmp_path: Path) -> None:
    model = make_model(tiny_service, MODEL, None, None, 0, None)
    with torch.no_grad():
        model.log_temperature.fill_(np.nan)  # type: ignore[operator]
    trainer = Trainer(tiny_service, tmp_path, model, WATCHED)
    assert trainer.validator is not None
    assert trainer.validator.evaluate(0, trainer._evaluating).metrics == {}
    assert trainer.model.training
