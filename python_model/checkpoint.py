"""Checkpoints: a directory of safetensors and JSON, written whole or not at all.

`<run>/checkpoints/step-<n>/` holds model.safetensors, trainer.safetensors (optimisers, frequency sketch),
config.json (stage, model, training, vocabulary, data set) and state.json (position in the data). `<run>/checkpoints/
latest` names the newest complete one. A checkpoint is written to a hidden directory, flushed to disk and renamed, so a
kill at any moment leaves the previous one in force.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from python_model.config import FeatureSpec, ModelConfig, TrainConfig
from python_model.data.errors import DataError
from python_model.model import Argus
from python_model.models import make_model
from python_model.recommender import Recommender

FORMAT = 1
CHECKPOINTS, LATEST = "checkpoints", "latest"
MODEL, TRAINER, CONFIG, STATE = "model.safetensors", "trainer.safetensors", "config.json", "state.json"


@dataclass(frozen=True)
class Description:
    """What config.json says of a checkpoint."""

    stage: str
    step: int
    model_config: ModelConfig
    train_config: TrainConfig
    features: FeatureSpec
    dataset: Mapping[str, Any]


@dataclass(frozen=True)
class TrainerState:
    """What a run needs besides the weights: tensors of the optimisers and the sketch, and plain numbers."""

    tensors: Mapping[str, Tensor]
    numbers: Mapping[str, Any]


def save(run: Path, model: Recommender, description: Description, state: TrainerState, keep: int) -> Path:
    """Write the checkpoint of `description.step`, make it the latest, remove all but the last `keep`."""
    root = run / CHECKPOINTS
    name = f"step-{description.step:08d}"
    final = root / name
    if exists(run) and find(run) == final:
        return final
    partial = root / f".{name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_file({key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}, partial / MODEL)
    save_file({key: value.detach().cpu().contiguous() for key, value in state.tensors.items()}, partial / TRAINER)
    (partial / CONFIG).write_text(json.dumps({"format": FORMAT, **asdict(description)}, indent=2) + "\n", "utf-8")
    (partial / STATE).write_text(json.dumps(state.numbers, indent=2) + "\n", "utf-8")
    for file in partial.iterdir():
        _flush(file)
    _flush(partial)
    shutil.rmtree(final, ignore_errors=True)  # complete, but a kill came before it was made the latest
    os.rename(partial, final)
    _point(root, name)
    for old in _complete(root)[:-keep]:
        if old.name != name:
            shutil.rmtree(old, ignore_errors=True)
    return final


def find(path: str | Path) -> Path:
    """The checkpoint directory meant by `path`: itself, or the latest of a run; DataError where there is none."""
    path = Path(path)
    if (path / CONFIG).is_file():
        return path
    pointer = path / CHECKPOINTS / LATEST
    if not pointer.is_file():
        raise DataError(path, "no checkpoint: expected a run of `argus pretrain` or `argus finetune`")
    named = path / CHECKPOINTS / pointer.read_text("utf-8").strip()
    if not (named / CONFIG).is_file():
        raise DataError(pointer, f"names {named.name}, which is not there")
    return named


def exists(run: str | Path) -> bool:
    """Whether a run has a checkpoint to resume from."""
    return (Path(run) / CHECKPOINTS / LATEST).is_file()


def read_description(path: str | Path) -> Description:
    """config.json of a checkpoint; DataError where it is missing, damaged or of another format."""
    file = find(path) / CONFIG
    raw = _json(file)
    if raw.get("format") != FORMAT:
        raise DataError(file, f"expected format {FORMAT}, found {raw.get('format')!r}", column="format")
    try:
        return Description(
            stage=raw["stage"],
            step=raw["step"],
            model_config=ModelConfig.from_dict(raw["model_config"]),
            train_config=TrainConfig.from_dict(raw["train_config"]),
            features=FeatureSpec.from_dict(raw["features"]),
            dataset=raw["dataset"],
        )
    except KeyError as error:
        raise DataError(file, "this key is missing", column=str(error.args[0])) from error
    except ValueError as error:
        raise DataError(file, str(error)) from error


def describe(path: str | Path) -> dict[str, Any]:
    """The same as plain values: stage, step, protocol, dataset (its name), model_config, train_config, features."""
    found = read_description(path)
    plain = asdict(found)
    return {**plain, "protocol": found.train_config.protocol, "dataset": found.dataset["name"]}


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
    description = read_description(directory)
    with torch.device("meta"):
        columns = torch.empty(_item_columns_shape(description), dtype=torch.int32)
        model = make_model(replace(description.model_config, **changes), description.features, columns)
    load_weights(model.to_empty(device=device), directory)
    model.stage = description.stage
    return model.eval()


def load_weights(model: Recommender, directory: Path) -> None:
    """Copy the weights of a checkpoint into a model; DataError where names or shapes differ."""
    file = directory / MODEL
    found = _tensors(file)
    wanted = model.state_dict()
    for name in sorted(found.keys() ^ wanted.keys()):
        state = "this tensor is missing" if name in wanted else "the model has no such tensor"
        raise DataError(file, f"{state}: the checkpoint is of another configuration", column=name)
    for name, value in wanted.items():
        if found[name].shape != value.shape:
            raise DataError(file, f"expected shape {list(value.shape)}, found {list(found[name].shape)}", column=name)
    model.load_state_dict(found)


def load_trainer(directory: Path) -> TrainerState:
    """What `save` was given as `state`."""
    return TrainerState(_tensors(directory / TRAINER), _json(directory / STATE))


def _item_columns_shape(description: Description) -> tuple[int, int]:
    own = max(description.model_config.item_hashes, 1)
    return own + len(description.features.item_features), description.features.items


def _tensors(file: Path) -> dict[str, Tensor]:
    if not file.is_file():
        raise DataError(file, "not found: the checkpoint is incomplete")
    try:
        return load_file(file)
    except (SafetensorError, OSError, ValueError) as error:
        raise DataError(file, f"damaged or truncated: {error}") from error


def _json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise DataError(file, "not found: the checkpoint is incomplete")
    try:
        raw = json.loads(file.read_text("utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(file, f"expected JSON: {error}") from error
    if not isinstance(raw, dict):
        raise DataError(file, f"expected a JSON object, found {type(raw).__name__}")
    return raw


def _complete(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.name.startswith("step-") and (path / STATE).is_file())


def _point(root: Path, name: str) -> None:
    partial = root / f".{LATEST}.partial"
    partial.write_text(name + "\n", "utf-8")
    _flush(partial)
    os.replace(partial, root / LATEST)
    _flush(root)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
