"""A disk that fills up while something is written: one sentence, nothing half-written taken for whole, nothing lost."""

from __future__ import annotations

import json
import os
import pickle
import signal
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from python_model.cli import app
from python_model.data.prepare import prepare
from python_model.data.schema import Dataset, load_dataset, validate
from python_model.data.synthetic import generate, preset
from python_model.evaluation.evaluate import EvaluationResult
from python_model.io.disk import WriteError, reason_of, replace_text
from python_model.io.errors import DataError
from python_model.reporting import console
from python_model.reporting.report import write_report
from python_model.serving.export import export
from python_model.train import train
from python_model.training import checkpoint
from python_model.training.progress import StepReport, read_metrics
from python_model.training.skipped_steps import write_batch
from tests.model.conftest import FEATURES, random_batch
from tests.model.data.test_logs import write_ratings
from tests.model.reliability.conftest import CONFIG, MODEL, Disk, steps
from tests.model.serving.conftest import finetuned, service
from tests.model.training.test_train import assert_same_run

__all__ = ["finetuned", "service"]
SERVICE = preset("small", users=40)


def fill_at(disk: Disk, step: int, leave: int) -> Callable[[StepReport], None]:
    def fill(report: StepReport) -> None:
        if report.step == step:
            disk.fill(leave)

    return fill


def stop_at(step: int) -> Callable[[StepReport], None]:
    def stop(report: StepReport) -> None:
        if report.step == step:
            os.kill(os.getpid(), signal.SIGINT)

    return stop


def test_a_checkpoint_that_does_not_fit(tiny_service: Dataset, whole: Path, disk: Disk) -> None:
    run = disk.path / "run"
    with pytest.raises(WriteError) as caught:
        train("pretrain", tiny_service, run, MODEL, CONFIG, progress=fill_at(disk, 6, 48 << 10))
    said = str(caught.value)
    assert said.startswith(f"{run}/checkpoints/step-00000008: cannot be written, ")
    assert said.endswith(f"{run}/checkpoints/step-00000004 stays in force: free some space, then resume from it")
    assert sorted(os.listdir(run / "checkpoints")) == ["latest", "step-00000004"]
    assert checkpoint.describe(run)["step"] == 4
    checkpoint.load_model(run)
    disk.free()
    train("pretrain", tiny_service, run, MODEL, CONFIG, resume=True)
    assert_same_run(whole, run)


def test_the_first_checkpoint_that_does_not_fit(tiny_service: Dataset, disk: Disk) -> None:
    run = disk.path / "run"
    with pytest.raises(WriteError, match="free some space, then start again"):
        train("pretrain", tiny_service, run, MODEL, CONFIG, progress=fill_at(disk, 1, 48 << 10))
    assert not checkpoint.exists(run) and os.listdir(run / "checkpoints") == []


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_log_that_does_not_fit(tiny_service: Dataset, whole: Path, disk: Disk) -> None:
    run, config = disk.path / "run", replace(CONFIG, checkpoint_every=11)
    with pytest.raises(KeyboardInterrupt):
        train("pretrain", tiny_service, run, MODEL, config, progress=stop_at(1))
    with pytest.raises(WriteError, match=r"metrics\.jsonl|tensorboard") as caught:
        # The page that the log has begun takes a few lines more, but not all of them.
        train("pretrain", tiny_service, run, MODEL, config, resume=True, progress=fill_at(disk, 2, 0))
    assert "free some space, then resume" in str(caught.value)
    assert steps(run) == [1] and len(read_metrics(run)) < 12
    disk.free()
    train("pretrain", tiny_service, run, MODEL, config, resume=True)
    assert_same_run(whole, run)


@pytest.fixture(scope="module")
def size_of_a_data_set(tmp_path_factory: pytest.TempPathFactory) -> int:
    out = tmp_path_factory.mktemp("size") / "data"
    generate(out, SERVICE)
    return sum(path.stat().st_size for path in out.rglob("*"))


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.9])
def test_a_data_set_that_does_not_fit(size_of_a_data_set: int, disk: Disk, share: float) -> None:
    disk.fill(int(share * size_of_a_data_set) if disk.mounted else 4096)
    out = disk.path / "data"
    with pytest.raises(WriteError) as caught:
        generate(out, SERVICE)
    assert str(caught.value).startswith(f"{out}: cannot be written, ")
    assert str(caught.value).endswith("; free some space or choose another directory")
    assert disk.names() == []
    disk.free()
    generate(out, SERVICE)
    validate(out)


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_a_log_that_does_not_fit_while_it_is_sorted(tmp_path: Path, disk: Disk, share: float) -> None:
    """The sort puts rows down beside the data set: they go with it."""
    write_ratings(tmp_path / "source", rows=20_000)
    prepare("movielens", tmp_path / "source", tmp_path / "fits")
    size = sum(path.stat().st_size for path in (tmp_path / "fits").iterdir())
    disk.fill(int(share * size) if disk.mounted else 4096)
    out = disk.path / "data"
    with pytest.raises(WriteError) as caught:
        prepare("movielens", tmp_path / "source", out)
    assert str(caught.value).startswith(f"{out}: cannot be written, ")
    assert disk.names() == []


