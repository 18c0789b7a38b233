"""The samples of a GPU session: several tiles of every op, drawn where they are used; padding can hold NaN."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from argus_kernels.core import Sample
from benchmarks.gpu_session.cases import op_of, tile_samples, with_nan_padding
from benchmarks.gpu_session.plan import OPS as NAMES


def tensors_of(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, (list, tuple)):
        return [tensor for one in value for tensor in tensors_of(one)]
    return [tensor for one in getattr(value, "__dict__", {}).values() for tensor in tensors_of(one)]


READS_VALUES = ("pairwise_loss",)
"""Ops whose samples have as many rows as a drawn number says, which the meta device has none of."""


@pytest.mark.parametrize("name", [name for name in NAMES if name not in READS_VALUES])
def test_samples_are_drawn_on_the_device_and_nowhere_else(name: str) -> None:
    samples = [*tile_samples(name, rehearse=False), *(sample for sample in op_of(name).samples() if sample.gpu)]
    for sample in samples:
        with torch.device("meta"):
            arguments = sample.make(torch.Generator().manual_seed(0), torch.bfloat16)
        found = [tensor for value in arguments.values() for tensor in tensors_of(value)]
        assert found and {tensor.device.type for tensor in found} == {"meta"}, sample.name


@pytest.mark.parametrize("name", NAMES)
def test_every_op_has_several_tiles_at_every_width(name: str) -> None:
    whole, part = tile_samples(name, rehearse=False), tile_samples(name, rehearse=True)
    names = [sample.name for sample in whole]
    assert len(set(names)) == len(names) and {sample.name for sample in part} <= set(names)
    if name != "pairwise_loss":
        assert all(any(f"_{width}" in sample for sample in names) for width in (64, 128, 256))


@pytest.mark.parametrize("name", ["causal_attention", "hstu_attention"])
def test_attention_has_several_blocks_of_keys_for_every_kind_of_loop(name: str) -> None:
    """The loops of sm_90 are compiled for heads up to 64 and up to 128, two masks, with and without biases; a block of
    theirs has 128 keys."""
    found = set()
    for sample in tile_samples(name, rehearse=False):
        given = drawn(sample)
        longest, width = given.get("key_offsets", given["offsets"]).diff().max(), given["q"].shape[2]
        shared = given["k"].shape[1] != given["q"].shape[1]
        rule = not given.keys().isdisjoint(("key_offsets", "position", "own_begin", "prefix", "dropout"))
        biases = not given.keys().isdisjoint(("position_bias", "time_bias"))
        if width <= 128 and longest > 2 * 128:
            found.add((width <= 64, shared or rule, biases))
    assert len(found) == 8, found


def drawn(sample: Sample) -> dict[str, Any]:
    return sample.draw(torch.float32)


def test_padding_gets_nan_and_nothing_else_does() -> None:
    arguments = drawn(next(one for one in tile_samples("causal_attention", False) if one.name == "tiles_64_lagged"))
    used = int(arguments["offsets"][-1])
    padded = with_nan_padding(arguments)
    assert padded is not None
    assert padded["q"][used:].isnan().all() and (padded["query_time"][used:] == 2**63 - 1).all()
    for name, value in arguments.items():
        if isinstance(value, Tensor) and name != "offsets" and len(value) == len(arguments["q"]):
            assert torch.equal(padded[name][:used], value[:used])
        else:
            assert padded[name] is value
    assert with_nan_padding(drawn(tile_samples("rowwise_adagrad_", False)[0])) is None
