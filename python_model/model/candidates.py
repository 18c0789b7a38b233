"""Many candidates scored against stored histories in one pass, as M-FALCON does (arXiv 2402.17152).

A candidate sees its user's whole history, the context of the request and itself, and no other candidate; all of them
stand right behind the history, so that a score depends neither on a candidate's place in the list nor on the others in
it. It equals that of the model over the history with this one event appended.

In the full form every candidate is a token whose state is computed against the stored keys and values of every layer.
In the simplified form the heads read the candidate beside the state of the history, so that nothing but that state is
stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from argus_kernels import Offsets
from argus_kernels.attention.relative_bias import time_buckets
from argus_kernels.core.varlen import user_of_row
from python_model.data.batches import JaggedBatch
from python_model.model.layers import History, Layout, Rows

Argus: TypeAlias = Any
"""The model of `python_model.model.argus`, which imports this module."""

TOKENS = 3
"""Of an event in the full form: context, item, feedback."""


@dataclass(frozen=True)
class StoredHistories:
    """The encoded histories of B users.

    offsets int64 [B + 1] of their events; newest int64 [B]: time of each user's last event, 0 without any. states [B,
    d] after the last event (simplified form; the start state without events), or, in the full form, times int64 [3T] of
    the tokens and every layer's keys and values [3T, H, Dh]. lagged: they were encoded with a lag, under which all
    tokens of a request stand at one place.
    """

    offsets: Tensor
    newest: Tensor
    states: Tensor | None = None
    times: Tensor | None = None
    keys: Sequence[Tensor] = field(default_factory=list)
    values: Sequence[Tensor] = field(default_factory=list)
    lagged: bool = False

    @property
    def users(self) -> int:
        """B."""
        return len(self.newest)


@dataclass(frozen=True)
class Candidates:
    """The requests of B users: user b asks for items[offsets[b] : offsets[b + 1]], int64 [N], offsets int32 [B + 1].

    time int64 [B] seconds. Of the request, −1 where missing: organic [B], bool or int64 0 and 1, context int64 [C, B].
    """

    items: Tensor
    offsets: Tensor
    time: Tensor
    organic: Tensor
    context: Tensor


def store(model: Argus, batch: JaggedBatch, kind: str, lag: int | None) -> StoredHistories:
    """Encodes histories for `score`; ValueError for HSTU in the simplified form, whose states are not final."""
    starts, ends = batch.offsets[:-1].long(), batch.offsets[1:].long()
    full = ends > starts
    last = (ends - 1).clamp(min=0)
    newest = torch.where(full, batch.time[last], 0) if len(batch) else torch.zeros_like(ends)
    if model.config.form == "full":
        kept: list[tuple[Tensor, Tensor]] = []
        layout, tokens = model.full_tokens(batch, lag)
        if lag is not None:
            layout = model.lagged(layout, batch, lag, kind == "feedback")
        model.encoder(tokens, replace(layout, rows=no_rows(batch.offsets), kept=kept))
        keys, values = zip(*kept, strict=True)
        return StoredHistories(batch.offsets.long(), newest, None, layout.times, keys, values, lag is not None)
    if not model.shares_states:
        raise ValueError(
            f"score_candidates: the model's encoder is {model.config.encoder!r} in the simplified form, expected "
            "'transformer' or the full form: a state of HSTU counts time from the event after it"
        )
    read = torch.zeros(len(batch), dtype=torch.bool, device=last.device)
    read[last[full]] = True
    states = torch.cat([model.start[None], model.encode(batch, read=read)])
    return StoredHistories(batch.offsets.long(), newest, states.index_select(0, torch.where(full, last + 1, 0)))


def score(model: Argus, histories: StoredHistories, given: Candidates, kind: str) -> Tensor:
    """Scores [N] of the candidates; kind: as of `Argus.ranking_scores`."""
    _require_requests(model, histories, given)
    lengths = histories.offsets[1:] - histories.offsets[:-1]
    gap = time_buckets(given.time - histories.newest, model.config.time_buckets)
    context = torch.cat([given.organic.long()[None], torch.where(lengths > 0, gap, -1)[None], given.context])
    owner = user_of_row(given.offsets, len(given.items))
    if histories.states is None:
        of_user, of_candidate = _full_readings(model, histories, given, context, owner)
    else:
        of_user = torch.cat([histories.states, model.context_embedding(model.tables, context)], -1)
        item = model.item_embedding(model.tables, model.item_ids(given.items))
        of_candidate = torch.cat([of_user.index_select(0, owner), item], -1)
    if kind == "feedback":
        return model.expected_feedback(of_candidate)
    return (model.vectors_for(of_user, kind).index_select(0, owner) * model.item_vectors(given.items)).sum(-1)


def _full_readings(
    model: Argus, histories: StoredHistories, given: Candidates, context: Tensor, owner: Tensor
) -> tuple[Tensor, Tensor]:
    """The states at the context token of every user [B, d] and at every candidate's item token [N, d]."""
    assert histories.times is not None
    device, users, count = owner.device, histories.users, len(given.items)
    candidate = torch.arange(count, device=device) + owner + 1
    heads = given.offsets[:-1].long() + torch.arange(users, device=device)
    tokens = torch.cat(
        [
            model.context_embedding(model.tables, context),
            model.item_embedding(model.tables, model.item_ids(given.items)),
        ]
    )
    order = torch.cat([heads, candidate])
    tokens = torch.empty_like(tokens).index_copy(0, order, tokens)
    offsets = given.offsets.long() + torch.arange(users + 1, device=device)
    user = user_of_row(offsets, users + count)
    stored = TOKENS * histories.offsets
    before = (stored[1:] - stored[:-1])[user]
    limit = before + (torch.arange(users + count, device=device) > heads[user])
    times = given.time[user]
    key_offsets, place = _interleaved(stored, offsets)
    longest = int((key_offsets[1:] - key_offsets[:-1]).max()) if users else 0
    history = History(
        place, key_offsets.int(), longest, torch.cat([histories.times, times]).index_select(0, place), limit.int(),
        (before if histories.lagged else limit).int(), histories.keys, histories.values,
    )  # fmt: skip
    widest = int((offsets[1:] - offsets[:-1]).max()) if users else 0
    layout = Layout(Offsets(offsets, rows=users + count, max_length=widest), times, widest, history=history)
    states = model.encoder(tokens, layout)
    return states.index_select(0, heads), states.index_select(0, candidate)


