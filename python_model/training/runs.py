"""The work of the commands without options and printing: settings of a run, evaluation of runs, their report."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from python_model.config import RECIPES, FeatureSpec, ModelConfig, TrainConfig, preset
from python_model.data.schema import Dataset
from python_model.evaluation.evaluate import EvaluationResult, evaluate
from python_model.evaluation.inference import ModelPredictor
from python_model.evaluation.predictions import Predictor
from python_model.io.errors import DataError
from python_model.training import checkpoint
from python_model.training.checkpoint import Description
from python_model.training.grown import Size, finetuning, grown
from python_model.training.length import with_length, with_validation
from python_model.training.progress import read_metrics
from python_model.training.recipe_file import is_recipe_file, read_recipe
from python_model.training.resume import require_same_items
from python_model.training.watch import Watch

if TYPE_CHECKING:
    from python_model.reporting.report import Stage

NARROW = 256
"""Width from which a model is worth more than one thread."""
ROW_OF_STAGE = {"pretrain": "pretrained", "finetune": "finetuned"}
RECIPE_OF_SOURCE = {"synthetic": "demo", "movielens": "ml-100k", "kuairand": "kuairand-pure"}
"""The recipes of fine-tuning and of the studies."""
GROWN = "grown"
"""The recipe that `training.grown` derives from the data."""
TITLE_OF_STAGE = {"pretrain": "pre-training", "finetune": "fine-tuning"}


def use_threads(threads: int | None, width: int) -> None:
    """Set the CPU threads of this process: `threads`; else OMP_NUM_THREADS where set; else one for a narrow model.

    Measured with a model of width 64: on 2 idle cores 10,000 events/s on one thread and 12,300 on two, but 500 to
    2,000 on two beside another job, because threads wait for each other around products that take microseconds.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    elif "OMP_NUM_THREADS" not in os.environ and width < NARROW:
        torch.set_num_threads(1)


def apply_settings(
    model: ModelConfig, train: TrainConfig, settings: Mapping[str, Any]
) -> tuple[ModelConfig, TrainConfig]:
    """Change settings of the two configurations by name; unknown names are a ValueError that lists the known ones."""
    of_model = {f.name for f in fields(ModelConfig)}
    of_train = {f.name for f in fields(TrainConfig)} - {"stage"}
    unknown = sorted(set(settings) - of_model - of_train)
    if unknown:
        known = ", ".join(sorted(of_model | of_train))
        raise ValueError(f"unknown setting {', '.join(unknown)}; `--set help` explains: {known}")
    return (
        replace(model, **{name: value for name, value in settings.items() if name in of_model}),
        replace(train, **{name: value for name, value in settings.items() if name in of_train}),
    )


@dataclass(frozen=True)
class Run:
    """A trained run under the name of its row in the table; checkpoint: the directory of the one to evaluate."""

    row: str
    path: Path
    checkpoint: Path
    description: Description


def open_runs(runs: Sequence[str], dataset: Dataset, which: str | None = None) -> list[Run]:
    """Runs given as PATH or ROW=PATH; ValueError where two share a row or one does not fit the data set.

    which: "best" or "latest" checkpoint of each; None: the best where a run has one.
    """
    out: list[Run] = []
    for text in runs:
        name, equals, rest = text.partition("=")
        # A path may have an equals sign of its own, as in runs/lr=0.1.
        equals = "" if Path(text).exists() else equals
        path = Path(rest if equals else text)
        directory = checkpoint.chosen(path, which)
        description = checkpoint.read_description(directory)
        require_fit(path, description, dataset)
        out.append(Run(name if equals else ROW_OF_STAGE[description.stage], path, directory, description))
    rows = [run.row for run in out]
    for row in rows:
        if rows.count(row) > 1 or row in ("popularity", "item_average", "item_knn", "oracle"):
            raise ValueError(f"row {row!r} stands twice in the table: name the runs, as in {row}_2={out[-1].path}")
    return out


def require_fit(path: Path, description: Description, dataset: Dataset) -> None:
    """ValueError where a checkpoint was trained on another vocabulary than the data set's, or on other items."""
    if description.features != FeatureSpec.of(dataset.info):
        raise ValueError(
            f"{path} was trained on {description.dataset['name']!r} ({description.features.items:,} items), which does "
            f"not fit {dataset.path} ({dataset.info.name!r}, {dataset.info.items:,} items)"
        )
    require_same_items(path, description.dataset, dataset)


def protocol_of(runs: Sequence[Run], protocol: str | None) -> str:
    """The protocol to evaluate under: the one the runs were trained for; ValueError where that is not possible."""
    for run in runs:
        trained = run.description.train_config.protocol
        if trained == "all":
            raise ValueError(f"{run.path} was trained on all events: nothing is held out to evaluate it on")
        if protocol is not None and trained != protocol:
            raise ValueError(
                f"{run.path} was trained for the {trained} protocol: under {protocol} it has seen test events"
            )
        protocol = trained
    return protocol or "temporal"


