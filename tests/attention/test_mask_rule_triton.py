"""The mask rule and dropout in the Triton attention kernels: every instance, over several tiles, and what is hidden.

Truth is float64: the dense mask of `test_mask_rule`, or the reference where users are longer.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from argus_kernels import causal_attention, hstu_attention
from argus_kernels.attention.dropout import kept
from argus_kernels.attention.mask_rule import Queries, packed_queries, seen_keys
from argus_kernels.attention.samples import HistoryCase
from argus_kernels.core import Op
from argus_kernels.core.triton_support import available, launch
from argus_kernels.ops.causal_attention import OP as CAUSAL
from argus_kernels.ops.hstu_attention import OP as HSTU
from argus_kernels.testing import captured_arguments
from argus_kernels.testing.harness import public_function
from tests.attention.test_mask_rule import cases, dense, drawn
from tests.drawn_examples import examples

pytest.importorskip("triton")
import triton
import triton.language as tl

from argus_kernels.attention.triton.launch import Attention
from argus_kernels.attention.triton.records import own_queries, own_tile
from argus_kernels.attention.triton.rule import key_at, key_spans, query_range
from argus_kernels.attention.triton.schedule import tile_schedules

pytestmark = [
    pytest.mark.skipif(available() is not None, reason=str(available())),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
OPS = (CAUSAL, HSTU)
NAN, INF = float("nan"), float("inf")
BLOCK_QUERY, BLOCK_KEY = 16, 32

# Tiles of float32 are 32 queries and keys; of float16 with biases 64 on one side and 16 or 32 on the other.
CASES = [
    HistoryCase("context", (70,), heads=1, width=5, mask="context", padding=2, window=20, position_buckets=40),
    HistoryCase("groups", (75,), heads=2, key_heads=1, mask="groups", time_buckets=60, window=9, prefix=3),
    HistoryCase("last_rows", (5, 0, 40), heads=1, key_lengths=(70, 3, 33), key_padding=2, position_buckets=50),
    HistoryCase("cross_dropout", (37, 2), heads=1, key_lengths=(66, 0), mask="cross", dropout=0.4, time_buckets=20),
    HistoryCase(
        "any", (70, 3), heads=2, key_heads=1, key_lengths=(45, 9), mask="any", window=15, prefix=34, dropout=0.2,
        position_buckets=30, padding=1,
    ),
    HistoryCase("plain_dropout", (66,), heads=4, key_heads=2, dropout=0.5, padding=1),
]  # fmt: skip


def as_dtype(arguments: dict[str, Any], dtype: torch.dtype, device: str = DEVICE) -> dict[str, Any]:
    """The arguments with all that is floating in a dtype, leaves requiring gradients."""
    return {
        name: value.detach().to(device, dtype if value.is_floating_point() else value.dtype)
        .requires_grad_(value.requires_grad) if isinstance(value, Tensor) else value
        for name, value in arguments.items()
    }  # fmt: skip


def results(out: Tensor, case: HistoryCase, arguments: dict[str, Any]) -> dict[str, Tensor]:
    """Output and gradients by name, for the same gradient of the output in every dtype."""
    above = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).half().to(out.device, out.dtype)
    leaves = [arguments[name] for name in case.grad()]
    found = torch.autograd.grad(out, leaves, above, allow_unused=True)
    gradients = [torch.zeros_like(leaf) if one is None else one for leaf, one in zip(leaves, found, strict=True)]
    return {"out": out.detach(), **dict(zip(case.grad(), gradients, strict=True))}


def assert_alike(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    """Finite at the same elements, and near the truth there."""
    for name, truth in expected.items():
        value = found[name].double().cpu()
        assert torch.equal(value.isfinite(), truth.isfinite()), name
        finite = truth.isfinite()
        torch.testing.assert_close(value[finite], truth[finite], atol=tolerance, rtol=tolerance, msg=name)


@pytest.mark.parametrize("op", OPS, ids=lambda op: str(op.name))
@given(case=cases(longest=17), seed=st.integers(0, 2**20), infinite=st.sampled_from([0.0, 0.0, -INF]))
@settings(deadline=None, max_examples=examples(12))
def test_every_instance_of_the_rule(op: Op, case: HistoryCase, seed: int, infinite: float) -> None:
    arguments = as_dtype(drawn(op, case, seed, infinite), torch.float32)
    found = results(public_function(op)(**arguments, backend="triton"), case, arguments)
    exact = as_dtype(arguments, torch.float64, "cpu")
    assert_alike(found, results(dense(op, exact), case, exact), 3e-5)


@pytest.mark.parametrize("op", OPS, ids=lambda op: str(op.name))
@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.float16, marks=pytest.mark.slow)], ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_users_of_several_tiles(op: Op, dtype: torch.dtype, case: HistoryCase) -> None:
    arguments = as_dtype(drawn(op, case, 0, 0.0), dtype)
    found = results(public_function(op)(**arguments, backend="triton"), case, arguments)
    exact = as_dtype(arguments, torch.float64, "cpu")
    expected = results(public_function(op)(**exact, backend="reference"), case, exact)
    assert_alike(found, expected, 3e-5 if dtype == torch.float32 else 2e-2)


@pytest.mark.parametrize("op", OPS, ids=lambda op: str(op.name))
def test_visible_past_the_event_itself(op: Op) -> None:
    """Without any other argument of the rule: keys behind a query's tile, and queries before a key's."""
    case = HistoryCase("ahead", (100, 3), heads=1, width=3, padding=1)
    arguments = as_dtype(drawn(op, case, 0, 0.0), torch.float32)
    places = torch.cat([torch.arange(100), torch.arange(4)]).int()
    for window in (None, 3):
        # One query sees all, some see what lies past the next tile, the others less than themselves.
        visible = torch.where(places % 7 == 3, (places + 45).clamp(max=100), (places - 2).clamp(min=0))
        visible[:2], visible[100:] = torch.tensor([100, 0]), torch.tensor([3, 0, 1, -7])
        given_ = arguments | {"visible": visible.to(DEVICE), "window": window}
        found = results(public_function(op)(**given_, backend="triton"), case, given_)
        exact = as_dtype(given_, torch.float64, "cpu")
        assert_alike(found, results(public_function(op)(**exact, backend="reference"), case, exact), 3e-5)


@pytest.mark.parametrize("op", OPS, ids=lambda op: str(op.name))
def test_a_users_numbers_do_not_depend_on_the_batch(op: Op) -> None:
    """Bit for bit, alone and between others, again and again; what drops too."""
    case = HistoryCase("batch", (5, 33), heads=2, key_heads=1, key_lengths=(9, 34), mask="groups", dropout=0.3)
    arguments = as_dtype(drawn(op, case, 0, 0.0), torch.float32)
    rows = {"k": slice(9, 43), "v": slice(9, 43), "dropout_seed": slice(1, 2)}
    queries = ("q", "visible", "position", "own_begin", "own_end")
    rows |= dict.fromkeys(queries, slice(5, 38))
    alone = {name: value[rows[name]] if name in rows else value for name, value in arguments.items()}
    alone |= {"offsets": torch.tensor([0, 33], device=DEVICE), "key_offsets": torch.tensor([0, 34], device=DEVICE)}
    both, again, single = (public_function(op)(**one, backend="triton") for one in (arguments, arguments, alone))
    assert torch.equal(both[5:], single)
    assert torch.equal(both, again)
    above = torch.ones_like(both)
    leaves = [arguments[name] for name in ("q", "k", "v")]
    first, second = (torch.autograd.grad(one, leaves, above) for one in (both, again))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def test_queries_that_see_nothing() -> None:
    """Result 0, log_sum_exp −∞ and no gradient, whatever the keys and the gradients hold."""
    lengths, keys = [3, 2, 40], [5, 0, 35]
    offsets, key_offsets = (torch.tensor([0, *one]).cumsum(0).int().to(DEVICE) for one in (lengths, keys))
    q, k, v = (torch.randn(rows, 1, 4, device=DEVICE).requires_grad_() for rows in (45, 40, 40))
    with torch.no_grad():
        k[6:], v[6:] = NAN, INF
    nothing = torch.zeros(45, dtype=torch.int32, device=DEVICE)
    visible = nothing.clone()
    visible[0] = 5
    out, log_sum_exp = causal_attention(
        q, k, v, offsets, key_offsets=key_offsets, visible=visible, own_begin=nothing, own_end=nothing,
        return_log_sum_exp=True, backend="triton",
    )  # fmt: skip
    assert out[0].abs().min() > 0
    assert torch.equal(out[1:], torch.zeros_like(out[1:]))
    assert bool(log_sum_exp[0, 0].isfinite()) and bool((log_sum_exp[0, 1:] == -INF).all())
    above = torch.full_like(out, NAN)
    above[0] = 1.0
    d_q, d_k, d_v = torch.autograd.grad((out, log_sum_exp), (q, k, v), (above, torch.full_like(log_sum_exp, 3.0)))
    assert d_q[0].abs().min() > 0
    assert not d_q[1:].any()
    assert bool(d_k[:5].isfinite().all()) and not d_k[5:].any()
    assert bool(d_v[:5].isfinite().all()) and not d_v[5:].any()


@pytest.mark.parametrize("op", [causal_attention, hstu_attention], ids=lambda op: op.__name__)
@pytest.mark.parametrize("name", ["q", "k", "v", "d_out"])
def test_what_is_not_finite_reaches_only_who_sees_it(op: Any, name: str) -> None:
    case = HistoryCase("hidden", (20,), heads=2, key_heads=1, width=3, mask="groups", window=4, prefix=2, dropout=0.3)
    arguments = case.make(torch.Generator().manual_seed(0), torch.float32)
    given_ = arguments | {"d_out": torch.randn(20, 2, 3, generator=torch.Generator().manual_seed(1))}
    given_[name][9, 0, 1] = NAN
    given_[name][18, 0, 0] = INF

    def computed(backend: str, dtype: torch.dtype, device: str) -> dict[str, Tensor]:
        now = as_dtype(given_, dtype, device)
        above = now.pop("d_out")
        leaves = [now[one].requires_grad_() for one in case.grad()]
        out = op(**now, backend=backend)
        return dict(zip(("out", *case.grad()), (out.detach(), *torch.autograd.grad(out, leaves, above)), strict=True))

    assert_alike(computed("triton", torch.float32, DEVICE), computed("reference", torch.float64, "cpu"), 3e-5)


def test_the_dropped_pairs_are_those_of_the_definition() -> None:
    """Pair by pair, at positions and seeds of either sign; 70 keys are an odd number of tiles."""
    length, dropout = 70, 0.3
    q = torch.zeros(length, 2, length, device=DEVICE)
    v = torch.eye(length, device=DEVICE)[:, None].expand(-1, 2, -1).contiguous()
    position = (torch.arange(length, dtype=torch.int32) * 7919 - 2**18).to(DEVICE)
    visible = torch.full((length,), length, dtype=torch.int32, device=DEVICE)
    seed = torch.tensor([-(2**61) - 12345], device=DEVICE)
    out = causal_attention(
        q, q, v, torch.tensor([0, length], device=DEVICE), visible=visible, position=position, dropout=dropout,
        dropout_seed=seed, backend="triton",
    )  # fmt: skip
    stays = kept(seed.cpu(), 2, position.cpu().long()[None], torch.arange(length), dropout)[:, 0]
    assert torch.equal(out.cpu().transpose(0, 1) > 0, stays)


@triton.jit
def spans_kernel(
    result: Any, runs: Any, schedule: Any, rule: Any, biases: Any, window: Any, BLOCK: tl.constexpr,
    BLOCK_KEY: tl.constexpr, SHAPE: tl.constexpr, MOST: tl.constexpr,
) -> None:  # fmt: skip
    """Writes the key blocks that a tile of queries visits, in order, and their number."""
    tile = own_tile(schedule, 1, rule, BLOCK, SHAPE, False)
    queries = own_queries(rule, biases, tile, tile.first + tl.arange(0, BLOCK), SHAPE)
    spans = key_spans(queries, tile, window, SHAPE, BLOCK_KEY)
    tl.store(runs + tl.program_id(0), spans.end // BLOCK_KEY)
    for number in range(0, spans.end, BLOCK_KEY):
        place = tl.program_id(0) * MOST + number // BLOCK_KEY
        tl.store(result + place, key_at(spans, number) // BLOCK_KEY)


@triton.jit
def range_kernel(
    result: Any, schedule: Any, rule: Any, biases: Any, window: Any, BLOCK_QUERY: tl.constexpr, BLOCK: tl.constexpr,
    SHAPE: tl.constexpr,
) -> None:  # fmt: skip
    """Writes the range of queries that a tile of keys visits."""
    tile = own_tile(schedule, 1, rule, BLOCK, SHAPE, True)
    low, high = query_range(rule, biases, tile, window, SHAPE, BLOCK_QUERY, BLOCK)
    tl.store(result + tl.program_id(0) * 2, low)
    tl.store(result + tl.program_id(0) * 2 + 1, high)


def seen_pairs(record: Attention) -> Tensor:
    """Which pairs of the first user are seen: bool [queries, keys]."""
    numbers = {name: getattr(record, name) for name in ("visible", "position", "own_begin", "own_end", "prefix")}
    queries = packed_queries(record.offsets, record.q.shape[0], key_offsets=record.key_offsets, **numbers)
    length, keys = int(record.offsets[1]), int(record.keys[1])
    rows = Queries(*(None if one is None else one[:length] for one in queries))  # type: ignore[arg-type]
    return seen_keys(rows, torch.arange(keys, device=DEVICE), record.window).cpu()


@pytest.mark.parametrize("mask", ["groups", "any", "context", "cross", "placed_candidates"])
@pytest.mark.parametrize("window", [None, 9])
def test_hidden_blocks_cost_nothing(mask: str, window: int | None) -> None:
    """A tile visits every block of which it sees a key, once, in order; under a regular mask no other."""
    case = HistoryCase(mask, (100,), heads=1, key_lengths=(150,), mask=mask, window=window, prefix=5)
    record = Attention(*captured_arguments(CAUSAL, as_dtype(drawn(CAUSAL, case, 3, 0.0), torch.float32)))
    seen = seen_pairs(record)
    shared = record.shared_arguments()
    shared = {name: shared[name] for name in ("rule", "biases", "window", "SHAPE")}
    (of_queries,) = tile_schedules(record.offsets, 100, [(BLOCK_QUERY, False)])
    (of_keys,) = tile_schedules(record.keys, 150, [(BLOCK_KEY, True)])
    most = -(-150 // BLOCK_KEY)
    visited = torch.full((len(of_queries), most), -1, dtype=torch.int32, device=DEVICE)
    runs = torch.zeros(len(of_queries), dtype=torch.int32, device=DEVICE)
    own = {"result": visited, "runs": runs, "schedule": of_queries, "BLOCK": BLOCK_QUERY, "BLOCK_KEY": BLOCK_KEY}
    launch(spans_kernel, (len(of_queries),), shared | own | {"MOST": most})
    needed = torch.nn.functional.pad(seen, (0, most * BLOCK_KEY - 150)).view(100, most, BLOCK_KEY).any(-1)
    for entry, blocks, count in zip(of_queries.tolist(), visited.tolist(), runs.tolist(), strict=True):
        first = entry[2] * BLOCK_QUERY
        wanted = needed[first : first + BLOCK_QUERY].any(0).nonzero()[:, 0].tolist() if entry[1] else []
        assert blocks[:count] == sorted(set(blocks[:count]))
        assert set(wanted) <= set(blocks[:count])
        if mask != "any":
            assert blocks[:count] == wanted
    ranges = torch.zeros(len(of_keys), 2, dtype=torch.int32, device=DEVICE)
    own = {"result": ranges, "schedule": of_keys, "BLOCK_QUERY": BLOCK_QUERY, "BLOCK": BLOCK_KEY}
    launch(range_kernel, (len(of_keys),), shared | own)
    for entry, (low, high) in zip(of_keys.tolist(), ranges.tolist(), strict=True):
        first = entry[2] * BLOCK_KEY
        rows = seen[:, first : first + BLOCK_KEY].any(1).nonzero()[:, 0].tolist() if entry[1] else []
        expected = [rows[0] // BLOCK_QUERY * BLOCK_QUERY, rows[-1] + 1] if rows else None
        assert [low, high] == expected if expected else low >= high
