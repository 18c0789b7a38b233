"""No reading contains its answer: every claim of docs/model.md about what may depend on what, by perturbation.

One event of a packed batch is changed and all readings are compared bit for bit: what must not depend on the change
stays the same, and, so that these tests cannot pass on a model that ignores its input, what should depend on it moves.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from python_model.data.batches import JaggedBatch
from python_model.model.argus import RANKING_KINDS, Argus
from python_model.model.layers import events_before
from tests.model.conftest import random_batch, small_model

FORMS = ("simplified", "full", "simplified hstu", "full hstu")
Change = Callable[[JaggedBatch, int, str], JaggedBatch]
LENGTHS = [9, 1, 0, 12, 5]
FIRST, USER_END = 10, 22  # the rows of the user of 12 events
FIELDS = ("items", "feedback", "context", "organic")
ROWS = (FIRST, FIRST + 4, USER_END - 1)
LAG = 3_000


def model_of(form: str, **changes: int) -> Argus:
    """A small model of a form and, where it is named, with the HSTU encoder."""
    form, _, encoder = form.partition(" ")
    return small_model(form, encoder=encoder or "transformer", max_events=16, **changes)


def readings(model: Argus, batch: JaggedBatch) -> dict[str, Tensor]:
    """Everything the model says of each event [T, …]."""
    with torch.no_grad():
        items = model.item_matrix()
        return {
            "next_item": model.next_item_scores(model.next_item_queries(batch), items),
            "feedback": model.feedback_logits(batch),
            "user": model.user_vectors(batch),
        }


def moved(before: Tensor, after: Tensor) -> Tensor:
    """Which rows changed in any bit."""
    return (before != after).reshape(len(before), -1).any(1)


def spread_times(batch: JaggedBatch) -> JaggedBatch:
    """The same batch with 1,000 s between neighbouring events, so that a lag of 3,000 s covers a known few."""
    time = torch.arange(len(batch)) * 1_000 + 1_700_000_000
    return replace(batch, time=time)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("row", ROWS)
class TestPretraining:
    def test_the_item_of_an_event_is_not_in_its_next_item_scores(self, form: str, row: int, changed: Change) -> None:
        batch, model = random_batch(LENGTHS), model_of(form)
        before, after = readings(model, batch), readings(model, changed(batch, row, "items"))
        assert torch.equal(before["next_item"][: row + 1], after["next_item"][: row + 1])
        assert moved(before["next_item"], after["next_item"])[row + 1 : USER_END].all()
        assert moved(before["feedback"], after["feedback"])[row], "the feedback head must know the item"

    def test_the_feedback_of_an_event_is_in_neither_of_its_readings(self, form: str, row: int, changed: Change) -> None:
        batch, model = random_batch(LENGTHS), model_of(form)
        before, after = readings(model, batch), readings(model, changed(batch, row, "feedback"))
        for name in ("next_item", "feedback"):
            assert torch.equal(before[name][: row + 1], after[name][: row + 1]), name
            assert moved(before[name], after[name])[row + 1 : USER_END].all(), name

    def test_the_context_of_an_event_is_in_its_readings(self, form: str, row: int, changed: Change) -> None:
        batch, model = random_batch(LENGTHS), model_of(form)
        before, after = readings(model, batch), readings(model, changed(batch, row, "context"))
        assert moved(before["next_item"], after["next_item"])[row:USER_END].all()
        assert moved(before["feedback"], after["feedback"])[row:USER_END].all()

    @pytest.mark.parametrize("field", FIELDS)
    def test_nothing_before_an_event_and_no_other_user_depends_on_it(
        self, form: str, row: int, changed: Change, field: str
    ) -> None:
        batch, model = random_batch(LENGTHS), model_of(form, lag=LAG)
        before, after = readings(model, batch), readings(model, changed(batch, row, field))
        for name in before:
            touched = moved(before[name], after[name])
            assert not touched[:row].any(), f"{name}: an earlier event or another user changed with {field}"
            assert not touched[USER_END:].any(), f"{name}: a later user changed with {field}"

    def test_the_time_of_an_event_is_not_in_what_comes_before_it(self, form: str, row: int, changed: Change) -> None:
        batch, model = spread_times(random_batch(LENGTHS)), model_of(form)
        later = replace(batch, time=batch.time + torch.where(torch.arange(len(batch)) == row, 900, 0))
        before, after = readings(model, batch), readings(model, later)
        for name in before:
            touched = moved(before[name], after[name])
            assert not touched[:row].any() and not touched[USER_END:].any(), name


@pytest.mark.parametrize("form", FORMS)
class TestFinetuning:
    @pytest.mark.parametrize("field", ("items", "feedback"))
    def test_an_event_is_unknown_until_the_lag_has_passed(self, form: str, field: str, changed: Change) -> None:
        batch, model = spread_times(random_batch(LENGTHS)), model_of(form, lag=LAG)
        row = FIRST + 3
        touched = moved(readings(model, batch)["user"], readings(model, changed(batch, row, field))["user"])
        known = torch.arange(len(batch)) >= row + LAG // 1_000
        known &= torch.arange(len(batch)) < USER_END
        assert torch.equal(touched, known)

    @pytest.mark.parametrize("lag", (0, 999, 1_000, 1_001, 50_000))
    def test_every_lag_hides_exactly_the_younger_events(self, form: str, lag: int, changed: Change) -> None:
        batch, model = spread_times(random_batch(LENGTHS)), model_of(form, lag=lag)
        row = FIRST + 2
        touched = moved(readings(model, batch)["user"], readings(model, changed(batch, row, "items"))["user"])
        event = torch.arange(len(batch))
        known = (event > row) & (event < USER_END) & (batch.time - batch.time[row] >= lag)
        assert torch.equal(touched, known)

    def test_events_of_one_second_do_not_know_each_other_out_of_order(self, form: str, changed: Change) -> None:
        batch, model = random_batch(LENGTHS), model_of(form, lag=0)
        batch = replace(batch, time=torch.full((len(batch),), 1_700_000_000))
        row = FIRST + 5
        touched = moved(readings(model, batch)["user"], readings(model, changed(batch, row, "items"))["user"])
        event = torch.arange(len(batch))
        assert torch.equal(touched, (event > row) & (event < USER_END))

    @pytest.mark.parametrize("kind", RANKING_KINDS)
    @pytest.mark.parametrize("field", ("items", "feedback"))
    def test_every_ranking_score_keeps_the_lag(self, form: str, kind: str, field: str, changed: Change) -> None:
        batch, model = spread_times(random_batch(LENGTHS)), model_of(form)
        row, event = FIRST + 3, torch.arange(len(batch))
        with torch.no_grad():
            before = model.ranking_scores(batch, kind, lag=LAG)
            touched = moved(before, model.ranking_scores(changed(batch, row, field), kind, lag=LAG))
        known = (event >= row + LAG // 1_000) & (event < USER_END)
        own = (event == row) & (field == "items")
        assert torch.equal(touched, known | own)

    def test_gradients_of_a_user_vector_reach_no_younger_event(self, form: str) -> None:
        batch, model = spread_times(random_batch([8])), model_of(form, lag=LAG)
        batch = replace(batch, items=torch.arange(8), organic=torch.zeros(8, dtype=torch.bool))
        model.user_vectors(batch)[6].square().sum().backward()
        gradient = model.tables["item"].grad
        assert gradient is not None
        used = gradient[:8].abs().sum(1) > 0
        assert used.tolist() == [True] * 4 + [False] * 4

    def test_the_time_of_an_unknown_event_is_unknown(self, form: str) -> None:
        batch, model = spread_times(random_batch(LENGTHS)), model_of(form, lag=2_500)
        row, event = FIRST + 3, torch.arange(len(batch))
        later = replace(batch, time=batch.time + torch.where(event == row, 100, 0))
        touched = moved(readings(model, batch)["user"], readings(model, later)["user"])
        known = (event >= row + 3) & (event < USER_END)
        assert not touched[~known & (event != row)].any() and touched[known].any()

    def test_ranking_scores_are_user_vector_times_item_vector(self, form: str) -> None:
        batch, model = random_batch(LENGTHS), model_of(form)
        with torch.no_grad():
            expected = (model.user_vectors(batch) * model.item_matrix()[batch.items]).sum(-1)
            torch.testing.assert_close(model.ranking_scores(batch, "pair"), expected)


@pytest.mark.parametrize("form", FORMS)
def test_packing_changes_no_user(form: str) -> None:
    model, together = model_of(form, lag=LAG).double(), random_batch(LENGTHS, padding=3)
    packed = readings(model, together)
    for user, (begin, end) in enumerate(pairwise(together.offsets.tolist())):
        alone = readings(model, slice_user(together, user, begin, end))
        for name, value in alone.items():
            torch.testing.assert_close(packed[name][begin:end], value, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_padding_rows_reach_no_event(form: str, changed: Change) -> None:
    model, batch = model_of(form), random_batch(LENGTHS, padding=4)
    real = int(batch.offsets[-1])
    other = changed(changed(changed(batch, real + 1, "items"), real + 2, "feedback"), real + 3, "time")
    before, after = readings(model, batch), readings(model, other)
    for name in before:
        assert torch.equal(before[name][:real], after[name][:real]), name


def slice_user(batch: JaggedBatch, user: int, begin: int, end: int) -> JaggedBatch:
    """One user of a batch as a batch of his own."""
    row = {name: getattr(batch, name)[begin:end] for name in ("rows", "items", "time", "organic", "grade", "is_target")}
    return replace(
        batch,
        offsets=torch.tensor([0, end - begin], dtype=torch.int32),
        max_length=end - begin,
        users=batch.users[user : user + 1],
        context=batch.context[:, begin:end],
        feedback=batch.feedback[begin:end],
        **row,
    )


def test_the_time_probe_is_sharp() -> None:
    """States of HSTU that are not for a lag do hold the time of the event after them."""
    batch, model = spread_times(random_batch(LENGTHS)), model_of("simplified hstu")
    event = torch.arange(len(batch))
    later = replace(batch, time=batch.time + torch.where(event == FIRST + 3, 100, 0))
    with torch.no_grad():
        assert moved(model.encode(batch), model.encode(later))[FIRST + 2]
        assert not moved(model.encode(batch, lag=0), model.encode(later, lag=0))[FIRST + 2]


def test_a_planted_leak_is_seen(monkeypatch: pytest.MonkeyPatch, changed: Change) -> None:
    """The probe used above is sharp: reading h_t in place of h_{t−1} is found out at once."""

    def one_too_many(times: Tensor, offsets: Tensor, lag: int | None) -> Tensor:
        return events_before(times, offsets, lag) + 1

    batch, model = random_batch([12]), small_model("simplified")
    monkeypatch.setattr("python_model.model.argus.events_before", one_too_many)
    before, after = readings(model, batch), readings(model, changed(batch, 5, "feedback"))
    for name in before:
        assert moved(before[name], after[name])[5], name