def predictors(
    runs: Sequence[Run], dataset: Dataset, *, device: str, window: int | None = None, ranking_kind: str | None = None
) -> dict[str, Predictor]:
    """Row name -> predictor; window None takes what each run was trained with."""
    return {
        run.row: ModelPredictor(
            checkpoint.load_recommender(run.checkpoint, device),
            dataset,
            window=window or run.description.train_config.window,
            device=device,
            ranking_kind=ranking_kind,
        )
        for run in runs
    }


def evaluate_runs(
    runs: Sequence[Run], dataset: Dataset, *, device: str = "cpu", protocol: str | None = None,
    window: int | None = None, ranking_kind: str | None = None, **options: Any,
) -> EvaluationResult:  # fmt: skip
    """Evaluate trained runs; `options` are those of `evaluate`."""
    protocol = protocol_of(runs, protocol)
    models = predictors(runs, dataset, device=device, window=window, ranking_kind=ranking_kind)
    return evaluate(models, dataset, protocol=protocol, **options)


def verdict(run: str | Path) -> list[str]:
    """What the validation of a run says at its end, in words; DataError where its latest checkpoint is damaged."""
    directory = checkpoint.find(run)
    found = checkpoint.read_description(directory)
    state = checkpoint.read_json(directory / checkpoint.STATE).get("watch")
    if state is None:
        return []
    try:
        watch = Watch.from_state(state)
    except ValueError as error:
        raise DataError(directory / checkpoint.STATE, str(error), column="watch") from error
    return watch.verdict(found.step, found.train_config.steps, found.train_config.patience)


def stages_of(runs: Sequence[Run]) -> list[Stage]:
    """What the report draws of each run: its logged steps and its settings."""
    # The report imports matplotlib, so it is imported only where a report is requested.
    from python_model.reporting.report import Stage

    out = []
    for run in runs:
        title = TITLE_OF_STAGE[run.description.stage]
        if run.row != ROW_OF_STAGE[run.description.stage]:
            title += f" ({run.row})"
        settings = {"model": asdict(run.description.model_config), "training": asdict(run.description.train_config)}
        out.append(Stage(title, read_metrics(run.path), settings))
    return out


@dataclass(frozen=True)
class Settings:
    """Settings of a run, and sentences about what was chosen; reasons: those of the recipe that grows."""

    model: ModelConfig
    train: TrainConfig
    notes: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()


def settings_of(
    stage: str, dataset: Dataset, given: Mapping[str, Any], *, recipe: str | None = None, size: str | None = None,
    source: Path | None = None, resumed: Path | None = None, device: str = "cpu",
) -> Settings:  # fmt: skip
    """Settings of a run: those it is resumed from, else those of a recipe, changed by what was `given`.

    recipe: one of RECIPES or a TOML file, "default" for the plain settings, "grown" for those that grow with the data,
    None for the usual one. size: a published size. source: the run that training starts from, whose shapes and protocol
    it keeps. device: a CPU bounds what "grown" takes.
    The length and the evaluations of a new run are chosen from the data where neither recipe nor user says them.
    """
    name = recipe or _usual_recipe(stage, dataset)
    reasons: tuple[str, ...] = ()
    if resumed is not None:
        found = checkpoint.read_description(resumed)
        model, train = found.model_config, found.train_config
    else:
        model, train, reasons = _recipe(stage, dataset, name, device)
        if source is not None:
            found = checkpoint.read_description(checkpoint.chosen(source))
            model, train = found.model_config, replace(train, protocol=found.train_config.protocol)
    if size is not None:
        model = preset(size)
    model, train = apply_settings(model, train, given)
    chosen = name in ("default", GROWN)
    train, length = with_length(dataset, train, given, new=resumed is None, chosen=chosen)
    validation = kept = None
    if resumed is None:
        train, validation = with_validation(dataset, train, given)
    elif recipe is not None:
        kept = f"{resumed} goes on with the settings it was begun with: --recipe {recipe} is not read"
    # The sentences are about the shapes that the recipe chose.
    reasons = reasons if source is None and size is None else ()
    notes = (*reasons, *(note for note in (kept, length, validation) if note is not None))
    return Settings(model, train, notes, reasons)


def _usual_recipe(stage: str, dataset: Dataset) -> str:
    """Pre-training grows with the data, except on the synthetic service; fine-tuning has a recipe for each source."""
    if stage == "pretrain" and dataset.info.source != "synthetic":
        return GROWN
    return RECIPE_OF_SOURCE.get(dataset.info.source, "default")


def _recipe(stage: str, dataset: Dataset, name: str, device: str) -> tuple[ModelConfig, TrainConfig, tuple[str, ...]]:
    if is_recipe_file(name):
        return *read_recipe(name, stage), ()
    if name == "default":
        return preset("tiny"), TrainConfig(stage=stage), ()
    if name == GROWN:
        found = grown(Size(dataset.info.events, dataset.info.users, dataset.info.items), on_cpu=device == "cpu")
        if stage == "pretrain":
            return found.model, found.train, found.reasons
        return found.model, finetuning(found.train), ()
    if name not in RECIPES:
        raise ValueError(
            f"recipe: expected one of default, {GROWN}, {', '.join(RECIPES)}, or a TOML file, found {name!r}"
        )
    recipe = RECIPES[name]
    return recipe.model, recipe.pretrain if stage == "pretrain" else recipe.finetune, ()
