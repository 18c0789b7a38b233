"""What a training run starts from: its batches, its rows, and its model, new or with the weights of a checkpoint."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from python_model.config import ModelConfig, TrainConfig, preset
from python_model.data.balance import HistoryCost
from python_model.data.batches import BatchPlan, BatchSource
from python_model.data.schema import Dataset
from python_model.data.splits import events_to_predict, make_split
from python_model.data.stochastic_length import StochasticLength
from python_model.data.stream import ShardStream
from python_model.data.time_features import DAY
from python_model.io.names import require_kin, require_unmarked
from python_model.model.base import Recommender
from python_model.model.factory import model_for_dataset
from python_model.model.negatives import NegativeSampler
from python_model.training import checkpoint, process_group
from python_model.training import resume as resume_checks
from python_model.training.continued import FREE, Continuation
from python_model.training.progress import METRICS, TENSORBOARD
from python_model.training.recipe_file import RECIPE
from python_model.training.row_sharding import RowSharding
from python_model.training.skipped_steps import SKIPPED
from python_model.training.step_profile import DIRECTORY as PROFILE
from python_model.training.vocabulary import VOCABULARY

FREE_ON_FINETUNE = (*FREE, "sparse")
"""Model settings that may differ between pre-training and fine-tuning, since they change no shape."""


def batch_source(dataset: Dataset, config: TrainConfig, cost: HistoryCost | None = None) -> BatchSource:
    """The source of a run's batches: streamed from a data set in shards, else from memory.

    cost: of a window, where the batches of a step are balanced.
    """
    if dataset.manifest is not None:
        return ShardStream(dataset, dataset.manifest, config)
    rows = training_rows(dataset, config.protocol, config.train_share)
    return BatchPlan(
        dataset, config.batch_events, config.window, config.seed, train=rows, targets=last_days(dataset, config, rows),
        shortening=StochasticLength.of(config), shuffled_ties=config.shuffle_ties, cost=cost,
    )  # fmt: skip


def last_days(dataset: Dataset, config: TrainConfig, rows: np.ndarray | None) -> np.ndarray | None:
    """The rows of the last `train_days` of the training rows, bool [events]; None for all."""
    if config.train_days is None:
        return None
    last = int(dataset.time.max() if rows is None else dataset.time[rows].max())
    late = dataset.time > last - config.train_days * DAY
    return late if rows is None else late & rows


def training_rows(dataset: Dataset, protocol: str, share: float = 1.0) -> np.ndarray | None:
    """Rows that a protocol trains on, bool [events], of this share of the users; None for all."""
    rows = None if protocol == "all" else make_split(dataset, protocol).train
    if share == 1.0:
        return rows
    kept = np.random.default_rng(0).permutation(dataset.info.users) < max(1, round(share * dataset.info.users))
    return kept[dataset.user] if rows is None else rows & kept[dataset.user]


def count_training_items(sampler: NegativeSampler, dataset: Dataset, config: TrainConfig) -> None:
    """Fill the frequency sketch of the negatives with the training part of the new data, in one pass over it.

    The counts of the old run are keyed by numbers that its items no longer have.
    """
    if dataset.manifest is not None:
        for items in ShardStream(dataset, dataset.manifest, config).training_items():
            sampler.sketch.update(items)
        return
    rows = training_rows(dataset, config.protocol, config.train_share)
    predicted = events_to_predict(dataset, config.protocol)
    sampler.sketch.update(dataset.item[predicted if rows is None else rows & predicted].astype(np.int64))


def with_batches_per_step(config: TrainConfig, dataset: Dataset, resumed: Path | None) -> TrainConfig:
    """The settings with the resumed run's batches per step, balanced as there.

    Of a new run one batch per rank, balanced where the step has several and the data is held in memory.
    """
    found = None if resumed is None else checkpoint.read_description(resumed).train_config
    batches = config.batches_per_step or (found and found.batches_per_step) or process_group.size()
    if config.balanced is not None:
        return replace(config, batches_per_step=batches)
    can = True if batches > 1 and dataset.manifest is None else None
    return replace(config, batches_per_step=batches, balanced=can if found is None else found.balanced)


def pair_window(dataset: Dataset, config: TrainConfig) -> int:
    return dataset.info.pair_window if config.pair_window is None else config.pair_window


def make_model(
    dataset: Dataset, config: ModelConfig | None, init_from: str | Path | None, resumed: Path | None, least_lag: int,
    sharding: RowSharding | None, continuation: Continuation | None = None,
) -> Recommender:  # fmt: skip
    """The model of a run: resumed, continued on other data, with the weights of another run, or new."""
    source = resumed or (checkpoint.chosen(init_from) if init_from is not None else None)
    if source is None:
        config = config or preset("tiny")
        return model_for_dataset(replace(config, lag=max(config.lag, least_lag)), dataset, sharding)
    found = checkpoint.read_description(source)
    if continuation is not None:
        config = config or found.model_config
        continuation.require_config(config)
        model = model_for_dataset(config, dataset, sharding)
        continuation.fill(model)
        return model
    if config is not None:
        config = replace(config, lag=max(config.lag, least_lag))
    if config is not None:
        free = () if resumed is not None else FREE_ON_FINETUNE
        resume_checks.require_same(source, "model_config", asdict(found.model_config), asdict(config), free)
    checkpoint.outline(source, found)
    kept = config or replace(found.model_config, lag=max(found.model_config.lag, least_lag))
    model = model_for_dataset(kept, dataset, sharding)
    if model.features.to_json() != found.features.to_json():
        raise ValueError(f"{source}: trained on another vocabulary ({found.dataset['name']}) than {dataset.info.name}")
    if resumed is None:
        resume_checks.require_same_items(source, found.dataset, dataset)
    checkpoint.load_weights(model, source)
    model.stage = found.stage
    return model


def require_place(run: Path) -> None:
    """FileExistsError where a directory holds what another command made, or other things alone."""
    require_unmarked(run)
    # A run that was stopped before its first checkpoint has less than these.
    names = (checkpoint.CHECKPOINTS, checkpoint.BEST, METRICS, TENSORBOARD, SKIPPED, PROFILE, VOCABULARY, RECIPE)
    require_kin(run, names, "training run")
