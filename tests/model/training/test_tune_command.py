"""The search for settings: trials on the validation part, a recipe that training takes, going on after a kill."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from python_model.data.schema import Dataset
from python_model.data.splits import make_split
from python_model.io.errors import DataError
from python_model.io.toml_text import read_toml
from python_model.training import tune as search
from python_model.training.progress import read_metrics
from python_model.training.recipe_file import RECIPE, read_recipe
from python_model.training.runs import settings_of
from python_model.training.tune import EVALUATIONS, Search, tune
from tests.conftest import REPOSITORY

pytest.importorskip("optuna")

FIXED: dict[str, Any] = {
    "size": "1x64", "batch_events": 128, "window": 16, "negatives": 16, "steps": 6, "sketch_width": 128,
}  # fmt: skip


def quiet(title: str) -> Any:
    return nullcontext()


def run(dataset: Dataset, out: Path, trials: int = 3, **given: Any) -> list[search.TrialRow]:
    return tune(dataset, out, trials=trials, given={**FIXED, **given}, show=quiet)


@pytest.fixture(scope="module")
def searched(tiny_service: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("search") / "out"
    rows = run(tiny_service, out)
    assert [row.number for row in rows] == [0, 1, 2] and {row.state for row in rows} == {"complete"}
    assert all(row.params.keys() == {"learning_rate", "table_learning_rate", "weight_decay", "dropout"} for row in rows)
    return out


def test_the_recipe_is_that_of_the_best_trial(tiny_service: Dataset, searched: Path) -> None:
    rows = run(tiny_service, searched)
    best = min(rows, key=lambda row: row.order)
    values = [record["validation_next_item_ne"] for record in read_metrics(searched / "trials" / "trial-0000")]
    assert min(values) == rows[0].value
    found = read_toml(searched / RECIPE, "a recipe")
    about = found["about"]
    assert (about["trials"], about["best_trial"], about["value"]) == (3, best.number, best.value)
    assert about["data_name"] == tiny_service.info.name and len(about["data_fingerprint"]) == 8
    model, config = read_recipe(searched / RECIPE, "pretrain")
    assert (model.layers, config.window, config.negatives_uniform, config.steps) == (1, 16, 16, 6)
    assert config.learning_rate == best.params["learning_rate"] and model.dropout == best.params["dropout"]
    settings = settings_of("pretrain", tiny_service, {}, recipe=str(searched / RECIPE))
    assert (settings.model, settings.train.steps, settings.train.validate_every) == (model, 6, 1)
    second = settings_of("finetune", tiny_service, {"steps": 2}, recipe=str(searched / RECIPE)).train
    assert (second.stage, second.window, second.learning_rate) == ("finetune", 16, config.learning_rate)


def test_every_trial_is_evaluated_on_the_same_events_none_of_them_of_the_test_part(tiny_service: Dataset) -> None:
    from python_model.training.start import make_model
    from python_model.training.validation import Validator

    rows = []
    for batch, window in ((512, 32), (4096, 256)):
        proposed = {"size": "1x64", "batch_events": batch, "window": window, "negatives": 128}
        model, config = Search(tiny_service, Path("x"), {}, 0, "cpu", quiet).settings(proposed)
        assert config.steps // config.validate_every >= EVALUATIONS
        rows.append(Validator(tiny_service, make_model(tiny_service, model, None, None, 0, None), config).rows)
    assert np.array_equal(rows[0], rows[1]) and len(rows[0]) > 0
    split = make_split(tiny_service, "temporal")
    assert split.validation[rows[0]].all() and not split.test[rows[0]].any()


def test_an_interrupted_trial_goes_on(
    tiny_service: Dataset, searched: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped after the third step of its second trial, it comes to the same trials."""
    from python_model.training.progress import StepReport

    def stopping(title: str) -> Any:
        def stop(report: StepReport) -> None:
            if title == "Trial 1" and report.step == 3:
                raise KeyboardInterrupt

        return nullcontext(stop)

    fixed = {**FIXED, "checkpoint_every": 2}
    with pytest.raises(KeyboardInterrupt):
        tune(tiny_service, tmp_path, trials=3, given=fixed, show=stopping)
    first = read_metrics(tmp_path / "trials" / "trial-0001")
    rows = tune(tiny_service, tmp_path, trials=3, given=fixed, show=quiet)
    assert len(rows) == 3 and {row.state for row in rows} == {"complete"}
    again = read_metrics(tmp_path / "trials" / "trial-0001")
    plain = [{key: value for key, value in one.items() if key != "seconds"} for one in again]
    assert plain[:3] == [{key: value for key, value in one.items() if key != "seconds"} for one in first][:3]
    assert [one["step"] for one in again] == list(range(7))


