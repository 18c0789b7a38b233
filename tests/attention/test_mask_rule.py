"""The one mask rule, held to a dense mask written from the formula: every backend, outputs and all gradients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from argus_kernels.attention.dropout import dropped_below, philox
from argus_kernels.attention.mask_rule import Queries, packed_queries, seen_keys, visible_pairs
from argus_kernels.attention.query_tiles import tiles
from argus_kernels.attention.reference_tiles import Pairs
from argus_kernels.attention.samples import MASKS, HistoryCase
from argus_kernels.core import Op
from argus_kernels.ops.causal_attention import OP as CAUSAL
from argus_kernels.ops.hstu_attention import OP as HSTU
from argus_kernels.testing import captured_arguments
from argus_kernels.testing.harness import public_function
from tests.attention.attention_truth import bucket, exact_backends
from tests.drawn_examples import examples

OPS = (CAUSAL, HSTU)
EXACT = [(op, backend) for op in OPS for backend in ("eager", *exact_backends(op.backends))]
INF = float("inf")


@dataclass(frozen=True)
class User:
    """One user's rows of queries and of keys."""

    number: int
    queries: range
    keys: range


def users(arguments: dict[str, Any]) -> list[User]:
    offsets = arguments["offsets"].tolist()
    keys = arguments.get("key_offsets", arguments["offsets"]).tolist()
    return [User(b, range(offsets[b], offsets[b + 1]), range(keys[b], keys[b + 1])) for b in range(len(offsets) - 1)]


def number(arguments: dict[str, Any], name: str, place: int, default: int) -> int:
    """A number of the rule, of one query or user."""
    given_ = arguments.get(name)
    if given_ is None:
        return default
    return given_ if isinstance(given_, int) else int(given_[place])


def sees(arguments: dict[str, Any], user: User, i: int, j: int) -> bool:
    """The formula, pair by pair."""
    row, a = user.queries[i], len(user.keys) - len(user.queries) + i
    window = arguments.get("window")
    position = number(arguments, "position", row, a)
    near = window is None or position - j < window or j < number(arguments, "prefix", user.number, 0)
    history = j < number(arguments, "visible", row, a) and near
    return history or number(arguments, "own_begin", row, a) <= j < number(arguments, "own_end", row, a + 1)


