"""The engine of studies and comparisons: trials, each a model trained and evaluated under stated settings.

`<out>/<name>-seed-<n>/` holds trial.json (the settings), pretrain/ and finetune/ (the runs) and result.json; a trial
that only evaluates another trial's model differently uses that trial's runs. A study is resumed by running it again: a
finished trial is read back, a stopped one resumes from its checkpoint, and settings that differ from those of its
directory are refused.
"""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from python_model.config import ModelConfig, TrainConfig
from python_model.data.identity import identity_of
from python_model.data.schema import Dataset
from python_model.evaluation.evaluate import PROTOCOLS, EvaluationResult, Metrics, evaluate
from python_model.evaluation.inference import ModelPredictor
from python_model.evaluation.predictions import Predictor
from python_model.io.disk import replace_text
from python_model.io.errors import DataError
from python_model.io.json_text import kind_of, read_object
from python_model.io.settings import checked_settings
from python_model.model.base import Recommender
from python_model.train import FREE_ON_RESUME, train
from python_model.training import checkpoint
from python_model.training.progress import Progress, read_metrics

TRIAL, RESULT, REFERENCES = "trial.json", "result.json", "references.json"
MADE_AGAIN = "remove it to have it made again"
Display = Callable[[str], AbstractContextManager[Progress | None]]
"""Makes, from a title, the display of one stage of training: `console.TrainingProgress`, or `quiet`."""

Record = TypeVar("Record")


def quiet(title: str) -> AbstractContextManager[Progress | None]:
    """No display."""
    return nullcontext()


@dataclass(frozen=True)
class EvaluationOptions:
    """How a trial is evaluated: the options of `evaluate` and of `ModelPredictor`.

    window: None takes that of the trial's last stage. lag: seconds, None takes `pair_lag`. max_events: whole users,
    the same for every trial.
    """

    part: str = "test"
    k: tuple[int, ...] = (10,)
    max_events: int | None = None
    window: int | None = None
    ranking_kind: str | None = None
    lag: int | None = None


@dataclass(frozen=True)
class Trial:
    """One model to train and evaluate. Both stages share seed and protocol; the last one is evaluated, its best
    checkpoint where it has one (`validate_every`).

    name: the row of the table, and part of a file name: letters, digits, `.`, `_`, `-`. trained_as: the name of another
    trial whose runs are used, where it has the same model and stages (or the same first stage). short: pre-training on
    shorter windows, whose weights `pretrain` begins with.
    """

    name: str
    model: ModelConfig
    pretrain: TrainConfig | None = None
    finetune: TrainConfig | None = None
    evaluation: EvaluationOptions = field(default_factory=EvaluationOptions)
    trained_as: str | None = None
    short: TrainConfig | None = None

    def __post_init__(self) -> None:
        for name in (self.name, self.trained_as or self.name):
            if not re.fullmatch(r"\w[\w.-]*", name, re.ASCII):
                raise ValueError(f"Trial: name is {name!r}, expected letters, digits, '.', '_' and '-'")
        if not self.stages:
            raise ValueError(f"Trial {self.name}: pretrain and finetune are both None, expected at least one")
        for stage in ("pretrain", "finetune"):
            config = getattr(self, stage)
            if config is not None and config.stage != stage:
                raise ValueError(f"Trial {self.name}: {stage} is for stage {config.stage!r}")
        if self.short is not None and (self.pretrain is None or self.short.stage != "pretrain"):
            raise ValueError(f"Trial {self.name}: short is for pre-training, before `pretrain`")
        for shared in ("seed", "protocol"):
            found = {getattr(config, shared) for config in self.runs_in_order.values()}
            if len(found) > 1:
                raise ValueError(f"Trial {self.name}: {shared} differs between the stages: {sorted(found)}")
        if self.protocol not in PROTOCOLS:
            raise ValueError(f"Trial {self.name}: protocol is {self.protocol!r}, expected one that holds events out")

    @property
    def stages(self) -> tuple[TrainConfig, ...]:
        """The stages to train, in order."""
        return tuple(config for config in (self.pretrain, self.finetune) if config is not None)

    @property
    def runs_in_order(self) -> dict[str, TrainConfig]:
        """What is trained, in order, by the name of its directory."""
        short = {} if self.short is None else {"short": self.short}
        return short | {config.stage: config for config in self.stages}

    @property
    def seed(self) -> int:
        """Of weights, batches and negatives, in both stages."""
        return self.stages[0].seed

    @property
    def protocol(self) -> str:
        """What is held out."""
        return self.stages[0].protocol

    @property
    def folder(self) -> str:
        """Name of the trial's directory."""
        return f"{self.name}-seed-{self.seed}"

    @property
    def runs(self) -> str:
        """Name of the directory that holds its runs."""
        return f"{self.trained_as or self.name}-seed-{self.seed}"

    def with_seed(self, seed: int) -> Trial:
        """The same with another seed in both stages."""
        runs = {name: replace(config, seed=seed) for name, config in self.runs_in_order.items()}
        return replace(self, **runs)  # type: ignore[arg-type]


