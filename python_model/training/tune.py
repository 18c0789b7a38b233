"""`argus tune`: a search for the settings of pre-training on the validation part, with Optuna.

    <out>/study.sqlite3        every trial: its settings, its validations, its state
    <out>/trials/trial-0003/   the run of a trial; its weights are removed when it is done
    <out>/recipe.toml          the best settings so far, for `argus pretrain --recipe`

The tree-structured Parzen estimator proposes settings; a trial whose validation is worse than the median of the others
at the same share of their training is pruned. Every trial is evaluated on the same events of the validation part, never
on the test part. A search that was stopped or killed goes on with the trial it was in, from its last checkpoint.
"""

from __future__ import annotations

import contextlib
import json
import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from python_model.config import ModelConfig, TrainConfig
from python_model.data.identity import identity_of
from python_model.data.schema import Dataset
from python_model.data.splits import make_split
from python_model.io.errors import DataError, counted, one_line
from python_model.io.exclusive import owned
from python_model.io.names import require_kin
from python_model.studies.study import shapes_of
from python_model.train import TrainingDiverged, train
from python_model.training import checkpoint
from python_model.training.length import PATIENCE, with_length
from python_model.training.progress import Progress, StepReport, read_metrics
from python_model.training.recipe_file import RECIPE, write_recipe
from python_model.training.runs import apply_settings
from python_model.training.watch import LOWER_IS_BETTER, PREFIX, TITLES, Watch

STUDY, TRIALS = "study.sqlite3", "trials"
EVALUATIONS = 20
"""Of a trial: the n-th is after n twentieths of its steps, so that trials of different lengths can be compared."""
EVENTS = 4000
"""Of the validation part, that every trial is evaluated on."""
FIRST_PRUNED, FIRST_EVALUATION = 5, 4
"""Trials that run to their end before any is pruned, and evaluations of each that are not compared."""
Choice = tuple[Any, ...]
SPACE: dict[str, Choice | tuple[float, float, str]] = {
    "size": ("1x64", "2x64", "2x128", "4x128"),
    "batch_events": (512, 1024, 2048, 4096),
    "window": (32, 64, 128, 256),
    "negatives": (128, 256, 1024, 4096),
    "learning_rate": (3e-4, 1e-2, "log"),
    "table_learning_rate": (3e-4, 3e-2, "log"),
    "weight_decay": (1e-3, 0.3, "log"),
    "dropout": (0.0, 0.5, "linear"),
}
"""What is searched: choices, or (low, high, scale). size: layers x width; negatives: in-batch and uniform ones each."""
Display = Callable[[str], AbstractContextManager[Progress | None]]


@dataclass(frozen=True)
class TrialRow:
    """One trial: its state (complete, pruned, fail), value, steps trained and what was proposed.

    order: rising from the best value.
    """

    number: int
    state: str
    value: float | None
    steps: int
    params: Mapping[str, Any]
    order: float


