"""The mask rule in the compiled attention ops over several tiles, blocks and pieces."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from argus_kernels import causal_attention
from argus_kernels.attention.mask_rule import Queries, packed_queries, seen_keys
from argus_kernels.attention.samples import MASKS, HistoryCase
from argus_kernels.core import Op, native
from argus_kernels.ops.causal_attention import OP as CAUSAL
from argus_kernels.ops.hstu_attention import OP as HSTU
from argus_kernels.testing import captured_arguments, compare
from argus_kernels.testing.harness import public_function
from tests.attention.test_mask_rule import drawn, results

OPS = (CAUSAL, HSTU)
INF, NAN = float("inf"), float("nan")
EVERYTHING = HistoryCase(
    "everything",
    (300, 0, 5, 190, 3),
    heads=4,
    key_heads=2,
    width=5,
    padding=2,
    key_lengths=(900, 7, 0, 120, 2),
    key_padding=3,
    window=150,
    prefix=40,
    dropout=0.2,
    position_buckets=60,
    time_buckets=40,
)
"""Blocks of either size, tiles before, in and after the window, more queries than keys, users without either."""


@pytest.fixture(autouse=True)
def _library() -> None:
    reason = native.why_not("cpu")
    if reason is not None:
        pytest.skip(reason)


def both(op: Op, case: HistoryCase, arguments: dict[str, Any]) -> None:
    """Asserts that `cpp` gives what the definition does, outputs and all gradients."""
    found, expected = (
        results(public_function(op)(**arguments, backend=backend), case, arguments) for backend in ("cpp", "reference")
    )
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-9, atol=1e-9, equal_nan=True, msg=name)


@pytest.mark.parametrize("op", OPS, ids=lambda op: str(op.name))
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("rectangular", [True, False])
def test_every_mask_over_several_tiles(op: Op, mask: str, rectangular: bool) -> None:
    case = replace(EVERYTHING, mask=mask)
    if not rectangular:
        case = replace(case, key_lengths=None, lengths=(500, 0, 5, 130), prefix=0, dropout=0.0)
    both(op, case, drawn(op, case, 3, 0.0))


@pytest.mark.parametrize("infinite", [INF, -INF])
def test_infinite_entries_of_the_tables(infinite: float) -> None:
    case = replace(EVERYTHING, mask="any", position_buckets=200)
    arguments = drawn(CAUSAL, case, 3, 0.0)
    for name in ("position_bias", "time_bias"):
        arguments[name].data[:, 11] = infinite
    both(CAUSAL, case, arguments)


@pytest.mark.parametrize("mask", ["causal", "any"])
def test_users_cut_into_pieces_by_group(mask: str) -> None:
    """Several tasks share the sums of one head of keys."""
    case = HistoryCase(
        "long", (4200, 3), heads=2, key_heads=1, width=2, key_lengths=(600, 5), mask=mask, position_buckets=9
    )
    both(HSTU, case, drawn(HSTU, case, 1, 0.0))


def of_user(arguments: dict[str, Any], user: int) -> dict[str, Any]:
    """The arguments of one user alone."""
    offsets, keys = arguments["offsets"].tolist(), arguments["key_offsets"].tolist()
    rows, key_rows = slice(*offsets[user : user + 2]), slice(*keys[user : user + 2])
    of_keys = {"k", "v", "key_time"}
    alone = {
        name: value[key_rows if name in of_keys else rows]
        if isinstance(value, Tensor) and (name in of_keys or value.shape[0] == arguments["q"].shape[0])
        else value
        for name, value in arguments.items()
    }
    lengths = {"offsets": rows.stop - rows.start, "key_offsets": key_rows.stop - key_rows.start}
    alone |= {name: torch.tensor([0, length]) for name, length in lengths.items()}
    return alone | {"max_length": None, "key_max_length": None, "dropout_seed": arguments["dropout_seed"][user, None]}


@pytest.mark.parametrize("op", OPS, ids=lambda op: str(op.name))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_user_has_the_same_bits_alone(op: Op, dtype: torch.dtype) -> None:
    case = replace(EVERYTHING, mask="any", width=16)
    arguments = case.make(torch.Generator().manual_seed(0), dtype)
    arguments |= {} if op is CAUSAL else {"divisor": 9.0}
    together = public_function(op)(**arguments, backend="cpp")
    for user, (begin, end) in enumerate(pairwise(arguments["offsets"].tolist())):
        alone = public_function(op)(**of_user(arguments, user), backend="cpp")
        assert torch.equal(alone, together[begin:end]), user
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert torch.equal(public_function(op)(**arguments, backend="cpp"), together)
    finally:
        torch.set_num_threads(threads)


def seen_pairs(op: Op, arguments: dict[str, Any]) -> Tensor:
    """bool [rows of q, rows of k], by the formula."""
    rule = captured_arguments(op, arguments)
    queries = packed_queries(
        rule.offsets,
        rule.q.shape[0],
        key_offsets=rule.key_offsets,
        **{name: getattr(rule, name) for name in ("visible", "position", "own_begin", "own_end", "prefix")},
    )
    seen = torch.zeros(rule.q.shape[0], rule.k.shape[0], dtype=torch.bool)
    keys = rule.keys.tolist()
    for (begin, end), (key_begin, key_end) in zip(pairwise(rule.offsets.tolist()), pairwise(keys), strict=True):
        rows = Queries(*(None if one is None else one[begin:end] for one in queries))  # type: ignore[arg-type]
        seen[begin:end, key_begin:key_end] = seen_keys(rows, torch.arange(key_end - key_begin), rule.window)
    return seen


def broken(result: Tensor) -> set[int]:
    return set((~result.isfinite()).flatten(1).any(1).nonzero().flatten().tolist())


@pytest.mark.parametrize("op", OPS, ids=lambda op: str(op.name))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mask", ["any", "groups"])
def test_a_broken_key_reaches_only_who_sees_it(op: Op, dtype: torch.dtype, mask: str) -> None:
    case = replace(EVERYTHING, mask=mask, width=8, dropout=0.0, lengths=(300, 40), key_lengths=(400, 30))
    arguments = case.make(torch.Generator().manual_seed(0), dtype)
    arguments |= {} if op is CAUSAL else {"divisor": 9.0}
    seen = seen_pairs(op, arguments)
    for key in (200, 310, 399):
        with_nan = {**arguments, "v": arguments["v"].clone(), "k": arguments["k"].clone()}
        with_nan["v"][key], with_nan["k"][key] = NAN, NAN
        for name in case.grad():
            with_nan[name] = with_nan[name].clone().requires_grad_()
        found = results(public_function(op)(**with_nan, backend="cpp"), case, with_nan)
        who = set(seen[:, key].nonzero().flatten().tolist())
        assert broken(found["out"]) == who
        assert broken(found["d_q"]) == who
        others = seen[list(who)].any(0) if op is CAUSAL else torch.arange(len(seen[0])) == key
        expected = set(others.nonzero().flatten().tolist()) if who else set()
        assert broken(found["d_k"]) == expected


@pytest.mark.parametrize("op", OPS, ids=lambda op: str(op.name))
def test_the_error_of_many_keys(op: Op) -> None:
    """Weights over 8,192 keys satisfy the error rule: no float32 sum runs over all of them one by one."""
    case = HistoryCase("stored", (40,), heads=1, width=8, key_lengths=(8192,), mask="last_1000")
    arguments = drawn(op, case, 0, 0.0)
    truth = public_function(op)(**arguments, backend="reference").detach()
    single = {
        name: value.detach().float() if isinstance(value, Tensor) and value.is_floating_point() else value
        for name, value in arguments.items()
    }
    ours, torchs = (public_function(op)(**single, backend=backend) for backend in ("cpp", "eager"))
    verdict = compare("out", ours, truth, torchs)
    assert verdict.passed, verdict.sentence


@pytest.mark.parametrize("length", [3000, pytest.param(8192, marks=pytest.mark.slow)])
def test_the_error_of_late_rows(length: int) -> None:
    """The same for the causal mask: of one float32 sum the last rows erred 1.7 and 2 times as much as is allowed."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(length, 1, 16, generator=generator) for _ in range(3))
    last = slice(length - 50, length)
    offsets = torch.tensor([0, length])
    ours, truth = (
        causal_attention(*tensors, offsets, return_log_sum_exp=True, backend="cpp")
        for tensors in ((q, k, v), (q.double(), k.double(), v.double()))
    )
    scores = q[last, 0] @ k[:, 0].T / 4
    hidden = torch.arange(length) > torch.arange(length)[last, None]
    scores = scores.masked_fill(hidden, -torch.inf)
    for verdict in (
        compare("out", ours[0][last, 0], truth[0][last, 0], scores.softmax(-1) @ v[:, 0]),
        compare("log_sum_exp", ours[1][0, last], truth[1][0, last], scores.logsumexp(-1)),
    ):
        assert verdict.passed, verdict.sentence


