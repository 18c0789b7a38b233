"""The one training loop, for both stages.

A run is a function of its settings and its data: batches follow from (seed, epoch), negatives and dropout from
(seed, step), and a checkpoint holds everything else (weights, optimisers, frequency sketch, position). So a killed and
resumed run computes the same numbers as an uninterrupted one. docs/reliability.md describes the possible failures and
their handling.
"""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from python_model.config import ModelConfig, TrainConfig
from python_model.data.batches import JaggedBatch, prefetch
from python_model.data.identity import identity_of
from python_model.data.schema import Dataset
from python_model.data.splits import targets_of
from python_model.io.disk import refuse_links
from python_model.io.errors import DataError
from python_model.io.exclusive import owned
from python_model.model.argus import Argus
from python_model.model.base import Recommender
from python_model.model.losses import FinetuneLoss, Objective, PretrainLoss, StepShare
from python_model.model.optim import Optimisers, rate_factor
from python_model.training import checkpoint, process_group
from python_model.training import resume as resume_checks
from python_model.training.checkpoint import Description, TrainerState
from python_model.training.continued import Continuation
from python_model.training.history_cost import cost_of_training
from python_model.training.progress import TENSORBOARD, InterruptGuard, MetricsLog, Progress, StepReport, Throughput
from python_model.training.resume import SKETCH, Position
from python_model.training.row_sharding import row_sharding
from python_model.training.skipped_steps import SKIPPED, SkippedSteps, TrainingDiverged
from python_model.training.start import (
    batch_source,
    count_training_items,
    make_model,
    pair_window,
    require_place,
    training_rows,
    with_batches_per_step,
)
from python_model.training.step_profile import DIRECTORY as PROFILE
from python_model.training.step_profile import StepProfile, require_steps
from python_model.training.validation import Validator
from python_model.training.vocabulary import VOCABULARY, Vocabulary
from python_model.training.watch import Validation, Watch

if TYPE_CHECKING:
    from python_model.training.checkpoint.sharded import BackgroundSaver
    from python_model.training.distributed import DistributedModel

__all__ = ["Trainer", "TrainingDiverged", "step_seed", "train", "training_rows"]
FREE_ON_RESUME = (
    "checkpoint_every", "keep", "log_every", "max_skipped_steps", "activation_checkpointing", "shard_rows",
    "validate_every", "validate_events", "best_metric", "patience", "epochs",
)  # fmt: skip
"""Settings that may differ between a run and its resumption, since no update of the weights depends on them."""
logger = logging.getLogger(__name__)


def train(
    stage: str,
    dataset: Dataset,
    out_dir: str | Path,
    model_config: ModelConfig | None = None,
    train_config: TrainConfig | None = None,
    *,
    resume: bool = False,
    init_from: str | Path | None = None,
    from_scratch: bool = False,
    progress: Progress | None = None,
    device: str | torch.device = "cpu",
    profile: StepProfile | None = None,
) -> Path:
    """Train one stage; returns the directory of the last checkpoint.

    stage: "pretrain" or "finetune". out_dir: the run: checkpoints/, best/, metrics.jsonl, tensorboard/. init_from: a
    run or checkpoint whose weights to start from; model_config None then takes its shapes, else the preset "tiny".
    Pre-training from another run continues it with its optimisers' state; the data may have other items, contexts and
    item features (`training.continued`).
    from_scratch: a resumed run must have started from random weights.
    resume: continue the run in out_dir where it has a checkpoint, with the same settings; more `steps` than it was
    begun with lay the schedule of the learning rate anew over all of them. progress: called after every step, and with
    step 0 after the evaluation of a new model. profile: records a few of the steps. Ctrl-C ends the step, saves and
    raises KeyboardInterrupt; SIGTERM does the same with its subclass Terminated.
    Fine-tuning raises the model's lag to 1 s more than the pair window where it is smaller.

    Raises ValueError where settings do not fit each other or the run, FileExistsError where out_dir holds a run and
    resume is not set, what another command made, or other things alone, InUseError where another process trains there,
    TrainingDiverged where loss or gradient are not finite max_skipped_steps times in a row, WriteError where the disk
    is full or a link lies in the run, DataError where no checkpoint is whole or the data can no longer be read (what
    was learnt until then is saved first).
    """
    config = train_config or TrainConfig(stage=stage)
    if config.stage != stage:
        raise ValueError(f"train_config is for stage {config.stage!r}, expected {stage!r}")
    run = Path(out_dir)
    process_group.on_first(lambda: require_place(run))
    with _owned_by_first(run):
        held = process_group.on_first(lambda: checkpoint.exists(run))
        resumed = process_group.on_first(lambda: checkpoint.recover(run)) if resume and held else None
        if resumed is None and held:
            raise FileExistsError(f"{run} holds a training run: pass --resume or choose another directory")
        torch.manual_seed(config.seed)
        lagged = stage == "finetune" and config.lag_pairs
        least_lag = 1 + pair_window(dataset, config) if lagged else 0
        config = with_batches_per_step(config, dataset, resumed)
        goes_on = stage == "pretrain" and init_from is not None and resumed is None
        continuation = Continuation.of(checkpoint.chosen(init_from), dataset) if goes_on and init_from else None
        model = make_model(dataset, model_config, init_from, resumed, least_lag, row_sharding(config), continuation)
        trainer = Trainer(dataset, run, model.to(device), config, progress, profile)
        if resumed is not None:
            trainer.restore(resumed, init_from, from_scratch)
        if continuation is not None:
            continuation.fill_optimisers(trainer.optimisers)
            count_training_items(trainer.sampler, dataset, config)
        if resumed is None and init_from is not None:
            trainer.origin = process_group.on_first(
                lambda: resume_checks.identity_of_weights(checkpoint.chosen(init_from))
            )
        if profile is not None:
            require_steps(profile.steps, config.steps, trainer.step)
        return trainer.run()


