"""The engine of studies: what is done is read back, what was stopped goes on, what differs is refused; and the fit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from python_model.config import ModelConfig, TrainConfig
from python_model.data.schema import Dataset
from python_model.io.errors import DataError
from python_model.model.base import Recommender
from python_model.studies import trials
from python_model.studies.summary import cell, fit_line, student_quantile, table, write_study
from python_model.studies.trials import EvaluationOptions, Trial, TrialResult, over_seeds, run_trial, run_trials
from python_model.training import checkpoint
from python_model.training.progress import Progress, StepReport
from tests.model.conftest import encoder_parameters

SHORT = {
    "batch_events": 256, "window": 32, "negatives_in_batch": 16, "negatives_uniform": 16, "sketch_width": 256,
    "checkpoint_every": 2,
}  # fmt: skip
TRIAL = Trial(
    "small",
    ModelConfig(layers=1, width=16, heads=1, item_width=8, feature_width=4, vector_width=8),
    TrainConfig(stage="pretrain", steps=5, **SHORT),  # type: ignore[arg-type]
    TrainConfig(stage="finetune", steps=3, **SHORT),  # type: ignore[arg-type]
    EvaluationOptions(max_events=200),
)


@pytest.fixture(scope="module")
def whole(tiny_service: Dataset, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TrialResult]:
    """A trial that nobody stopped, and where it lies."""
    out = tmp_path_factory.mktemp("trials")
    return out, run_trial(TRIAL, tiny_service, out)


def test_a_trial_has_both_stages_and_the_row_of_the_last(whole: tuple[Path, TrialResult]) -> None:
    out, result = whole
    assert (out / "small-seed-0" / "finetune" / "metrics.jsonl").is_file()
    assert set(result.seconds) == {"pretrain", "finetune", "evaluation"}
    assert result.training_seconds == pytest.approx(result.seconds["pretrain"] + result.seconds["finetune"])
    assert 5 * 256 * 0.5 < result.events <= 8 * 256
    assert result.parameters["encoder"] == encoder_parameters(TRIAL.model)
    assert result.parameters["encoder"] + result.parameters["tables"] < result.parameters["all"]
    assert all(result.metrics[name] is not None for name in ("ndcg@10", "pairwise_accuracy", "next_item_ne"))


def test_a_finished_trial_is_read_back(
    whole: tuple[Path, TrialResult], tiny_service: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, result = whole
    monkeypatch.setattr(trials, "train", None)
    assert run_trial(TRIAL, tiny_service, out) == result


class Killed(Exception):
    """Stands for a kill: the run ends in the middle of a step, without a chance to save."""


@pytest.mark.parametrize(("stage", "step"), [("pretrain", 5), ("finetune", 1)])
def test_a_killed_trial_goes_on_to_the_same_numbers(
    stage: str, step: int, whole: tuple[Path, TrialResult], tiny_service: Dataset, tmp_path: Path
) -> None:
    def strike(report: StepReport) -> None:
        if report.stage == stage and report.step == step:
            raise Killed

    @contextmanager
    def killing(title: str) -> Iterator[Progress]:
        yield strike

    with pytest.raises(Killed):
        run_trial(TRIAL, tiny_service, tmp_path, show=killing)
    assert not (tmp_path / "small-seed-0" / "result.json").exists()
    steps: list[tuple[str, int]] = []

    @contextmanager
    def counting(title: str) -> Iterator[Progress]:
        yield lambda report: steps.append((report.stage, report.step))

    again = run_trial(TRIAL, tiny_service, tmp_path, show=counting)
    assert again.metrics == pytest.approx(whole[1].metrics, rel=1e-6) and again.events == whole[1].events
    assert ("pretrain", 1) not in steps


def test_changed_settings_are_refused_before_anything_is_trained(
    whole: tuple[Path, TrialResult], tiny_service: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert TRIAL.pretrain is not None
    monkeypatch.setattr(trials, "train", None)
    other = replace(TRIAL, pretrain=replace(TRIAL.pretrain, steps=6, checkpoint_every=3))
    new = replace(TRIAL, name="new")
    with pytest.raises(ValueError, match=r"begun with other settings: pretrain\.steps was 5, now 6; choose") as error:
        list(run_trials([new, other], tiny_service, whole[0]))
    assert "checkpoint_every" not in str(error.value)
    assert not (whole[0] / "new-seed-0").exists()


def test_a_directory_without_a_setting_that_came_later_had_its_default(
    whole: tuple[Path, TrialResult], tiny_service: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(whole[0], tmp_path / "earlier")
    file = tmp_path / "earlier" / "small-seed-0" / "trial.json"
    found = json.loads(file.read_text())
    del found["model"]["item_dropout"], found["pretrain"]["shuffle_ties"], found["finetune"]["shuffle_ties"]
    file.write_text(json.dumps(found))
    monkeypatch.setattr(trials, "train", None)
    assert run_trial(TRIAL, tiny_service, tmp_path / "earlier") == whole[1]
    other = replace(TRIAL, model=replace(TRIAL.model, item_dropout=0.1))
    with pytest.raises(ValueError, match=r"model\.item_dropout was 0\.0, now 0\.1"):
        run_trial(other, tiny_service, tmp_path / "earlier")


def test_the_best_checkpoint_is_evaluated_where_there_is_one(
    tiny_service: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert TRIAL.pretrain is not None
    watched = replace(TRIAL.pretrain, validate_every=2, validate_events=50)
    loaded: list[Path] = []
    load = checkpoint.load_recommender

    def noting(path: Path, device: str) -> Recommender:
        loaded.append(path)
        return load(path, device)

    monkeypatch.setattr(checkpoint, "load_recommender", noting)
    list(run_trials([replace(TRIAL, pretrain=watched, finetune=None)], tiny_service, tmp_path, keep_checkpoints=False))
    run = tmp_path / "small-seed-0" / "pretrain"
    assert loaded[0].is_relative_to(run / "best")
    assert not (run / "best").exists() and not (run / "checkpoints").exists()


def test_two_trials_of_one_directory_are_refused(tiny_service: Dataset, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="small-seed-0 stands twice"):
        list(run_trials([TRIAL, TRIAL], tiny_service, tmp_path))


def test_a_damaged_result_names_its_file(tiny_service: Dataset, tmp_path: Path) -> None:
    (tmp_path / TRIAL.folder).mkdir()
    (tmp_path / TRIAL.folder / "result.json").write_text('{"name": "small"')
    with pytest.raises(DataError, match=r"result\.json: damaged"):
        run_trial(TRIAL, tiny_service, tmp_path)


def test_trials_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="both None"):
        Trial("nothing", ModelConfig())
    with pytest.raises(ValueError, match="seed differs"):
        Trial("seeds", ModelConfig(), TrainConfig(), TrainConfig(stage="finetune", seed=1))
    with pytest.raises(ValueError, match="holds events out"):
        Trial("all", ModelConfig(), TrainConfig(protocol="all"))
    with pytest.raises(ValueError, match="expected letters"):
        Trial("../away", ModelConfig(), TrainConfig())


def test_seeds_change_both_stages() -> None:
    found = over_seeds([TRIAL, replace(TRIAL, name="other")], 2)
    assert [one.folder for one in found] == ["small-seed-0", "other-seed-0", "small-seed-1", "other-seed-1"]
    assert [config.seed for config in found[3].stages] == [1, 1]


def test_pre_training_begins_with_the_weights_of_shorter_windows(
    whole: tuple[Path, TrialResult], tiny_service: Dataset, tmp_path: Path
) -> None:
    assert TRIAL.pretrain is not None
    short = replace(TRIAL.pretrain, steps=4, window=8, batch_events=64)
    trial = replace(TRIAL, name="lengthened", finetune=None, short=short)
    titles: list[str] = []

    @contextmanager
    def counting(title: str) -> Iterator[Progress]:
        titles.append(title)
        yield lambda report: None

    result = run_trial(trial, tiny_service, tmp_path, show=counting)
    assert titles == ["lengthened, seed 0, short", "lengthened, seed 0, pretrain"]
    assert set(result.seconds) == {"short", "pretrain", "evaluation"}
    plain = run_trial(replace(trial, name="plain", short=None), tiny_service, tmp_path)
    assert plain.events < result.events <= plain.events + 4 * 64
    assert plain.metrics != result.metrics
    assert over_seeds([trial], 2)[1].short == replace(short, seed=1)
    with pytest.raises(ValueError, match="lengthened: short is for pre-training"):
        replace(trial, pretrain=None, finetune=TRIAL.finetune)


def test_trials_that_are_evaluated_differently_share_their_runs(tiny_service: Dataset, tmp_path: Path) -> None:
    first = replace(TRIAL, finetune=None)
    second = replace(first, name="short", evaluation=replace(first.evaluation, window=8), trained_as=TRIAL.name)
    titles: list[str] = []

    @contextmanager
    def counting(title: str) -> Iterator[Progress]:
        yield lambda report: titles.append(title)

    found = list(run_trials([first, second], tiny_service, tmp_path, show=counting, keep_checkpoints=False))
    assert len(titles) == 5, "trained once"
    assert found[0].events == found[1].events and found[0].metrics != found[1].metrics
    assert (tmp_path / "small-seed-0" / "pretrain" / "metrics.jsonl").exists()
    assert not (tmp_path / "small-seed-0" / "pretrain" / "checkpoints").exists()
    assert list(run_trials([first, second], tiny_service, tmp_path)) == found
    other = replace(second, name="other", model=replace(second.model, layers=2))
    run_trial(first, tiny_service, tmp_path / "again")
    with pytest.raises(ValueError, match="layers was 1, now 2"):
        run_trial(other, tiny_service, tmp_path / "again")


def test_references_are_kept(tiny_service: Dataset, tmp_path: Path) -> None:
    rows = trials.references(tiny_service, tmp_path, options=EvaluationOptions(max_events=100))
    assert [one.name for one in rows] == ["popularity", "item_average", "oracle"]
    same = EvaluationOptions(max_events=100, window=8, ranking_kind="feedback", lag=5)
    assert trials.references(tiny_service, tmp_path, options=same) == rows, "what concerns models alone does not matter"
    with pytest.raises(ValueError, match=r"evaluation\.max_events was 100, now 90"):
        trials.references(tiny_service, tmp_path, options=EvaluationOptions(max_events=90))


def test_the_fit_finds_a_known_slope_and_its_interval_holds_it() -> None:
    random = np.random.default_rng(0)
    x = np.repeat(np.log10([1e4, 1e5, 1e6, 1e7]), 3)
    assert fit_line(x, 0.2 + 0.03 * x).slope == pytest.approx(0.03)
    fits = [fit_line(x, 0.2 + 0.03 * x + 0.01 * random.normal(size=len(x))) for _ in range(400)]
    held = np.mean([fit.low < 0.03 < fit.high for fit in fits])
    assert 0.91 < held < 0.98
    with pytest.raises(ValueError, match="at least 3"):
        fit_line(x[:2], x[:2])


@pytest.mark.parametrize(("freedom", "value"), [(1, 12.7062), (4, 2.7764), (30, 2.0423)])
def test_students_quantile_is_the_tables(freedom: int, value: float) -> None:
    assert student_quantile(0.975, freedom) == pytest.approx(value, rel=2e-4)


def test_the_table_has_means_and_ranges(whole: tuple[Path, TrialResult]) -> None:
    one = replace(whole[1], metrics={"ndcg@10": 0.25}, events=1234, seconds={"pretrain": 2.0, "evaluation": 9.0})
    other = replace(one, seed=1, metrics={"ndcg@10": 0.35})
    popularity = TrialResult("popularity", 0, {}, 0, {}, {"ndcg@10": None}, {}, {}, {})
    lines = table([one, other, popularity], ["ndcg@10"], heading="width").splitlines()
    assert lines[0] == "| width | NDCG@10 | encoder parameters | events trained on | training, s |"
    assert lines[2] == "| `small` | .3000 (.2500–.3500) | 3,280 | 1,234 | 2 |"
    assert lines[3] == "| `popularity` | – | – | – | – |"
    assert cell(np.array([-0.03, 0.01]), difference=True) == "−.0100 (−.0300 … +.0100)"


def test_a_study_is_written_with_figures(whole: tuple[Path, TrialResult], tmp_path: Path) -> None:
    from python_model.reporting.charts import point_chart, range_chart

    points = point_chart({"a": (np.array([1.0, 10.0]), [np.array([0.1, 0.2]), np.array([0.3])])}, "x", "y")
    ranges = range_chart({"a": np.array([0.1, -0.2])}, "difference", zero=True)
    write_study(tmp_path, "s", {"steps": 1}, [whole[1]], "| a |\n", {"points": points, "ranges": ranges}, slope=2)
    record = json.loads((tmp_path / "s.json").read_text())
    assert record["slope"] == 2 and TrialResult(**record["results"][0]).metrics == whole[1].metrics
    assert "![points](s_points.svg)" in (tmp_path / "s.md").read_text()
    assert (tmp_path / "s_ranges.svg").read_text().startswith("<svg")
