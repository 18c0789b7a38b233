"""The backward passes of causal_attention and hstu_attention as one kernel on sm_90 (TMA, wgmma, turns) on the CPU.

They are held to the error rule and to their promises.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from argus_kernels.attention.samples import HistoryCase
from argus_kernels.core import Op
from argus_kernels.ops.causal_attention import OP as CAUSAL
from argus_kernels.ops.hstu_attention import OP as HSTU
from argus_kernels.testing import require_close
from argus_kernels.testing.harness import public_function
from tests.csrc.simt import attention_loop_on_host as on_host
from tests.csrc.simt import attention_on_host, host_executor

HALF = [torch.bfloat16, torch.float16]
OPS = [CAUSAL, HSTU]
ops_and_dtypes = pytest.mark.parametrize(
    ("op", "dtype"), [pytest.param(op, dtype, id=f"{op.name}-{dtype}") for op in OPS for dtype in HALF]
)
# Tiles are 128 keys and 128 queries (64 but for plain softmax of heads up to 64): one more, one less and none, an empty
# user, padding.
CASES = [
    HistoryCase("five_blocks", (520,), heads=1, width=64),
    HistoryCase("64", (257, 0, 1, 127), heads=2, width=64, padding=3),
    HistoryCase("128", (129, 128, 0, 1, 300), heads=1, width=128, padding=2),
]
BIASED: dict[str, Any] = {"position_buckets": 12, "time_buckets": 40, "dropout": 0.1}
# Among them blocks of keys that see a block of queries with a gap between them, groups of heads whose tables differ,
# and queries that see nothing.
MASKED = [
    HistoryCase("lagged_40", (300, 3), heads=1, width=40, mask="lagged"),
    HistoryCase("window_72", (420, 5), heads=1, width=72, mask="candidates", window=90),
    HistoryCase(
        "any_grouped", (140, 20), key_lengths=(560, 30), heads=2, key_heads=1, width=64, mask="any", window=50, prefix=9
    ),
    HistoryCase("groups_dropout", (330, 9), heads=1, width=128, mask="groups", dropout=0.2),
    HistoryCase("cross", (5, 0, 3), key_lengths=(140, 7, 0), heads=1, width=128, mask="cross"),
    HistoryCase("context", (300,), heads=2, width=64, mask="context"),
    HistoryCase("biases", (270, 2), heads=1, width=64, position_buckets=30, time_buckets=40),
    HistoryCase("times_lagged_96", (250,), heads=1, width=96, mask="lagged", time_buckets=128),
    HistoryCase("biases_any", (70, 3), key_lengths=(340, 9), heads=4, key_heads=2, width=64, mask="any", **BIASED),
    HistoryCase("biases_groups_128", (290,), heads=2, key_heads=1, width=128, mask="groups", **BIASED),
]
# Whose tables' gradients are wanted, by masks and widths; the first has an empty user and padding.
TABLES = [
    HistoryCase("biases", (270, 0, 2), heads=2, width=64, padding=3, position_buckets=30, time_buckets=40),
    HistoryCase("positions_128", (200, 3), heads=1, width=128, position_buckets=512, window=150),
    *MASKED[7:],
]
NAMES = ("q", "k", "v", "position_bias", "time_bias")


@pytest.fixture(autouse=True)
def _with_backends(monkeypatch: pytest.MonkeyPatch) -> None:
    on_host.register(monkeypatch)


def drawn(op: Op, case: HistoryCase, dtype: torch.dtype, seed: int = 3) -> dict[str, Any]:
    arguments = case.make(torch.Generator().manual_seed(seed), dtype)
    arguments = {name: one.detach() if isinstance(one, Tensor) else one for name, one in arguments.items()}
    return arguments | ({"return_log_sum_exp": True} if op is CAUSAL else {"divisor": 50.0})


def with_tables(arguments: dict[str, Any]) -> tuple[str, ...]:
    return tuple(name for name in NAMES if arguments.get(name) is not None)


def gradients(
    op: Op,
    arguments: dict[str, Any],
    backend: str = on_host.NAME,
    wild: int | None = None,
    names: Sequence[str] = "qkv",
) -> list[Tensor]:
    """Those of the tensors `names`; `wild`: the first row whose gradients of outputs are NaN."""
    leaves = {name: arguments[name].detach().clone().requires_grad_() for name in names}
    returned = public_function(op)(**{**arguments, **leaves}, backend=backend)
    outputs = list(returned) if isinstance(returned, tuple) else [returned]
    # The same numbers for every row, whatever the batch holds.
    rows = len(arguments["q"])
    generator = torch.Generator().manual_seed(1)
    numbers = torch.randn(2, 1024, *arguments["q"].shape[1:], generator=generator)[:, :rows]
    given = [numbers[0].to(outputs[0].dtype), *(numbers[1, :, :, 0].T.to(one.dtype) for one in outputs[1:])]
    if wild is not None:
        given = [one.clone() for one in given]
        given[0][wild:] = torch.nan
    return list(torch.autograd.grad(outputs, list(leaves.values()), given))


def require_right(op: Op, case: HistoryCase, dtype: torch.dtype, draws: int = 2, tables: bool = False) -> None:
    found: list[list[list[Tensor]]] = []
    names: Sequence[str] = "qkv"
    for seed in range(draws):
        arguments = drawn(op, case, dtype, seed)
        names = with_tables(arguments) if tables else names
        calls = ((arguments, on_host.NAME), (on_host.wide(arguments), "eager"), (arguments, "eager"))
        found.append([gradients(op, given, backend, names=names) for given, backend in calls])
    for i, name in enumerate(names):
        require_close(f"{case.name} d_{name}", *([one[who][i] for one in found] for who in range(3)))


@ops_and_dtypes
@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case.name))
def test_error_rule_across_tiles(case: HistoryCase, op: Op, dtype: torch.dtype) -> None:
    require_right(op, case, dtype)


@ops_and_dtypes
@pytest.mark.parametrize("case", MASKED, ids=lambda case: str(case.name))
def test_error_rule_under_every_mask(case: HistoryCase, op: Op, dtype: torch.dtype) -> None:
    require_right(op, case, dtype)


@ops_and_dtypes
@pytest.mark.parametrize("case", TABLES, ids=lambda case: str(case.name))
def test_error_rule_with_gradients_of_tables(case: HistoryCase, op: Op, dtype: torch.dtype) -> None:
    require_right(op, case, dtype, tables=True)


@ops_and_dtypes
@pytest.mark.parametrize("case", [*CASES, MASKED[1], MASKED[6]], ids=lambda case: str(case.name))
def test_error_rule_where_tensor_cores_err_as_far_as_they_may(case: HistoryCase, op: Op, dtype: torch.dtype) -> None:
    with host_executor.pessimistic(on_host.library(op), on_host.backward_library(op)):
        require_right(op, case, dtype)


@ops_and_dtypes
def test_tables_where_tensor_cores_err_as_far_as_they_may(op: Op, dtype: torch.dtype) -> None:
    with host_executor.pessimistic(on_host.library(op), on_host.backward_library(op)):
        require_right(op, TABLES[0], dtype, tables=True)


@ops_and_dtypes
@pytest.mark.parametrize("case", TABLES, ids=lambda case: str(case.name))
def test_gradients_of_tables_have_the_bits_of_the_tiles(
    case: HistoryCase, op: Op, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the same forward pass, whichever kernels compute the other gradients."""
    backend = on_host.BACKENDS[op]
    of_tiles = attention_on_host.CAUSAL_ATTENTION if op is CAUSAL else attention_on_host.HSTU_ATTENTION
    mixed = replace(backend, name="loop_then_tiles", backward=of_tiles.backward)
    monkeypatch.setattr(op, "backends", (*op.backends, mixed))
    arguments = drawn(op, case, dtype)
    names = with_tables(arguments)
    # As the kernels give them.
    arguments |= {name: arguments[name].float() for name in names[3:]}
    loop, tiles = (gradients(op, arguments, name, names=names) for name in (backend.name, mixed.name))
    assert len(names) > 3
    for one, other in zip(loop[3:], tiles[3:], strict=True):
        assert torch.equal(one, other) and one.any()


