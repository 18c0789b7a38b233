"""The demo: a synthetic music service, both training stages, evaluation, recommendations and a report."""

from __future__ import annotations

import shutil
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from python_model.config import RECIPES, TrainConfig
from python_model.data.description import INFO, DatasetInfo
from python_model.data.schema import Dataset, load_dataset
from python_model.data.synthetic import SyntheticConfig, generate
from python_model.data.synthetic import preset as service_preset
from python_model.evaluation.evaluate import EvaluationResult
from python_model.evaluation.recommend import UserRecommendations, recommend
from python_model.io.errors import counted
from python_model.io.exclusive import owned
from python_model.reporting import console
from python_model.reporting.report import Recommendations, write_report
from python_model.train import train
from python_model.training import checkpoint
from python_model.training.length import with_validation
from python_model.training.runs import evaluate_runs, open_runs, stages_of, use_threads

RECIPE = RECIPES["demo"]
EVALUATED_EVENTS = 8000
RECENT = 6
EVALUATIONS = 6
"""On the validation part, a stage: fewer than usual. With ten, the evaluations, best checkpoints and charts took 2.2 s
beside 35.4 s of processor time."""


def run_demo(
    out: Path, *, seed: int = 0, device: str = "cpu", threads: int | None = None, json_file: Path | None = None
) -> EvaluationResult:
    """Run everything into `out` (data/, runs/, report.html), print the table, write its figures to json_file.

    FileExistsError where `out` holds anything but an earlier demo; ValueError where another process writes to it.
    """
    began = time.perf_counter()
    pretraining, finetuning = replace(RECIPE.pretrain, seed=seed), replace(RECIPE.finetune, seed=seed)
    use_threads(threads, RECIPE.model.width)
    _require_room(out)
    with owned(out):
        _require_room(out)
        shutil.rmtree(out / "runs", ignore_errors=True)
        result, report = _run(out, service_preset("demo", seed=seed), pretraining, finetuning, device)
        if json_file is not None:
            console.write_json(json_file, result.to_dict())
    console.say(f"Report: {report}  ({time.perf_counter() - began:.0f} s in all)")
    return result


def _run(
    out: Path, service: SyntheticConfig, pretraining: TrainConfig, finetuning: TrainConfig, device: str
) -> tuple[EvaluationResult, Path]:
    """All steps of the demo; returns its results and the path of the report."""
    console.say("1/5 Generating a music service: users with drifting tastes, a recommender, and the truth behind both")
    generate(out / "data", service, overwrite=True)
    dataset = load_dataset(out / "data")
    info = dataset.info
    console.say(
        f"    {counted(info.events, 'event')} of {counted(info.users, 'user')} on {counted(info.items, 'track')}"
    )
    console.say("2/5 Pre-training: what comes next, and how will it be received?")
    pretrained, finetuned = out / "runs" / "pretrain", out / "runs" / "finetune"
    with console.TrainingProgress("    Pre-training") as progress:
        config = _watched(dataset, pretraining)
        train("pretrain", dataset, pretrained, RECIPE.model, config, progress=progress, device=device)
    console.say("3/5 Fine-tuning: which of two recommended tracks will be liked better?")
    with console.TrainingProgress("    Fine-tuning") as progress:
        config = _watched(dataset, finetuning)
        train("finetune", dataset, finetuned, None, config, init_from=pretrained, progress=progress, device=device)
    console.say("4/5 Evaluating on the last tenth of the events, which no model has seen")
    runs = open_runs([str(pretrained), str(finetuned)], dataset)
    result = evaluate_runs(runs, dataset, device=device, max_events=EVALUATED_EVENTS)
    console.say("5/5 Recommending")
    user = typical_user(dataset)
    model = checkpoint.load_model(runs[-1].checkpoint, device)
    found = recommend(model, dataset, np.array([user]), k=8, window=RECIPE.finetune.window, device=device)[0]
    history = recent_history(dataset, user, RECENT)
    report = write_report(
        out / "report.html", title="ARGUS on a synthetic music service", dataset=dataset, result=result,
        stages=stages_of(runs), recommendations=Recommendations(str(found.user_id), history, _lines(found)),
    )  # fmt: skip
    _print(result, found, history)
    return result, report


def _watched(dataset: Dataset, config: TrainConfig) -> TrainConfig:
    """The settings of a stage with its evaluations on the validation part; it always trains to its end."""
    config, _ = with_validation(dataset, config, {"patience": 0})
    return replace(config, validate_every=max(config.validate_every, config.steps // EVALUATIONS))


def typical_user(dataset: Dataset) -> int:
    """The first user with the median number of events: a history long enough to judge by eye."""
    lengths = np.diff(dataset.offsets)
    return int(np.argmin(np.abs(lengths - np.median(lengths))))


def recent_history(dataset: Dataset, user: int, count: int) -> list[str]:
    """The last events of a user in words, newest first."""
    rows = np.arange(dataset.offsets[user], dataset.offsets[user + 1])[-count:][::-1]
    return [f"{describe_item(dataset, int(dataset.item[row]))}: {_what_happened(dataset, int(row))}" for row in rows]


def describe_item(dataset: Dataset, item: int) -> str:
    """An item by its id and features."""
    features = [f"{name} {dataset.item_column(f'item_{name}')[item]}" for name in dataset.info.item_features]
    return f"track {dataset.item_column('item_id')[item]} ({', '.join(features)})"


def _what_happened(dataset: Dataset, row: int) -> str:
    answers = [name for name in dataset.info.binary_feedback if dataset.feedback(name)[row] == 1]
    how = "own choice" if dataset.organic[row] else "recommended"
    return f"{how}, {' and '.join(answers) or 'played'}"


def _lines(found: UserRecommendations) -> list[str]:
    return [
        f"track {item.item_id} ({', '.join(f'{name} {value}' for name, value in item.features.items())}): {item.why}"
        for item in found.items
    ]


def _print(result: EvaluationResult, found: UserRecommendations, history: list[str]) -> None:
    out = console.stdout()
    out.print()
    out.print(f"User {found.user_id}, {found.events} events; the last ones, newest first:", markup=False)
    for line in history:
        out.print(f"  {line}", markup=False)
    out.print("What ARGUS expects next:", markup=False)
    for place, line in enumerate(_lines(found), 1):
        out.print(f"  {place}. {line}", markup=False)
    out.print()
    out.print(console.metrics_table(result))
    if result.rows["oracle"]["pairwise_accuracy"] is not None:
        out.print("The oracle knows the probabilities the data was drawn from: no model can do better.", markup=False)


def _require_room(out: Path) -> None:
    """Refuse a directory with anything but an earlier demo or hidden files, which a killed demo may leave."""
    data = out / "data"
    if out.exists() and not out.is_dir():
        raise FileExistsError(f"{out} is a file, expected a directory: choose another with --out")
    if not out.is_dir() or all(entry.name.startswith(".") for entry in out.iterdir()):
        return
    if not (data / INFO).is_file() or DatasetInfo.load(data).source != "synthetic":
        raise FileExistsError(f"{out} exists and is not an earlier demo: choose another directory with --out")
