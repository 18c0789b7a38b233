"""A small service, both stages of a run on it, and the export of the fine-tuned one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from python_model.config import FeatureSpec, ModelConfig, TrainConfig
from python_model.data.schema import Dataset, load_dataset
from python_model.data.synthetic import generate, preset
from python_model.model.argus import Argus
from python_model.serving.bundle import Export
from python_model.serving.export import export
from python_model.training import checkpoint
from python_model.training.checkpoint import Description, TrainerState

SHAPE = ModelConfig(
    layers=2, width=16, heads=2, item_width=8, feature_width=4, vector_width=8, position_buckets=8, time_buckets=40
)
LAG = 7_200
WINDOW = 256


def assert_close(found: Any, expected: Any) -> None:
    """Equal but for rounding."""
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """A synthetic music service of about two thousand events."""
    out: Path = tmp_path_factory.mktemp("serving") / "data"
    generate(out, preset("demo", users=40, events_per_user=40.0, days=20, clusters=5, artists=4, tracks=4))
    return load_dataset(out)


def random_model(dataset: Dataset, stage: str, **changes: object) -> Argus:
    """A model whose every parameter is random, the ones that begin at zero included."""
    torch.manual_seed(3)
    model = Argus.for_dataset(replace(SHAPE, **changes), dataset)  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() != 0:
                parameter.add_(0.3 * torch.randn_like(parameter))
    model.stage = stage
    return model.eval()


def save_run(run: Path, model: Argus, dataset: Dataset, stage: str) -> Path:
    """A run with one checkpoint."""
    train = TrainConfig(stage=stage, window=WINDOW, batch_events=WINDOW)
    features = FeatureSpec.of(dataset.info)
    found = Description(stage, 1, model.config, train, features, {"name": dataset.info.name})
    checkpoint.save(run, model, found, TrainerState({}, {}), keep=1)
    return run


@pytest.fixture(scope="session")
def finetuned(service: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fine-tuned run with a lag."""
    run = tmp_path_factory.mktemp("runs") / "finetune"
    return save_run(run, random_model(service, "finetune", lag=LAG), service, "finetune")


@pytest.fixture(scope="session")
def pretrained(service: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pre-trained run."""
    run = tmp_path_factory.mktemp("runs") / "pretrain"
    return save_run(run, random_model(service, "pretrain"), service, "pretrain")


@pytest.fixture(scope="session")
def hstu(service: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fine-tuned run with the HSTU encoder, whose states depend on when they are read."""
    run = tmp_path_factory.mktemp("runs") / "hstu"
    return save_run(run, random_model(service, "finetune", lag=LAG, encoder="hstu"), service, "finetune")


@pytest.fixture(scope="session")
def pretrained_hstu(service: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pre-trained run with the HSTU encoder, whose states know the time of the next event in training."""
    run = tmp_path_factory.mktemp("runs") / "pretrained-hstu"
    return save_run(run, random_model(service, "pretrain", encoder="hstu"), service, "pretrain")


@pytest.fixture(scope="session")
def exported(service: Dataset, finetuned: Path, tmp_path_factory: pytest.TempPathFactory) -> Export:
    """The export of the fine-tuned run."""
    out = tmp_path_factory.mktemp("exports") / "out"
    export(service, finetuned, out, best=5)
    return Export.open(out)
