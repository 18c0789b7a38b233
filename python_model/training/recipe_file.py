"""Recipe files: settings of the model and of pre-training, as `argus tune` writes and `--recipe FILE` reads them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from python_model.config import ModelConfig, TrainConfig
from python_model.io.disk import replace_text
from python_model.io.errors import DataError
from python_model.io.settings import checked_settings
from python_model.io.toml_text import read_toml, toml_table

RECIPE = "recipe.toml"
_TABLES = ("about", "model", "pretrain", "finetune")
_OF_THE_RUN = ("stage", "steps", "validate_every", "validate_events", "patience", "best_metric", "seed", "protocol")
"""Settings that a recipe does not fix: its length is in passes, so that it fits other data."""
_SHARED = (
    "batch_events", "window", "learning_rate", "table_learning_rate", "weight_decay", "negatives_in_batch",
    "negatives_uniform", "clip",
)  # fmt: skip
"""Settings of pre-training that fine-tuning takes too, where the file says nothing of it."""


def is_recipe_file(name: str) -> bool:
    """Whether the value of --recipe names a file and not one of the package's recipes."""
    return name.endswith(".toml")


def write_recipe(file: Path, comment: str, about: Mapping[str, Any], model: ModelConfig, train: TrainConfig) -> None:
    """Write a recipe, replacing the file atomically; comment: of one or several lines, on top."""
    pretrain = {name: value for name, value in asdict(train).items() if name not in _OF_THE_RUN}
    if train.epochs is None:
        pretrain = {"steps": train.steps, **pretrain}
    head = "".join(f"# {line}\n" for line in comment.splitlines())
    tables = (toml_table("about", about), toml_table("model", asdict(model)), toml_table("pretrain", pretrain))
    replace_text(file, "\n".join([head, *tables]))


def read_recipe(file: str | Path, stage: str) -> tuple[ModelConfig, TrainConfig]:
    """The settings of a stage; DataError where the file is no recipe, or names settings or values that do not fit."""
    path = Path(file)
    found = read_toml(path, "a recipe")
    unknown = sorted(found.keys() - set(_TABLES))
    if unknown or not isinstance(found.get("model"), dict) or not isinstance(found.get("pretrain"), dict):
        has = ", ".join(sorted(found)) or "nothing"
        raise DataError(path, f"expected the tables model and pretrain, and finetune where wanted, found {has}")
    try:
        model = ModelConfig(**checked_settings(ModelConfig, found["model"], "model"))
        train = TrainConfig(stage="pretrain", **_training(found, "pretrain"))
        if stage == "pretrain":
            return model, train
        shared = {name: getattr(train, name) for name in _SHARED}
        return model, replace(TrainConfig(stage="finetune", **shared), **_training(found, "finetune"))
    except ValueError as error:
        raise DataError(path, str(error)) from error


def _training(found: Mapping[str, Any], stage: str) -> dict[str, Any]:
    values = found.get(stage, {})
    if not isinstance(values, dict) or "stage" in values:
        raise ValueError(f"{stage}: expected a table of settings without stage, found {values!r:.100}")
    return checked_settings(TrainConfig, values, stage)
