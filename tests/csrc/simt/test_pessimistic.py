"""The error rule where tensor cores cut off what they add and approximations are as far off as they may be.

No manual says how tensor cores add or which way an approximation errs. Here every product and exponential errs
as far as it may (csrc/simt/arithmetic.h): what satisfies the error rule all the same does not rest on the executor.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from argus_kernels.attention.samples import HistoryCase
from argus_kernels.core import Op, Sample
from argus_kernels.ops.causal_attention import OP as CAUSAL
from argus_kernels.ops.decode_attention import OP as DECODE
from argus_kernels.ops.hstu_attention import OP as HSTU
from argus_kernels.ops.sampled_softmax_loss import OP as SOFTMAX
from argus_kernels.ops.triple_embedding import OP as EMBEDDING
from argus_kernels.testing import compare, run_op, small_samples
from argus_kernels.testing.harness import draw
from tests.csrc.simt import (
    attention_on_host,
    decode_attention_on_host,
    host_executor,
    sampled_softmax_loss_on_host,
    triple_embedding_on_host,
)
from tests.csrc.simt.test_attention_on_host import sample as attention_sample
from tests.ops import softmax_draws

NAME = host_executor.BACKEND
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
BACKENDS = {
    CAUSAL: attention_on_host.CAUSAL_ATTENTION,
    HSTU: attention_on_host.HSTU_ATTENTION,
    DECODE: decode_attention_on_host.DECODE_ATTENTION,
    SOFTMAX: sampled_softmax_loss_on_host.BACKEND,
    EMBEDDING: triple_embedding_on_host.BACKEND,
}
BEYOND = {("causal_attention", "output 1"): 1.25}
"""Where the rule does not hold, and how much more is allowed: the log-sum-exp stays in float32, beside which the bits
cut off from a product of 128 terms show (rms error 1.15 times what the rule allows)."""
CASES = (
    HistoryCase("jagged", (0, 37, 1, 130), width=64, padding=3, position_buckets=9, time_buckets=50),
    HistoryCase("lagged", (150, 33), width=128, heads=1, mask="lagged"),
)


@pytest.fixture(autouse=True)
def _pessimistic(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for op, backend in BACKENDS.items():
        reason = backend.available()
        if reason is not None:
            pytest.skip(reason)
        monkeypatch.setattr(op, "backends", (*op.backends, backend))
    modules = (decode_attention_on_host, sampled_softmax_loss_on_host, triple_embedding_on_host)
    names = ("decode_attention", "sampled_softmax_loss", triple_embedding_on_host.LIBRARY)
    others = [host_executor.load(name, module.SOURCES) for name, module in zip(names, modules, strict=True)]
    with host_executor.pessimistic(attention_on_host.library(), *others):
        yield


def hold_to_the_error_rule(op: Op, one: Sample, dtype: torch.dtype, seeds: int) -> None:
    found: dict[str, list[list[Tensor]]] = {}
    for seed in range(seeds):
        given, exact = draw(one, dtype, seed), draw(one, dtype, seed, exact=True)
        for place, (values, backend) in enumerate(((given, NAME), (exact, "eager"), (given, "eager"))):
            for name, value in run_op(op, one, values, backend, dtype=dtype, seed=seed).results.items():
                found.setdefault(name, [[], [], []])[place].append(value)
    for name, (ours, truth, theirs) in found.items():
        judged, more = compare(name, ours, truth, theirs), BEYOND.get((op.name, name), 1.0)
        assert not judged.problem, judged.sentence
        assert judged.max_error <= more * judged.max_allowed, judged.sentence
        assert judged.rms_error <= more * judged.rms_allowed, judged.sentence


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case.name))
@pytest.mark.parametrize("op", [CAUSAL, HSTU], ids=lambda op: str(op.name))
def test_attention(op: Op, case: HistoryCase, dtype: torch.dtype) -> None:
    hold_to_the_error_rule(op, attention_sample(op, case), dtype, 2)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("op", [DECODE, EMBEDDING], ids=lambda op: str(op.name))
def test_small_samples(op: Op, dtype: torch.dtype) -> None:
    for one in small_samples(op):
        hold_to_the_error_rule(op, one, dtype, 4)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("form", softmax_draws.FORMS)
def test_sampled_softmax_across_tiles(form: str, dtype: torch.dtype) -> None:
    softmax_draws.require_right(softmax_draws.draw(130, 270, 136, dtype, form), NAME)


def test_the_mode_makes_a_difference() -> None:
    one = attention_sample(CAUSAL, CASES[1])
    given, exact = draw(one, torch.bfloat16, 0), draw(one, torch.bfloat16, 0, exact=True)
    pessimistic = run_op(CAUSAL, one, given, NAME, dtype=torch.bfloat16).results["output 1"]
    attention_on_host.library().simt_set_pessimistic(0)
    plain = run_op(CAUSAL, one, given, NAME, dtype=torch.bfloat16).results["output 1"]
    truth = run_op(CAUSAL, one, exact, "eager", dtype=torch.float64).results["output 1"]
    assert (
        compare("pessimistic", pessimistic, truth, plain).rms_error
        > 2 * compare("plain", plain, truth, plain).rms_error
    )
