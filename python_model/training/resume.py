"""Checks of a resumed run: same settings, data and initial weights, and a state that fits."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from torch import Tensor

from python_model.config import TrainConfig
from python_model.data.identity import fingerprint_of_items
from python_model.data.schema import Dataset
from python_model.data.stream import Place
from python_model.io.errors import DataError
from python_model.io.integrity import checksum
from python_model.model.optim import Optimisers
from python_model.training import checkpoint
from python_model.training.checkpoint import Description, TrainerState
from python_model.training.checkpoint.parts import files_of, read_parts
from python_model.training.watch import Watch

SKETCH = "frequency_sketch"
logger = logging.getLogger(__name__)
_MOST = 1 << 53
"""Larger than every count of steps and events."""


def require_same(
    directory: Path, what: str, found: Mapping[str, Any], given: Mapping[str, Any], free: tuple[str, ...] = ()
) -> None:
    """ValueError listing every entry, but the `free` ones, that differs between what is `found` and what is `given`."""
    differ = [
        f"{name} was {found.get(name)!r}, now {given.get(name)!r}"
        for name in sorted(found.keys() | given.keys())
        if name not in free and found.get(name) != given.get(name)
    ]
    if differ:
        raise ValueError(f"{directory}: {what} differs: {'; '.join(differ)}")


def require_same_data(directory: Path, found: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """The same for `identity_of` a data set; entries that an earlier version did not store are not compared."""
    require_same(directory, "dataset", found, {name: value for name, value in given.items() if name in found})


def require_same_items(directory: Path, found: Mapping[str, Any], dataset: Dataset) -> None:
    """ValueError where weights were learnt on other items than a data set's, or on the same in another order."""
    before, now = found.get("items_fingerprint"), fingerprint_of_items(dataset)
    if before not in (None, now):
        raise ValueError(
            f"{directory}: trained on other items than those of {dataset.path}, which are as many: "
            f"items_fingerprint was {before!r}, now {now!r}"
        )


def require_more_steps(directory: Path, found: Description, steps: int) -> None:
    """ValueError where a run is to end with other `steps` than planned that its checkpoint has already done."""
    if steps != found.train_config.steps and steps <= found.step:
        raise ValueError(
            f"{directory}: steps is {steps}, expected more than the {found.step} that the run has done: steps counts "
            "from its beginning"
        )


def restored_watch(
    directory: Path, run: Path, numbers: Mapping[str, Any], found: Description, config: TrainConfig
) -> Watch:
    """The state of a run's validation; DataError where it is damaged.

    Where the best checkpoint is gone or damaged, the best is chosen anew, with a warning. Where the run is to end at
    another step than planned, patience begins again, and a best checkpoint from behind the resumed step is dropped: it
    was trained on the old schedule.
    """
    if "watch" not in numbers:
        return Watch.of(config)
    try:
        watch = Watch.from_state(numbers["watch"])
    except ValueError as error:
        raise DataError(directory / checkpoint.STATE, str(error), column="watch") from error
    best = run / checkpoint.BEST
    if config.steps != found.train_config.steps:
        watch.since = 0
        if checkpoint.exists(best) and checkpoint.read_description(best).step > found.step:
            shutil.rmtree(best)
    wanted = Watch.of(config).metric
    if wanted != watch.metric:
        return Watch(wanted)
    if watch.best is not None:
        lost = "it is not there"
        if checkpoint.exists(best):
            lost = checkpoint.damage(checkpoint.find(best)) or ""
            if not lost and checkpoint.read_description(best).step < watch.best_step:
                lost = "it is of an earlier step"
            lost = lost or checkpoint.of_another_run(run, checkpoint.find(best)) or ""
        if lost:
            logger.warning("%s cannot be used (%s): the best checkpoint is chosen anew", best, lost)
            return Watch(wanted)
    return watch


