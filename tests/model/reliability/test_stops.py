"""SIGTERM, as a cluster sends it before it takes a machine away: saved, left with its own exit code, resumed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from python_model.data.schema import Dataset
from python_model.train import train
from python_model.training import checkpoint
from python_model.training.progress import InterruptGuard, StepReport, Terminated, read_metrics
from tests.conftest import REPOSITORY
from tests.model.reliability.conftest import CONFIG, MODEL
from tests.model.training.test_train import assert_same_run


def start(*arguments: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-m", "python_model", *arguments]
    return subprocess.Popen(command, cwd=REPOSITORY, env=environment, stderr=subprocess.PIPE, text=True)


def test_sigterm_finishes_the_step_saves_and_resumes(tiny_service: Dataset, whole: Path, tmp_path: Path) -> None:
    def terminate(report: StepReport) -> None:
        if report.step == 6:
            os.kill(os.getpid(), signal.SIGTERM)

    previous = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Terminated):
        train("pretrain", tiny_service, tmp_path, MODEL, CONFIG, progress=terminate)
    assert signal.getsignal(signal.SIGTERM) is previous
    assert checkpoint.describe(tmp_path)["step"] == 6
    train("pretrain", tiny_service, tmp_path, MODEL, CONFIG, resume=True)
    assert_same_run(whole, tmp_path)


@pytest.mark.parametrize(
    ("number", "kind"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated)], ids=["SIGINT", "SIGTERM"]
)
def test_a_second_signal_strikes_at_once(number: signal.Signals, kind: type[KeyboardInterrupt]) -> None:
    with InterruptGuard() as guard:
        os.kill(os.getpid(), number)
        assert guard.asked is kind
        with pytest.raises(kind):
            os.kill(os.getpid(), number)


@pytest.mark.slow
def test_a_terminated_training_command_says_how_to_resume(tiny_service: Dataset, tmp_path: Path) -> None:
    run = tmp_path / "run"
    child = start("pretrain", str(tiny_service.path), str(run), "--steps", "100000", "--recipe", "demo")
    give_up = time.monotonic() + 120
    while not read_metrics(run):
        assert child.poll() is None and time.monotonic() < give_up
        time.sleep(0.01)
    child.send_signal(signal.SIGTERM)
    _, said = child.communicate(timeout=120)
    assert child.returncode == 143, said
    step = checkpoint.describe(run)["step"]
    assert (
        f"Stopped and saved after step {step:,}. Resume with: argus pretrain {tiny_service.path} {run} --resume" in said
    )
    assert "Traceback" not in said
    # Step 0 is the validation before the first.
    assert [record["step"] for record in read_metrics(run)] == list(range(step + 1))


def test_a_terminated_preparation_leaves_nothing_behind(tmp_path: Path) -> None:
    out = tmp_path / "data"
    child = start("prepare", "synthetic", "large", str(out))
    give_up = time.monotonic() + 120
    while not list(tmp_path.glob(".data.*/events.parquet")):
        assert child.poll() is None and time.monotonic() < give_up
        time.sleep(0.01)
    child.send_signal(signal.SIGTERM)
    _, said = child.communicate(timeout=120)
    assert child.returncode == 143 and "Stopped." in said and "Traceback" not in said
    assert list(tmp_path.iterdir()) == []
