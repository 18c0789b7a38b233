"""Candidates in one pass give what the model says of each alone, and rows that nobody reads are not computed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from python_model.config import FORMS
from python_model.data.batches import JaggedBatch
from python_model.evaluation.recommend import append_next_event
from python_model.model.argus import RANKING_KINDS, Argus
from python_model.model.candidates import Candidates
from python_model.model.layers import SHARE_OF_ROWS
from tests.model.conftest import random_batch, small_model

ENCODERS = ("transformer", "hstu")
LENGTHS = [7, 0, 3, 12]


def trained(form: str, encoder: str = "transformer", **changes: Any) -> Argus:
    """A small model whose weights are all away from their initial values."""
    model = small_model(form, encoder=encoder, max_events=16, **changes)
    with torch.no_grad():
        for parameter in model.parameters():
            generator = torch.Generator().manual_seed(parameter.numel())
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def requests(batch: JaggedBatch, counts: list[int]) -> Candidates:
    generator = torch.Generator().manual_seed(5)
    users = len(counts)
    return Candidates(
        torch.randint(-1, 40, (sum(counts),), generator=generator),
        torch.tensor([0, *counts]).cumsum(0).int(),
        torch.full((users,), int(batch.time.max()) + 500) + torch.arange(users) * 100,
        torch.arange(users) % 2 == 0,
        torch.randint(-1, 2, (len(batch.context), users), generator=generator),
    )


def one_by_one(model: Argus, batch: JaggedBatch, asked: Candidates, kind: str) -> Tensor:
    """Every candidate appended to its history alone, the whole history encoded anew."""
    found = []
    offsets = asked.offsets.tolist()
    for user, (begin, end) in enumerate(pairwise(offsets)):
        rows = slice(int(batch.offsets[user]), int(batch.offsets[user + 1]))
        for place in range(begin, end):
            extended = {
                "items": asked.items[place : place + 1],
                "time": asked.time[user : user + 1],
                "organic": asked.organic[user : user + 1],
                "feedback": torch.full((1, batch.feedback.shape[1]), -1),
                "rows": torch.tensor([-1]),
                "grade": torch.tensor([-1]),
                "is_target": torch.tensor([True]),
            }
            parts = {name: torch.cat([getattr(batch, name)[rows], value]) for name, value in extended.items()}
            context = torch.cat([batch.context[:, rows], asked.context[:, user : user + 1]], 1)
            length = len(parts["items"])
            alone = replace(
                batch, offsets=torch.tensor([0, length]).int(), max_length=length, users=batch.users[:1],
                context=context, **parts,
            )  # fmt: skip
            readings = model.read(alone, model.encode(alone))
            if kind == "feedback":
                found.append(model.expected_feedback(readings.feedback[-1:]))
            else:
                vector = model.vectors_for(readings.item[-1:], kind)
                found.append((vector * model.item_vectors(alone.items[-1:])).sum(-1))
    return torch.cat(found)


@pytest.mark.parametrize("kind", RANKING_KINDS)
@pytest.mark.parametrize(
    ("form", "encoder"), [(f, e) for f in FORMS for e in ENCODERS if (f, e) != ("simplified", "hstu")]
)
@torch.no_grad()
def test_candidates_score_as_each_alone(form: str, encoder: str, kind: str) -> None:
    model, batch = trained(form, encoder), random_batch(LENGTHS)
    asked = requests(batch, [3, 2, 0, 4])
    found = model.score_candidates(model.store_histories(batch), asked, kind)
    torch.testing.assert_close(found, one_by_one(model, batch, asked, kind), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_score_depends_on_no_other_candidate() -> None:
    model, batch = trained("full"), random_batch([9])
    histories = model.store_histories(batch)
    asked = requests(batch, [3])
    same = replace(asked, items=asked.items[:1].expand(3))
    scores = model.score_candidates(histories, same, "feedback")
    torch.testing.assert_close(scores, scores[:1].expand(3))
    alone = replace(asked, items=asked.items[:1], offsets=torch.tensor([0, 1]).int())
    torch.testing.assert_close(model.score_candidates(histories, alone, "feedback"), scores[:1])


@torch.no_grad()
def test_histories_that_do_not_fit_are_refused() -> None:
    model, batch = trained("full"), random_batch([4, 3])
    histories, asked = model.store_histories(batch), requests(batch, [2, 1])
    for wrong, sentence in (
        (replace(asked, time=asked.time[:1]), r"time has shape \[1\], expected \[2\] for 2 histories"),
        (replace(asked, items=asked.items + 100), "items go from 1.. to 1.., expected -1 to 39"),
        (replace(asked, items=asked.items[:2]), "offsets go from 0 to 3, expected 0 to the 2 items given"),
    ):
        with pytest.raises(ValueError, match=sentence):
            model.score_candidates(histories, wrong)
    with pytest.raises(ValueError, match="a history of 16 events, expected at most max_events - 1 = 15"):
        model.score_candidates(model.store_histories(random_batch([16, 0])), asked)
    with pytest.raises(ValueError, match="a state of HSTU counts time from the event after it"):
        trained("simplified", "hstu").store_histories(batch)


def models() -> dict[str, Callable[[], Argus]]:
    return {f"{form} {encoder}": lambda f=form, e=encoder: trained(f, e) for form in FORMS for encoder in ENCODERS}  # type: ignore[misc]


@pytest.mark.parametrize("name", list(models()))
def test_the_last_layer_computes_the_rows_that_are_read(name: str) -> None:
    model, batch = models()[name]().double(), random_batch(LENGTHS, padding=2)
    batch = replace(batch, is_target=torch.arange(len(batch)) % 5 == 1)
    rows: list[int] = []
    output: Any = model.encoder.blocks[-1].output
    output.register_forward_hook(lambda module, given, result: rows.append(len(result)))
    results = []
    for read in (None, model.read_by_targets(batch, [None, 2000])):
        model.zero_grad()
        readings = model.read(batch, model.encode(batch, read=read))
        target = batch.is_target
        (readings.item[target].sum() + readings.feedback[target].square().sum()).backward()
        gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        results.append((readings.item[target].detach(), readings.feedback[target].detach(), gradients))
    assert rows[1] < SHARE_OF_ROWS * rows[0]
    for value, other in zip(results[0][:2], results[1][:2], strict=True):
        torch.testing.assert_close(value, other)
    assert results[0][2].keys() == results[1][2].keys()
    for parameter, gradient in results[0][2].items():
        torch.testing.assert_close(results[1][2][parameter], gradient, rtol=1e-4, atol=1e-5, msg=parameter)


@torch.no_grad()
def test_target_queries_are_those_of_the_targets() -> None:
    model = trained("simplified")
    batch = append_next_event(random_batch([7, 2, 3]))
    torch.testing.assert_close(model.target_queries(batch), model.next_item_queries(batch)[batch.is_target])


@pytest.mark.parametrize("name", list(models()))
def test_attention_dropout_is_a_matter_of_training(name: str) -> None:
    form, encoder = name.split()
    model, batch = trained(form, encoder, attention_dropout=0.5), random_batch(LENGTHS)
    plain = trained(form, encoder)
    with torch.no_grad():
        assert torch.equal(model.encode(batch), plain.encode(batch))
        model.train()
        torch.manual_seed(1)
        first = model.encode(batch)
        assert not torch.equal(first, plain.encode(batch))
        assert not torch.equal(first, model.encode(batch))
    gradients = []
    for recompute in (False, True):
        model.encoder.recompute = recompute
        model.zero_grad()
        torch.manual_seed(1)
        states = model.encode(batch)
        assert torch.equal(states.detach(), first)
        states.square().sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)
