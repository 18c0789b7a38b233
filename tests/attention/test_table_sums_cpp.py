"""Gradients of bias tables on the CPU add up: over a table's buckets to the sum of the queries' d_log_sum_exp.

A query's weights sum to 1, so its score gradients sum to its d_log_sum_exp, and each of its pairs is in one bucket of
each table. Where nearly all pairs share a bucket the true gradient cancels, and rounding must not take its place.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from argus_kernels import causal_attention
from argus_kernels.attention.samples import HistoryCase
from argus_kernels.core import native
from argus_kernels.testing import Comparison, compare
from tests.attention.test_mask_rule import cases
from tests.drawn_examples import examples

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
ONE_BUCKET = HistoryCase("one_bucket", (90, 0, 200, 3), width=16, padding=2, position_buckets=1, time_buckets=1)
FEW_BUCKETS = replace(ONE_BUCKET, name="few_buckets", position_buckets=2, time_buckets=40)
TABLES = ("position_bias", "time_bias")


@pytest.fixture(autouse=True)
def _library() -> None:
    reason = native.why_not("cpu")
    if reason is not None:
        pytest.skip(reason)


@given(case=cases(), seed=st.integers(0, 2**20), dtype=st.sampled_from(DTYPES))
@settings(deadline=None, max_examples=examples(25))
def test_a_tables_gradient_adds_up(case: HistoryCase, seed: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(seed)
    arguments = case.make(generator, dtype)
    leaves = [arguments[name].float().requires_grad_() for name in TABLES if name in arguments]
    if not leaves:
        return
    arguments |= dict(zip((name for name in TABLES if name in arguments), leaves, strict=True))
    out, log_sum_exp = causal_attention(**arguments, return_log_sum_exp=True, backend="cpp")
    above = torch.randn(out.shape, generator=generator).to(dtype)
    of_statistic = torch.randn(log_sum_exp.shape, generator=generator)
    gradients = torch.autograd.grad((out, log_sum_exp), leaves, (above, of_statistic))
    seeing = log_sum_exp.isfinite() & (torch.arange(len(out)) < arguments["offsets"][-1])
    expected = (of_statistic * seeing).double().sum(1)
    for gradient in gradients:
        rounding = 1e-6 * (1 + gradient.abs().double().sum(1) + of_statistic.abs().double().sum(1))
        assert bool(((gradient.double().sum(1) - expected).abs() <= rounding).all())


def verdicts(case: HistoryCase, dtype: torch.dtype, changed: Callable[[dict[str, Tensor]], None]) -> list[Comparison]:
    """The error rule on the gradients of both tables, four draws pooled."""
    found: dict[tuple[str, str], list[Tensor]] = {}
    for seed in range(4):
        generator = torch.Generator().manual_seed(seed)
        arguments = case.make(generator, dtype)
        changed(arguments)
        above = torch.randn(arguments["q"].shape, generator=generator).to(dtype)
        for backend, kind in (("cpp", dtype), ("eager", dtype), ("eager", torch.float64)):
            cast: dict[str, Any] = {
                name: value.to(kind) if isinstance(value, Tensor) and value.is_floating_point() else value
                for name, value in arguments.items()
            }
            leaves = [cast[name].requires_grad_() for name in TABLES]
            out = causal_attention(**cast, backend=backend)
            role = backend if kind == dtype else "truth"
            for name, one in zip(TABLES, torch.autograd.grad(out, leaves, above.to(kind)), strict=True):
                found.setdefault((name, role), []).append(one)
    return [compare(name, found[name, "cpp"], found[name, "truth"], found[name, "eager"]) for name in TABLES]


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_bucket(dtype: torch.dtype) -> None:
    """The true gradients are 0; sums of rounded score gradients came to 0.11 in bfloat16."""
    for verdict in verdicts(ONE_BUCKET, dtype, lambda arguments: None):
        assert verdict.passed, verdict.sentence


@pytest.mark.parametrize("alone", [90, 150])
@pytest.mark.parametrize("dtype", DTYPES)
def test_nearly_all_pairs_in_one_bucket(dtype: torch.dtype, alone: int) -> None:
    """All events at one time but one, the first of the long user or one in their middle."""

    def together(arguments: dict[str, Tensor]) -> None:
        for name in ("query_time", "key_time"):
            arguments[name] = torch.where(torch.arange(len(arguments[name])) == alone, 10**6, 0)

    for verdict in verdicts(FEW_BUCKETS, dtype, together):
        assert verdict.passed, verdict.sentence
