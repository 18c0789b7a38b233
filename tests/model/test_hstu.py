"""The HSTU encoder against a dense transcription of the formula, and as an encoder that ARGUS trains with."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor

from python_model.config import TrainConfig
from python_model.data.schema import Dataset
from python_model.evaluation.inference import ModelPredictor
from python_model.model.hstu import HstuBlock, HstuEncoder
from python_model.model.layers import Layout, next_times
from python_model.train import train
from python_model.training.checkpoint import load_model
from python_model.training.progress import read_metrics
from tests.model.conftest import SMALL, random_batch

CONFIG = replace(SMALL, encoder="hstu", max_events=20, position_buckets=20, time_buckets=129)


def normed(x: Tensor) -> Tensor:
    """LayerNorm without parameters, eps 1e-6."""
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()


def dense_block(block: HstuBlock, x: Tensor, apart: Tensor, position: Tensor, time: Tensor) -> Tensor:
    """One layer on one user, n × n scores and all; apart [n, n] seconds from each key to the event after each query."""
    n, heads = len(x), block.heads
    u, v, q, k = torch.nn.functional.silu(normed(x) @ block.gate_value_query_key.weight.T).split(x.shape[1], dim=1)
    v, q, k = (part.reshape(n, heads, block.head_width).transpose(0, 1) for part in (v, q, k))
    place = torch.arange(n)
    bucket = (apart.abs().clamp(min=1).double().log() / 0.301).long().clamp(max=128)
    bias = position[0, (place[:, None] - place).clamp(min=0)] + time[0, bucket]
    a = torch.nn.functional.silu(q @ k.transpose(1, 2) + bias) / CONFIG.max_events
    attended = (a.masked_fill(place[:, None] < place, 0.0) @ v).transpose(0, 1).reshape(x.shape)
    return (u * normed(attended)) @ block.output.weight.T + block.output.bias + x


@pytest.mark.parametrize("known_next", [True, False])
def test_the_encoder_equals_a_dense_transcription_user_by_user(known_next: bool) -> None:
    torch.manual_seed(0)
    encoder = HstuEncoder(CONFIG)
    with torch.no_grad():
        encoder.position_bias.normal_()
        encoder.time_bias.normal_()
        for block in encoder.blocks:
            assert isinstance(block, HstuBlock)
            block.output.bias.normal_()
    batch = random_batch([5, 0, 1, 9], padding=2)
    tokens = torch.randn(len(batch), CONFIG.width)
    read_at = next_times(batch.time, batch.offsets) if known_next else batch.time
    layout = Layout(batch.offsets, batch.time, batch.max_length, query_times=read_at if known_next else None)
    states = encoder(tokens, layout)
    for begin, end in pairwise(batch.offsets.tolist()):
        x, time = tokens[begin:end], batch.time[begin:end]
        after = torch.cat([time[1:], time[-1:]]) if known_next else time
        for block, position, bias in zip(encoder.blocks, encoder.position_bias, encoder.time_bias, strict=True):
            assert isinstance(block, HstuBlock)
            x = dense_block(block, x, after[:, None] - time, position, bias)
        torch.testing.assert_close(states[begin:end], encoder.norm(x), rtol=1e-4, atol=1e-5)


def test_without_the_last_norm_states_are_the_residual_stream() -> None:
    encoder = HstuEncoder(CONFIG, norm=False)
    batch, names = random_batch([4, 2]), [name for name, _ in encoder.named_parameters()]
    tokens = torch.zeros(len(batch), CONFIG.width)
    assert not any(name.startswith("norm") for name in names)
    assert torch.equal(encoder(tokens, Layout(batch.offsets, batch.time, batch.max_length)), tokens)


def test_next_times_stay_within_a_user() -> None:
    times = torch.tensor([10, 20, 35, 7, 90, 91, 5])
    offsets = torch.tensor([0, 3, 3, 4, 6], dtype=torch.int32)
    assert next_times(times, offsets).tolist() == [20, 35, 35, 7, 91, 91, 5]
    assert next_times(times[:0], offsets[:1]).tolist() == []


@pytest.mark.parametrize("form", ["simplified", "full"])
def test_argus_learns_with_it_in_both_stages(tiny_service: Dataset, tmp_path: Path, form: str) -> None:
    config = TrainConfig(
        steps=12, batch_events=256, window=16, learning_rate=5e-3, table_learning_rate=1e-2, warmup_steps=2,
        negatives_in_batch=32, negatives_uniform=32, sketch_width=256,
    )  # fmt: skip
    train("pretrain", tiny_service, tmp_path / "a", replace(CONFIG, form=form), config)
    losses = [record["loss"] for record in read_metrics(tmp_path / "a")]
    assert losses[-1] < losses[0] - 0.1
    finetune = replace(config, stage="finetune", steps=2, pretrain_weight=0.3)
    train("finetune", tiny_service, tmp_path / "b", None, finetune, init_from=tmp_path / "a")
    model = load_model(tmp_path / "b")
    assert (model.config.encoder, model.config.form) == ("hstu", form)
    found = ModelPredictor(model, tiny_service, window=16).predict(torch.arange(900, 930).numpy())
    assert found.ranking is not None and len(found.ranking) == 30