@dataclass(frozen=True)
class TrialResult:
    """The result of a trial.

    parameters: "encoder" (the transformer blocks), "tables" (embeddings) and "all". events: training events that went
    through the model, over both stages. seconds: by stage, and "evaluation". metrics, standard_errors: the row of
    `EvaluationResult`; feedback: its tasks; counts: evaluated events, users and pairs. by_user: metric -> gains and
    weights of every evaluated user, the same users for all trials (`evaluation.user_gains`).
    """

    name: str
    seed: int
    parameters: Mapping[str, int]
    events: int
    seconds: Mapping[str, float]
    metrics: Metrics
    standard_errors: Metrics
    feedback: Mapping[str, Metrics]
    counts: Mapping[str, int]
    by_user: Mapping[str, tuple[tuple[float, ...], tuple[float, ...]]] = field(default_factory=dict)

    @property
    def training_seconds(self) -> float:
        """Of all stages."""
        return sum(value for name, value in self.seconds.items() if name != "evaluation")


def over_seeds(trials: Sequence[Trial], seeds: int) -> list[Trial]:
    """Every trial with the seeds 0 … seeds − 1, seed by seed, so that a stopped study has complete seeds."""
    return [trial.with_seed(seed) for seed in range(seeds) for trial in trials]


def run_trials(
    trials: Sequence[Trial], dataset: Dataset, out: str | Path, *, device: str = "cpu", show: Display = quiet,
    keep_checkpoints: bool = True,
) -> Iterator[TrialResult]:  # fmt: skip
    """Run the unfinished trials; yields the result of every trial in order.

    device, show: as for `train`. keep_checkpoints: false removes all weights once the last result is written.
    ValueError, before anything is trained, where two trials share a directory or one was begun with other settings;
    KeyboardInterrupt after Ctrl-C, with what was trained saved.
    """
    folders = [trial.folder for trial in trials]
    for name in folders:
        if folders.count(name) > 1:
            raise ValueError(f"trials: {name} stands twice, expected a name of its own for each")
    for trial in trials:
        _require_same(Path(out) / trial.folder, settings_of(trial, dataset))
    for trial in trials:
        yield run_trial(trial, dataset, out, device=device, show=show)
    if not keep_checkpoints:
        for trial in trials:
            for run in trial.runs_in_order:
                for name in (checkpoint.CHECKPOINTS, checkpoint.BEST):
                    shutil.rmtree(Path(out) / trial.runs / run / name, ignore_errors=True)


