"""Checkpoints: a directory of safetensors and JSON, written whole or not at all.

`<run>/checkpoints/step-<n>/` holds model.safetensors, trainer.safetensors (optimisers, frequency sketch),
config.json (stage, model, training, vocabulary, data set) and state.json (position in the data). Several ranks write
their parts of the tensors instead (`sharded`), which reads the same. `<run>/checkpoints/
latest` names the newest complete one. `<run>/best/` has the same form, with the weights of the best validation alone. A
checkpoint is written to a hidden directory, flushed to disk and renamed, so
after a kill or on a full disk the previous one stays the latest. checksums.json detects damaged files: training then
resumes from the checkpoint before; every other command refuses and names both.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from python_model.io.errors import DataError
from python_model.io.exclusive import replacing
from python_model.io.integrity import require_whole
from python_model.model.argus import Argus
from python_model.model.base import Recommender
from python_model.model.factory import make_model
from python_model.model.optim import Leaf
from python_model.training import process_group
from python_model.training.checkpoint.directory import (
    BEST,
    CHECKPOINTS,
    CONFIG,
    LATEST,
    MODEL,
    RUN,
    STATE,
    TRAINER,
    Description,
    TrainerState,
    begin,
    chosen,
    damage,
    describe,
    directory_of,
    exists,
    find,
    is_saved,
    is_sharded,
    naming_the_one_before,
    of_another_run,
    partial_of,
    publish,
    read_description,
    read_json,
    recover,
    require_weights,
    span_of,
    writing_checkpoint,
)
from python_model.training.checkpoint.parts import read_parts

__all__ = [
    "BEST",
    "CHECKPOINTS",
    "CONFIG",
    "Description",
    "LATEST",
    "MODEL",
    "RUN",
    "STATE",
    "TRAINER",
    "TrainerState",
    "chosen",
    "damage",
    "describe",
    "directory_of",
    "exists",
    "find",
    "is_sharded",
    "load_model",
    "load_recommender",
    "load_trainer",
    "load_weights",
    "of_another_run",
    "outline",
    "read_json",
    "read_description",
    "read_tensors",
    "recover",
    "require_finite",
    "require_weights_once",
    "save",
    "shapes_of",
]


def save(run: Path, model: Recommender, description: Description, state: TrainerState, keep: int) -> Path:
    """Write the checkpoint of `description.step`, make it the latest, remove all but the last `keep`.

    WriteError where the disk is full: the partial checkpoint is removed, the previous one stays the latest. InUseError
    where another process or thread saves into the run.
    """
    final, partial = directory_of(run, description.step), partial_of(run, description.step)
    if is_saved(run, description.step):
        return final
    # The trainer owns its run: any other process that saves into it is refused.
    with replacing(run / CHECKPOINTS, run):
        try:
            with writing_checkpoint(run, description.step):
                begin(run, description, state.numbers)
                for name, tensors in ((MODEL, model.state_dict()), (TRAINER, state.tensors)):
                    kept = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
                    save_file(kept, partial / name)
                publish(run, description.step, keep)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
    return final


def load_model(path: str | Path, device: str | torch.device = "cpu", **changes: Any) -> Argus:
    """The ARGUS of a checkpoint or of a run's latest one, in evaluation mode; see `load_recommender`.

    ValueError where another model was trained there.
    """
    model = load_recommender(path, device, **changes)
    if not isinstance(model, Argus):
        raise ValueError(f"{path} holds the baseline {model.config.model!r}, expected a run of ARGUS")
    return model


def load_recommender(path: str | Path, device: str | torch.device = "cpu", **changes: Any) -> Recommender:
    """The model of a checkpoint or of a run's latest one, ARGUS or a baseline, in evaluation mode.

    changes: settings of ModelConfig that do not change shapes (lag, dropout, sparse). DataError where a file is
    missing, truncated or does not fit the configuration.
    """
    directory = find(path)
    with naming_the_one_before(directory):
        description = read_description(directory)
        require_whole(directory, (CONFIG,))
    require_weights_once(directory)
    model = outline(directory, description, **changes)
    _fill(model.to_empty(device=device), directory)
    model.stage = description.stage
    return model.eval()


def outline(directory: Path, description: Description, **changes: Any) -> Recommender:
    """The model of a checkpoint without memory behind it (meta tensors).

    DataError where its weights have other names or shapes, before memory is allocated for them.
    """
    shapes = shapes_of(directory, MODEL)
    if description.model_config.layers > len(shapes):
        message = f"{description.model_config.layers} layers are more than the weights have tensors"
        raise DataError(directory / CONFIG, message, column="model_config")
    try:
        with torch.device("meta"):
            columns = torch.empty(_item_columns_shape(description), dtype=torch.int32)
            model = make_model(replace(description.model_config, **changes), description.features, columns)
    except (RuntimeError, OverflowError, MemoryError, TypeError) as error:
        message = f"no model has these shapes ({type(error).__name__})"
        raise DataError(directory / CONFIG, message, column="model_config") from error
    _require_shapes(directory / MODEL, model, shapes)
    return model


def load_weights(model: Recommender, directory: Path) -> None:
    """Copy the weights of a checkpoint into a model; DataError where they are damaged or names or shapes differ.

    Of a sharded table, only this rank's rows are read. A collective call on several ranks.
    """
    require_weights_once(directory)
    _fill(model, directory)


def require_weights_once(directory: Path) -> None:
    """DataError, on every rank, where the files of the weights are damaged; a collective call."""
    process_group.on_first(lambda: require_weights(directory))


def _fill(model: Recommender, directory: Path) -> None:
    spans = {f"tables.weights.{name}": held for name, held in model.tables.spans.items()}
    found = read_tensors(directory, MODEL, spans)
    _require_shapes(directory / MODEL, model, {name: tuple(value.shape) for name, value in found.items()})
    for name, value in found.items():
        require_finite(directory / MODEL, name, value)
    model.load_state_dict(found)


def require_finite(file: Path, name: str, value: Tensor) -> None:
    """DataError where a number of a tensor of a file is NaN or infinite; takes no memory of its size."""
    if value.numel() and value.is_floating_point():
        low, high = torch.aminmax(value)
        if not (low.isfinite() and high.isfinite()):
            raise DataError(
                file, f"expected finite numbers, found {(high if low.isfinite() else low).item()}", column=name
            )


def _require_shapes(file: Path, model: Recommender, found: Mapping[str, tuple[int, ...]]) -> None:
    wanted = model.state_dict()
    for name in sorted(found.keys() ^ wanted.keys()):
        state = "this tensor is missing" if name in wanted else "the model has no such tensor"
        raise DataError(file, f"{state}: the checkpoint is of another configuration", column=name)
    for name, value in wanted.items():
        if found[name] != tuple(value.shape):
            raise DataError(file, f"expected shape {list(value.shape)}, found {list(found[name])}", column=name)


def load_trainer(directory: Path, leaves: Mapping[str, Leaf] | None = None) -> TrainerState:
    """The `state` that `save` wrote; leaves: on several ranks, the parts of the optimisers' state to read."""
    parts = {name: leaf.rows[:2] for name, leaf in (leaves or {}).items() if leaf.rows is not None}
    return TrainerState(read_tensors(directory, TRAINER, parts), read_json(directory / STATE))


