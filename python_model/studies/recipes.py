"""A search for recipes, the same for ARGUS, SASRec and HSTU, on the validation part alone; then, once, the test part.

Settings are drawn from SPACE by a seed; the first one is the recipe that grows with the data. Every model is trained
with every setting for the same passes over the training events, evaluated equally often, and keeps its best checkpoint.
The setting with the best validation NDCG@10 of each model is trained with every seed and evaluated on the test part,
beside ARGUS with the recipe that grows:

    argus, sasrec, hstu      the best setting of each
    sasrec_sampled           the best setting with sampled candidates, where `sasrec` has all items
    argus_default            the recipe that grows, where the search found a better one

More trials continue a search: setting n is the same in a search of any length.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from python_model.config import ModelConfig, TrainConfig
from python_model.data.schema import Dataset
from python_model.data.splits import events_to_predict, make_split
from python_model.evaluation.item_knn import ItemKnn
from python_model.studies.compare import like_hstu
from python_model.studies.intervals import as_numbers, interval, interval_table, ratio
from python_model.studies.study import shapes_of
from python_model.studies.summary import by_name, plain, table, write_study
from python_model.studies.trials import (
    Display,
    EvaluationOptions,
    Trial,
    TrialResult,
    over_seeds,
    quiet,
    references,
    run_trial,
)
from python_model.training.grown import Size, grown
from python_model.training.length import steps_of_epoch
from python_model.training.runs import apply_settings

MODELS = ("argus", "sasrec", "hstu")
METRIC = "ndcg@10"
METRICS = ("ndcg@10", "recall@10", "next_item_ne")
SPACE: dict[str, tuple[Any, ...]] = {
    "size": ("1x64", "2x64", "1x128"),
    "dropout": (0.1, 0.2, 0.3),
    "item_dropout": (0.0, 0.1, 0.2),
    "learning_rate": (3e-3, 6e-3, 1e-2),
    "weight_decay": (0.01, 0.05, 0.2),
    "candidates": ("all", "sampled"),
    "shuffle_ties": (False, True),
    "feedback_weight": (0.0, 0.3, 1.0),
}
"""What is searched. size: layers x width; candidates: all items, or 256 of the batch and 256 uniform ones;
feedback_weight: of every feedback in the joint loss, 0 as SASRec and HSTU are published, 1 in the recipe that grows."""
FIXED_BY = {
    "size": ("layers", "width"), "candidates": ("negatives_in_batch", "negatives_uniform"),
    "feedback_weight": ("feedback_weights",),
}  # fmt: skip
"""What is not searched where one of these settings is given; else a setting of the same name."""
OWN = ("steps", "epochs", "seed", "protocol", "validate_every", "validate_events", "best_metric", "patience", "model")
"""Settings that a search makes itself."""
SAMPLED = {"negatives_in_batch": 256, "negatives_uniform": 256}


@dataclass(frozen=True)
class Plan:
    """What a search takes.

    trials: settings of each model, the recipe that grows included. epochs: passes over the training events of a run,
    evaluations: of a run, evenly spread. seeds: of the best settings. seed: of what is drawn. given: settings of all
    runs that are not searched. validate_events: of the validation part, whole users; None: all.
    """

    trials: int = 6
    epochs: float = 8.0
    evaluations: int = 4
    seeds: int = 3
    seed: int = 0
    protocol: str = "leave-last-out"
    validate_events: int | None = 4000
    given: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if own := sorted(set(self.given) & set(OWN)):
            raise ValueError(f"setting {own[0]} is made by the search itself: expected any but {', '.join(OWN)}")
        apply_settings(ModelConfig(), TrainConfig(), {"epochs": self.epochs, **self.given})

    def searches(self, name: str) -> bool:
        """Whether what SPACE has under a name is searched, and not given."""
        return not set(FIXED_BY.get(name, (name,))) & set(self.given)


def drawn_settings(plan: Plan) -> list[dict[str, Any]]:
    """The settings that are searched; the first, empty, is the recipe that grows.

    A value comes again only when all others of its row in SPACE have come, so that few settings try each.
    """
    settings: list[dict[str, Any]] = [{}]
    for number in range(plan.trials - 1):
        setting = {}
        for column, (name, values) in enumerate(SPACE.items()):
            turn, place = divmod(number, len(values))
            order = np.random.default_rng([plan.seed, turn, column]).permutation(len(values))
            if plan.searches(name):
                setting[name] = values[int(order[place])]
        settings.append(setting)
    return settings


def trial_of(kind: str, number: int, setting: Mapping[str, Any], dataset: Dataset, plan: Plan) -> Trial:
    """The trial of a model with a setting, evaluated on the validation part."""
    info = dataset.info
    recipe = grown(Size(info.events, info.users, info.items))
    model, train = apply_settings(recipe.model, recipe.train, _changes(setting, list(info.feedback)))
    fixed = {
        "protocol": plan.protocol, "best_metric": METRIC, "validate_events": plan.validate_events, "keep": 1,
        **plan.given,
    }  # fmt: skip
    model, train = apply_settings(model, train, fixed)
    if kind != "argus":
        model = replace(model, item_width=model.width, max_events=train.window, feedback_dropout=0.0)
        model = replace(like_hstu(model, train.window) if kind == "hstu" else model, model=kind)
    steps = max(1, round(plan.epochs * steps_of_epoch(dataset, train)))
    every = max(1, steps // plan.evaluations)
    train = replace(
        train, steps=steps, validate_every=every, checkpoint_every=steps, log_every=every,
        warmup_steps=min(train.warmup_steps, max(1, steps // 8)),
    )  # fmt: skip
    options = EvaluationOptions(
        part="validation", max_events=plan.validate_events, ranking_kind=None if kind == "argus" else "feedback"
    )
    return Trial(f"{kind}-{number}", model, train, None, options)


def _changes(setting: Mapping[str, Any], feedback: Sequence[str]) -> dict[str, Any]:
    """The settings of model and training that a setting of SPACE stands for."""
    changes = dict(setting)
    if size := changes.pop("size", None):
        shapes = shapes_of(size)
        changes |= {name: getattr(shapes, name) for name in ("layers", "width", "heads", "item_width", "vector_width")}
    if changes.pop("candidates", None) == "sampled":
        changes |= SAMPLED
    if "learning_rate" in changes:
        changes["table_learning_rate"] = 2 * changes["learning_rate"]
    if "feedback_weight" in changes:
        changes["feedback_weights"] = dict.fromkeys(feedback, changes.pop("feedback_weight"))
    return changes


def search(
    dataset: Dataset, out: str | Path, plan: Plan, *, device: str = "cpu", show: Display = quiet,
    say: Callable[[str], None] = lambda text: None,
) -> list[Path]:  # fmt: skip
    """Search, then evaluate the best on the test part; writes recipes.md, .json after every trial, returns the files.

    What is done in `out` is read back; a stopped run goes on. ValueError where something there had other settings.
    """
    folder = Path(out)
    settings = drawn_settings(plan)
    found: list[TrialResult] = []
    trials = [
        trial_of(kind, number, setting, dataset, plan) for number, setting in enumerate(settings) for kind in MODELS
    ]
    for trial in trials:
        found.append(run_trial(trial, dataset, folder / "trials", device=device, show=show))
        say(f"{trial.name}: validation NDCG@10 {found[-1].metrics[METRIC]:.4f}")
        written = _write(folder, plan, settings, found, [], [])
    roles = test_trials({one.name: one for one in trials}, found)
    rows = make_split(dataset, plan.protocol).train & events_to_predict(dataset, plan.protocol)
    knn = {"item_knn": ItemKnn(dataset, rows, window=trials[0].stages[0].window)}
    known = references(dataset, folder / "trials", plan.protocol, EvaluationOptions(), knn, trials[0].stages[0].window)
    results: list[TrialResult] = []
    row_of = {trial.name: row for row, trial in roles.items()}
    for trial in over_seeds(list(roles.values()), plan.seeds):
        result = run_trial(trial, dataset, folder / "trials", device=device, show=show)
        results.append(replace(result, name=row_of[trial.name]))
        say(f"{trial.name}, seed {trial.seed}: test NDCG@10 {result.metrics[METRIC]:.4f}")
        written = _write(folder, plan, settings, found, results, known)
    return written


def test_trials(trials: Mapping[str, Trial], found: Sequence[TrialResult]) -> dict[str, Trial]:
    """Row of the test part -> its trial, by the validation results; the first seed uses the run of the search."""
    chosen = {kind: _best([one for one in found if _kind(one.name) == kind]) for kind in MODELS}
    sampled = [one for one in found if _kind(one.name) == "sasrec" and _stage(trials[one.name]).negatives_in_batch > 0]
    if sampled and (best := _best(sampled)) != chosen["sasrec"]:
        chosen["sasrec_sampled"] = best
    if chosen["argus"] != "argus-0":
        chosen["argus_default"] = "argus-0"
    # Named by their settings, so that a search that goes on and finds better ones leaves what is done.
    return {
        row: replace(
            trials[run], name=f"test-{run}", trained_as=run,
            evaluation=replace(trials[run].evaluation, part="test", max_events=None),
        )
        for row, run in chosen.items()
    }  # fmt: skip


def _best(found: Sequence[TrialResult]) -> str:
    return max(found, key=lambda one: one.metrics[METRIC] or 0.0).name


def _kind(name: str) -> str:
    return name.partition("-")[0]


def _stage(trial: Trial) -> TrainConfig:
    assert trial.pretrain is not None
    return trial.pretrain


def _write(
    folder: Path, plan: Plan, settings: Sequence[Mapping[str, Any]], found: Sequence[TrialResult],
    results: Sequence[TrialResult], known: Sequence[TrialResult],
) -> list[Path]:  # fmt: skip
    text = "Validation part, NDCG@10 · next-item NE of the best checkpoint by NDCG@10:\n\n" + _searched(settings, found)
    more: dict[str, Any] = {"search": [asdict(replace(one, by_user={})) for one in found]}
    if results:
        groups = by_name(results)
        spans = {name: {metric: interval(row, metric) for metric in METRICS} for name, row in groups.items()}
        ratios = {
            f"argus / {name}": {metric: ratio(groups["argus"], row, metric) for metric in METRICS[:2]}
            for name, row in groups.items()
            if name != "argus"
        }
        text += "\nTest part:\n\n" + table([*known, *results])
        text += "\n95 % intervals over users and seeds:\n\n" + interval_table(spans, METRICS, "")
        text += "\nRatios over the same users and seeds:\n\n" + interval_table(ratios, METRICS[:2], "")
        more |= {"intervals": as_numbers(spans), "ratios": as_numbers(ratios)}
    record = {**asdict(plan), "space": SPACE, "drawn": list(settings)}
    return write_study(folder, "recipes", record, results, text, **more)


def _searched(settings: Sequence[Mapping[str, Any]], found: Sequence[TrialResult]) -> str:
    """Markdown: a row a setting, a column a model."""
    results = {one.name: one.metrics for one in found}
    lines = [
        "| | " + " | ".join([*SPACE, *(f"`{kind}`" for kind in MODELS)]) + " |",
        "|---" + "|---" * len(SPACE) + "|---:" * len(MODELS) + "|",
    ]
    for number, setting in enumerate(settings):
        cells = [str(setting.get(name, "as the recipe" if number == 0 else "given")) for name in SPACE]
        for kind in MODELS:
            row = results.get(f"{kind}-{number}")
            known = row is not None and row[METRIC] is not None and row["next_item_ne"] is not None
            cells.append(f"{plain(row[METRIC])} · {plain(row['next_item_ne'])}" if known else "–")  # type: ignore
        lines.append(f"| {number} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