def run_trial(
    trial: Trial, dataset: Dataset, out: str | Path, *, device: str = "cpu", show: Display = quiet
) -> TrialResult:
    """Train and evaluate one trial in `out/<its folder>`, resume it, or read its result; see `run_trials`."""
    folder = Path(out) / trial.folder
    settings = settings_of(trial, dataset)
    _require_same(folder, settings)
    done = _read(folder / RESULT, TrialResult)
    if done is not None:
        return done
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / TRIAL, settings)
    source: Path | None = None
    events, seconds = 0, {}
    for name, config in trial.runs_in_order.items():
        run = Path(out) / trial.runs / name
        with show(f"{trial.name}, seed {trial.seed}, {name}") as progress:
            train(
                config.stage, dataset, run, trial.model, config, resume=True, init_from=source, progress=progress,
                device=device,
            )  # fmt: skip
        last = read_metrics(run)[-1]
        events, seconds[name], source = events + last["events"], last["seconds"], run
    assert source is not None
    result = _evaluated(trial, dataset, source, device, events, seconds)
    write_json(folder / RESULT, asdict(result))
    return result


def references(
    dataset: Dataset, out: str | Path, protocol: str = "temporal", options: EvaluationOptions | None = None,
    predictors: Mapping[str, Predictor] | None = None, window: int | None = None,
) -> list[TrialResult]:  # fmt: skip
    """Rows without training: popularity, item averages, `predictors`, and the oracle where there is one.

    Stored in out/references.json and read back from there. window: the window of the predictors.
    """
    options = options or EvaluationOptions()
    rows = sorted(predictors or {})
    of_data = {name: getattr(options, name) for name in ("part", "k", "max_events")}
    settings = {
        "protocol": protocol, "dataset": identity_of(dataset), "evaluation": of_data, "rows": rows, "window": window,
    }  # fmt: skip
    folder = Path(out)
    _require_same(folder, settings, REFERENCES)
    file = folder / REFERENCES
    done: dict[str, Any] | None = _read(file, dict)
    if done is not None:
        return records_of(file, done, "results", TrialResult)
    began = time.perf_counter()
    found = evaluate(
        predictors or {}, dataset, protocol=protocol, part=options.part, k=options.k, max_events=options.max_events,
        item_average=True, by_user=True,
    )  # fmt: skip
    seconds = {"evaluation": time.perf_counter() - began}
    results = [_result(found, row, 0, {}, 0, seconds) for row in found.rows]
    folder.mkdir(parents=True, exist_ok=True)
    write_json(file, {**settings, "results": [asdict(one) for one in results]})
    return results


def settings_of(trial: Trial, dataset: Dataset) -> dict[str, Any]:
    """All settings that determine a trial's results, JSON-ready."""
    return {**asdict(trial), "dataset": identity_of(dataset)}


def write_json(file: Path, values: Any) -> None:
    """Write a JSON file atomically."""
    replace_text(file, json.dumps(values, indent=2) + "\n")


def _evaluated(
    trial: Trial, dataset: Dataset, run: Path, device: str, events: int, seconds: dict[str, float]
) -> TrialResult:
    options = trial.evaluation
    model = checkpoint.load_recommender(checkpoint.chosen(run), device)
    began = time.perf_counter()
    predictor = ModelPredictor(
        model, dataset, window=options.window or trial.stages[-1].window, device=device,
        ranking_kind=options.ranking_kind, lag=options.lag,
    )  # fmt: skip
    found = evaluate(
        {trial.name: predictor}, dataset, protocol=trial.protocol, part=options.part, k=options.k,
        max_events=options.max_events, oracle=False, by_user=True,
    )  # fmt: skip
    seconds = {**seconds, "evaluation": time.perf_counter() - began}
    return _result(found, trial.name, trial.seed, count_parameters(model), events, seconds)


