"""Shared code of the studies of trained models: their data, the base settings of all trials, and the run."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from python_model.config import RECIPES, ModelConfig, TrainConfig, preset
from python_model.data.schema import INFO, Dataset, load_dataset
from python_model.data.synthetic import SyntheticConfig, generate
from python_model.evaluation.predictions import Predictor
from python_model.io.exclusive import owned
from python_model.reporting.charts import Chart
from python_model.studies.summary import write_study
from python_model.studies.trials import (
    RESULT,
    Display,
    EvaluationOptions,
    Trial,
    TrialResult,
    quiet,
    references,
    run_trials,
)
from python_model.training.runs import RECIPE_OF_SOURCE, apply_settings

REFERENCE_WIDTH = 64
"""Width for which the learning rate is stated; see `rate_for`."""


@dataclass(frozen=True)
class Report:
    """The report of a study: Markdown, figures by name, and further numbers for the JSON."""

    text: str
    figures: Mapping[str, Chart] = field(default_factory=dict)
    more: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Study:
    """One question: trials on one data set, and the report of their results.

    settings: stored in the JSON. report: made from the results so far and the rows without training. trained: trial
    name -> metrics of the heads that it trains; metrics of untrained heads are left out. predictors: rows without
    training beside popularity, item averages and the oracle.
    """

    name: str
    trials: Sequence[Trial]
    report: Callable[[Sequence[TrialResult], Sequence[TrialResult]], Report]
    settings: Mapping[str, Any] = field(default_factory=dict)
    trained: Mapping[str, Sequence[str]] = field(default_factory=dict)
    predictors: Mapping[str, Predictor] = field(default_factory=dict)

    def shown(self, result: TrialResult) -> TrialResult:
        """The result with only the metrics of trained heads."""
        trained = self.trained.get(result.name, tuple(result.metrics))
        kept = {name: value if name in trained else None for name, value in result.metrics.items()}
        return replace(result, metrics=kept)


@dataclass(frozen=True)
class Budget:
    """The budget of each trial; None takes the study's own value.

    steps, finetune_steps, batch_events, window: of `TrainConfig`. seeds: how many. max_events: evaluated events, whole
    users. given: any other settings of model and training, by name.
    """

    steps: int | None = None
    finetune_steps: int | None = None
    batch_events: int | None = None
    window: int | None = None
    seeds: int | None = None
    max_events: int | None = None
    given: Mapping[str, Any] = field(default_factory=dict)

    def or_else(self, **defaults: Any) -> Budget:
        """With the study's own values where nothing was given."""
        return replace(self, **{name: value for name, value in defaults.items() if getattr(self, name) is None})


def open_data(data: str | Path | None, service: SyntheticConfig, out: str | Path) -> Dataset:
    """The prepared data set at `data`; where None, the synthetic `service`, generated once into out/data.

    ValueError where out/data holds another service.
    """
    if data is not None:
        return load_dataset(data)
    path = Path(out) / "data"
    if not (path / INFO).is_file():
        generate(path, service, name="synthetic-study")
    dataset = load_dataset(path)
    if SyntheticConfig.from_params(dataset.info.params) != service:
        raise ValueError(f"{path} holds another synthetic service: choose another directory for the study")
    return dataset


def base_trial(dataset: Dataset, budget: Budget, *, finetune: bool = True) -> Trial:
    """The trial that a study varies: the recipe of the data's source under the budget."""
    recipe = RECIPES[RECIPE_OF_SOURCE.get(dataset.info.source, "demo")]
    model, pretrain = apply_settings(recipe.model, recipe.pretrain, _settings(budget, budget.steps))
    _, second = apply_settings(model, recipe.finetune, _settings(budget, budget.finetune_steps))
    model = replace(model, max_events=max(model.max_events, pretrain.window))
    options = EvaluationOptions(max_events=budget.max_events)
    stages = [_fitted(config, budget) for config in (pretrain, second)]
    return Trial("base", model, stages[0], stages[1] if finetune else None, options)


def require_budget(budget: Budget) -> None:
    """ValueError where a budget does not fit the recipe of the synthetic services, before any data is made or read."""
    recipe = RECIPES["demo"]
    apply_settings(recipe.model, recipe.pretrain, _settings(budget, budget.steps))
    apply_settings(recipe.model, recipe.finetune, _settings(budget, budget.finetune_steps))


