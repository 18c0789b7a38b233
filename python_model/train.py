"""The one training loop, for both stages.

A run is a function of its settings and its data: batches follow from (seed, epoch), negatives and dropout from
(seed, step), and a checkpoint holds everything else (weights, optimisers, frequency sketch, position). So a run that
was killed and resumed goes through the same numbers as one that was not. What can go wrong in between, and what then
happens, is in docs/reliability.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from python_model import checkpoint
from python_model.checkpoint import Description, TrainerState
from python_model.config import ModelConfig, TrainConfig, preset
from python_model.data.batches import BatchPlan, JaggedBatch, prefetch
from python_model.data.errors import DataError
from python_model.data.schema import Dataset
from python_model.data.splits import make_split
from python_model.divergence import SkippedSteps, TrainingDiverged
from python_model.losses import FinetuneLoss, PretrainLoss
from python_model.model import Argus
from python_model.models import model_for_dataset
from python_model.optim import Optimisers, rate_factor
from python_model.progress import InterruptGuard, MetricsLog, Progress, StepReport, Throughput
from python_model.recommender import Recommender

SKETCH = "frequency_sketch"
__all__ = ["Trainer", "TrainingDiverged", "step_seed", "train", "training_rows"]
FREE_ON_RESUME = ("checkpoint_every", "keep", "log_every", "max_skipped_steps")
"""Settings that may differ between a run and its resumption: they change no number."""
FREE_ON_FINETUNE = ("lag", "dropout", "sparse")
"""Model settings that may differ between pre-training and fine-tuning: they change no shape."""


def train(
    stage: str,
    dataset: Dataset,
    out_dir: str | Path,
    model_config: ModelConfig | None = None,
    train_config: TrainConfig | None = None,
    *,
    resume: bool = False,
    init_from: str | Path | None = None,
    progress: Progress | None = None,
    device: str | torch.device = "cpu",
) -> Path:
    """Train one stage; returns the directory of the last checkpoint.

    stage: "pretrain" or "finetune". out_dir: the run: checkpoints/, metrics.jsonl, tensorboard/. init_from: a run or
    checkpoint whose weights to start from; model_config None then takes its shapes, else the preset "tiny".
    resume: continue the run in out_dir where it has a checkpoint, with the same settings. progress: called after
    every step. Ctrl-C ends the step, saves and raises KeyboardInterrupt, SIGTERM the same with its subclass Terminated.
    Fine-tuning raises the model's lag to 1 s more than the pair window where it is smaller.

    Raises ValueError where settings do not fit each other or the run, FileExistsError where out_dir holds a run and
    resume is not set, TrainingDiverged where loss or gradient are not finite max_skipped_steps times in a row,
    WriteError where the disk is full, DataError where no checkpoint is whole or the data can no longer be read (what
    was learnt until then is saved first).
    """
    config = train_config or TrainConfig(stage=stage)
    if config.stage != stage:
        raise ValueError(f"train_config is for stage {config.stage!r}, expected {stage!r}")
    run = Path(out_dir)
    resumed = checkpoint.recover(run) if resume and checkpoint.exists(run) else None
    if resumed is None and checkpoint.exists(run):
        raise FileExistsError(f"{run} holds a training run: resume it or choose another directory")
    torch.manual_seed(config.seed)
    lagged = stage == "finetune" and config.lag_pairs
    least_lag = 1 + _pair_window(dataset, config) if lagged else 0
    model = _make_model(dataset, model_config, init_from, resumed, least_lag)
    trainer = Trainer(dataset, run, model.to(device), config, progress)
    if resumed is not None:
        trainer.restore(resumed)
    return trainer.run()


class Trainer:
    """One run of one stage: the model, its optimisers, its loss and its place in the data."""

    def __init__(
        self, dataset: Dataset, run: Path, model: Recommender, config: TrainConfig, progress: Progress | None = None
    ) -> None:
        if config.window > model.config.max_events:
            raise ValueError(
                f"window is {config.window}, expected at most the model's max_events {model.config.max_events}"
            )
        self.dataset, self.run_dir, self.model, self.config = dataset, run, model, config
        self.progress = progress
        self.plan = BatchPlan(
            dataset,
            config.batch_events,
            config.window,
            config.seed,
            train=training_rows(dataset, config.protocol, config.train_share),
        )
        self.optimisers = Optimisers(model, config)
        self.loss: PretrainLoss | FinetuneLoss
        if config.stage == "pretrain":
            self.loss = PretrainLoss(config, model)
            self.sampler = self.loss.sampler
        else:
            if not isinstance(model, Argus):
                raise ValueError(f"finetune trains the two towers of ARGUS, and {model.config.model!r} has none")
            self.loss = FinetuneLoss(config, model, _pair_window(dataset, config))
            self.sampler = self.loss.pretrain.sampler
        self.skipped = SkippedSteps(run, dataset, config.max_skipped_steps)
        self.step = self.epoch = self.batch = self.events = 0
        self.seconds = 0.0

    def run(self) -> Path:
        """From the current step to the last one."""
        self.model.train()
        self.run_dir.mkdir(parents=True, exist_ok=True)
        pace, earlier = Throughput(), self.seconds
        with InterruptGuard() as interrupt, MetricsLog(self.run_dir, self.step) as log:
            batches = self._batches()
            while self.step < self.config.steps:
                batch = self._next(batches)
                factor, losses = self._update(batch)
                rate, left = pace.step(len(batch), self.config.steps - self.step)
                self.seconds = earlier + pace.seconds
                self._report(log, factor, losses, rate, left)
                if interrupt.asked or self._due():
                    self.save()
                if interrupt.asked:
                    raise interrupt.asked
        return self.save()

    def _next(self, batches: Iterator[JaggedBatch]) -> JaggedBatch:
        """The next batch; where the data can no longer be read, what was learnt is saved before the error goes on."""
        try:
            return next(batches)
        except DataError as error:
            saved = self.save()
            message = f"{error.message}; training is saved at {saved}: put the file back, then resume"
            raise DataError(error.file, message, column=error.column, row=error.row) from error

    def _batches(self) -> Iterator[JaggedBatch]:
        """Batches from the run's place on, over epochs without end; moves the place as they are taken."""
        while True:
            for batch in prefetch(self.plan.batches(self.epoch, self.batch)):
                self.batch += 1
                yield batch
            if self.batch == 0:
                raise ValueError("the data gives no batch: every user has fewer than two training events")
            self.epoch, self.batch = self.epoch + 1, 0

    def _update(self, batch: JaggedBatch) -> tuple[float, dict[str, float]]:
        """One optimiser step; returns the factor on the learning rate and the losses.

        A step whose loss or gradient is not finite changes neither weights nor optimisers, and returns no losses that
        are not finite.
        """
        torch.manual_seed(step_seed(self.config.seed, self.step))
        self.optimisers.zero_grad()
        with self._precision():
            loss, parts = self.loss(batch.to(self.model.device, non_blocking=True), self.step)
        loss.backward()
        norm = self.optimisers.clip()
        numbers = to_host({"loss": loss.detach(), **parts, "gradient_norm": norm})
        factor = rate_factor(self.step, self.config)
        if math.isfinite(numbers["loss"]) and math.isfinite(numbers["gradient_norm"]):
            self.optimisers.update(self.step)
            self.skipped.end_row()
        else:
            self._skip(numbers, batch)
        self.step += 1
        self.events += len(batch)
        return factor, {name: value for name, value in numbers.items() if math.isfinite(value)}

    def _skip(self, numbers: Mapping[str, float], batch: JaggedBatch) -> None:
        try:
            self.skipped.note(self.step + 1, numbers, batch)
        except TrainingDiverged as error:
            kept = checkpoint.find(self.run_dir) if checkpoint.exists(self.run_dir) else "none was written yet"
            raise TrainingDiverged(f"{error}; last checkpoint: {kept}") from None

    def _precision(self) -> AbstractContextManager[Any]:
        if self.config.precision == "float32":
            return nullcontext()
        return torch.autocast(self.model.device.type, dtype=torch.bfloat16)

    def _due(self) -> bool:
        # While steps are being skipped the checkpoints from before that must not make room for new ones.
        if self.skipped.in_a_row > 0:
            return False
        return self.step % self.config.checkpoint_every == 0 and self.step < self.config.steps

    def _report(self, log: MetricsLog, factor: float, losses: dict[str, float], rate: float, left: float) -> None:
        report = StepReport(
            stage=self.config.stage, step=self.step, steps=self.config.steps, events=self.events,
            seconds=self.seconds, events_per_second=rate, seconds_left=left,
            learning_rate=self.config.learning_rate * factor, losses=losses, skipped=self.skipped.in_a_row > 0,
        )  # fmt: skip
        if self.step % self.config.log_every == 0 or self.step == self.config.steps:
            log.write(report)
        if self.progress is not None:
            self.progress(report)

    # ---- checkpoints --------------------------------------------------------------------------------------------

    def save(self) -> Path:
        """Write a checkpoint of this step."""
        sketch = self.sampler.sketch.state_dict()
        state = TrainerState(
            tensors=self.optimisers.state() | {SKETCH: torch.from_numpy(sketch["table"])},
            numbers={
                "step": self.step, "epoch": self.epoch, "batch": self.batch, "events": self.events,
                "seconds": self.seconds, "sketch_total": sketch["total"], **self.skipped.state(),
            },
        )  # fmt: skip
        description = Description(
            self.config.stage, self.step, self.model.config, self.config, self.model.features,
            _identity(self.dataset),
        )  # fmt: skip
        self.model.stage = self.config.stage
        return checkpoint.save(self.run_dir, self.model, description, state, self.config.keep)

    def restore(self, directory: Path) -> None:
        """Go to where a checkpoint of the same run was written; ValueError where settings or data differ."""
        found = checkpoint.read_description(directory)
        _require_same(directory, "train_config", asdict(found.train_config), asdict(self.config), FREE_ON_RESUME)
        _require_same(directory, "dataset", dict(found.dataset), _identity(self.dataset), ())
        state = checkpoint.load_trainer(directory)
        numbers = state.numbers
        try:
            self.step, self.epoch, self.batch = numbers["step"], numbers["epoch"], numbers["batch"]
            self.events, self.seconds = numbers["events"], numbers["seconds"]
            sketch = {"table": state.tensors[SKETCH].numpy(), "total": numbers["sketch_total"]}
        except KeyError as error:
            raise DataError(directory, "this entry is missing from the state", column=str(error.args[0])) from error
        self.skipped.load(numbers)
        self.sampler.sketch.load_state_dict(self.sampler.sketch.state_dict() | sketch)
        self.optimisers.load({name: value for name, value in state.tensors.items() if name != SKETCH})