def keeps(arguments: dict[str, Any], user: User, head: int, i: int, j: int) -> bool:
    """Whether dropout keeps a weight: the generator asked for one pair."""
    position = number(arguments, "position", user.queries[i], len(user.keys) - len(user.queries) + i)
    seed = int(arguments["dropout_seed"][user.number]) % 2**64
    word = partial(torch.tensor, dtype=torch.int64)
    stream = philox(word(seed % 2**32), word(seed >> 32), word(head))[0]
    words = philox(word(position % 2**32), word(j // 2), stream)
    return int(words[j % 2]) >= dropped_below(arguments["dropout"])


def dense(op: Op, arguments: dict[str, Any]) -> Tensor:
    """The op in float64, user by user and head by head, from masks of all pairs."""
    q, k, v = (arguments[name] for name in ("q", "k", "v"))
    heads, group = q.shape[1], q.shape[1] // k.shape[1]
    out = 0.0 * q
    for user in users(arguments):
        rows, keys = list(user.queries), list(user.keys)
        if not rows or not keys:
            continue
        pairs = [(i, j) for i in range(len(rows)) for j in range(len(keys))]
        seen = torch.tensor([sees(arguments, user, i, j) for i, j in pairs]).view(len(rows), len(keys))
        parts = []
        for head in range(heads):
            scores = arguments["scale" if op is CAUSAL else "alpha"] * q[rows, head] @ k[keys, head // group].T
            scores = scores + bias(arguments, user, head, seen)
            if op is CAUSAL:
                scores = scores.masked_fill(~seen, -INF)
                weights = torch.where(seen.any(1, keepdim=True), scores, 0.0).softmax(1).masked_fill(~seen, 0.0)
            else:
                weights = (torch.nn.functional.silu(scores) / arguments["divisor"]).masked_fill(~seen, 0.0)
            if arguments.get("dropout"):
                stays = torch.tensor([keeps(arguments, user, head, i, j) for i, j in pairs]).view(seen.shape)
                weights = weights * stays / (1 - arguments["dropout"])
            parts.append(weights @ v[keys, head // group])
        out = out.index_add(0, torch.tensor(rows), torch.stack(parts, 1))
    return out


def bias(arguments: dict[str, Any], user: User, head: int, seen: Tensor) -> Tensor:
    """The sum of both biases of one head, 0 where the pair is hidden."""
    total = torch.zeros(seen.shape, dtype=torch.float64)

    def looked_up(table: Tensor, column: Callable[[int, int], int]) -> Tensor:
        columns = [[column(i, j) for j in range(len(user.keys))] for i in range(len(user.queries))]
        return torch.where(seen, table[head][torch.tensor(columns)], 0.0)

    def back(i: int, j: int) -> int:
        a = len(user.keys) - len(user.queries) + i
        return max(number(arguments, "position", user.queries[i], a) - j, 0)

    def apart(i: int, j: int) -> int:
        return int(arguments["query_time"][user.queries[i]]) - int(arguments["key_time"][user.keys[j]])

    if "position_bias" in arguments:
        table = arguments["position_bias"]
        total = total + looked_up(table, lambda i, j: min(back(i, j), table.shape[1] - 1))
    if "time_bias" in arguments:
        times = arguments["time_bias"]
        total = total + looked_up(times, lambda i, j: bucket(apart(i, j), times.shape[1]))
    return total


LENGTHS = st.sampled_from([0, 0, 1, 2, 3, 5, 9, 17, 33])


@st.composite
def cases(draw: st.DrawFn, rectangular: bool | None = None, longest: int = 33) -> HistoryCase:
    """Any instance of the rule."""
    count = draw(st.integers(0, 3))
    lengths = [min(draw(LENGTHS), longest) for _ in range(count)]
    keys = None
    if draw(st.booleans()) if rectangular is None else rectangular:
        keys = tuple(min(draw(LENGTHS), longest) for _ in range(count))
    heads, group = draw(st.sampled_from([(1, 1), (2, 1), (2, 2), (4, 2)]))
    return HistoryCase(
        "drawn",
        tuple(lengths),
        heads=heads,
        key_heads=heads // group,
        width=draw(st.sampled_from([1, 3, 8])),
        padding=draw(st.integers(0, 2)),
        key_lengths=keys,
        key_padding=draw(st.integers(0, 2)),
        mask=draw(st.sampled_from([*MASKS, "any", "any"])),
        window=draw(st.sampled_from([None, None, 1, 2, 7])),
        prefix=draw(st.sampled_from([0, 0, 1, 4])),
        position_buckets=draw(st.sampled_from([0, 1, 6])),
        time_buckets=draw(st.sampled_from([0, 1, 30])),
        dropout=draw(st.sampled_from([0.0, 0.0, 0.1, 0.6])),
    )


def drawn(op: Op, case: HistoryCase, seed: int, infinite: float) -> dict[str, Any]:
    """A case in float64, its leaves requiring gradients; infinite: the value of some entries of the tables, or 0."""
    generator = torch.Generator().manual_seed(seed)
    arguments = case.make(generator, torch.float64)
    if infinite:
        for name in ("position_bias", "time_bias"):
            if name in arguments:
                chosen = torch.rand(arguments[name].shape, generator=generator) < 0.2
                arguments[name] = arguments[name].masked_fill(chosen, infinite)
    arguments |= {"scale": 0.7} if op is CAUSAL else {"alpha": 0.7, "divisor": 9.0}
    for name in case.grad():
        arguments[name].requires_grad_()
    return arguments


def results(out: Tensor, case: HistoryCase, arguments: dict[str, Any]) -> dict[str, Tensor]:
    above = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=out.dtype)
    leaves = [arguments[name] for name in case.grad()]
    found = torch.autograd.grad(out, leaves, above, allow_unused=True)
    gradients = [torch.zeros_like(leaf) if one is None else one for leaf, one in zip(leaves, found, strict=True)]
    return {"out": out.detach(), **dict(zip((f"d_{name}" for name in case.grad()), gradients, strict=True))}


@pytest.mark.parametrize(("op", "backend"), EXACT, ids=lambda one: one if isinstance(one, str) else one.name)
@given(case=cases(), seed=st.integers(0, 2**20), infinite=st.sampled_from([0.0, 0.0, -INF]))
@settings(deadline=None, max_examples=examples(25))
def test_every_instance_of_the_rule(op: Op, backend: str, case: HistoryCase, seed: int, infinite: float) -> None:
    arguments = drawn(op, case, seed, infinite)
    if backend != "eager":
        reasons = op.backend(backend).reasons(captured_arguments(op, arguments))
        if reasons:
            pytest.skip("; ".join(reasons))
    found = results(public_function(op)(**arguments, backend=backend), case, arguments)
    expected = results(dense(op, arguments), case, arguments)
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-9, atol=1e-9, equal_nan=True, msg=name)


@given(case=cases(), seed=st.integers(0, 2**20))
@settings(deadline=None, max_examples=examples(50))
def test_the_mask_pair_by_pair(case: HistoryCase, seed: int) -> None:
    arguments = drawn(CAUSAL, case, seed, 0.0)
    rule = captured_arguments(CAUSAL, arguments)
    queries = packed_queries(
        rule.offsets,
        rule.q.shape[0],
        key_offsets=rule.key_offsets,
        **{name: getattr(rule, name) for name in ("visible", "position", "own_begin", "own_end", "prefix")},
    )
    pairs = 0
    for user in users(arguments):
        rows = Queries(*(None if one is None else one[list(user.queries)] for one in queries))  # type: ignore[arg-type]
        seen = seen_keys(rows, torch.arange(len(user.keys)), rule.window)
        expected = [[sees(arguments, user, i, j) for j in range(len(user.keys))] for i in range(len(user.queries))]
        assert seen.tolist() == expected
        pairs += int(seen.sum())
    assert visible_pairs(queries, rule.window) == pairs


@given(case=cases(), seed=st.integers(0, 2**20), long=st.sampled_from([0, 130, 300]))
@settings(deadline=None, max_examples=examples(15))
def test_tiles_hold_every_seen_pair_once(case: HistoryCase, seed: int, long: int) -> None:
    lengths = HistoryCase(
        **{
            **case.__dict__,
            "lengths": (*case.lengths, long),
            "key_lengths": None if case.key_lengths is None else (*case.key_lengths, long // 2),
        }
    )
    arguments = lengths.make(torch.Generator().manual_seed(seed), torch.float32)
    rule = captured_arguments(CAUSAL, arguments)
    count = torch.zeros(rule.q.shape[0], rule.k.shape[0], dtype=torch.int32)
    for tile in tiles(rule):
        seen = Pairs(rule).seen(tile) & tile.query_is_real()[..., None]
        group, queries, keys = seen.expand(len(tile.query_rows), -1, -1).nonzero(as_tuple=True)
        count.index_put_(
            (tile.query_rows[group, queries], tile.key_rows[group, keys]), torch.tensor(1).int(), accumulate=True
        )
    expected = torch.zeros_like(count)
    for user in users(arguments):
        if len(user.queries) > 100:
            continue
        for i, row in enumerate(user.queries):
            for j, key in enumerate(user.keys):
                expected[row, key] = int(sees(arguments, user, i, j))
        assert torch.equal(count[list(user.queries)], expected[list(user.queries)])
    assert int(count.max() if count.numel() else 0) <= 1


def test_the_generator_gives_the_published_numbers() -> None:
    """The known answers of Philox2x32-10 of its authors' library."""
    word = partial(torch.tensor, dtype=torch.int64)
    known = {
        (0, 0, 0): (0xFF1DAE59, 0x6CD10DF2),
        (0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF): (0x2C3F628B, 0xAB4FD7AD),
        (0x243F6A88, 0x85A308D3, 0x13198A2E): (0xDD7CE038, 0xF62A4C12),
    }
    for (first, second, key), words in known.items():
        assert tuple(int(one) for one in philox(word(first), word(second), word(key))) == words


@pytest.mark.parametrize("op", OPS, ids=lambda op: str(op.name))
def test_what_drops_does_not_depend_on_the_batch(op: Op) -> None:
    case = HistoryCase("both", (7, 12), dropout=0.5, width=4)
    arguments = case.make(torch.Generator().manual_seed(0), torch.float32)
    arguments |= {} if op is CAUSAL else {"divisor": 9.0}
    both = public_function(op)(**arguments)
    alone = {
        name: value[7:] if isinstance(value, Tensor) and value.shape[0] == 19 else value
        for name, value in arguments.items()
    }
    alone |= {"offsets": torch.tensor([0, 12]), "dropout_seed": arguments["dropout_seed"][1:]}
    assert torch.equal(public_function(op)(**alone), both[7:])
    without = public_function(op)(**{**arguments, "dropout": 0.0})
    assert not torch.equal(without, both)


def test_dropout_drops_its_share() -> None:
    length, dropout = 400, 0.3
    v = torch.eye(length)[:, None]
    q = torch.zeros(length, 1, length)
    seed = torch.tensor([2**40 + 3])
    out = public_function(CAUSAL)(q, q, v, torch.tensor([0, length]), dropout=dropout, dropout_seed=seed)
    weights = out[:, 0]
    pairs = length * (length + 1) / 2
    share = 1 - int((weights > 0).sum()) / pairs
    assert abs(share - dropout) < 4 * (dropout * (1 - dropout) / pairs) ** 0.5
    torch.testing.assert_close(weights.sum(1)[100:].mean(), torch.tensor(1.0), rtol=0.02, atol=0)
