"""NaN and infinities in single entries of every floating argument: where they may spread, and that they stop there.

Truth is the reference in float64, in which a pair that the mask hides adds nothing whatever it holds. A result must be
finite where the truth is, and near it there. What a kernel may do beyond that is listed in `compared`.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from argus_kernels import OPS, PagedCache
from argus_kernels.core import Op, Sample
from argus_kernels.testing import captured_arguments, run_op, small_samples
from argus_kernels.testing.harness import draw

NAN, INFINITY = float("nan"), float("inf")

CASES = [
    pytest.param(
        op, backend.name, sample, id=f"{op.name}-{backend.name}-{sample.name}",
        marks=[pytest.mark.slow] * (backend.name != "cpp" and 0 < place < len(small_samples(op)) - 1),
    )
    for op in OPS
    for backend in op.backends
    for place, sample in enumerate(small_samples(op)[:1] if backend.name == "triton" else small_samples(op))
]  # fmt: skip
"""`make test` gives `cpp` every sample, the other backends the first and the last one of an op."""


def floating(arguments: dict[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """Every floating tensor among the arguments that has an element."""
    for name, value in arguments.items():
        parts = {name: value}
        if isinstance(value, list):
            parts = {f"{name}[{index}]": one for index, one in enumerate(value)}
        elif isinstance(value, PagedCache):
            parts = {"key_pages": value.key_pages, "value_pages": value.value_pages}
        for part, tensor in parts.items():
            if isinstance(tensor, Tensor) and tensor.is_floating_point() and tensor.numel():
                yield part, tensor


def planted(sample: Sample, place: int, element: int, value: float, exact: bool) -> dict[str, Any]:
    arguments = draw(sample, torch.float32, 0, exact=exact)
    list(floating(arguments))[place][1].view(-1)[element] = value
    return arguments


def outcome(op: Op, sample: Sample, arguments: dict[str, Any], backend: str) -> dict[str, Tensor] | str:
    """The results, or the sentence with which the values are refused."""
    try:
        return run_op(op, sample, arguments, backend).results
    except ValueError as error:
        return str(error)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize(("op", "backend", "sample"), CASES)
def test_what_is_not_finite_reaches_only_what_it_may(op: Op, backend: str, sample: Sample) -> None:
    require_what_float64_gives(op, backend, sample)


def require_what_float64_gives(op: Op, backend: str, sample: Sample) -> None:
    """Plants every value into an element drawn of every floating argument."""
    plain = draw(sample, torch.float32, 0)
    reasons = op.backend(backend).reasons(captured_arguments(op, plain))
    if reasons:
        pytest.skip("; ".join(reasons))
    drawn = random.Random(f"{op.name} {sample.name}")
    values = (NAN, -INFINITY) if backend == "triton" else (NAN, INFINITY, -INFINITY)
    for place, (name, tensor) in enumerate(floating(plain)):
        element = drawn.randrange(tensor.numel())
        row = element // max(tensor[0].numel(), 1) if tensor.dim() else 0
        for value in values:
            about = f"{op.name}[{backend}] {sample.name}: {name}.view(-1)[{element}] = {value}"
            truth = outcome(op, sample, planted(sample, place, element, value, True), "reference")
            found = outcome(op, sample, planted(sample, place, element, value, False), backend)
            if isinstance(truth, str) or isinstance(found, str):
                assert truth == found, about
                continue
            for result, expected in truth.items():
                mask = compared(op.name, name, row, result, expected)
                assert_alike(found[result], expected, mask, f"{about}: {result}")


def assert_alike(found: Tensor, expected: Tensor, mask: Tensor, about: str) -> None:
    """Finite at the same elements under `mask`, and near there."""
    mask = mask.expand(expected.shape)
    finite = expected.isfinite()
    assert torch.equal(found.isfinite() & mask, finite & mask), about
    close = finite & mask
    largest = float(expected[close].abs().max()) if bool(close.any()) else 0.0
    error = (found[close].double() - expected[close].double()).abs()
    assert not error.numel() or float(error.max()) <= 2e-5 * max(largest, 1.0), f"{about}: off by {float(error.max())}"


def compared(op: str, name: str, row: int, result: str, expected: Tensor) -> Tensor:
    """Which elements of a result have to agree, bool, to be broadcast to it."""
    if op != "sampled_softmax_loss" or name not in ("query", "positive"):
        return torch.tensor(True)
    if result == "d_scale":
        # A share of 0 times a score of −∞ is NaN, or nothing where the kernel does not multiply.
        return torch.tensor(False)
    return other_rows(row, result, expected)


def other_rows(row: int, result: str, expected: Tensor) -> Tensor:
    """Losses and gradients in query and positive of all rows but the one that holds it.

    A row whose every candidate is left out may lose its NaN or not: its scores drop out of the loss.
    """
    if result not in ("output 0", "output 1", "d_query", "d_positive") or expected.dim() == 0:
        return torch.tensor(False)
    others = torch.arange(expected.shape[0]) != row
    return others.view(-1, *([1] * (expected.dim() - 1)))
