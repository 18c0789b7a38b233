"""The one mask rule in the CUDA kernels: any instance by the error rule, and what the rule promises beside its numbers.

The kernels have two masks: that of events which attend to their own history, and that of the whole rule.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from argus_kernels.attention.dropout import kept
from argus_kernels.attention.samples import HistoryCase, history_samples
from argus_kernels.core import Op, Sample
from argus_kernels.ops.causal_attention import OP as CAUSAL
from argus_kernels.ops.hstu_attention import OP as HSTU
from argus_kernels.testing import judged
from argus_kernels.testing.harness import public_function
from tests.attention.test_mask_rule import cases
from tests.csrc.simt.backends import on_host
from tests.csrc.simt.host_executor import BACKEND
from tests.drawn_examples import examples

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
OPS = [CAUSAL, HSTU]
ops = pytest.mark.parametrize("op", OPS, ids=lambda op: str(op.name))
ops_and_dtypes = pytest.mark.parametrize(
    ("op", "dtype"),
    [
        pytest.param(op, dtype, id=f"{op.name}-{dtype}", marks=[pytest.mark.slow] * (OPS.index(op) != place))
        for op in OPS
        for place, dtype in enumerate(DTYPES)
    ],
)
"""`make test` takes float32 of causal_attention and bfloat16 of hstu_attention."""
INFINITY = float("inf")
ROWS, KEY_ROWS = ("q", "visible", "position", "own_begin", "own_end", "query_time"), ("k", "v", "key_time")


@pytest.fixture(autouse=True)
def _with_backends() -> Iterator[None]:
    with on_host(*OPS):
        yield


def sample(op: Op, case: HistoryCase) -> Sample:
    if op is CAUSAL:
        case = replace(case, extra=(("return_log_sum_exp", True),))
    return history_samples([case], forward_products=2, backward_products=5, outputs=lambda q: q.numel())[0]


def hold_to_the_error_rule(op: Op, case: HistoryCase, dtype: torch.dtype, most: int) -> None:
    for verdict in judged(op, sample(op, case), BACKEND, dtype, enough=64, least=2, most=most).values():
        assert verdict.passed, f"{case}: {verdict.sentence}"


@ops
@given(
    case=cases(),
    width=st.sampled_from([8, 24, 64]),
    longer=st.sampled_from([1, 1, 3]),
    dtype=st.sampled_from(DTYPES),
)
@settings(deadline=None, max_examples=examples(10))
def test_every_instance_of_the_rule(op: Op, case: HistoryCase, width: int, longer: int, dtype: torch.dtype) -> None:
    hold_to_the_error_rule(op, replace(case.scaled(longer), width=width), dtype, 12)


@pytest.mark.slow
@ops
@given(
    case=cases(),
    width=st.sampled_from([136, 160, 200, 256]),
    longer=st.sampled_from([1, 1, 2]),
    dtype=st.sampled_from(DTYPES),
)
@settings(deadline=None, max_examples=examples(5))
def test_every_instance_in_wide_heads(op: Op, case: HistoryCase, width: int, longer: int, dtype: torch.dtype) -> None:
    hold_to_the_error_rule(op, replace(case.scaled(longer), width=width), dtype, 6)


TILES = [
    HistoryCase("rectangular", (70, 0, 3), key_lengths=(33, 5, 150), width=64, padding=2, key_padding=3),
    HistoryCase("any_grouped", (90, 40), key_lengths=(140, 20), heads=4, key_heads=2, mask="any", window=50, prefix=9),
    HistoryCase("groups_dropout", (130, 9), heads=2, key_heads=1, width=128, mask="groups", dropout=0.2),
    HistoryCase("context", (150, 3), width=40, mask="context", position_buckets=9, padding=70),
    HistoryCase("cross", (5, 40), key_lengths=(70, 33), width=128, heads=1, mask="cross"),
    HistoryCase("context_256", (40, 3), width=256, heads=1, mask="context"),
    HistoryCase("last_rows_window", (3, 20), key_lengths=(170, 90), window=60, prefix=7, width=104, heads=1),
    HistoryCase("any_160", (40, 9), key_lengths=(70, 20), key_heads=1, width=160, mask="any", window=30, prefix=5),
    HistoryCase("groups_dropout_192", (70, 3), width=192, heads=1, padding=2, mask="groups", window=20, dropout=0.3),
    HistoryCase("rectangular_216", (35, 0, 3), key_lengths=(33, 5, 70), width=216, heads=1, window=25, prefix=4),
    HistoryCase("cross_256", (40, 5), key_lengths=(33, 70), key_heads=1, width=256, mask="cross", dropout=0.2),
    HistoryCase("candidates_256", (70, 9), key_heads=1, width=256, mask="placed_candidates"),
]
"""Several tiles each, in all kernel widths; below in float32 and in one or both of the 16-bit dtypes, in turn."""
OFTEN_WIDE = ("any_160", "cross_256")
"""What `make test` takes of heads wider than 128."""


def seldom(op: Op, place: int, turn: int) -> bool:
    """`make test` takes each case of one op in one dtype."""
    case = TILES[place]
    return (place + turn) % 3 != 0 or OPS[place % 2] is not op or (case.width > 128 and case.name not in OFTEN_WIDE)


BIASED: dict[str, Any] = {"position_buckets": 30, "time_buckets": 40}


@pytest.mark.parametrize(
    ("op", "case", "dtype"),
    [
        pytest.param(
            op,
            case,
            dtype,
            id=f"{op.name}-{case.name}-{dtype}",
            marks=[pytest.mark.slow] * seldom(op, place, turn),
        )
        for op in OPS
        for place, case in enumerate(TILES)
        for turn, dtype in enumerate(DTYPES)
        if turn in (0, 1 + place % 2) or (place + turn) % 3 == 0
    ],
)
def test_several_tiles(op: Op, case: HistoryCase, dtype: torch.dtype) -> None:
    if case.width == 4:
        case = replace(case, width=64)
    hold_to_the_error_rule(op, replace(case, **BIASED), dtype, 3)


def drawn(op: Op, case: HistoryCase, dtype: torch.dtype) -> dict[str, Any]:
    arguments = case.make(torch.Generator().manual_seed(3), dtype)
    return arguments | ({} if op is CAUSAL else {"divisor": 50.0})


def everything(op: Op, arguments: dict[str, Any], backend: str = BACKEND, lse: float = 0.5) -> dict[str, Tensor]:
    """Outputs and all gradients; `lse` is what reaches the log-sum-exp of queries that see nothing."""
    names = [name for name in ("q", "k", "v", "position_bias", "time_bias") if name in arguments]
    leaves = [arguments[name].detach().clone().requires_grad_() for name in names]
    more = {"return_log_sum_exp": True} if op is CAUSAL else {}
    returned = public_function(op)(**arguments | dict(zip(names, leaves, strict=True)) | more, backend=backend)
    outputs = returned if isinstance(returned, tuple) else (returned,)
    above = [((torch.arange(one.numel()) % 7 - 3).view(one.shape) / 4).to(one.dtype) for one in outputs]
    if op is CAUSAL:
        above[1] = above[1].masked_fill(outputs[1].detach() == -INFINITY, lse)
    gradients = torch.autograd.grad(outputs, leaves, above)
    found = dict(zip(("out", "log_sum_exp"), outputs, strict=False))
    found |= {f"d_{name}": gradient for name, gradient in zip(names, gradients, strict=True)}
    return {name: value.detach() for name, value in found.items()}


def require_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for name, value in found.items():
        assert torch.equal(value, expected[name]), name


@ops_and_dtypes
def test_both_masks_give_the_same_bits(op: Op, dtype: torch.dtype) -> None:
    """Keys of their own that are the queries' rows, whose mask is the general one. Without a position
    bias, which a tile adds at once or pair by pair, and the two masks judge by tiles of their own."""
    options: dict[str, Any]
    for options in ({}, {"window": 20}, {"mask": "lagged"}, {"mask": "context", "window": 40}):
        arguments = drawn(op, HistoryCase("", (70, 0, 33, 1), width=16, padding=2, time_buckets=40, **options), dtype)
        apart = arguments | {
            "key_offsets": arguments["offsets"].clone(),
            "key_max_length": arguments["max_length"],
        }
        require_equal(everything(op, apart), everything(op, arguments))


ANY = HistoryCase(
    "any",
    (40, 0, 70, 5),
    key_lengths=(33, 5, 90, 0),
    heads=4,
    key_heads=2,
    width=8,
    padding=2,
    key_padding=3,
    mask="any",
    window=30,
    prefix=4,
    dropout=0.3,
    **BIASED,
)
"""A user without queries, one without keys, and queries that see nothing."""


@ops_and_dtypes
def test_same_bits_in_every_order_of_the_threads(op: Op, dtype: torch.dtype) -> None:
    arguments = drawn(op, ANY, dtype)
    first = everything(op, arguments)
    for _ in range(2):
        require_equal(everything(op, arguments), first)


@ops
def test_a_users_numbers_do_not_depend_on_the_batch(op: Op) -> None:
    arguments = drawn(op, replace(ANY, padding=0, key_padding=0), torch.bfloat16)
    together = everything(op, arguments)
    for user in range(len(ANY.lengths)):
        begin, end = (int(one) for one in arguments["offsets"][user : user + 2])
        key_begin, key_end = (int(one) for one in arguments["key_offsets"][user : user + 2])
        mine = arguments | {name: arguments[name][begin:end] for name in ROWS}
        mine |= {name: arguments[name][key_begin:key_end] for name in KEY_ROWS}
        mine |= {"offsets": torch.tensor([0, end - begin]), "key_offsets": torch.tensor([0, key_end - key_begin])}
        mine["dropout_seed"] = arguments["dropout_seed"][user : user + 1]
        names = ["q", "k", "v"]
        leaves = [[one[name].detach().clone().requires_grad_() for name in names] for one in (arguments, mine)]
        rows = {"out": slice(begin, end), "q": slice(begin, end)}
        outs = [
            public_function(op)(**one | dict(zip(names, leaf, strict=True)), backend=BACKEND)
            for one, leaf in zip((arguments, mine), leaves, strict=True)
        ]
        above = torch.zeros_like(outs[0])
        above[rows["out"]] = 0.5
        gradients = [
            torch.autograd.grad(outs[0], leaves[0], above),
            torch.autograd.grad(outs[1], leaves[1], above[rows["out"]]),
        ]
        assert torch.equal(outs[1], together["out"][rows["out"]])
        for name, whole, alone in zip(names, *gradients, strict=True):
            assert torch.equal(alone, whole[rows.get(name, slice(key_begin, key_end))]), (user, name)


@ops_and_dtypes
def test_queries_that_see_nothing(op: Op, dtype: torch.dtype) -> None:
    """They give 0 and no gradient, whatever reaches their log-sum-exp."""
    arguments = drawn(op, HistoryCase("", (40, 3), width=8, mask="any", **BIASED), dtype)
    blind = torch.arange(43) % 3 == 0
    arguments |= {name: arguments[name].masked_fill(blind, 0) for name in ("visible", "own_begin", "own_end")}
    found = everything(op, arguments, lse=float("nan") if op is CAUSAL else 0.0)
    truth = {
        name: value.double() if isinstance(value, Tensor) and value.is_floating_point() else value
        for name, value in arguments.items()
    }
    expected = everything(op, truth, "reference")
    assert not found["out"][blind].any() and not found["d_q"][blind].any()
    if op is CAUSAL:
        assert torch.equal(found["log_sum_exp"] == -INFINITY, blind.expand(2, -1))
    for name, value in expected.items():
        tolerance = {torch.bfloat16: 3e-2, torch.float16: 4e-3}.get(dtype, 3e-5) * max(
            float(value[value.isfinite()].abs().max()), 1.0
        )
        torch.testing.assert_close(found[name].double(), value, rtol=0, atol=tolerance, msg=name)


@pytest.mark.parametrize("grouped", [False, True])
def test_dropout_drops_what_the_definition_drops(grouped: bool) -> None:
    """Values of one for each key show the weights, the gradient of each value which queries kept it."""
    length, heads, dropout = 75, 2, 0.4
    q = torch.zeros(length, heads, 80)
    v = torch.eye(length, 80)[:, None].expand(-1, 1 if grouped else heads, -1).clone().requires_grad_()
    place, seed = torch.arange(length), torch.tensor([-(2**40) - 3])
    position = (place * 7 - 20).int()
    out = public_function(CAUSAL)(
        q,
        torch.zeros_like(v),
        v,
        torch.tensor([0, length]),
        position=position,
        dropout=dropout,
        dropout_seed=seed,
        backend=BACKEND,
    )
    stays = kept(seed, heads, position.long()[None], place, dropout)[:, 0]
    seen = place[:, None] >= place
    assert torch.equal(out.detach()[:, :, :length].transpose(0, 1) > 0, stays & seen)
    one_head = torch.zeros_like(out)
    one_head[:, 1] = 1.0
    (d_v,) = torch.autograd.grad(out, v, one_head)
    weights = (stays[1] & seen).float() / (place[:, None] + 1) / (1 - dropout)
    torch.testing.assert_close(d_v[:, -1, 0], weights.sum(0), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("op", "value"),
    [
        pytest.param(op, value, id=f"{op.name}-{value}", marks=[pytest.mark.slow] * ((op is CAUSAL) != (value > 0)))
        for op in OPS
        for value in (-INFINITY, INFINITY)
    ],
)
def test_infinite_biases(op: Op, value: float) -> None:
    """What float64 gives, row by row: NaN where that is NaN."""
    arguments = drawn(op, replace(ANY, dropout=0.0, padding=0, key_padding=0), torch.float32)
    arguments["position_bias"][:, 3] = value
    arguments["time_bias"][1, 5] = value
    truth = {
        name: value.double() if isinstance(value, Tensor) and value.is_floating_point() else value
        for name, value in arguments.items()
    }
    found, expected = everything(op, arguments), everything(op, truth, "reference")
    for name, one in expected.items():
        torch.testing.assert_close(found[name].double(), one, rtol=1e-4, atol=1e-4, equal_nan=True, msg=name)


@ops_and_dtypes
def test_what_no_query_sees_reaches_nothing(op: Op, dtype: torch.dtype) -> None:
    """Keys and values of NaN behind every `visible` and in padding."""
    case = replace(ANY, mask="cross", window=None, prefix=0, key_lengths=(33, 5, 90, 3))
    arguments = drawn(op, case, dtype)
    arguments["visible"] = (arguments["visible"] - 3).clamp(min=0)
    hidden = torch.zeros(arguments["k"].shape[0], dtype=torch.bool)
    for end in arguments["key_offsets"].tolist()[1:]:
        hidden[end - 3 : end] = True
    hidden[-3:] = True
    expected = everything(op, arguments)
    planted = {name: arguments[name].masked_fill(hidden[:, None, None], torch.nan) for name in ("k", "v")}
    found = everything(op, arguments | planted)
    for name, value in expected.items():
        # What a tile gave as NaN is computed again pair by pair.
        tolerance = 8 * torch.finfo(dtype).eps * max(float(value[value.isfinite()].abs().max()), 1.0)
        torch.testing.assert_close(found[name], value, rtol=0, atol=tolerance, msg=name)
    assert not found["d_k"][hidden].any() and not found["d_v"][hidden].any()