def test_an_export_that_does_not_fit(service: Dataset, finetuned: Path, tmp_path: Path, disk: Disk) -> None:
    """Files of several libraries, numpy among them, which does not say why it wrote less than it was asked to."""
    export(service, finetuned, tmp_path / "fits", best=5)
    size = sum(path.stat().st_size for path in (tmp_path / "fits").rglob("*"))
    for share in (0.1, 0.4, 0.7, 0.95):
        disk.fill(int(share * size) if disk.mounted else 2048)
        with pytest.raises(WriteError, match="out: cannot be written, "):
            export(service, finetuned, disk.path / "out", best=5)
        assert disk.names() == []


def test_a_data_set_that_is_to_be_replaced_stays(size_of_a_data_set: int, disk: Disk) -> None:
    out = disk.path / "data"
    generate(out, SERVICE)
    before = disk.names()
    disk.fill(size_of_a_data_set // 2 if disk.mounted else 4096)
    with pytest.raises(WriteError, match="data: cannot be written"):
        generate(out, replace(SERVICE, seed=5), overwrite=True)
    assert disk.names() == before
    assert validate(out).params["seed"] == SERVICE.seed


def test_a_report_and_its_figures_that_do_not_fit(tiny_service: Dataset, disk: Disk) -> None:
    figures, page = disk.path / "table.json", disk.path / "report.html"
    console.write_json(figures, {"rows": 1})
    replace_text(page, "before")
    disk.fill(4096)
    row = {"ndcg@10": 0.1, "recall@10": 0.1, "pairwise_accuracy": 0.5, "next_item_ne": 1.0}
    counts = {"events": 1, "users": 1, "pairs": 0}
    result = EvaluationResult("temporal", "tiny", 10, {"popularity": {**row}}, {}, {}, counts)
    with pytest.raises(WriteError, match=r"report\.html: cannot be written, .*; free some space or choose another"):
        write_report(page, title="A report", dataset=tiny_service, result=result, stages=[])
    with pytest.raises(WriteError, match=r"table\.json: cannot be written"):
        console.write_json(figures, {"rows": list(range(10_000))})
    assert json.loads(figures.read_text()) == {"rows": 1} and page.read_text() == "before"
    assert disk.names() == ["report.html", "table.json"]


def test_the_batch_of_a_skipped_step_that_does_not_fit(tiny_service: Dataset, disk: Disk) -> None:
    disk.fill(1024)
    lengths = [2000, 1000]
    batch = random_batch(lengths)
    items = batch.items % tiny_service.info.items
    info = replace(tiny_service.info, context=FEATURES.context, feedback=FEATURES.feedback, negative=(), derived=())
    dataset = load_dataset(tiny_service.path)
    dataset.info = info
    with pytest.raises(WriteError):
        write_batch(disk.path / "skipped" / "step-1.parquet", replace(batch, items=items), dataset, {"step": 1})
    assert disk.names() == ["skipped"]


def test_the_command_says_it_in_one_sentence(tiny_service: Dataset, disk: Disk) -> None:
    disk.fill(48 << 10)
    arguments = ["pretrain", str(tiny_service.path), str(disk.path / "run"), "--steps", "2", "--recipe", "demo"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2, result.output
    lines = [line for line in result.stderr.splitlines() if line.startswith("argus: ")]
    assert len(lines) == 1 and "cannot be written" in lines[0]
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("error", [WriteError("a/b", "no space"), DataError("a.csv", "no", column="c", row=3)])
def test_errors_come_back_whole_from_another_process(error: Exception) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error) and str(again) == str(error) and vars(again) == vars(error)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_directory_one_may_not_write_to(tmp_path: Path) -> None:
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    with pytest.raises(WriteError, match="permission denied"):
        replace_text(tmp_path / "x", "text")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(28, "No space left on device"), "no space is left on the device"),
        (OSError(122, "Disk quota exceeded"), "the disk quota is used up"),
        (
            OSError(27, "File too large"),
            "the file may not grow any further (the file system or `ulimit -f`)",
        ),
        (OSError(30, "Read-only file system"), "read-only file system"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "no space is left on the device"),
        (OSError("10 requested and 3 written"), "10 requested and 3 written"),
    ],
)
def test_reasons_are_words(error: Exception, reason: str, tmp_path: Path) -> None:
    assert reason_of(error, tmp_path / "not" / "there") == reason


def test_a_short_write_of_numpy_on_a_full_disk_is_a_full_disk(disk: Disk) -> None:
    if not disk.mounted:
        pytest.skip("needs the right to mount a file system: a limit on file sizes leaves the disk its space")
    disk.fill()
    with pytest.raises(OSError) as caught:
        np.save(disk.path / "x.npy", np.zeros(100_000))
    assert reason_of(caught.value, disk.path / "x.npy") == "no space is left on the device"