def _interleaved(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Offsets int64 [B + 1] of users that have rows of two packed tensors, and their places in the concatenation."""
    both = first + second
    total = int(both[-1])
    user = user_of_row(both, total)
    place = torch.arange(total, device=both.device) - both[user]
    counts = (first[1:] - first[:-1])[user]
    return both, torch.where(place < counts, first[user] + place, first[-1] + second[user] + place - counts)


def _require_requests(model: Argus, histories: StoredHistories, given: Candidates) -> None:
    users = histories.users
    shapes = {
        "offsets": (given.offsets, (users + 1,)), "time": (given.time, (users,)), "organic": (given.organic, (users,)),
        "context": (given.context, (len(model.features.context), users)),
    }  # fmt: skip
    for name, (tensor, shape) in shapes.items():
        if tuple(tensor.shape) != shape:
            raise ValueError(
                f"score_candidates: {name} has shape {list(tensor.shape)}, expected {list(shape)} for {users} histories"
            )
    if int(given.offsets[0]) != 0 or int(given.offsets[-1]) != len(given.items):
        raise ValueError(
            f"score_candidates: offsets go from {int(given.offsets[0])} to {int(given.offsets[-1])}, expected 0 to the "
            f"{len(given.items)} items given"
        )
    if len(given.items) and not (int(given.items.min()) >= -1 and int(given.items.max()) < model.features.items):
        raise ValueError(
            f"score_candidates: items go from {int(given.items.min())} to {int(given.items.max())}, expected -1 to "
            f"{model.features.items - 1}"
        )
    longest = int((histories.offsets[1:] - histories.offsets[:-1]).max()) if users else 0
    if longest >= model.config.max_events:
        raise ValueError(
            f"score_candidates: a history of {longest} events, expected at most max_events - 1 = "
            f"{model.config.max_events - 1}: the candidate is one more"
        )


def no_rows(offsets: Tensor) -> Rows:
    """No token at all: of the last layer only keys and values are wanted."""
    return Rows(offsets.new_zeros(0, dtype=torch.int64), torch.zeros_like(offsets), offsets.new_zeros(0))
