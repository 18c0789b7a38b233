"""The compiled kernels where an input is infinite: the infinities and NaN of the reference in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from argus_kernels import sampled_softmax_loss, triple_embedding
from argus_kernels.core import native

pytestmark = pytest.mark.skipif(native.why_not("cpu") is not None, reason=str(native.why_not("cpu")))

INFINITY = float("inf")


def same_classes(found: Tensor, expected: Tensor) -> bool:
    """Whether NaN, +∞, −∞ and finite numbers stand at the same elements."""
    classes = (torch.isnan, torch.isposinf, torch.isneginf)
    return all(torch.equal(is_one(found.to_dense()), is_one(expected.to_dense())) for is_one in classes)


def softmax_results(backend: str, dtype: torch.dtype, value: float, **options: Any) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    query, positive, candidates = (
        torch.rand(rows, 8, generator=generator, dtype=torch.float64) + 0.1 for rows in (6, 6, 700)
    )
    candidates[600, 2] = value
    query[1, 2] *= -1.0
    ids = torch.arange(700)
    ids[600] = 10_003  # the positive of row 3, which leaves it out
    scale = torch.tensor(2.0, dtype=torch.float64)
    leaves = [tensor.to(dtype).requires_grad_() for tensor in (query, positive, candidates, scale)]
    others: dict[str, Any] = {
        name: option.to(dtype) if isinstance(option, Tensor) else option for name, option in options.items()
    }
    loss, lse = sampled_softmax_loss(
        leaves[0],
        leaves[1],
        leaves[2],
        torch.arange(10_000, 10_006),
        ids,
        torch.full((700,), -3.0, dtype=dtype),
        scale=leaves[3],
        backend=backend,
        **others,
    )
    gradients = torch.autograd.grad(loss.sum() + 0.5 * lse.sum(), leaves)
    return [loss.detach(), lse.detach(), *gradients]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("refined", [False, True])
@pytest.mark.parametrize("value", [INFINITY, -INFINITY])
def test_an_infinite_score_gives_the_loss_and_the_gradients_of_the_definition(
    dtype: torch.dtype, refined: bool, value: float
) -> None:
    options: dict[str, Any] = {"positive_log_q": torch.full((6,), -4.0)}
    if refined:
        options["form"] = "refined"
    expected = softmax_results("reference", torch.float64, value, **options)
    found = softmax_results("cpp", dtype, value, **options)
    assert bool(expected[0].isposinf().any()), "some row has a score of +∞"
    assert bool(expected[0].isfinite().any()), "and some row has none"
    for name, ours, theirs in zip(
        ("loss", "lse", "d_query", "d_positive", "d_candidates", "d_scale"), found, expected, strict=True
    ):
        assert same_classes(ours, theirs), name


@pytest.mark.parametrize("events", [3, 64])
def test_a_missing_id_times_an_infinite_weight_is_nan_whatever_the_size_of_the_table(events: int) -> None:
    # 2 rows for 3 events are gathered, for 64 projected beforehand.
    ids = torch.zeros(1, events, dtype=torch.int64)
    ids[0, 1] = -1
    table, weight = torch.ones(2, 16), torch.ones(16, 16)
    weight[4, 5] = INFINITY
    found = triple_embedding(ids, [table], [0], weight, backend="cpp")
    expected = triple_embedding(ids, [table.double()], [0], weight.double(), backend="reference")
    assert bool(expected[1, 5].isnan())
    assert same_classes(found, expected)
