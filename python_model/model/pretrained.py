"""A model as a directory for distribution: model.safetensors, config.json, README.md (its card) and checksums.json.

No pickle is written or read. For runs that can be resumed see `python_model.training.checkpoint`; this is the model
only.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from python_model.config import FeatureSpec, ModelConfig, TrainConfig
from python_model.io.errors import DataError
from python_model.io.integrity import require_whole, seal
from python_model.io.json_text import read_object
from python_model.io.publish import whole_directory
from python_model.model.base import Recommender
from python_model.training import checkpoint
from python_model.training.checkpoint import Description

FORMAT = 1
CONFIG, MODEL, CARD = "config.json", "model.safetensors", "README.md"
STAGES = ("new", "pretrain", "finetune")


def save_pretrained(model: Recommender, directory: str | Path, *, overwrite: bool = False) -> Path:
    """Writes the model to a new directory, or over one that this function wrote; returns it.

    ValueError where its tables are sharded over ranks; FileExistsError where the directory holds something else;
    WriteError where the disk is full; nothing is left then.
    """
    if model.tables.spans:
        raise ValueError("save_pretrained: the model's tables are cut over ranks, expected a model loaded on one rank")
    out = Path(directory)
    described = {
        "format": FORMAT, "model_type": model.config.model, "stage": model.stage,
        "model_config": asdict(model.config), "features": asdict(model.features),
    }  # fmt: skip
    weights = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    with whole_directory(out, CONFIG, overwrite=overwrite) as partial:
        save_file(weights, partial / MODEL)
        (partial / CONFIG).write_text(json.dumps(described, indent=2) + "\n", "utf-8")
        (partial / CARD).write_text(card(model), "utf-8")
        seal(partial)
    return out


def from_pretrained(directory: str | Path, device: str | torch.device = "cpu") -> Recommender:
    """The model that `save_pretrained` wrote, in evaluation mode.

    DataError, before memory is allocated, where a file is missing, damaged or does not fit the configuration.
    """
    where = Path(directory)
    raw = read_object(where / CONFIG) if (where / CONFIG).is_file() else None
    if raw is None:
        raise DataError(where / CONFIG, "not found: expected a directory of save_pretrained")
    require_whole(where, (CONFIG, MODEL))
    described = _description(where / CONFIG, raw)
    model = checkpoint.outline(where, described).to_empty(device=device)
    checkpoint.load_weights(model, where)
    model.stage = raw["stage"]
    return model.eval()


def _description(file: Path, raw: dict[str, Any]) -> Description:
    if raw.get("format") != FORMAT:
        raise DataError(file, f"expected format {FORMAT}, found {raw.get('format')!r}", column="format")
    if raw.get("stage") not in STAGES:
        raise DataError(file, f"expected one of {', '.join(STAGES)}, found {raw.get('stage')!r}", column="stage")
    for name in ("model_config", "features"):
        if not isinstance(raw.get(name), dict):
            raise DataError(file, "expected an object", column=name)
    try:
        config, features = ModelConfig.from_dict(raw["model_config"]), FeatureSpec.from_dict(raw["features"])
    except ValueError as error:
        raise DataError(file, str(error)) from error
    train = TrainConfig()
    return Description(train.stage, 0, config, train, features, {"name": ""})


def card(model: Recommender) -> str:
    """The model card: the kind of model, its sizes, how to load it."""
    config, features = model.config, model.features
    count = sum(parameter.numel() for parameter in model.parameters())
    tasks = ", ".join(features.feedback)
    return f"""---
library_name: argus-kernels
tags: [recommender-systems, sequential-recommendation, {config.model}]
---

# {config.model}: {features.items:,} items

A {config.model} model over user histories; it predicts the next item and the feedback ({tasks}).

| | |
|---|---|
| parameters | {count:,} |
| encoder | {config.encoder}, {config.layers} layers, width {config.width}, {config.heads} heads |
| longest history | {config.max_events:,} events |
| trained | {model.stage} |

```text
from python_model.model.pretrained import from_pretrained

model = from_pretrained(".")
```

Items and features are numbered as in the data set that the model was trained on.
"""