def read_tensors(directory: Path, kind: str, spans: Mapping[str, tuple[int, int]]) -> dict[str, Tensor]:
    """The tensors of a checkpoint, MODEL or TRAINER, on the CPU; DataError where one cannot be read.

    spans: first and last (exclusive) row to read of a parameter and of the states beside it; others are read whole. A
    checkpoint that several ranks wrote is read like any other.
    """
    if is_sharded(directory):
        # torch's distributed modules take a second to import; only these checkpoints need them.
        from python_model.training.checkpoint import sharded

        return sharded.read(directory, kind, spans)
    with _opening(directory / kind) as file:
        if not spans:
            return load_file(file)
        with safe_open(file, framework="pt") as stored:
            return {name: _rows(stored, name, span_of(name, spans)) for name in stored.keys()}  # noqa: SIM118


def shapes_of(directory: Path, kind: str) -> dict[str, tuple[int, ...]]:
    """The shapes of the tensors of a checkpoint, none of which is read; DataError as `read_tensors`."""
    if is_sharded(directory):
        prefix = f"{kind}/"
        parts = read_parts(directory)
        return {key.removeprefix(prefix): stored.size for key, stored in parts.items() if key.startswith(prefix)}
    with _opening(directory / kind) as file, safe_open(file, framework="pt") as stored:
        return {name: tuple(stored.get_slice(name).get_shape()) for name in stored.keys()}  # noqa: SIM118


@contextlib.contextmanager
def _opening(file: Path) -> Iterator[Path]:
    if not file.is_file():
        raise DataError(file, "not found: the checkpoint is incomplete")
    try:
        yield file
    except (SafetensorError, OSError, ValueError) as error:
        raise DataError(file, f"damaged or truncated: {error}") from error


def _rows(stored: Any, name: str, held: tuple[int, int] | None) -> Tensor:
    part = stored.get_slice(name)
    return stored.get_tensor(name) if held is None or not part.get_shape() else part[held[0] : held[1]]


def _item_columns_shape(description: Description) -> tuple[int, int]:
    own = max(description.model_config.item_hashes, 1)
    return own + len(description.features.item_features), description.features.items
