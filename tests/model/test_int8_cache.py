"""Keys and values in int8: how much of a trained model's ranking is left, event by event."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from python_model.config import TrainConfig
from python_model.data.batches import BatchBuilder, JaggedBatch
from python_model.data.schema import Dataset
from python_model.data.windows import Windows
from python_model.evaluation.metrics import ndcg_gains
from python_model.model.argus import Argus
from python_model.model.incremental import IncrementalEncoder
from python_model.train import train
from python_model.training.checkpoint import load_model
from tests.model.conftest import SMALL, random_batch, small_model
from tests.model.test_incremental import events_at


def states_of(model: Argus, batch: JaggedBatch, dtype: torch.dtype) -> torch.Tensor:
    """The state after each event, all users fed side by side."""
    starts: list[int] = batch.offsets.tolist()
    lengths = [end - start for start, end in pairwise(starts)]
    encoder = IncrementalEncoder(model, len(lengths), max(lengths), page_size=16, dtype=dtype)
    states = torch.zeros(len(batch), model.config.width)
    for step in range(max(lengths)):
        live = [user for user, length in enumerate(lengths) if step < length]
        rows = [starts[user] + step for user in live]
        states[rows] = encoder.append(live, events_at(batch, rows)).float()
    return states


@torch.inference_mode()
def ndcg_at_10(model: Argus, batch: JaggedBatch, dtype: torch.dtype) -> float:
    """Of every event's item among all items, from the state before it; a user's first ten events are not asked for."""
    queries = model.queries(model.read(batch, states_of(model, batch, dtype)))
    scores = queries @ model.item_matrix().T
    rank = 1 + (scores > scores.gather(1, batch.items[:, None].long())).sum(1)
    place = torch.cat([torch.arange(end - start) for start, end in pairwise(batch.offsets.tolist())])
    return float(np.mean(ndcg_gains(rank[place >= 10].numpy(), 10)))


def test_a_sessions_ndcg_stays_within_a_percent(tiny_service: Dataset, tmp_path: Path) -> None:
    config = TrainConfig(
        steps=60, batch_events=512, window=128, learning_rate=5e-3, table_learning_rate=2e-2, warmup_steps=2,
        negatives_in_batch=64, negatives_uniform=64, sketch_width=256,
    )  # fmt: skip
    train("pretrain", tiny_service, tmp_path / "run", replace(SMALL, width=64, heads=2), config)
    model = load_model(tmp_path / "run").eval()
    offsets = tiny_service.offsets
    batch = BatchBuilder(tiny_service).build(Windows(offsets[:-1], offsets[:-1], offsets[1:]))
    exact = ndcg_at_10(model, batch, torch.float32)
    popular = float(np.mean(ndcg_gains(np.arange(1, model.features.items + 1), 10)))
    assert exact > 2 * popular, "the model has learnt nothing that int8 could lose"
    assert abs(ndcg_at_10(model, batch, torch.int8) / exact - 1) < 0.01


def test_states_stay_close_and_go_on_from_a_prefilled_history() -> None:
    model, batch = small_model(), random_batch([20])
    expected = model.encode(batch).detach()
    found = states_of(model, batch, torch.int8)
    assert 0 < float((found - expected).abs().max()) < 0.1
    encoder = IncrementalEncoder(model, 1, 20, page_size=16, dtype=torch.int8)
    start = replace(random_batch([20]), offsets=torch.tensor([0, 19], dtype=torch.int32), max_length=19)
    names = ("rows", "items", "time", "organic", "grade", "feedback", "is_target")
    cut = {name: getattr(start, name)[:19] for name in names}
    encoder.prefill(0, replace(start, context=start.context[:, :19], **cut))
    state = encoder.append([0], events_at(batch, [19]))[0]
    assert float((state - expected[19]).abs().max()) < 0.1
    assert encoder.caches[0].key_pages.dtype == torch.int8
