"""Small worlds for the model's tests: a synthetic data set, random batches, models of both forms."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from python_model.config import FeatureSpec, ModelConfig
from python_model.data.batches import JaggedBatch
from python_model.data.feedback import BINARY, categorical
from python_model.data.schema import Dataset, load_dataset
from python_model.data.synthetic import generate, preset
from python_model.model.argus import Argus

FEATURES = FeatureSpec(
    items=40,
    context={"hour": 24, "device": 3},
    feedback={"like": BINARY, "skip": BINARY, "share": categorical(5)},
    item_features={"artist": 7},
)
SMALL = ModelConfig(
    layers=2, width=16, heads=2, item_width=8, feature_width=4, vector_width=8, position_buckets=8, time_buckets=40
)


def random_batch(lengths: Sequence[int], seed: int = 0, padding: int = 0) -> JaggedBatch:
    """Users of the given lengths with random events, seconds to days apart, then rows of padding."""
    random = np.random.default_rng(seed)
    total = sum(lengths)
    rows = total + padding
    gaps = np.exp(random.uniform(0, 12, total)).astype(np.int64)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    time = np.concatenate([np.cumsum(gaps[a:b]) for a, b in pairwise(offsets)] or [gaps])
    time = 1_700_000_000 + np.concatenate([time, random.integers(-(10**9), 10**9, padding)])
    context = np.stack([random.integers(-1, count, rows) for count in FEATURES.context.values()])
    feedback = np.stack([random.integers(-1, one.classes, rows) for one in FEATURES.feedback.values()], axis=1)
    return JaggedBatch(
        offsets=torch.from_numpy(offsets.astype(np.int32)),
        max_length=max(lengths, default=0),
        users=torch.arange(len(lengths)),
        rows=torch.arange(rows),
        items=torch.from_numpy(random.integers(0, FEATURES.items, rows)),
        time=torch.from_numpy(time.astype(np.int64)),
        organic=torch.from_numpy(random.random(rows) < 0.5),
        grade=torch.from_numpy(random.integers(-1, 5, rows)),
        context=torch.from_numpy(context),
        feedback=torch.from_numpy(feedback),
        is_target=torch.from_numpy(np.arange(rows) < total),
    )


def small_model(form: str = "simplified", seed: int = 0, **changes: Any) -> Argus:
    """A small model whose every parameter is random, the ones that begin at zero included."""
    torch.manual_seed(seed)
    columns = torch.stack([torch.arange(FEATURES.items), torch.arange(FEATURES.items) % 7]).int()
    model = Argus(replace(SMALL, form=form, **changes), FEATURES, columns)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() != 0:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval()


@pytest.fixture(scope="session")
def tiny_service(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """A synthetic music service of a few thousand events."""
    out: Path = tmp_path_factory.mktemp("service") / "tiny"
    generate(out, preset("demo", users=60, events_per_user=40.0, days=20, clusters=4, artists=4, tracks=4))
    return load_dataset(out)


@pytest.fixture
def changed() -> Callable[[JaggedBatch, int, str], JaggedBatch]:
    """Changes one field of one event of a batch to another valid value."""

    def change(batch: JaggedBatch, row: int, field: str) -> JaggedBatch:
        value = getattr(batch, field).clone()
        if field == "items":
            value[row] = (value[row] + 1) % FEATURES.items
        elif field == "organic":
            value[row] = ~value[row]
        elif field == "feedback":
            limit = torch.tensor([one.classes for one in FEATURES.feedback.values()])
            value[row] = (value[row] + 1).remainder(limit)
        elif field == "context":
            limit = torch.tensor(list(FEATURES.context.values()))
            value[:, row] = (value[:, row] + 1).remainder(limit)
        elif field == "time":
            value[row] += 1
        return replace(batch, **{field: value})

    return change
