"""What the ranks of tests/model/training/test_distributed.py run: several training runs in one process group."""

from __future__ import annotations

import json
import resource
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from python_model.config import ModelConfig, TrainConfig
from python_model.data.batches import Step
from python_model.data.schema import Dataset, load_dataset
from python_model.io.disk import WriteError
from python_model.io.errors import DataError
from python_model.io.exclusive import InUseError, own
from python_model.model import compiled
from python_model.model.argus import Argus
from python_model.train import Trainer, TrainingDiverged, train
from python_model.training import checkpoint, process_group
from python_model.training.progress import StepReport
from python_model.training.row_sharding import row_sharding

MODEL = ModelConfig(
    layers=2, width=16, heads=2, item_width=8, feature_width=4, vector_width=8, position_buckets=8, time_buckets=40,
    dropout=0.1, sparse=True,
)  # fmt: skip
PRETRAIN = TrainConfig(
    steps=6, batch_events=96, batches_per_step=4, window=32, negatives_in_batch=32, negatives_uniform=16,
    warmup_steps=2, checkpoint_every=3, keep=3, learning_rate=1e-2, table_learning_rate=1e-2, sketch_width=512,
    shard_rows=16,
)  # fmt: skip
"""Tables of 16 rows or more are cut over the ranks: the items and some of their features."""


def cases() -> dict[str, tuple[ModelConfig, TrainConfig]]:
    """Runs that must come out alike on any number of ranks; balanced but for one."""
    return {
        "rowwise": (MODEL, PRETRAIN),
        "finetune": (
            replace(MODEL, form="full", sparse=False, dropout=0.0),
            replace(PRETRAIN, stage="finetune", pretrain_weight=0.3, steps=2),
        ),
        # Three batches on two or four ranks: some have nothing to compute in the last turn.
        "odd": (
            replace(MODEL, item_hashes=2, hash_rows=29),
            replace(PRETRAIN, steps=2, batches_per_step=3, activation_checkpointing=True, clip=0.05),
        ),
        "unbalanced": (MODEL, replace(PRETRAIN, steps=2, balanced=False)),
        # Two evaluated batches or more: each rank takes some. The rates are high enough for a validation to be worse.
        "watched": (MODEL, replace(PRETRAIN, steps=4, validate_every=1, patience=2, checkpoint_every=2)),
        "bfloat16": (MODEL, replace(PRETRAIN, steps=2, precision="bfloat16")),
        "compiled": (MODEL, replace(PRETRAIN, steps=2, compile=True)),
        "binary": (
            replace(MODEL, encoder="hstu", max_events=64),
            replace(PRETRAIN, steps=2, batches_per_step=2, next_item_loss="bce", activation_checkpointing=True),
        ),
    }


def in_ranks(rank: int, size: int, folder: str, work: Callable[[Path], None]) -> None:
    """Runs `work` as one of a group of processes."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet-{size}", rank=rank, world_size=size)
    work(Path(folder))
    dist.destroy_process_group()


def train_all(folder: Path) -> None:
    """Every case, in a directory of its own; and what each rank holds of a model."""
    for name in cases():
        train_one(folder, name)
    write_what_is_held(folder)
    write_how_runs_end(folder)


def train_on_four(folder: Path) -> None:
    """Four ranks go on from the third step of what one rank and what two wrote."""
    go_on(folder, 1)
    go_on(folder, 2)


def train_one(folder: Path, name: str) -> None:
    model, config = cases()[name]
    if config.compile:
        # What matters here is how graphs meet FSDP, not who builds their code, which takes longer than all runs.
        compiled.COMPILER = {"backend": "aot_eager"}
    seen: list[StepReport] = []
    run = folder / f"{name}-{process_group.size()}"
    train(config.stage, load_dataset(folder / "data"), run, model, config, progress=seen.append)
    decided = [[one.step, one.validation.record()] for one in seen if one.validation is not None]
    (folder / f"decided-{name}-{process_group.size()}-{process_group.rank()}.json").write_text(json.dumps(decided))


def go_on(folder: Path, written_by: int) -> None:
    """Resumes a copy of the run that so many ranks wrote, from its third step."""
    run = folder / f"from-{written_by}-on-{process_group.size()}"
    if process_group.rank() == 0:
        shutil.copytree(folder / f"rowwise-{written_by}", run)
        shutil.rmtree(run / checkpoint.CHECKPOINTS / "step-00000006")
        (run / checkpoint.CHECKPOINTS / checkpoint.LATEST).write_text("step-00000003\n")
    dist.barrier() if process_group.size() > 1 else None
    train("pretrain", load_dataset(folder / "data"), run, MODEL, PRETRAIN, resume=True)


def write_how_runs_end(folder: Path) -> None:
    """The errors of this rank where rank 1 loses its data, where the loss is NaN, and where the disk takes no more."""
    dataset = load_dataset(folder / "data")
    wild = replace(PRETRAIN, learning_rate=1e30, table_learning_rate=1e30, warmup_steps=0, max_skipped_steps=1)
    found = {"data": end_of_run(folder / "lost", dataset, PRETRAIN, lost_on=1)}
    found["loss"] = end_of_run(folder / "wild", dataset, wild)
    found["taken"] = end_of_a_second_run(folder / "taken", dataset)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, resource.RLIM_INFINITY))
    found["disk"] = end_of_run(folder / "full", dataset, replace(PRETRAIN, steps=60, checkpoint_every=6))
    (folder / f"ends-{process_group.rank()}.json").write_text(json.dumps(found))


def end_of_run(run: Path, dataset: Dataset, config: TrainConfig, lost_on: int | None = None) -> list[str]:
    """Kind and text of the error that a run ends with; lost_on: the rank whose third step cannot be read."""
    model = Argus.for_dataset(MODEL, dataset, row_sharding(config))
    trainer = Trainer(dataset, run, model, config)
    sound = trainer.plan.walk

    def losing(*arguments: Any) -> Iterator[Step]:
        for number, step in enumerate(sound(*arguments)):
            if number == 2 and process_group.rank() == lost_on:
                raise DataError("part-7.parquet", "cannot be read")
            yield step

    trainer.plan.walk = losing  # type: ignore[method-assign,assignment]
    try:
        trainer.run()
    except (DataError, TrainingDiverged, WriteError) as error:
        return [type(error).__name__, str(error)]
    return ["", "the run ended well"]


def end_of_a_second_run(run: Path, dataset: Dataset) -> list[str]:
    """The error of this rank where rank 0 finds the run owned by another."""
    lock = own(run) if process_group.rank() == 0 else None
    dist.barrier()
    try:
        train("pretrain", dataset, run, MODEL, PRETRAIN)
    except InUseError as error:
        return [type(error).__name__, str(error)]
    finally:
        if lock is not None:
            lock.close()
    return ["", "the run ended well"]


def write_what_is_held(folder: Path) -> None:
    """The shape of every part of a parameter on this rank."""
    dataset = load_dataset(folder / "data")
    model = Argus.for_dataset(MODEL, dataset, row_sharding(PRETRAIN))
    trainer = Trainer(dataset, folder / "none", model, PRETRAIN)
    assert trainer.distributed is not None
    held = {name: list(leaf.value.shape) for name, leaf in trainer.distributed.leaves.items()}
    (folder / f"held-{process_group.rank()}.json").write_text(json.dumps(held))