@contextmanager
def _owned_by_first(run: Path) -> Iterator[None]:
    """Rank 0 owns the run during a block; where another process owns it, every rank raises the error."""
    with ExitStack() as held:
        # The lock is not returned: `on_first` sends its result to every rank.
        process_group.on_first(lambda: held.enter_context(_owned(run)))
        yield


@contextmanager
def _owned(run: Path) -> Iterator[None]:
    with owned(run):
        best = f"{checkpoint.BEST}/{checkpoint.CHECKPOINTS}"
        for name in (checkpoint.CHECKPOINTS, TENSORBOARD, SKIPPED, PROFILE, VOCABULARY, checkpoint.BEST, best):
            refuse_links(run / name)
        yield


class Trainer:
    """One run of one stage: the model, its optimisers, its loss and its place in the data."""

    def __init__(
        self, dataset: Dataset, run: Path, model: Recommender, config: TrainConfig, progress: Progress | None = None,
        profile: StepProfile | None = None,
    ) -> None:  # fmt: skip
        if config.window > model.config.max_events:
            raise ValueError(
                f"window is {config.window}, expected at most the model's max_events {model.config.max_events}"
            )
        self.dataset, self.run_dir, self.model, self.config = dataset, run, model, config
        self.progress, self.profile = progress, profile
        cost = cost_of_training(model, config) if config.balanced else None
        self.plan = batch_source(dataset, config, cost)
        self.plan.require(self._of)
        targets = targets_of(dataset, config.protocol)
        self.loss: PretrainLoss | FinetuneLoss
        if config.stage == "pretrain":
            self.loss = PretrainLoss(config, model, targets)
            self.sampler = self.loss.sampler
        else:
            if not isinstance(model, Argus):
                raise ValueError(f"finetune trains the two towers of ARGUS, and {model.config.model!r} has none")
            self.loss = FinetuneLoss(config, model, pair_window(dataset, config), targets)
            self.sampler = self.loss.pretrain.sampler
        self.skipped = SkippedSteps(run, dataset, config.max_skipped_steps)
        model.encoder.recompute = config.activation_checkpointing
        if config.compile:
            from python_model.model.compiled import compile_encoder

            compile_encoder(model.encoder, model.device, self._precision)
        self.objective = Objective(model, self.loss)
        self.distributed: DistributedModel | None = None
        self.saver: BackgroundSaver | None = None
        self.best_saver: BackgroundSaver | None = None
        if process_group.size() > 1:
            # torch's distributed modules take a second to import; only runs on several ranks need them.
            from python_model.training.checkpoint.sharded import BackgroundSaver
            from python_model.training.distributed import DistributedModel

            self.distributed = DistributedModel(self.objective, config)
            self.saver = BackgroundSaver(run, config.keep)
        self.optimisers = Optimisers(model, config, self.distributed.leaves if self.distributed else None)
        self.watch = Watch.of(config)
        self.validator = Validator(dataset, model, config) if config.validate_every else None
        self.identity = identity_of(dataset)
        self.origin: str | None = None
        self.run_id: str | None = None
        """Of runs that an earlier version began there is none."""
        self.place = self.plan.start()
        self.step = self.events = 0
        self.seconds = 0.0

    def run(self) -> Path:
        """From the current step to the last one, or to where validation stops."""
        self.model.train()
        pace, earlier = Throughput(), self.seconds
        with InterruptGuard(process_group.size() > 1) as interrupt, self._log() as log, self._profiled():
            if self.step == 0:
                self._begin(log)
            steps = self._batches()
            while self.step < self.config.steps and not self.watch.stops(self.config.patience):
                before = self.events
                if self.profile is not None:
                    self.profile.begin_step(self.objective)
                with self._phase("data"):
                    batches = self._next(steps)
                factor, losses = self._update(batches)
                if self.profile is not None:
                    self.profile.end_step()
                rate, left = pace.step(self.events - before, self.config.steps - self.step)
                self.seconds = earlier + pace.seconds
                self._report(log, factor, losses, rate, left)
                unsaved = self.saver is not None and self.saver.failed
                if process_group.any_rank(interrupt.asked is not None or unsaved):
                    self.save()  # raises on every rank where a checkpoint could not be written
                    raise interrupt.asked or KeyboardInterrupt
                if self._due():
                    self._start_save()
        return self.save()

    def _begin(self, log: MetricsLog | None) -> None:
        """Before the first step: what an attempt without a checkpoint left is replaced, the new model is evaluated."""
        process_group.on_first(lambda: shutil.rmtree(self.run_dir / checkpoint.BEST, ignore_errors=True))
        process_group.on_first(lambda: Vocabulary.of(self.dataset).write(self.run_dir))
        self.run_id = resume_checks.identity_of_run(self._description(), self.origin)
        if self.validator is not None:
            self._report(log, rate_factor(0, self.config), {}, 0.0, 0.0)

    def _profiled(self) -> AbstractContextManager[Any]:
        return nullcontext() if self.profile is None else closing(self.profile)

    def _phase(self, name: str) -> AbstractContextManager[None]:
        return nullcontext() if self.profile is None else self.profile.phase(name)

    def _log(self) -> AbstractContextManager[MetricsLog | None]:
        if process_group.rank() > 0:
            return nullcontext()
        self.run_dir.mkdir(parents=True, exist_ok=True)
        return MetricsLog(self.run_dir, self.step)

    def _next(self, steps: Iterator[list[JaggedBatch]]) -> list[JaggedBatch]:
        """The next batches; where data can no longer be read, a checkpoint is saved before the error is raised."""
        lost: DataError | None = None
        batches: list[JaggedBatch] = []
        before = self.place
        try:
            batches = next(steps)
        except DataError as error:
            lost = error
        if process_group.any_rank(lost is not None):
            # This rank may already have its batches of the unfinished step.
            self.place = before
            saved = self.save()
            first = next(one for one in process_group.gathered(lost) if one is not None)
            message = f"{first.message}; training is saved at {saved}: put the file back, then resume"
            raise DataError(first.file, message, column=first.column, row=first.row) from first
        return batches

    def _batches(self) -> Iterator[list[JaggedBatch]]:
        """This rank's batches of every step, from the run's position on, endless; advances the position."""
        for taken in prefetch(self.plan.walk(self.place, process_group.numbers_of(self._of), self._of)):
            self.place = taken.place
            yield taken.batches

    @property
    def _of(self) -> int:
        return self.config.batches_per_step or 1

    def _update(self, batches: Sequence[JaggedBatch]) -> tuple[float, dict[str, float]]:
        """One optimiser step; returns the factor on the learning rate and the losses.

        A step whose loss or gradient is not finite changes neither weights nor optimisers; only finite losses are
        returned.
        """
        self.optimisers.zero_grad()
        batches = [batch.to(self.model.device, non_blocking=True) for batch in batches]
        found = self._gradients(batches)
        factor = rate_factor(self.step, self.config)
        with self._phase("optimiser"):
            norm = self.optimisers.clip()
            losses, events = over_batches(found, norm, sum(map(len, batches)))
            finite = math.isfinite(losses["loss"]) and math.isfinite(losses["gradient_norm"])
            if finite:
                self.optimisers.update(self.step)
        if finite:
            self.skipped.end_row()
        else:
            self._skip(losses, batches)
        self.step += 1
        self.events += events
        return factor, {name: value for name, value in losses.items() if math.isfinite(value)}

    def _gradients(self, batches: Sequence[JaggedBatch]) -> list[dict[str, Tensor]]:
        """Gradients of the whole step; returns the losses of this rank's batches and their parts."""
        numbers = process_group.numbers_of(self._of)
        alone = self._of == 1 and process_group.size() == 1
        shares: Sequence[StepShare | None] = [None] if alone else self.loss.shares(batches, self.step)
        found = []
        for number, batch, share in zip(numbers, batches, shares, strict=True):
            torch.manual_seed(step_seed(self.config.seed, self.step, number))
            with self._precision(), self._phase("forward"):
                loss, parts = self.objective(batch, self.step, share)
            with self._phase("backward"):
                if self.distributed is None:
                    loss.backward()
                else:
                    self.distributed.backward(loss, last=number == numbers[-1])
            found.append({"loss": loss.detach()} | parts)
        return found

    def _skip(self, numbers: Mapping[str, float], batches: Sequence[JaggedBatch]) -> None:
        names = [f"-batch-{number}" for number in process_group.numbers_of(self._of)] if self._of > 1 else [""]
        try:
            self.skipped.note(self.step + 1, numbers, dict(zip(names, batches, strict=True)))
        except TrainingDiverged as error:
            kept = checkpoint.find(self.run_dir) if checkpoint.exists(self.run_dir) else "none was written yet"
            raise TrainingDiverged(f"{error}; last checkpoint: {kept}") from None

    def _precision(self) -> AbstractContextManager[Any]:
        if self.config.precision == "float32":
            return nullcontext()
        return torch.autocast(self.model.device.type, dtype=torch.bfloat16)

    def _due(self) -> bool:
        # While steps are skipped, checkpoints from before must not be deleted for new ones.
        if self.skipped.in_a_row > 0:
            return False
        return self.step % self.config.checkpoint_every == 0 and self.step < self.config.steps

    def _report(
        self, log: MetricsLog | None, factor: float, losses: dict[str, float], rate: float, left: float
    ) -> None:
        found, notes = self._validated()
        report = StepReport(
            stage=self.config.stage, step=self.step, steps=self.config.steps, events=self.events,
            seconds=self.seconds, events_per_second=rate, seconds_left=left,
            learning_rate=self.config.learning_rate * factor, losses=losses, skipped=self.skipped.in_a_row > 0,
            validation=found, notes=notes,
        )  # fmt: skip
        logged = self.step % self.config.log_every == 0 or self.step == self.config.steps or found is not None
        if log is not None and logged:
            log.write(report)
        if self.progress is not None:
            self.progress(report)
        elif process_group.rank() == 0:
            for note in notes:
                logger.warning("%s", note)

    def _validated(self) -> tuple[Validation | None, list[str]]:
        """The evaluation due after this step, if one is, with warnings in words; the best checkpoint is then saved.

        It is on the disk before a checkpoint says that it is the best.
        """
        last = self.step == self.config.steps
        if self.validator is None or self.skipped.in_a_row > 0:
            return None, []
        if self.step % self.config.validate_every and not last:
            return None, []
        found = self.validator.evaluate(self.step, self._evaluating)
        best, notes = self.watch.take(found)
        if best:
            self._save_best(found)
        return found, notes

    def _evaluating(self, work: Callable[[], Any]) -> Any:
        """Runs work on the weights of this step, on several ranks gathered, without gradients."""
        with torch.no_grad(), self._precision():
            return work() if self.distributed is None else self.distributed.evaluating(work)

    def _save_best(self, found: Validation) -> None:
        """Write a checkpoint of this step as the best one of the run; returns when it is on the disk."""
        best, (description, numbers, tensors) = self.run_dir / checkpoint.BEST, self._state()
        numbers["validation"] = found.record()
        if self.distributed is None:
            checkpoint.save(best, self.model, description, TrainerState(tensors, numbers), keep=1)
            return
        from python_model.training.checkpoint.sharded import BackgroundSaver

        self.best_saver = self.best_saver or BackgroundSaver(best, keep=1)
        self.best_saver.start(description, numbers, self.distributed.stored(tensors))
        self.best_saver.finish()

    def save(self) -> Path:
        """Write a checkpoint of this step; returns its directory once it is on disk."""
        written = self._start_save()
        if self.saver is not None:
            self.saver.finish()
        return written

    def _start_save(self) -> Path:
        """Write a checkpoint of this step: on one rank at once, on several in the background; returns where."""
        description, numbers, tensors = self._state()
        if self.distributed is None or self.saver is None:
            return checkpoint.save(
                self.run_dir, self.model, description, TrainerState(tensors, numbers), self.config.keep
            )
        return self.saver.start(description, numbers, self.distributed.stored(tensors))

    def _state(self) -> tuple[Description, dict[str, Any], dict[str, Tensor]]:
        """What a checkpoint of this step holds beside the weights; a collective call."""
        sketch = self.sampler.sketch.state_dict()
        numbers = {
            "step": self.step, "place": self.plan.merge(process_group.gathered(self.place)), "events": self.events,
            "seconds": self.seconds, "sketch_total": sketch["total"], "origin": self.origin, **self.skipped.state(),
            "watch": self.watch.state(), checkpoint.RUN: self.run_id,
        }  # fmt: skip
        self.model.stage = self.config.stage
        return self._description(), numbers, self.optimisers.state() | {SKETCH: torch.from_numpy(sketch["table"])}

    def _description(self) -> Description:
        return Description(
            self.config.stage, self.step, self.model.config, self.config, self.model.features, self.identity
        )

    def _require_known(self, directory: Path, place: dict[str, Any]) -> None:
        if place.keys() == self.plan.start().keys():
            return
        in_shards = {True: "in shards", False: "in one file"}
        raise ValueError(
            f"{directory}: the run reads its data {in_shards['lanes' in place]}, {self.dataset.path} is "
            f"{in_shards[self.dataset.manifest is not None]}: the order of the batches would be another"
        )

    def restore(self, directory: Path, init_from: str | Path | None = None, from_scratch: bool = False) -> None:
        """Restore a checkpoint of the same run; ValueError where settings, data or initial weights differ.

        init_from: the expected initial weights of the run, None to accept the recorded ones. from_scratch: expect that
        the run started from random weights.
        """
        found = checkpoint.read_description(directory)
        resume_checks.require_same(
            directory, "train_config", asdict(found.train_config), asdict(self.config), (*FREE_ON_RESUME, "steps")
        )
        resume_checks.require_more_steps(directory, found, self.config.steps)
        resume_checks.require_same_data(directory, found.dataset, self.identity)
        state = checkpoint.load_trainer(directory, self.distributed.leaves if self.distributed else None)
        position = Position.of(directory, state.numbers, found.step)
        self._require_known(directory, position.place)
        process_group.on_first(
            lambda: resume_checks.require_same_origin(directory, state.numbers, init_from, from_scratch)
        )
        resume_checks.require_fitting(directory, state, self.optimisers)
        self.step, self.place = position.step, position.place
        self.origin, self.run_id = position.origin, position.run
        self.events, self.seconds = position.events, position.seconds
        sketch = {"table": state.tensors[SKETCH].numpy(), "total": position.sketch_total}
        self.skipped.load(state.numbers)
        self.watch = process_group.on_first(
            lambda: resume_checks.restored_watch(directory, self.run_dir, state.numbers, found, self.config)
        )
        try:
            self.sampler.sketch.load_state_dict(self.sampler.sketch.state_dict() | sketch)
        except ValueError as error:
            raise DataError(directory / checkpoint.TRAINER, str(error), column=SKETCH) from error
        self.optimisers.load({name: value for name, value in state.tensors.items() if name != SKETCH})


def over_batches(found: Sequence[Mapping[str, Tensor]], norm: Tensor, events: int) -> tuple[dict[str, float], int]:
    """Losses and events of a step over all ranks, from the sums of this rank's batches, and the norm of its gradient.

    One copy from the device: the one synchronisation of a training step.
    """
    summed = torch.stack([torch.stack([value.double() for value in parts.values()]) for parts in found]).sum(0)
    *values, gradient_norm = torch.cat([summed, norm.double()[None]]).tolist()
    total = process_group.sum_over_ranks(torch.tensor([*values, events], dtype=torch.float64)).tolist()
    losses = dict(zip(found[0], total, strict=False))
    return {**losses, "gradient_norm": gradient_norm}, int(total[-1])


def step_seed(seed: int, step: int, number: int = 0) -> int:
    """Seed of a step's dropout, hashed so that neighbouring steps and seeds are unrelated.

    number: of the batch in its step, independent of the rank that computes it.
    """
    words = [seed, step, number] if number else [seed, step]
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0] >> np.uint64(1))
