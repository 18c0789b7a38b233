"""The forward passes of causal_attention and hstu_attention on sm_90's loop (TMA, wgmma), held to the error rule and to
their promises on the CPU."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from argus_kernels.attention.samples import HistoryCase, history_samples
from argus_kernels.core import Op
from argus_kernels.ops.causal_attention import OP as CAUSAL
from argus_kernels.ops.hstu_attention import OP as HSTU
from argus_kernels.testing import judged, require_close
from argus_kernels.testing.harness import public_function
from tests.csrc.simt import attention_loop_on_host as on_host
from tests.csrc.simt import attention_on_host, host_executor

HALF = [torch.bfloat16, torch.float16]
OPS = [CAUSAL, HSTU]
ops_and_dtypes = pytest.mark.parametrize(
    ("op", "dtype"), [pytest.param(op, dtype, id=f"{op.name}-{dtype}") for op in OPS for dtype in HALF]
)
# Tiles are 192 queries (128 in heads above 64) and 128 keys: one more, one less and none, an empty user, padding.
CASES = [
    HistoryCase("five_blocks", (520,), heads=1, width=64),
    HistoryCase("64", (193, 0, 1, 127), heads=1, width=64, padding=3),
    HistoryCase("128", (129, 128, 0, 1), heads=1, width=128, padding=2),
]
EXTRA: dict[Op, tuple[tuple[str, Any], ...]] = {CAUSAL: (("return_log_sum_exp", True),), HSTU: ()}
BIASED: dict[str, Any] = {"position_buckets": 12, "time_buckets": 40, "dropout": 0.1}
MASKED = [
    HistoryCase("lagged_40", (200, 3), heads=1, width=40, mask="lagged"),
    HistoryCase("window_72", (257, 5), heads=1, width=72, mask="candidates", window=90),
    HistoryCase(
        "any_grouped", (140, 20), key_lengths=(260, 30), key_heads=1, width=64, mask="any", window=50, prefix=9
    ),
    HistoryCase("groups_dropout", (130, 9), heads=1, width=128, mask="groups", dropout=0.2),
    HistoryCase("cross", (5, 0, 3), key_lengths=(140, 7, 0), heads=1, width=128, mask="cross"),
    HistoryCase("context", (200,), heads=2, width=64, mask="context"),
    HistoryCase("biases", (270, 2), heads=1, width=64, position_buckets=30, time_buckets=40),
    HistoryCase("times_lagged_96", (150,), heads=1, width=96, mask="lagged", time_buckets=128),
    HistoryCase("biases_any", (70, 3), key_lengths=(140, 9), heads=2, key_heads=1, width=64, mask="any", **BIASED),
]


@pytest.fixture(autouse=True)
def _with_backends(monkeypatch: pytest.MonkeyPatch) -> None:
    on_host.register(monkeypatch)


def drawn(op: Op, case: HistoryCase, dtype: torch.dtype, seed: int = 3) -> dict[str, Any]:
    arguments = case.make(torch.Generator().manual_seed(seed), dtype)
    return arguments | ({"return_log_sum_exp": True} if op is CAUSAL else {"divisor": 50.0})


def outputs(op: Op, arguments: dict[str, Any], backend: str = on_host.NAME) -> list[Tensor]:
    with torch.no_grad():
        returned = public_function(op)(**arguments, backend=backend)
    return list(returned) if isinstance(returned, tuple) else [returned]


def require_right(op: Op, case: HistoryCase, dtype: torch.dtype, draws: int = 2) -> None:
    found: list[list[list[Tensor]]] = []
    for seed in range(draws):
        arguments = drawn(op, case, dtype, seed)
        wide = on_host.wide(arguments)
        found.append([outputs(op, arguments), outputs(op, wide, "eager"), outputs(op, arguments, "eager")])
    for i in range(len(found[0][0])):
        require_close(f"{case.name} output {i}", *([one[who][i] for one in found] for who in range(3)))


@ops_and_dtypes
@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case.name))
def test_error_rule_across_tiles(case: HistoryCase, op: Op, dtype: torch.dtype) -> None:
    require_right(op, case, dtype)


@ops_and_dtypes
@pytest.mark.parametrize("case", MASKED, ids=lambda case: str(case.name))
def test_error_rule_under_every_mask(case: HistoryCase, op: Op, dtype: torch.dtype) -> None:
    require_right(op, case, dtype)


@ops_and_dtypes
@pytest.mark.parametrize("case", [*CASES, MASKED[1], MASKED[6]], ids=lambda case: str(case.name))
def test_error_rule_where_tensor_cores_err_as_far_as_they_may(case: HistoryCase, op: Op, dtype: torch.dtype) -> None:
    with host_executor.pessimistic(on_host.library(op)):
        require_right(op, case, dtype)


@ops_and_dtypes
@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case.name))
def test_same_bits_in_every_order_and_whoever_shares_the_batch(case: HistoryCase, op: Op, dtype: torch.dtype) -> None:
    """Each call has a seed of its own; the other users' rows and the padding are NaN in the third one."""
    arguments = drawn(op, case, dtype)
    found = outputs(op, arguments)
    assert all(map(torch.equal, outputs(op, arguments), found))
    begin, end = arguments["offsets"][:2].tolist()
    others = {**arguments, **{name: arguments[name].clone() for name in "qkv"}}
    for name in "qkv":
        others[name][end:] = torch.nan
    alone = {**arguments, **{name: arguments[name][:end] for name in "qkv"}, "offsets": arguments["offsets"][:2]}
    for other in (others, alone):
        again = outputs(op, other)
        assert torch.equal(again[0][begin:end], found[0][begin:end])
        if op is CAUSAL:
            assert torch.equal(again[1][:, begin:end], found[1][:, begin:end])
    padding = arguments["offsets"][-1]
    assert not outputs(op, others)[0][padding:].any()


