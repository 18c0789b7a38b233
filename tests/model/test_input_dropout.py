"""Item and feedback dropout: in training some inputs are hidden from the encoder, in evaluation none is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from python_model.config import TrainConfig, preset
from python_model.data.batches import JaggedBatch
from python_model.model.base import Recommender
from python_model.model.layers import hidden
from python_model.model.losses import PretrainLoss
from python_model.model.sequential import SequenceModel
from tests.model.conftest import FEATURES, SMALL, random_batch, small_model

Change = Callable[[JaggedBatch, int, str], JaggedBatch]
NEARLY_ALL = 1 - 1e-6


def sasrec(**changes: Any) -> SequenceModel:
    torch.manual_seed(0)
    config = replace(SMALL, model="sasrec", item_width=16, max_events=16, **changes)
    return SequenceModel(config, FEATURES, torch.zeros(2, FEATURES.items))


def states(model: Recommender, batch: JaggedBatch, training: bool) -> torch.Tensor:
    torch.manual_seed(5)
    return model.train(training).encode(batch)


@pytest.mark.parametrize(
    ("kind", "column"),
    [("simplified", "items"), ("simplified", "feedback"), ("full", "items"), ("full", "feedback"), ("sasrec", "items")],
)
def test_in_training_alone_the_encoder_does_not_see_what_is_hidden(kind: str, column: str, changed: Change) -> None:
    share: dict[str, Any] = {"item_dropout" if column == "items" else "feedback_dropout": NEARLY_ALL}
    model = sasrec(**share) if kind == "sasrec" else small_model(kind, **share)
    batch = random_batch([9, 5])
    other = changed(batch, 2, column)
    assert torch.equal(states(model, batch, True), states(model, other, True))
    assert not torch.equal(states(model, batch, False), states(model, other, False))
    seen = changed(batch, 2, "feedback" if column == "items" else "items")
    assert kind == "sasrec" or not torch.equal(states(model, batch, True), states(model, seen, True))


def test_a_share_of_the_events_is_hidden_in_all_their_columns() -> None:
    torch.manual_seed(0)
    ids = torch.arange(40_000).repeat(3, 1)
    found = hidden(ids, 0.3)
    gone = found < 0
    assert torch.equal(gone.all(0), gone.any(0)) and torch.equal(found[~gone], ids[~gone])
    assert gone[0].float().mean() == pytest.approx(0.3, abs=0.01)
    assert hidden(ids, 0.0) is ids


def test_what_is_hidden_is_predicted_all_the_same() -> None:
    """The losses count the same targets; only the states differ."""
    batch = random_batch([9, 5])
    config = TrainConfig(negatives_in_batch=0, negatives_uniform=40)
    model = small_model(item_dropout=NEARLY_ALL, feedback_dropout=NEARLY_ALL)
    loss = PretrainLoss(config, model)
    whole = loss.counts(batch)
    _, parts = PretrainLoss(config, model.train())(batch, 0)
    assert torch.equal(loss.counts(batch), whole) and all(torch.isfinite(part) and part > 0 for part in parts.values())


def test_shares_are_checked() -> None:
    with pytest.raises(ValueError, match=r"item_dropout is 1\.0, expected a finite number in \[0, 1\)"):
        preset("tiny", item_dropout=1.0)
    with pytest.raises(ValueError, match=r"feedback_dropout is 0\.1, expected 0 with model='sasrec': it sees none"):
        preset("tiny", model="sasrec", feedback_dropout=0.1)
