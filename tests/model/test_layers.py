"""The layers: what a state may know, where it is picked from, and the encoder against a plain dense one."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention

from argus_kernels.attention.relative_bias import time_buckets
from python_model.model.layers import (
    Block,
    Encoder,
    Layout,
    Tables,
    TripleEmbedding,
    events_before,
    states_after,
)
from tests.model.conftest import SMALL, random_batch


def slow_events_before(times: Tensor, offsets: Tensor, lag: int) -> list[int]:
    """The definition: count, event by event."""
    out = [0] * len(times)
    for begin, end in pairwise(offsets.tolist()):
        for i in range(begin, end):
            out[i] = sum(1 for j in range(begin, i) if times[j] <= times[i] - lag)
    return out


@given(
    gaps=st.lists(st.lists(st.integers(0, 4), max_size=8), max_size=4),
    lag=st.integers(0, 9),
    padding=st.lists(st.integers(-(10**9), 10**9), max_size=3),
)
def test_events_before_counts_what_is_old_enough(gaps: list[list[int]], lag: int, padding: list[int]) -> None:
    users = [torch.tensor(user, dtype=torch.int64).cumsum(0) + 100 for user in gaps]
    times = torch.cat([*users, torch.tensor(padding, dtype=torch.int64)])
    offsets = torch.tensor([0, *(len(user) for user in gaps)]).cumsum(0).int()
    assert events_before(times, offsets, lag).tolist() == slow_events_before(times, offsets, lag)


def test_without_a_lag_every_earlier_event_counts() -> None:
    batch = random_batch([3, 0, 1, 2], padding=2)
    assert events_before(batch.time, batch.offsets, None).tolist() == [0, 1, 2, 0, 0, 1, 0, 0]


def test_states_after_picks_the_state_that_was_left_behind() -> None:
    states = torch.arange(1.0, 7.0)[:, None]
    offsets = torch.tensor([0, 3, 3, 5], dtype=torch.int32)
    seen = torch.tensor([0, 1, 2, 0, 1, 0])
    start = torch.tensor([-1.0])
    assert states_after(states, start, offsets, seen)[:, 0].tolist() == [-1, 1, 2, -1, 4, -1]


def test_triple_embedding_is_concatenation_and_projection() -> None:
    tables = Tables({"item": (5, 4), "hour": (3, 2)})
    layer = TripleEmbedding(tables, ["hour", "item", "item"], 6)
    ids = torch.tensor([[0, -1, 2], [4, 3, -1], [1, -1, 0]])
    rows = [
        torch.where(column[:, None] >= 0, tables[name][column.clamp(min=0)], 0.0)
        for name, column in zip(["hour", "item", "item"], ids, strict=True)
    ]
    torch.testing.assert_close(layer(tables, ids), torch.cat(rows, 1) @ layer.weight + layer.bias)


def dense_block(block: Block, x: Tensor, times: Tensor, position_bias: Tensor, time_bias: Tensor) -> Tensor:
    """A block on one user, with torch's own attention and an explicit [n, n] bias."""
    n = len(x)
    qkv = block.query_key_value(block.attention_norm(x)).view(n, 3, block.heads, block.head_width)
    q, k, v = (part.transpose(0, 1) for part in qkv.unbind(1))
    place = torch.arange(n)
    apart = (place[:, None] - place).clamp(0, position_bias.shape[1] - 1)
    bias = position_bias[:, apart] + time_bias[:, time_buckets(times[:, None] - times, time_bias.shape[1])]
    bias = bias.masked_fill(place[:, None] < place, float("-inf"))
    attended = scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(0, 1).reshape(x.shape)
    x = x + block.output(attended)
    return x + block.down(gelu(block.up(block.feed_norm(x))))


def test_the_encoder_equals_a_dense_one_user_by_user() -> None:
    encoder = Encoder(SMALL)
    with torch.no_grad():
        encoder.position_bias.normal_()
        encoder.time_bias.normal_()
    batch = random_batch([5, 0, 1, 9])
    tokens = torch.randn(len(batch), SMALL.width)
    states = encoder(tokens, Layout(batch.offsets, batch.time, batch.max_length))
    for begin, end in pairwise(batch.offsets.tolist()):
        x = tokens[begin:end]
        for block, position_bias, time_bias in zip(
            encoder.blocks, encoder.position_bias, encoder.time_bias, strict=True
        ):
            assert isinstance(block, Block)
            x = dense_block(block, x, batch.time[begin:end], position_bias, time_bias)
        torch.testing.assert_close(states[begin:end], encoder.norm(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("lengths", [[], [0], [0, 0, 1]])
def test_the_encoder_takes_batches_with_nothing_in_them(lengths: list[int]) -> None:
    batch = random_batch(lengths)
    encoder = Encoder(SMALL)
    states = encoder(torch.randn(len(batch), SMALL.width), Layout(batch.offsets, batch.time, batch.max_length))
    states.sum().backward()
    assert states.shape == (sum(lengths), SMALL.width)


@pytest.mark.parametrize("heads", [2, 8])
@pytest.mark.parametrize("logit", [0.0, 5.0])
def test_queries_and_keys_that_begin_alike(logit: float, heads: int) -> None:
    torch.manual_seed(0)
    block = Block(replace(SMALL, width=64, heads=heads, mimetic_logit=logit))
    q, k, _ = block.before(torch.randn(4000, 64), None)
    logits = torch.einsum("thd,shd->hts", q, k) / (64 // heads) ** 0.5
    own = logits.diagonal(dim1=1, dim2=2)
    # The mean over draws of the weights is exact, that of one draw spreads like 1 / sqrt(width * heads).
    assert own.mean().item() == pytest.approx(logit, abs=0.1 * logit if logit else 0.2)
    if logit:
        assert torch.equal(block.query_key_value.weight[:64], block.query_key_value.weight[64:128])
        # Tokens that differ are as far from each other as from nothing.
        assert abs(logits.mean().item()) < 0.05
        assert (own > logits[:, 0, 1:].std()).float().mean() > 0.9


def test_independent_projections_draw_what_they_did() -> None:
    """Weights of a seed are those of before there was a choice."""
    torch.manual_seed(3)
    block = Block(SMALL)
    torch.manual_seed(3)
    assert torch.equal(nn.Linear(SMALL.width, 3 * SMALL.width).weight, block.query_key_value.weight)