@ops_and_dtypes
@pytest.mark.parametrize("case", [*CASES, MASKED[2], MASKED[9]], ids=lambda case: str(case.name))
def test_same_bits_in_every_order_and_whoever_shares_the_batch(case: HistoryCase, op: Op, dtype: torch.dtype) -> None:
    """Each call has a seed of its own; the other users' rows, also of the gradient, and the padding are NaN in the
    third one."""
    arguments = drawn(op, case, dtype)
    found = gradients(op, arguments)
    assert all(map(torch.equal, gradients(op, arguments), found))
    end = int(arguments["offsets"][1])
    key_end = int(arguments["key_offsets"][1]) if "key_offsets" in arguments else end
    others = {**arguments, **{name: arguments[name].clone() for name in "qkv"}}
    for name, first in (("q", end), ("k", key_end), ("v", key_end)):
        others[name][first:] = torch.nan
    again = gradients(op, others, wild=end)
    for one, other, stop in zip(found, again, (end, key_end, key_end), strict=True):
        assert torch.equal(other[:stop], one[:stop])
    padding = int(arguments["offsets"][-1])
    assert not again[0][padding:].any()
    if "key_offsets" in arguments:
        return
    rows = {"q", "k", "v", "visible", "position", "own_begin", "own_end", "query_time", "key_time", "event_time"}
    alone = {
        name: one[:end] if name in rows and isinstance(one, Tensor) else one for name, one in arguments.items()
    } | {"offsets": arguments["offsets"][:2]}
    alone |= {name: alone[name][:1] for name in ("dropout_seed", "prefix") if isinstance(alone.get(name), Tensor)}
    for one, other in zip(found, gradients(op, alone), strict=True):
        assert torch.equal(other, one[:end])