def _settings(budget: Budget, steps: int | None) -> dict[str, Any]:
    """The settings of a recipe that the budget changes."""
    named = {"batch_events": budget.batch_events, "window": budget.window, "steps": steps}
    return {name: value for name, value in named.items() if value is not None} | dict(budget.given)


def _fitted(config: TrainConfig, budget: Budget) -> TrainConfig:
    """Keep one checkpoint, which is enough to resume, and shorten the warm-up of a short run."""
    warmup = budget.given.get("warmup_steps", min(config.warmup_steps, max(1, config.steps // 8)))
    return replace(config, keep=1, warmup_steps=warmup)


def resized(trial: Trial, name: str, shapes: ModelConfig) -> Trial:
    """The trial with the shapes of another model and learning rates that fit its width."""
    kept = {
        key: getattr(shapes, key)
        for key in ("layers", "width", "heads", "feed_forward", "item_width", "feature_width", "vector_width")
    }
    stages = {
        config.stage: replace(config, learning_rate=rate_for(config.learning_rate, shapes.width))
        for config in trial.stages
    }
    return replace(trial, name=name, model=replace(trial.model, **kept), **stages)  # type: ignore[arg-type]


def rate_for(rate: float, width: int) -> float:
    """Learning rate at a width from that at REFERENCE_WIDTH: it falls like 1 / width and at most doubles."""
    return rate * min(2.0, REFERENCE_WIDTH / width)


def shapes_of(size: str) -> ModelConfig:
    """A preset by name, or LAYERSxWIDTH with heads of width 32: `2x64`. ValueError for anything else."""
    layers, cross, width = size.partition("x")
    if not cross:
        return preset(size)
    if re.fullmatch(r"[1-9][0-9]{0,5}x[1-9][0-9]{0,5}", size, re.ASCII) is None:
        raise ValueError(f"size is {size!r}, expected the name of a preset or LAYERSxWIDTH as in 2x64")
    wide = int(width)
    return ModelConfig(
        layers=int(layers), width=wide, heads=max(1, wide // 32), item_width=min(wide, 512),
        feature_width=max(8, min(wide // 4, 128)), vector_width=min(wide, 512),
    )  # fmt: skip


def run_study(
    study: Study, dataset: Dataset, out: str | Path, *, device: str = "cpu", show: Display = quiet,
    say: Callable[[str], None] = lambda text: None, keep_checkpoints: bool = False,
) -> list[Path]:  # fmt: skip
    """Run the unfinished trials and write table, figures and JSON after each; returns the files.

    InUseError where another process runs a study in `out`.
    """
    with owned(Path(out)):
        return _run(study, dataset, Path(out), device, show, say, keep_checkpoints)


def _run(
    study: Study, dataset: Dataset, out: Path, device: str, show: Display, say: Callable[[str], None],
    keep_checkpoints: bool,
) -> list[Path]:  # fmt: skip
    written: list[Path] = []
    results: list[TrialResult] = []
    first = study.trials[0]
    window = first.stages[0].window if study.predictors else None
    known = references(dataset, out / "trials", first.protocol, first.evaluation, study.predictors, window)
    before = {trial.folder for trial in study.trials if (out / "trials" / trial.folder / RESULT).is_file()}
    if study.predictors and not before:
        # What needs no training stands before the first model is trained, which may take long.
        report = study.report([], known)
        write_study(out, study.name, study.settings, [], report.text, report.figures, **report.more)
    running = run_trials(
        study.trials, dataset, out / "trials", device=device, show=show, keep_checkpoints=keep_checkpoints
    )
    for place, (trial, found) in enumerate(zip(study.trials, running, strict=True), 1):
        result = study.shown(found)
        results.append(result)
        if trial.folder in before and place < len(study.trials):
            continue
        report = study.report(results, known)
        written = write_study(out, study.name, study.settings, results, report.text, report.figures, **report.more)
        shown = ", ".join(f"{name} {value:.4f}" for name, value in result.metrics.items() if value is not None)
        say(f"[{place}/{len(study.trials)}] {result.name}, seed {result.seed}: {shown}")
    return written
