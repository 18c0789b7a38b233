"""The Triton kernels of rowwise_adagrad_ on rows repeated often: runs that fill chunks, end and begin in them."""

from __future__ import annotations

import os
import random
from typing import Any

import pytest
import torch
from torch import Tensor

from argus_kernels import rowwise_adagrad_
from argus_kernels.core.triton_support import available
from argus_kernels.testing import require_close

pytestmark = pytest.mark.skipif(available() is not None, reason=str(available()))
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SCALE = int(os.environ.get("ARGUS_FUZZ_SCALE", "1"))


def drawn(counts: list[int], width: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> dict[str, Any]:
    """Row r − 1 is repeated counts[r] times; counts[0] entries are skipped. In a drawn order."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.repeat_interleave(torch.arange(len(counts)) - 1, torch.tensor(counts))
    rows = rows[torch.randperm(rows.shape[0], generator=generator)]
    gradients = torch.randn(rows.shape[0], width, generator=generator).to(dtype)
    # What stands beside a skipped row reaches nothing.
    gradients[rows < 0] = float("nan")
    table = torch.randn(max(len(counts) - 1, 1), width, generator=generator).to(dtype)
    return {
        "table": table,
        "state": torch.rand(table.shape[0], generator=generator),
        "rows": rows,
        "row_gradients": gradients,
        "lr": 0.1,
        "weight_decay": 0.01,
    }


def updated(backend: str, arguments: dict[str, Any], dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """Table and state after the step; `dtype` computes in another."""
    given: dict[str, Any] = {
        name: value.to(DEVICE, dtype if value.is_floating_point() else None) if isinstance(value, Tensor) else value
        for name, value in arguments.items()
    }
    copies: dict[str, Tensor] = {name: given[name].clone() for name in ("table", "state")}
    rowwise_adagrad_(**{**given, **copies}, backend=backend)
    return copies


def check(counts: list[int], width: int, dtype: torch.dtype = torch.float32, seeds: int = 1) -> None:
    """By the error rule against float64, draws pooled."""
    ours, truth, theirs = [], [], []
    for seed in range(seeds):
        arguments = drawn(counts, width, dtype, seed)
        ours.append(updated("triton", arguments))
        truth.append(updated("reference", arguments, torch.float64))
        theirs.append(updated("reference", arguments))
    for name in ours[0]:
        require_close(f"{name}, counts {counts}", *([one[name] for one in of] for of in (ours, truth, theirs)))


@pytest.mark.parametrize(
    "counts",
    [[0, 31], [0, 32], [0, 33], [0, 63, 1], [0, 64], [5, 62, 31, 65], [32, 1, 95], [40, 7, 32, 32, 3], [1, 130, 1, 64]],
    ids=str,
)
def test_runs_at_the_edges_of_chunks(counts: list[int]) -> None:
    # Several rows of each kind, each at another place in its chunk: no lucky scalar decides.
    check([counts[0], *5 * counts[1:]], 5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_row_of_many_pieces(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two pieces at a time: several steps of the last kernel."""
    from argus_kernels.ops.rowwise_adagrad import triton_kernels

    monkeypatch.setattr(triton_kernels, "PIECE_ELEMENTS", 8)
    check([3, 230, 9, 70], 4, dtype, seeds=3)


@pytest.mark.skipif(SCALE < 2, reason="minutes in the interpreter; set ARGUS_FUZZ_SCALE to 2")
def test_a_row_repeated_50000_times() -> None:
    check([0, 50_000], 4)


def test_it_repeats_bit_for_bit() -> None:
    arguments = drawn([2, 100, 5, 40], 3)
    first, second = updated("triton", arguments), updated("triton", arguments)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_wide_row_of_several_pieces() -> None:
    """One piece at a time: 4,096 columns fill a program."""
    check([0, 100], 4096)


def test_drawn_runs() -> None:
    draw = random.Random(1)
    for _ in range(4 * SCALE):
        counts = [draw.choice([0, 1, 31, 32, 33, 64, draw.randrange(80)]) for _ in range(draw.randrange(4, 9))]
        check(counts, draw.choice([3, 8]), seeds=3)