@ops_and_dtypes
@pytest.mark.parametrize("case", [CASES[1], MASKED[1], MASKED[6]], ids=lambda case: str(case.name))
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_reaches_what_it_reaches_in_float64(
    value: float, case: HistoryCase, op: Op, dtype: torch.dtype
) -> None:
    """0 · NaN of a hidden pair adds nothing: the rows that a tile made NaN are computed again."""
    arguments = drawn(op, case, dtype)
    for name in "qkv":
        dirty = {**arguments, name: arguments[name].clone()}
        dirty[name][150, 0, 5] = value
        for ours, truth in zip(gradients(op, dirty), gradients(op, on_host.wide(dirty), "reference"), strict=True):
            finite = truth.isfinite()
            assert torch.equal(ours.isfinite(), finite)
            torch.testing.assert_close(ours[finite].double(), truth[finite], rtol=3e-2, atol=3e-2)


def hide_some(arguments: dict[str, Any]) -> tuple[int, int]:
    """Makes a key that no query of the first user sees, among keys that some see, and a query that sees nothing."""
    end = int(arguments["offsets"][1])
    seen = int(arguments.get("key_offsets", arguments["offsets"])[1]) - 7
    for name in ("visible", "own_begin", "own_end"):
        arguments[name][:end].clamp_(max=seen)
        arguments[name][40] = 0
    arguments["visible"][41:60] = seen
    return seen + 1, 40


@ops_and_dtypes
@pytest.mark.parametrize("case", [TABLES[3], TABLES[4]], ids=lambda case: str(case.name))
def test_what_no_query_sees_reaches_no_gradient(case: HistoryCase, op: Op, dtype: torch.dtype) -> None:
    """A key of NaN beside keys that queries see, and a query of NaN that sees nothing: in tiles their pairs made
    delta and the parts of the tables NaN."""
    arguments = drawn(op, case, dtype)
    key, query = hide_some(arguments)
    names = with_tables(arguments)
    value = math.nan if dtype == torch.float16 else math.inf
    for name, row in (("k", key), ("v", key), ("q", query)):
        dirty = {**arguments, name: arguments[name].clone()}
        dirty[name][row, 0, 5] = value
        truth = gradients(op, on_host.wide(dirty), "reference", names=names)
        for ours, expected in zip(gradients(op, dirty, names=names), truth, strict=True):
            assert expected.isfinite().all()
            torch.testing.assert_close(ours.double(), expected, rtol=3e-2, atol=3e-2 * float(expected.abs().max()))


def test_the_loop_differs_from_the_tiles_in_rounding_alone() -> None:
    """It runs at all: other products, in another order."""
    arguments = drawn(CAUSAL, CASES[2], torch.float16)
    loop = gradients(CAUSAL, arguments)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CAUSAL, "backends", (*CAUSAL.backends, attention_on_host.CAUSAL_ATTENTION))
        tiles = gradients(CAUSAL, arguments, attention_on_host.CAUSAL_ATTENTION.name)
    for one, other in zip(loop, tiles, strict=True):
        assert not torch.equal(one, other)
        torch.testing.assert_close(one, other, rtol=2e-3, atol=4e-3)