def test_queries_that_see_nothing() -> None:
    """Out 0, log-sum-exp −∞, no gradient, whatever reaches the statistic from above, and NaN in all keys."""
    q, k = torch.randn(70, 2, 8), torch.randn(40, 2, 8)
    k[3:] = NAN
    k.requires_grad_()
    rule = {
        "key_offsets": torch.tensor([0, 40]),
        "visible": torch.tensor([3] + 69 * [0]),
        "own_begin": torch.zeros(70, dtype=torch.int32),
        "own_end": torch.zeros(70, dtype=torch.int32),
    }
    q.requires_grad_()
    given = captured_arguments(CAUSAL, {"q": q, "k": k, "v": k, "offsets": torch.tensor([0, 70]), **rule})
    backend = CAUSAL.backend("cpp")
    assert backend.backward is not None
    out, log_sum_exp = backend.forward(given)
    assert not out[1:].any()
    assert out[0].isfinite().all()
    assert (log_sum_exp[:, 1:] == -INF).all()
    needs = {name: name in "qkv" for name in ("q", "k", "v", "position_bias", "time_bias")}
    above = torch.full_like(log_sum_exp, NAN)
    above[:, 0] = 1.0
    found = backend.backward([torch.ones_like(out), above], [out, log_sum_exp], needs, given)
    assert not found[0][1:].any()
    for gradient in found[:3]:
        assert gradient.isfinite().all()
    assert not found[1][3:].any()