def identity_of_run(description: Description, origin: str | None) -> str:
    """What tells a run from others: of its settings, its data and the weights that it begins with.

    Two runs of which all that is equal compute the same numbers, and share it.
    """
    text = json.dumps({**asdict(description), "origin": origin}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def identity_of_weights(directory: Path) -> str:
    """Stage, step and the checksums of the weights of a checkpoint: what fine-tuning began with."""
    description = checkpoint.read_description(directory)
    names = files_of(read_parts(directory)) if checkpoint.is_sharded(directory) else [checkpoint.MODEL]
    try:
        sums = "-".join(checksum(directory / name) for name in names)
    except OSError as error:
        raise DataError(Path(error.filename or directory), f"cannot be read: {error.strerror}") from error
    return f"{description.stage} step {description.step} {sums}"


def require_same_origin(
    directory: Path, numbers: Mapping[str, Any], given: str | Path | None, from_scratch: bool = False
) -> None:
    """ValueError where a resumed run names other initial weights (--from, --from-scratch) than it began with."""
    if from_scratch and numbers.get("origin") is not None:
        raise ValueError(
            f"{directory}: the run began with weights of another run ({numbers['origin']}), not from scratch: leave "
            "out --from-scratch to go on with it, or choose another directory"
        )
    if given is None or "origin" not in numbers:
        return
    source = checkpoint.chosen(given)
    before, now = numbers["origin"], identity_of_weights(source)
    if before != now:
        began = "random weights" if before is None else f"other weights ({before})"
        raise ValueError(
            f"{directory}: the run began with {began} than {source} holds ({now}): leave out --from to go on with it, "
            "or choose another directory"
        )


@dataclass(frozen=True)
class Position:
    """The plain numbers of state.json, each of its type."""

    step: int
    place: dict[str, Any]
    events: int
    seconds: float
    sketch_total: float
    origin: str | None
    run: str | None

    @classmethod
    def of(cls, directory: Path, numbers: Mapping[str, Any], step: int) -> Position:
        """DataError where an entry is missing or of another type, or where the step is not that of config.json."""
        file = directory / checkpoint.STATE
        for name in ("step", "place", "events", "seconds", "sketch_total"):
            if name not in numbers:
                raise DataError(file, "this entry is missing from the state", column=name)
        counts = {"step": numbers["step"], "events": numbers["events"]}
        counts |= {name: numbers.get(name, 0) for name in ("skipped", "skipped_in_a_row")}
        for name, value in counts.items():
            if not _is_count(value):
                raise DataError(file, f"expected a whole number of at least 0, found {value!r}", column=name)
        for name in ("seconds", "sketch_total"):
            value = numbers[name]
            if type(value) not in (int, float) or not 0 <= value < math.inf:
                raise DataError(file, f"expected a number of at least 0, found {value!r}", column=name)
        if numbers["step"] != step:
            message = f"expected {step} as in {checkpoint.CONFIG}, found {numbers['step']}"
            raise DataError(file, message, column="step")
        for name in ("origin", checkpoint.RUN):
            if not isinstance(numbers.get(name), str | None):
                raise DataError(file, f"expected text or null, found {numbers[name]!r}", column=name)
        if not _is_place(numbers["place"]):
            raise DataError(file, f"expected a place in the data, found {numbers['place']!r}", column="place")
        named: dict[str, Any] = {one.name: numbers.get(one.name) for one in fields(cls)}
        return cls(**named)


def require_fitting(directory: Path, state: TrainerState, optimisers: Optimisers) -> None:
    """DataError where a tensor of trainer.safetensors belongs to no parameter, has another shape or is not finite."""
    file = directory / checkpoint.TRAINER
    if SKETCH not in state.tensors:
        raise DataError(file, "this entry is missing from the state", column=SKETCH)
    by_name: dict[str, Tensor] = {name: parameter for parameter, name in optimisers.names.items()}
    for name, value in state.tensors.items():
        if name == SKETCH:
            continue
        parameter = by_name.get(name.rsplit("::", 1)[0])
        if parameter is None or "::" not in name:
            raise DataError(file, "the model has no such parameter", column=name)
        allowed = ((), tuple(parameter.shape), tuple(parameter.shape[:1]))
        if tuple(value.shape) not in allowed:
            raise DataError(file, f"expected shape {list(parameter.shape)}, found {list(value.shape)}", column=name)
        checkpoint.require_finite(file, name, value)


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < _MOST


def _is_place(place: Any) -> bool:
    """Whether it is a place of `BatchPlan` or of `ShardStream`."""
    if not isinstance(place, dict):
        return False
    if place.keys() == {"lanes"} and isinstance(place["lanes"], dict):
        names = {field.name for field in fields(Place)}
        lanes = place["lanes"].values()
        return all(isinstance(lane, dict) and lane.keys() == names and _counts(lane) for lane in lanes)
    return place.keys() == {"epoch", "batch"} and _counts(place)


def _counts(values: Mapping[str, Any]) -> bool:
    return all(_is_count(value) for value in values.values())
