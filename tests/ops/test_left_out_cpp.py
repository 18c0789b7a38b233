"""A candidate that a row leaves out reaches nothing of that row, whatever it holds, nor the row the candidate."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from argus_kernels import sampled_softmax_loss
from argus_kernels.core import native

ROWS, DRAWN, WIDTH = 100, 600, 8
HITS = (3, 550)
"""Candidates that carry the id of row 7's positive; row 7 alone leaves them out."""


@pytest.fixture(autouse=True)
def _library() -> None:
    reason = native.why_not("cpu")
    if reason is not None:
        pytest.skip(reason)


def gradients(dtype: torch.dtype, form: str, broken: dict[str, int], weight: Tensor) -> list[Tensor]:
    """Loss and the gradients of query, positive and candidates, row `broken[name]` of an argument being NaN."""
    generator = torch.Generator().manual_seed(0)
    sizes = {"query": ROWS, "positive": ROWS, "candidates": DRAWN}
    leaves = {name: torch.randn(size, WIDTH, generator=generator).to(dtype) for name, size in sizes.items()}
    for name, row in broken.items():
        leaves[name][row] = float("nan")
    leaves = {name: value.requires_grad_() for name, value in leaves.items()}
    ids = torch.arange(DRAWN) + 1000
    ids[list(HITS)] = 7
    wide = torch.promote_types(dtype, torch.float32)
    loss, *_ = sampled_softmax_loss(
        leaves["query"], leaves["positive"], leaves["candidates"], torch.arange(ROWS), ids,
        torch.zeros(DRAWN, dtype=wide), positive_log_q=torch.full((ROWS,), -1.0, dtype=wide),
        row_weight=weight.to(wide), form=form, backend="cpp",
    )  # fmt: skip
    return [loss.detach(), *torch.autograd.grad(loss.sum(), list(leaves.values()))]


def broken_rows(result: Tensor) -> list[int]:
    return (~result.isfinite()).reshape(len(result), -1).any(1).nonzero().flatten().tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("form", ["standard", "refined"])
def test_a_left_out_candidate_reaches_nothing(dtype: torch.dtype, form: str) -> None:
    alone = torch.zeros(ROWS)
    alone[7] = 1.0
    clean = gradients(dtype, form, {}, alone)
    found = gradients(dtype, form, {"candidates": HITS[1]}, alone)
    for left, right in zip(found, clean, strict=True):
        assert broken_rows(left) == []
        torch.testing.assert_close(left, right, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("form", ["standard", "refined"])
def test_a_row_reaches_only_the_candidates_that_it_sees(dtype: torch.dtype, form: str) -> None:
    found = gradients(dtype, form, {"query": 7}, torch.ones(ROWS))
    assert broken_rows(found[0]) == broken_rows(found[1]) == broken_rows(found[2]) == [7]
    assert broken_rows(found[3]) == [row for row in range(DRAWN) if row not in HITS]