@ops_and_dtypes
@pytest.mark.parametrize("case", [CASES[1], MASKED[1], MASKED[6]], ids=lambda case: str(case.name))
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_reaches_what_it_reaches_in_float64(
    value: float, case: HistoryCase, op: Op, dtype: torch.dtype
) -> None:
    """0 · NaN of a hidden pair adds nothing: the rows that a tile made NaN are computed again."""
    arguments = drawn(op, case, dtype)
    for name in "kv":
        dirty = {**arguments, name: arguments[name].clone()}
        dirty[name][150, 0, 5] = value
        wide = on_host.wide(dirty)
        for ours, truth in zip(outputs(op, dirty), outputs(op, wide, "eager"), strict=True):
            finite = truth.isfinite()
            assert torch.equal(ours.isfinite(), finite)
            torch.testing.assert_close(ours[finite].double(), truth[finite], rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_large_scores(dtype: torch.dtype) -> None:
    arguments = drawn(CAUSAL, MASKED[0], dtype) | {"scale": 1e4}
    wide = on_host.wide(arguments)
    torch.testing.assert_close(
        outputs(CAUSAL, arguments)[0].double(), outputs(CAUSAL, wide, "eager")[0], rtol=0, atol=0.05
    )


def test_scores_that_fall_with_the_product_are_left_to_the_tiles() -> None:
    with pytest.raises(RuntimeError, match="the forward loop does not take these arguments"):
        outputs(CAUSAL, drawn(CAUSAL, MASKED[0], torch.float16) | {"scale": -1.0})


@ops_and_dtypes
def test_gradients_from_its_outputs_satisfy_the_error_rule(op: Op, dtype: torch.dtype) -> None:
    """The backward pass is mma.sync's, and takes the loop's output and log-sum-exp."""
    case = HistoryCase("", (140,), heads=1, width=64, position_buckets=9, extra=EXTRA[op])
    sample = history_samples([case], forward_products=2, backward_products=5, outputs=lambda q: q.numel())[0]
    for verdict in judged(op, sample, on_host.NAME, dtype, enough=16, least=2, most=4).values():
        assert verdict.passed, verdict.sentence


def test_the_loop_differs_from_the_tiles_in_rounding_alone() -> None:
    """It runs at all: other products, in another order."""
    arguments = drawn(CAUSAL, CASES[1], torch.float16)
    loop = outputs(CAUSAL, arguments)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CAUSAL, "backends", (*CAUSAL.backends, attention_on_host.CAUSAL_ATTENTION))
        tiles = outputs(CAUSAL, arguments, attention_on_host.CAUSAL_ATTENTION.name)
    assert not torch.equal(loop[1], tiles[1])
    for one, other in zip(loop, tiles, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-3, atol=2e-3)