@dataclass(frozen=True)
class Search:
    """What a search is for: the settings that are fixed, the metric, where it lies."""

    dataset: Dataset
    out: Path
    given: Mapping[str, Any]
    seed: int
    device: str
    show: Display

    @property
    def metric(self) -> str:
        """By which trials are compared."""
        return str(self.given.get("best_metric") or "next_item_ne")

    def settings(self, proposed: Mapping[str, Any]) -> tuple[ModelConfig, TrainConfig]:
        """The settings of a trial."""
        values = {**proposed, **self.given}
        size = values.pop("size", "tiny")
        if not isinstance(size, str):
            raise ValueError(f"size is {size!r}, expected the name of a preset or LAYERSxWIDTH as in 2x64")
        model = shapes_of(size)
        if "negatives" in values:
            values["negatives_in_batch"] = values["negatives_uniform"] = values.pop("negatives")
        usual = {"patience": PATIENCE, "validate_events": EVENTS, "seed": self.seed}
        if "window" in proposed and isinstance(values.get("batch_events"), int):
            # A fixed batch may be smaller than a proposed window.
            values["window"] = min(values["window"], values["batch_events"])
        model, config = apply_settings(model, TrainConfig(), {**usual, **values})
        model = replace(model, max_events=max(model.max_events, config.window))
        config, _ = with_length(self.dataset, config, self.given, new=True, chosen=True)
        warmup = self.given.get("warmup_steps", min(config.warmup_steps, max(1, config.steps // 8)))
        return model, replace(config, validate_every=max(1, config.steps // EVALUATIONS), warmup_steps=warmup)

    def propose(self, trial: Any) -> dict[str, Any]:
        """The proposed value of everything that is not fixed."""
        out: dict[str, Any] = {}
        for name, range_ in SPACE.items():
            if name in self.given or (name == "negatives" and self._fixes_negatives):
                continue
            if range_[-1] in ("log", "linear"):
                low, high, scale = range_
                out[name] = trial.suggest_float(name, low, high, log=scale == "log")
            else:
                out[name] = trial.suggest_categorical(name, list(range_))
        return out

    @property
    def _fixes_negatives(self) -> bool:
        return "negatives_in_batch" in self.given or "negatives_uniform" in self.given


class Pruned(Exception):
    """A trial is worse than the median of the others."""


def tune(
    dataset: Dataset, out: str | Path, *, trials: int, hours: float | None = None,
    given: Mapping[str, Any] | None = None, seed: int = 0, device: str = "cpu", show: Display,
) -> list[TrialRow]:  # fmt: skip
    """Search until `trials` trials are done or `hours` have passed; returns all of them, and writes recipe.toml.

    given: settings that are not searched. show: as for the studies. Raises ValueError where Optuna is missing, where
    `out` holds a search on other data or with other fixed settings, or where the data has no validation part;
    DataError where the study there is damaged; InUseError where another process searches there. Ctrl-C saves and
    raises KeyboardInterrupt.
    """
    optuna = require_optuna()
    if hours is not None and not hours > 0:
        raise ValueError(f"hours is {hours:g}, expected more than 0: no trial would begin")
    search = Search(dataset, Path(out), dict(given or {}), seed, device, show)
    if search.given.get("protocol") == "all":
        raise ValueError("protocol is 'all', which holds no events out: tune searches on the validation part")
    # Settings that do not fit each other or the data are refused before anything is written.
    make_split(dataset, search.settings({})[1].protocol)
    end = None if hours is None else time.monotonic() + 3600 * hours
    require_kin(search.out, (STUDY, RECIPE), "search")
    with owned(search.out), _storage_errors(optuna, search.out / STUDY):
        study = _study(optuna, search)
        _take_up(optuna, study)
        while len(_done(study)) < trials and (end is None or time.monotonic() < end):
            _run_one(optuna, study, search)
            if any(one.state.name == "COMPLETE" for one in study.trials):
                _write_recipe(study, search)
        return rows(study)


def require_optuna() -> Any:
    """The optuna module, silent; ValueError saying what to install where it is missing."""
    try:
        import optuna
    except ImportError:
        raise ValueError('tune needs Optuna, which is not installed: pip install "argus-kernels[tune]"') from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


@contextlib.contextmanager
def _storage_errors(optuna: Any, file: Path) -> Iterator[None]:
    """Turn errors of the study's database into a DataError that names its file."""
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        cause = error if isinstance(error, SQLAlchemyError) else error.__cause__ or error
        reason = one_line(getattr(cause, "orig", None) or cause)
        message = f"the study cannot be read or written ({reason}): bring the file back or choose another directory"
        raise DataError(file, message) from error


def rows(study: Any) -> list[TrialRow]:
    """The trials that are done, in order."""
    sign = 1.0 if study.direction.name == "MINIMIZE" else -1.0
    return [
        TrialRow(
            one.number, one.state.name.lower(), one.value, int(one.user_attrs.get("steps", 0)), dict(one.params),
            math.inf if one.value is None else sign * one.value,
        )
        for one in _done(study)
    ]  # fmt: skip


def _study(optuna: Any, search: Search) -> Any:
    """The study in `out`, new or as it was left; ValueError where it is another one."""
    direction = "minimize" if search.metric in LOWER_IS_BETTER else "maximize"
    study = optuna.create_study(
        storage=f"sqlite:///{(search.out / STUDY).resolve()}", study_name="argus", direction=direction,
        load_if_exists=True,
        pruner=optuna.pruners.MedianPruner(n_startup_trials=FIRST_PRUNED, n_warmup_steps=FIRST_EVALUATION),
    )  # fmt: skip
    # Another seed after each call, or the first proposals would come again.
    study.sampler = optuna.samplers.TPESampler(seed=(search.seed + len(study.trials)) % 2**32)
    now = json.loads(json.dumps({
        "dataset": identity_of(search.dataset), "fixed": dict(search.given), "seed": search.seed, "space": SPACE,
    }))  # fmt: skip
    before = study.user_attrs.get("search")
    if before is None:
        study.set_user_attr("search", now)
    elif before != now:
        differ = ", ".join(
            f"{name} was {before.get(name)}, now {now[name]}" for name in now if before.get(name) != now[name]
        )
        raise ValueError(f"{search.out} holds another search: {differ}; choose another directory")
    return study


def _take_up(optuna: Any, study: Any) -> None:
    """Put trials that were stopped or killed at the head of the queue, with their runs."""
    for one in study.get_trials(states=(optuna.trial.TrialState.RUNNING,)):
        study.enqueue_trial(one.params, user_attrs={"folder": _folder(one)})
        study.tell(one.number, state=optuna.trial.TrialState.FAIL)


def _done(study: Any) -> list[Any]:
    """Trials that count: one that was stopped and taken up again has the same folder and counts once."""
    ended = ("COMPLETE", "PRUNED", "FAIL")
    last = {_folder(one): one for one in study.trials}
    return [one for one in last.values() if one.state.name in ended]


def _run_one(optuna: Any, study: Any, search: Search) -> None:
    trial = study.ask()
    folder = _folder(trial)
    trial.set_user_attr("folder", folder)
    run = search.out / TRIALS / folder
    states = optuna.trial.TrialState
    try:
        value = _value(trial, search, run)
    except Pruned:
        study.tell(trial, state=states.PRUNED)
    except TrainingDiverged:
        study.tell(trial, state=states.FAIL)
    else:
        study.tell(trial, value) if value is not None else study.tell(trial, state=states.FAIL)
    for name in (checkpoint.CHECKPOINTS, checkpoint.BEST):
        shutil.rmtree(run / name, ignore_errors=True)


def _value(trial: Any, search: Search, run: Path) -> float | None:
    """Train a trial, or go on with it; its best value, None where the metric is not defined."""
    model, config = search.settings(search.propose(trial))
    resumed = checkpoint.exists(run)
    step = checkpoint.read_description(run).step if resumed else 0
    for record in read_metrics(run) if resumed else ():
        value = record.get(f"{PREFIX}{search.metric}")
        if 0 < record["step"] <= step and value is not None:
            trial.report(value, record["step"] // config.validate_every)

    with search.show(f"Trial {trial.number}") as progress:

        def watch(report: StepReport) -> None:
            if progress is not None:
                progress(report)
            found = None if report.validation is None else report.validation.metrics.get(search.metric)
            if report.step > 0 and found is not None:
                trial.report(found, report.step // config.validate_every)
                trial.set_user_attr("steps", report.step)
                if trial.should_prune():
                    raise Pruned

        train("pretrain", search.dataset, run, model, config, resume=True, progress=watch, device=search.device)
    state = checkpoint.read_json(checkpoint.find(run) / checkpoint.STATE)
    return Watch.from_state(state["watch"]).best


def _write_recipe(study: Any, search: Search) -> None:
    best, done = study.best_trial, _done(study)
    model, config = search.settings(best.params)
    identity = identity_of(search.dataset)
    about = {
        "search": "argus tune", "trials": len(done), "pruned": sum(one.state.name == "PRUNED" for one in done),
        "best_trial": best.number, "metric": search.metric, "value": best.value, "part": "validation",
        "seed": search.seed, "fixed": json.dumps(dict(search.given)),
        **{f"data_{name}": value for name, value in identity.items()},
    }  # fmt: skip
    comment = (
        f"Found by `argus tune` on the validation part of {identity['name']}: the best of "
        f"{counted(len(done), 'trial')}, {TITLES[search.metric]} {best.value:.4f}.\n"
        "`argus pretrain DATA OUT --recipe THIS-FILE` trains with it."
    )
    write_recipe(search.out / RECIPE, comment, about, model, config)


def _folder(trial: Any) -> str:
    return str(trial.user_attrs.get("folder", f"trial-{trial.number:04d}"))
