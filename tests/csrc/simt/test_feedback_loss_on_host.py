"""The CUDA kernels of feedback_loss, held to the error rule and to their promises on the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from argus_kernels import feedback_loss
from argus_kernels.ops.feedback_loss import OP
from tests.csrc.simt.feedback_loss_on_host import FEEDBACK_LOSS

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
NAME = FEEDBACK_LOSS.name


@pytest.fixture(autouse=True, scope="module")
def _with_backend() -> Iterator[None]:
    reason = FEEDBACK_LOSS.available()
    if reason is not None:
        pytest.skip(reason)
    before = OP.backends
    OP.backends = (*before, FEEDBACK_LOSS)
    yield
    OP.backends = before


def rows(
    count: int, width: int, classes: list[int], dtype: torch.dtype = torch.float32, **changes: Any
) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(count)
    columns = [torch.randint(-1, max(number, 2), (count,), generator=generator) for number in classes]
    return {
        "hidden": torch.randn(count, width, generator=generator).to(dtype).requires_grad_(),
        "weight": torch.randn(width, sum(classes), generator=generator).to(dtype).requires_grad_(),
        "bias": torch.randn(sum(classes), generator=generator).to(dtype).requires_grad_(),
        "targets": torch.stack(columns, 1),
        "classes": classes,
        "row_weight": torch.arange(float(count)) % 3,
        **changes,
    }


def results(arguments: dict[str, Any], backend: str) -> list[Tensor]:
    loss = feedback_loss(**arguments, backend=backend)
    leaves = [arguments[name] for name in ("hidden", "weight", "bias")]
    return [loss, *torch.autograd.grad(loss.sum(), leaves)]


def assert_equals_reference(arguments: dict[str, Any]) -> None:
    for ours, theirs in zip(results(arguments, NAME), results(arguments, "reference"), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("classes", [[1, 1, 1, 8], [12], [1, 20, 5]], ids=str)
def test_several_tiles_and_groups_of_columns(classes: list[int]) -> None:
    assert_equals_reference(rows(150, 45, classes))


def test_more_columns_of_hidden_than_threads() -> None:
    assert_equals_reference(rows(5, 300, [2, 1]))


def test_more_tiles_than_blocks() -> None:
    """A block adds the gradients of several tiles."""
    assert_equals_reference(rows(64 * 528 + 70, 2, [1]))


def test_same_bits_in_every_order_of_the_threads() -> None:
    arguments = rows(130, 20, [1, 3], torch.bfloat16)
    first = results(arguments, NAME)
    assert all(torch.equal(one, other) for one, other in zip(results(arguments, NAME), first, strict=True))


def test_rows_that_count_for_nothing_may_hold_anything() -> None:
    clean = rows(70, 6, [1, 3], task_weight=torch.tensor([0.5, 2.0]))
    dirty = {**clean, "hidden": clean["hidden"].detach().clone()}
    dirty["hidden"][::3] = torch.nan
    dirty["hidden"].requires_grad_()
    one, other = results(clean, NAME), results(dirty, NAME)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(one, other, strict=True))
    assert not other[1][::3].count_nonzero()


def test_inputs_that_cuda_refuses_are_refused() -> None:
    with pytest.raises(ValueError, match=r"weight has 130 columns, expected at most 128"):
        feedback_loss(**rows(3, 2, [130]), backend=NAME)
    with pytest.raises(ValueError, match=r"classes has 33 tasks, expected at most 32"):
        feedback_loss(**rows(3, 2, [1] * 33), backend=NAME)
    with pytest.raises(ValueError, match=r"feedback_loss\[cuda_on_host\]: hidden is float64"):
        feedback_loss(**rows(3, 2, [1], torch.float64), backend=NAME)