def training_rows(dataset: Dataset, protocol: str, share: float = 1.0) -> np.ndarray | None:
    """Rows that a protocol trains on, bool [events], of this share of the users; None for all."""
    rows = None if protocol == "all" else make_split(dataset, protocol).train
    if share == 1.0:
        return rows
    kept = np.random.default_rng(0).permutation(dataset.info.users) < max(1, round(share * dataset.info.users))
    return kept[dataset.user] if rows is None else rows & kept[dataset.user]


def to_host(values: Mapping[str, Tensor]) -> dict[str, float]:
    """Scalars as Python numbers, in one copy from the device: the one synchronisation of a training step."""
    stacked = torch.stack([value.detach().double() for value in values.values()])
    return dict(zip(values, stacked.tolist(), strict=True))


def step_seed(seed: int, step: int) -> int:
    """Seed of a step's dropout: well mixed, so that neighbouring steps and seeds do not resemble each other."""
    return int(np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _pair_window(dataset: Dataset, config: TrainConfig) -> int:
    return dataset.info.pair_window if config.pair_window is None else config.pair_window


def _make_model(
    dataset: Dataset, config: ModelConfig | None, init_from: str | Path | None, resumed: Path | None, least_lag: int
) -> Recommender:
    source = resumed or (checkpoint.find(init_from) if init_from is not None else None)
    if source is None:
        config = config or preset("tiny")
        return model_for_dataset(replace(config, lag=max(config.lag, least_lag)), dataset)
    found = checkpoint.read_description(source)
    if config is not None:
        config = replace(config, lag=max(config.lag, least_lag))
    if config is not None:
        free = () if resumed is not None else FREE_ON_FINETUNE
        _require_same(source, "model_config", asdict(found.model_config), asdict(config), free)
    kept = config or replace(found.model_config, lag=max(found.model_config.lag, least_lag))
    model = model_for_dataset(kept, dataset)
    if model.features.to_json() != found.features.to_json():
        raise ValueError(f"{source}: trained on another vocabulary ({found.dataset['name']}) than {dataset.info.name}")
    checkpoint.load_weights(model, source)
    model.stage = found.stage
    return model


def _require_same(
    directory: Path, what: str, found: dict[str, Any], given: dict[str, Any], free: tuple[str, ...]
) -> None:
    differ = [
        f"{name} was {found.get(name)!r}, now {given.get(name)!r}"
        for name in sorted(found.keys() | given.keys())
        if name not in free and found.get(name) != given.get(name)
    ]
    if differ:
        raise ValueError(f"{directory}: {what} differs: {'; '.join(differ)}")


def _identity(dataset: Dataset) -> dict[str, Any]:
    info = dataset.info
    return {
        "name": info.name, "users": info.users, "items": info.items, "events": info.events,
        "fingerprint": info.fingerprint,
    }  # fmt: skip