def _result(
    found: EvaluationResult, row: str, seed: int, parameters: dict[str, int], events: int, seconds: dict[str, float]
) -> TrialResult:
    return TrialResult(
        name=row, seed=seed, parameters=parameters, events=events,
        seconds={name: round(value, 3) for name, value in seconds.items()}, metrics=found.rows[row],
        standard_errors=found.standard_errors[row], feedback=found.feedback[row], counts=found.counts,
        by_user={
            metric: (tuple(gains.tolist()), tuple(weights.tolist()))
            for metric, (gains, weights) in found.by_user[row].items()
            if np.isfinite(gains).all()
        },
    )  # fmt: skip


def count_parameters(model: Recommender) -> dict[str, int]:
    """Parameters of the transformer blocks, of the embedding tables, and of the whole model."""
    parts = {"encoder": model.encoder.blocks, "tables": model.tables, "all": model}
    return {name: sum(parameter.numel() for parameter in part.parameters()) for name, part in parts.items()}


def _require_same(folder: Path, settings: Mapping[str, Any], file: str = TRIAL) -> None:
    """ValueError where the directory was created with other settings, naming each."""
    found: dict[str, Any] | None = _read(folder / file, dict)
    if found is None:
        return
    old, new = _flat({key: found[key] for key in found if key != "results"}), _flat(json.loads(json.dumps(settings)))
    # A directory that an earlier version began lacks the settings that came since: it had their defaults.
    old = {key: value for key, value in _flat(_defaults()).items() if key in new} | old
    differ = [
        f"{key} was {old.get(key)!r}, now {new.get(key)!r}"
        for key in sorted(old.keys() | new.keys())
        if key.rpartition(".")[2] not in FREE_ON_RESUME and old.get(key) != new.get(key)
    ]
    if differ:
        raise ValueError(f"{folder} was begun with other settings: {'; '.join(differ)}; choose another directory")


def _defaults() -> dict[str, Any]:
    """The default of every setting of a trial."""
    stages = {stage: asdict(TrainConfig(stage=stage)) for stage in ("pretrain", "finetune")}
    found = {"model": asdict(ModelConfig()), "evaluation": asdict(EvaluationOptions()), **stages}
    out: dict[str, Any] = json.loads(json.dumps(found))
    return out


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in values.items():
        out |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return out


def _read(file: Path, kind: Callable[..., Record]) -> Record | None:
    """The JSON object of a file as keyword arguments of `kind`; None where there is no file."""
    return _record(file, _read_object(file), kind) if file.is_file() else None


def _record(file: Path, raw: Any, kind: Callable[..., Record]) -> Record:
    try:
        if not isinstance(raw, dict):
            raise ValueError(f"expected an object, found {kind_of(raw)}")
        return kind(**(raw if kind is dict else checked_settings(kind, raw, kind.__name__)))
    except (ValueError, TypeError) as error:
        raise DataError(file, f"damaged: {error}; {MADE_AGAIN}") from error


def _read_object(file: Path) -> dict[str, Any]:
    try:
        return read_object(file)
    except DataError as error:
        raise DataError(file, f"damaged: {error.message}; {MADE_AGAIN}") from error


def read_study(file: Path, settings: Mapping[str, Any], key: str, kind: Callable[..., Record]) -> list[Record]:
    """The records under `key` of an earlier run with the same settings; none where there is no file.

    ValueError where the settings differ, DataError where the file is damaged.
    """
    if not file.is_file():
        return []
    raw = _read_object(file)
    now = json.loads(json.dumps(settings))
    if raw.get("settings") != now:
        raise ValueError(
            f"{file} holds a study with other settings: {raw.get('settings')}, now {now}; choose another directory"
        )
    return records_of(file, raw, key, kind)


def records_of(file: Path, raw: Mapping[str, Any], key: str, kind: Callable[..., Record]) -> list[Record]:
    """The list of objects under a key, each as keyword arguments of `kind`; DataError where there is none."""
    found = raw.get(key)
    if not isinstance(found, list):
        raise DataError(file, f"damaged: expected an array, found {kind_of(found)}; {MADE_AGAIN}", column=key)
    return [_record(file, one, kind) for one in found]