def test_a_trial_that_falls_behind_is_pruned(tiny_service: Dataset, tmp_path: Path) -> None:
    """The first five set the median; with a rate of 0 nothing is learnt."""
    import optuna

    study = search._study(optuna, Search(tiny_service, _made(tmp_path), FIXED, 0, "cpu", quiet))
    for _ in range(search.FIRST_PRUNED):
        trial = study.ask()
        for step in range(1, 7):
            trial.report(0.1, step)
        study.tell(trial, 0.1)
    rows = run(tiny_service, tmp_path, trials=search.FIRST_PRUNED + 1)
    assert rows[-1].state == "pruned" and rows[-1].steps == search.FIRST_EVALUATION


def _made(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    return folder


def test_what_does_not_fit_is_one_sentence(
    tiny_service: Dataset, searched: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match=r"holds another search: fixed was .*; choose another directory"):
        run(tiny_service, searched, dropout=0.1)
    for given, said in ({"protocol": "all"}, "holds no events out"), ({"size": "huge"}, "preset is 'huge'"), (
        {"colour": 1}, "unknown setting colour"), ({"size": 3}, "size is 3, expected the name"):  # fmt: skip
        with pytest.raises(ValueError, match=said):
            run(tiny_service, tmp_path / "no", **given)
    for hours in (0.0, float("nan")):
        with pytest.raises(ValueError, match=r"hours is (0|nan), expected more than 0"):
            tune(tiny_service, tmp_path / "no", trials=1, hours=hours, given=FIXED, show=quiet)
    with monkeypatch.context() as patch, pytest.raises(ValueError, match="part is empty"):
        patch.setattr(Dataset, "time", np.full(len(tiny_service), 1_700_000_000))
        run(tiny_service, tmp_path / "no")
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ValueError, match=r'pip install "argus-kernels\[tune\]"'):
        run(tiny_service, tmp_path / "no")
    assert not (tmp_path / "no").exists()


def test_a_directory_of_something_else_is_left_alone(tiny_service: Dataset, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(FileExistsError, match="is not empty and holds no search: choose another directory"):
        run(tiny_service, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("content", [b"SQLite format 3\x00 and then nothing", None], ids=["junk", "cut short"])
def test_a_damaged_study_is_one_sentence(
    tiny_service: Dataset, searched: Path, tmp_path: Path, content: bytes | None
) -> None:
    found = (searched / search.STUDY).read_bytes()[:5000] if content is None else content
    (tmp_path / search.STUDY).write_bytes(found)
    with pytest.raises(DataError, match=r"study.sqlite3: the study cannot be read or written \(.*\): bring the file"):
        run(tiny_service, tmp_path)
    assert (tmp_path / search.STUDY).read_bytes() == found


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x", "expected a recipe in TOML"),
        ("", "expected the tables model and pretrain, and finetune where wanted, found nothing"),
        ("[model]\n[pretrain]\n[other]\n", "found model, other, pretrain"),
        ("[model]\nlayers = 0\n[pretrain]\n", "layers is 0, expected a whole number"),
        ("[model]\ncolour = 1\n[pretrain]\n", "model: unknown setting colour"),
        ("[model]\n[pretrain]\nwindow = 4096\n", "window is 4096, expected at most batch_events"),
        ('[model]\n[pretrain]\nstage = "finetune"\n', "pretrain: expected a table of settings without stage"),
    ],
)
def test_a_recipe_that_is_none(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "r.toml"
    file.write_text(text)
    with pytest.raises(DataError, match=f"r.toml: .*{said}"):
        read_recipe(file, "pretrain")


@pytest.mark.slow
def test_a_killed_search_goes_on(tiny_service: Dataset, tmp_path: Path) -> None:
    settings = [f"--set={name}={value}" for name, value in FIXED.items() if name != "steps"]
    command = [
        sys.executable, "-m", "python_model", "tune", str(tiny_service.path), str(tmp_path / "out"), "--trials", "3",
        "--steps", "30", *settings,
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(REPOSITORY), *sys.path])}
    child = subprocess.Popen(command, cwd=REPOSITORY, env=environment, stderr=subprocess.DEVNULL)
    give_up = time.monotonic() + 120
    while len(read_metrics(tmp_path / "out" / "trials" / "trial-0001")) < 5:
        assert child.poll() is None and time.monotonic() < give_up
        time.sleep(0.01)
    child.kill()
    child.wait()
    ended = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert "3 trials; the best settings: " in ended.stderr and ended.stdout.count("complete") == 3
    assert read_recipe(tmp_path / "out" / RECIPE, "pretrain")[1].steps == 30
