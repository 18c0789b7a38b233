"""Two at once: the second is refused by the name of the first, and what the first makes is its own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from python_model.cli import app
from python_model.data.schema import Dataset
from python_model.io.exclusive import InUseError, owned, replacing
from python_model.io.publish import whole_directory
from python_model.studies.study import Study, run_study
from python_model.train import train
from python_model.training import checkpoint
from python_model.training.checkpoint import Description, TrainerState
from python_model.training.progress import read_metrics
from tests.conftest import REPOSITORY
from tests.model.conftest import small_model
from tests.model.reliability.conftest import CONFIG, MODEL
from tests.model.training.test_train import assert_same_run


def wait_for(holds: Callable[[], object], child: subprocess.Popen[str]) -> None:
    give_up = time.monotonic() + 120
    while not holds():
        assert child.poll() is None and time.monotonic() < give_up
        time.sleep(0.01)


@pytest.mark.slow
def test_a_second_training_run_is_refused(tiny_service: Dataset, tmp_path: Path) -> None:
    run, data = tmp_path / "run", str(tiny_service.path)
    command = ["pretrain", data, str(run), "--steps", "100000", "--recipe", "demo"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    first = subprocess.Popen(
        [sys.executable, "-m", "python_model", *command], cwd=REPOSITORY, env=environment, stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    wait_for(lambda: read_metrics(run), first)
    for second in (command, [*command, "--resume"], ["finetune", data, str(run), "--from-scratch"]):
        result = CliRunner().invoke(app, second)
        assert result.exit_code == 2, result.output
        said = [line for line in result.stderr.splitlines() if line.startswith("argus: ")]
        assert len(said) == 1
        assert re.match(rf"argus: {run} is in use by process {first.pid} on .*pretrain .*: wait until it ends", said[0])
    before = len(read_metrics(run))
    first.send_signal(signal.SIGTERM)
    first.communicate(timeout=120)
    assert first.returncode == 143
    records = read_metrics(run)
    assert [record["step"] for record in records] == list(range(len(records))) and len(records) >= before
    assert checkpoint.damage(checkpoint.find(run)) is None and checkpoint.describe(run)["step"] == records[-1]["step"]


def test_a_run_that_ended_or_was_killed_is_free(tiny_service: Dataset, whole: Path, tmp_path: Path) -> None:
    train("pretrain", tiny_service, tmp_path / "run", MODEL, replace(CONFIG, steps=12))
    with owned(tmp_path / "run"), pytest.raises(InUseError, match=f"run is in use by process {os.getpid()}"):
        train("pretrain", tiny_service, tmp_path / "run", MODEL, replace(CONFIG, steps=12), resume=True)
    train("pretrain", tiny_service, tmp_path / "run", MODEL, replace(CONFIG, steps=12), resume=True)
    assert_same_run(whole, tmp_path / "run")


def test_checkpoints_saved_at_once_are_of_one_writer_each(tmp_path: Path) -> None:
    """Weights and optimiser carry their writer's number: in what is left they agree."""
    saves, writers = 10, 6
    models = [small_model(seed=number) for number in range(writers)]
    for number, model in enumerate(models):
        with torch.no_grad():
            model.temperature.fill_(1 + number) if hasattr(model, "temperature") else None
    refused = [0] * writers
    names = list(models[0].state_dict())

    def work(number: int) -> None:
        model = models[number]
        state = TrainerState({"writer": torch.full((2000,), float(number))}, {"writer": number})
        for step in range(saves):
            description = Description("pretrain", step, model.config, CONFIG, model.features, {"name": f"{number}"})
            try:
                checkpoint.save(tmp_path, model, description, state, keep=100)
            except InUseError:
                refused[number] += 1

    threads = [threading.Thread(target=work, args=(number,)) for number in range(writers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = sorted((tmp_path / checkpoint.CHECKPOINTS).glob("step-*"))
    assert found and sum(refused) > 0
    for directory in found:
        assert checkpoint.damage(directory) is None
        number = checkpoint.load_trainer(directory).numbers["writer"]
        assert checkpoint.describe(directory)["dataset"] == f"{number}"
        assert (checkpoint.load_trainer(directory).tensors["writer"] == number).all()
        weights = checkpoint.read_tensors(directory, checkpoint.MODEL, {})
        assert all(torch.equal(weights[name], models[number].state_dict()[name]) for name in names)
    hidden = [path.name for path in tmp_path.rglob(".*")]
    assert hidden == [], hidden


COMMANDS = {
    "prepare": ["prepare", "synthetic", "small", "OUT", "--set", "users=20"],
    "prepare again": ["prepare", "synthetic", "small", "OUT", "--set", "users=20", "--overwrite"],
    "shard": ["shard", "DATA", "OUT", "--shards", "2"],
    "export": ["export", "DATA", "RUN", "OUT"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_directory_that_is_being_made(tiny_service: Dataset, run: Path, tmp_path: Path, name: str) -> None:
    out = tmp_path / "out"
    places = {"OUT": str(out), "DATA": str(tiny_service.path), "RUN": str(run)}
    with replacing(out):
        result = CliRunner().invoke(app, [places.get(word, word) for word in COMMANDS[name]])
    assert result.exit_code == 2, result.output
    assert f"argus: {out} is in use by process {os.getpid()} on " in result.stderr.replace("\n", " ")
    assert sorted(os.listdir(tmp_path)) == ["run"]


def test_a_study_that_runs(tiny_service: Dataset, tmp_path: Path) -> None:
    with owned(tmp_path / "out"):
        with pytest.raises(InUseError, match="out is in use by process"):
            run_study(Study("x", [], lambda results, known: None), tiny_service, tmp_path / "out")  # type: ignore[arg-type,return-value]
        for command in (["study", "logq", "OUT"], ["study", "ceiling", "OUT", "--data", "DATA"]):
            places = {"OUT": str(tmp_path / "out"), "DATA": str(tiny_service.path)}
            result = CliRunner().invoke(app, [places.get(word, word) for word in command])
            assert result.exit_code == 2 and "out is in use by process" in result.stderr, result.output


def test_many_processes_make_one_directory(tmp_path: Path) -> None:
    """Forked writers: each makes it whole or is refused; nothing is left of those that were."""
    children = []
    for number in range(12):
        child = os.fork()
        if child == 0:
            try:
                with whole_directory(tmp_path / "out", "marker", overwrite=True) as partial:
                    for name in ("a", "marker"):
                        (partial / name).write_text(str(number))
            except InUseError:
                os._exit(1)
            os._exit(0)
        children.append(child)
    ends = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    assert set(ends) <= {0, 1} and 0 in ends
    texts = {(tmp_path / "out" / name).read_text() for name in ("a", "marker")}
    assert len(texts) == 1 and ends[int(texts.pop())] == 0 and os.listdir(tmp_path) == ["out"]
