"""How long a run trains and how often it is evaluated: chosen from the size of the data where nobody says it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from python_model.config import TrainConfig
from python_model.data.schema import Dataset
from python_model.io.errors import counted
from python_model.training import process_group
from python_model.training.start import batch_source

PASSES = {"pretrain": 20.0, "finetune": 6.0}
"""Passes over the events of a small log, at most: validation stops a run that needs fewer."""
FULL_RUN = 20_000
"""Steps from which fewer passes do: a run is as long as PASSES, or as this, or as one pass where that is longer."""
LEAST = {"pretrain": 200, "finetune": 60}
"""Steps of a run at least, however small the log is."""
CATALOGUE_PASSES = 20
"""How often each item is drawn as a uniform negative, at least: an item that never was keeps its random score."""
EVALUATIONS, MOST_EVALUATIONS = 20, 50
"""Evaluations of a run: about as many, or one a pass where those are more, up to the second."""
PATIENCE = 5


def with_length(
    dataset: Dataset, config: TrainConfig, given: Mapping[str, Any], *, new: bool, chosen: bool
) -> tuple[TrainConfig, str | None]:
    """The settings with `steps`, and a sentence that says how they were chosen, where they were.

    given: what the user set by name. new: a run that begins, not one that is resumed. chosen: whether the length of a
    new one is chosen from the data where neither steps nor epochs are given. ValueError where both are.
    """
    if given.get("steps") is not None and given.get("epochs") is not None:
        raise ValueError(
            f"give either --steps or --epochs: found steps {given['steps']} and epochs {given['epochs']}, and each "
            "sets the length of the run"
        )
    if "steps" in given:
        return replace(config, epochs=None), None
    if not (new and (chosen or config.epochs is not None)) and "epochs" not in given:
        return config, None
    each = steps_of_epoch(dataset, config)
    if config.epochs is not None:
        return replace(config, steps=max(1, math.ceil(config.epochs * each))), None
    steps = chosen_steps(config, each, dataset.info.items)
    info = dataset.info
    text = (
        f"{counted(info.events, 'event')} of {counted(info.users, 'user')} on {counted(info.items, 'item')}: "
        f"{steps:,} steps, {steps / each:,.1f} passes over the training events; --steps or --epochs change that"
    )
    return replace(config, steps=steps, epochs=steps / each), text


def chosen_steps(config: TrainConfig, each: int, items: int) -> int:
    """Steps of a run whose pass over the events takes `each` steps, on a catalogue of so many items."""
    steps = min(math.ceil(PASSES[config.stage] * each), max(each, FULL_RUN))
    if config.stage == "pretrain" and config.negatives_uniform:
        steps = max(steps, min(math.ceil(CATALOGUE_PASSES * items / config.negatives_uniform), FULL_RUN))
    return max(steps, LEAST[config.stage])


def with_validation(dataset: Dataset, config: TrainConfig, given: Mapping[str, Any]) -> tuple[TrainConfig, str | None]:
    """The settings of a new run with the interval of its evaluations and its patience, where those are not given.

    The sentence says why there are none. ValueError where the user asks for a patience that nothing can try.
    """
    if given.get("patience") and given.get("validate_every") == 0:
        raise ValueError("patience counts evaluations, which validate_every=0 turns off: leave one of them out")
    config = config if "patience" in given else replace(config, patience=PATIENCE)
    if "validate_every" in given:
        return config, None
    if config.protocol == "all":
        return replace(config, validate_every=0), "No validation: --protocol all holds no events out"
    if dataset.manifest is not None:
        text = (
            f"No validation: {dataset.path} is in shards, whose events are not held in memory; "
            "--set validate_every=N reads them"
        )
        return replace(config, validate_every=0), text
    each = steps_of_epoch(dataset, config)
    every = max(min(config.steps // EVALUATIONS, each), config.steps // MOST_EVALUATIONS, 1)
    return replace(config, validate_every=every), None


def steps_of_epoch(dataset: Dataset, config: TrainConfig) -> int:
    """Steps of a pass over the training events."""
    of = config.batches_per_step or process_group.launched()
    return max(1, math.ceil(batch_source(dataset, config).epoch_batches() / of))
