"""A run continued on a catalogue with 10 % new items is as good on the old ones as one that had all from the start."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from python_model.config import ModelConfig, TrainConfig
from python_model.data.schema import Dataset, DatasetWriter, load_dataset
from python_model.data.splits import temporal_split
from python_model.data.synthetic import generate, preset
from python_model.evaluation.inference import ModelPredictor
from python_model.evaluation.metrics import ndcg_gains
from python_model.train import train
from python_model.training import checkpoint

MODEL = ModelConfig(
    layers=1, width=32, heads=2, item_width=32, feature_width=8, vector_width=32, position_buckets=32, time_buckets=40,
    temperature=20.0,
)  # fmt: skip
CONFIG = TrainConfig(
    steps=100, batch_events=512, window=64, negatives_in_batch=128, negatives_uniform=128, warmup_steps=10,
    learning_rate=5e-3, table_learning_rate=1e-2, sketch_width=2048,
)  # fmt: skip
SEEDS = 3


def without(dataset: Dataset, out: Path, hidden: np.ndarray, before: int) -> Dataset:
    """The events before a time, without the hidden items (bool [V]), which have other numbers then."""
    info = dataset.info
    rows = np.flatnonzero(~hidden[dataset.item] & (dataset.time < before))
    kept = np.flatnonzero(np.bincount(dataset.item[rows], minlength=info.items))
    # The catalogue was in another order then.
    kept = np.random.default_rng(7).permutation(kept)
    number = np.full(info.items, -1)
    number[kept] = np.arange(len(kept))
    users, user = np.unique(dataset.user[rows], return_inverse=True)
    with DatasetWriter(
        out, name="earlier", source="test", context=info.context, feedback=info.feedback,
        item_features=info.item_features, grades=info.grades, pair_window=info.pair_window,
    ) as writer:  # fmt: skip
        columns = ["time", "organic", "grade", *(f"context_{name}" for name in info.context)]
        columns += [f"feedback_{name}" for name in info.feedback]
        events = {name: dataset.column(name)[rows] for name in columns}
        writer.write_events({"user": user, "item": number[dataset.item[rows]], **events})
        writer.write_users(dataset.user_ids[users])
        features = {name: dataset.item_column(f"item_{name}")[kept] for name in info.item_features}
        writer.write_items(dataset.item_column("item_id")[kept], features)
    return load_dataset(out)


def quality(run: Path, dataset: Dataset, rows: np.ndarray) -> tuple[float, float]:
    """NDCG@10 and log loss of the next item."""
    found = ModelPredictor(checkpoint.load_model(run), dataset, window=CONFIG.window).predict(rows).next_item
    assert found is not None
    return float(ndcg_gains(found.rank, 10).mean()), float(found.log_loss.mean())


@pytest.mark.slow
def test_old_items_are_predicted_as_well_as_by_a_run_that_had_all(tmp_path: Path) -> None:
    generate(
        tmp_path / "all", preset("demo", users=300, events_per_user=60.0, days=40, clusters=8, artists=8, tracks=5)
    )
    dataset = load_dataset(tmp_path / "all")
    hidden = np.random.default_rng(1).permutation(dataset.info.items) < dataset.info.items // 10
    split = temporal_split(dataset)
    middle = int(np.median(dataset.time[split.train]))
    earlier = without(dataset, tmp_path / "earlier", hidden, middle)
    assert earlier.info.items <= 0.91 * dataset.info.items
    rows = np.flatnonzero(split.test & ~hidden[dataset.item])
    whole, grown, fresh = [], [], []
    for seed in range(SEEDS):
        config = replace(CONFIG, seed=seed)
        folder = tmp_path / str(seed)
        train("pretrain", dataset, folder / "whole", MODEL, replace(config, steps=200))
        train("pretrain", earlier, folder / "earlier", MODEL, replace(config, protocol="all"))
        train("pretrain", dataset, folder / "grown", MODEL, config, init_from=folder / "earlier")
        train("pretrain", dataset, folder / "fresh", MODEL, config)
        whole.append(quality(folder / "whole", dataset, rows))
        grown.append(quality(folder / "grown", dataset, rows))
        fresh.append(quality(folder / "fresh", dataset, rows))
    noise = np.std(whole, axis=0, ddof=1)
    worse = np.mean(whole, axis=0) - np.mean(grown, axis=0)
    assert worse[0] < 2 * noise[0] and -worse[1] < 2 * noise[1], (worse, noise)
