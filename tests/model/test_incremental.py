"""Event by event from the cache, the encoder's states are those of one pass over the whole history."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from python_model.data.batches import JaggedBatch
from python_model.model.incremental import IncrementalEncoder
from tests.model.conftest import random_batch, small_model

LENGTHS = [7, 0, 11, 1, 4]


def events_at(batch: JaggedBatch, rows: list[int]) -> JaggedBatch:
    """One event of each of several users."""
    index = torch.tensor(rows, dtype=torch.int64)
    names = ("rows", "items", "time", "organic", "grade", "feedback", "is_target")
    picked: dict[str, Any] = {name: getattr(batch, name)[index] for name in names}
    return replace(
        batch,
        offsets=torch.arange(len(rows) + 1, dtype=torch.int32),
        max_length=1,
        users=torch.arange(len(rows)),
        context=batch.context[:, index],
        **picked,
    )


def fed(encoder: IncrementalEncoder, batch: JaggedBatch, users: list[int], steps: range) -> dict[int, Tensor]:
    """The state after each event, by its row, of the users fed side by side."""
    starts: list[int] = batch.offsets.tolist()
    states: dict[int, Tensor] = {}
    for step in steps:
        live = [user for user in users if step < starts[user + 1] - starts[user]]
        rows = [starts[user] + step for user in live]
        if live:
            states.update(zip(rows, encoder.append(live, events_at(batch, rows)), strict=True))
    return states


def assert_states(states: dict[int, Tensor], expected: Tensor) -> None:
    for row, state in states.items():
        torch.testing.assert_close(state, expected[row], rtol=1e-4, atol=1e-5)


ENCODERS = ["transformer", "hstu"]


@pytest.mark.parametrize("encoder_kind", ENCODERS)
@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_incremental_states_are_those_of_one_pass(backend: str, encoder_kind: str) -> None:
    """Of HSTU those of a server, which does not know the time of the next event."""
    model, batch = small_model(encoder=encoder_kind, max_events=12), random_batch(LENGTHS)
    expected = model.eval().encode(batch, lag=0).detach()
    encoder = IncrementalEncoder(model, len(LENGTHS), 12, page_size=4, pages=9, backend=backend)
    states = fed(encoder, batch, [4, 2, 0, 3, 1], range(max(LENGTHS)))
    assert len(states) == sum(LENGTHS)
    assert_states(states, expected)


def test_users_are_offloaded_to_make_room(tmp_path: Path) -> None:
    """Five users in the pages of two: each is fed in turn, three events at a time."""
    model, batch = small_model(), random_batch([9] * 5)
    expected = model.eval().encode(batch).detach()
    encoder = IncrementalEncoder(model, 5, 9, page_size=3, pages=6, on_full="offload", folder=tmp_path)
    states: dict[int, Tensor] = {}
    for first in (0, 3, 6):
        for user in range(5):
            states.update(fed(encoder, batch, [user], range(first, first + 3)))
    assert len(states) == 45 and encoder.caches[0].offloaded
    assert_states(states, expected)


def test_a_fork_goes_on_by_itself() -> None:
    """Two users with one beginning: what follows in one leaves the other as it was."""
    model, batch = small_model(), random_batch([8, 8])
    names = ("items", "time", "organic", "feedback")
    changed: dict[str, Any] = {name: getattr(batch, name).clone() for name in names}
    for value in changed.values():
        value[8:13] = value[:5]
    changed["time"][13:] += changed["time"][12]
    context = batch.context.clone()
    context[:, 8:13] = context[:, :5]
    batch = replace(batch, context=context, **changed)
    expected = model.eval().encode(batch).detach()
    encoder = IncrementalEncoder(model, 2, 8, page_size=4, pages=4)
    assert_states(fed(encoder, batch, [0], range(5)), expected)
    encoder.fork(0, [1])
    assert encoder.caches[0].free_pages == 2
    assert_states(fed(encoder, batch, [1, 0], range(5, 8)), expected)
    encoder.evict([0])
    assert encoder.caches[0].lengths == [0, 8]


def test_what_cannot_be_appended() -> None:
    model, batch = small_model(), random_batch([3, 2])
    encoder = IncrementalEncoder(model, 2, 4, page_size=2, pages=1)
    with pytest.raises(ValueError, match="append: 2 users and 5 events, of one user up to 3, expected one each"):
        encoder.append([0, 1], batch)
    with pytest.raises(ValueError, match="extend: 2 pages are wanted and 1 of 1 are free"):
        encoder.append([0, 1], events_at(batch, [0, 3]))
    with pytest.raises(ValueError, match="extend: the cache has no user 2, expected 0 to 1"):
        encoder.append([2], events_at(batch, [0]))
    assert encoder.caches[0].lengths == [0, 0]
    with pytest.raises(ValueError, match="the model's form is 'full', expected 'simplified'"):
        IncrementalEncoder(small_model("full"), 1, 4)


@pytest.mark.parametrize("encoder_kind", ENCODERS)
def test_a_prefilled_history_goes_on_as_if_fed_event_by_event(encoder_kind: str) -> None:
    model, batch = small_model(encoder=encoder_kind), random_batch([9])
    expected = model.eval().encode(batch, lag=0).detach()
    encoder = IncrementalEncoder(model, 2, 12, page_size=4, pages=6)
    head: dict[str, Any] = {
        name: getattr(batch, name)[:6]
        for name in ("rows", "items", "time", "organic", "grade", "feedback", "is_target")
    }
    offsets = torch.tensor([0, 6], dtype=torch.int32)
    start = replace(batch, context=batch.context[:, :6], offsets=offsets, max_length=6, **head)
    torch.testing.assert_close(encoder.prefill(1, start), expected[5], rtol=1e-4, atol=1e-5)
    states = {row: encoder.append([1], events_at(batch, [row]))[0] for row in (6, 7, 8)}
    assert_states(states, expected)
    encoder.truncate(1, 7)
    assert_states({row: encoder.append([1], events_at(batch, [row]))[0] for row in (7, 8)}, expected)
    other = IncrementalEncoder(model, 1, 16, page_size=8, pages=2)
    encoder.truncate(1, 8)
    other.copy_in(0, encoder.copy_out(1))
    assert_states({8: other.append([0], events_at(batch, [8]))[0]}, expected)
    with pytest.raises(ValueError, match="user 1 has events, expected none"):
        encoder.prefill(1, start)
    with pytest.raises(ValueError, match="prefill: 2 users and 3 events, expected one user"):
        encoder.prefill(0, random_batch([2, 1]))


def test_a_cache_of_half_the_precision_stays_close() -> None:
    model, batch = small_model(), random_batch([20])
    expected = model.eval().encode(batch).detach()
    encoder = IncrementalEncoder(model, 1, 20, dtype=torch.bfloat16)
    assert encoder.caches[0].key_pages.dtype == torch.bfloat16
    states = fed(encoder, batch, [0], range(20))
    found = torch.stack([states[row] for row in range(20)])
    assert found.dtype == torch.float32
    assert 0 < float((found - expected).abs().max()) < 0.1
