"""causal_attention against dense formulations, under every mask, and against everything a caller can get wrong."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from argus_kernels import causal_attention
from argus_kernels.ops.causal_attention import BACKENDS
from tests.attention.attention_truth import (
    dense_bias,
    dense_mask,
    drawn,
    exact_backends,
    gradients,
    jagged_lengths,
    packed_offsets,
    user_parts,
)
from tests.drawn_examples import examples

NAMES = exact_backends(BACKENDS)


def dense_attention(arguments: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """out and log_sum_exp, user by user, through torch's own attention with a dense mask and bias."""
    offsets, q = arguments["offsets"], arguments["q"]
    scale = arguments.get("scale", q.shape[2] ** -0.5)
    outs, statistics = [], []
    for user in range(len(offsets) - 1):
        query, key, value, visible, query_time, key_time = user_parts(
            offsets, user, q, *(arguments.get(n) for n in ("k", "v", "visible", "query_time", "key_time"))
        )
        length = len(query)
        mask = dense_mask(length, None if visible is None else visible.tolist(), arguments.get("window"))
        bias = dense_bias(
            length,
            q.shape[1],
            arguments.get("position_bias"),
            arguments.get("time_bias"),
            None if query_time is None else query_time.tolist(),
            None if key_time is None else key_time.tolist(),
        ).masked_fill(~mask, -torch.inf)
        query, key, value = (t.transpose(0, 1) for t in (query, key, value))
        outs.append(scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=scale).transpose(0, 1))
        statistics.append(torch.logsumexp(scale * query @ key.transpose(1, 2) + bias, -1))
    padding = len(q) - int(offsets[-1])
    outs.append(q.new_zeros(padding, *q.shape[1:]))
    statistics.append(q.new_zeros(q.shape[1], padding))
    return torch.cat(outs), torch.cat(statistics, 1)


def assert_right(arguments: dict[str, Any], backend: str) -> None:
    """Outputs, both of them, and all gradients equal those of the dense formulation, in float64."""
    out, statistic = causal_attention(**arguments, return_log_sum_exp=True, backend=backend)
    dense_out, dense_statistic = dense_attention(arguments)
    torch.testing.assert_close(out, dense_out, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(statistic, dense_statistic, rtol=1e-11, atol=1e-11)
    if not dense_out.requires_grad:  # there are no events, so nothing depends on anything
        assert not any(gradient.count_nonzero() for gradient in gradients(out, arguments).values())
        return
    ours = gradients(torch.cat([out.flatten(), statistic.flatten()]), arguments)
    truth = gradients(torch.cat([dense_out.flatten(), dense_statistic.flatten()]), arguments)
    for name, gradient in truth.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("backend", NAMES)
def test_plain_causal_is_torchs_causal_attention(backend: str) -> None:
    arguments = drawn([40], seed=1, heads=3, width=8)
    q, k, v = (arguments[name].transpose(0, 1) for name in "qkv")
    expected = scaled_dot_product_attention(q, k, v, is_causal=True).transpose(0, 1)
    out = causal_attention(**arguments, backend=backend)
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
    ours, truth = gradients(out, arguments), gradients(expected, arguments)
    for name in truth:
        torch.testing.assert_close(ours[name], truth[name], rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("backend", NAMES)
@given(
    lengths=jagged_lengths,
    padding=st.integers(0, 3),
    mask=st.sampled_from(["causal", "lagged"]),
    positions=st.sampled_from([0, 1, 4, 64]),
    times=st.sampled_from([0, 1, 12, 128]),
    window=st.sampled_from([None, 1, 5, 100]),
    seed=st.integers(0, 2**31),
)
@settings(deadline=None, max_examples=examples(40))
def test_any_jagged_batch(backend: str, lengths: list[int], padding: int, seed: int, **options: Any) -> None:
    assert_right(drawn(lengths, seed, padding=padding, **options), backend)


@pytest.mark.parametrize("backend", NAMES)
@pytest.mark.parametrize("window", [None, 37, 150])
def test_histories_longer_than_a_block(backend: str, window: int | None) -> None:
    assert_right(drawn([300, 0, 129, 128], 3, padding=2, mask="lagged", positions=64, times=40, window=window), backend)


@pytest.mark.parametrize("backend", NAMES)
def test_explicit_scale(backend: str) -> None:
    arguments = drawn([9, 4], 5)
    arguments["scale"] = 0.25
    assert_right(arguments, backend)


@pytest.mark.parametrize("backend", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_users_numbers_do_not_depend_on_the_batch(backend: str, dtype: torch.dtype) -> None:
    """Bitwise: alone, or packed with others in any order, forward and backward.

    Not in float64: torch leaves exp there to MKL, whose last bit depends on an element's place in the array.
    """
    lengths = [5, 300, 0, 1, 130, 16, 15, 70]
    arguments = drawn(lengths, 11, heads=2, width=16, times=32, positions=16)
    packed: dict[str, Any] = {
        name: value.detach().to(dtype if value.is_floating_point() else value.dtype)
        for name, value in arguments.items()
        if isinstance(value, Tensor)
    }
    offsets = packed.pop("offsets")
    tables = {name: packed.pop(name) for name in ("position_bias", "time_bias")}

    def run(users: list[int]) -> list[list[Tensor]]:
        rows = torch.cat([torch.arange(int(offsets[u]), int(offsets[u + 1])) for u in users])
        mine = {name: value[rows] for name, value in packed.items()}
        leaves = [mine[name].requires_grad_() for name in "qkv"]
        own = packed_offsets([lengths[u] for u in users])
        out = causal_attention(**mine, **tables, offsets=own, backend=backend)
        found = torch.autograd.grad(out, leaves, (rows[:, None, None] % 7 - 3).expand_as(out).to(dtype))
        return [list(torch.split(tensor, [lengths[u] for u in users])) for tensor in (out, *found)]

    together = run(list(range(len(lengths))))
    shuffled = [6, 1, 3, 7, 0, 4, 2, 5]
    permuted = run(shuffled)
    for user in range(len(lengths)):
        alone = run([user])
        for quantity in range(4):
            assert torch.equal(together[quantity][user], alone[quantity][0])
            assert torch.equal(together[quantity][user], permuted[quantity][shuffled.index(user)])


@pytest.mark.parametrize("backend", NAMES)
def test_candidates_together_equal_one_by_one(backend: str) -> None:
    """Candidates appended to a history, all seeing the history and themselves only, as if each came alone."""
    history, candidates = 10, 6
    q, k, v = (torch.randn(history + candidates, 2, 4, dtype=torch.float64) for _ in range(3))
    visible = torch.arange(history + candidates, dtype=torch.int32).clamp(max=history)
    together = causal_attention(q, k, v, packed_offsets([history + candidates]), visible=visible, backend=backend)
    for candidate in range(candidates):
        rows = torch.tensor([*range(history), history + candidate])
        alone = causal_attention(q[rows], k[rows], v[rows], packed_offsets([history + 1]), backend=backend)
        torch.testing.assert_close(together[history + candidate], alone[-1])


@pytest.mark.parametrize("backend", NAMES)
def test_a_lag_hides_exactly_the_young_events(backend: str) -> None:
    """With visible[i] = max(i − 3, 0), changing event j changes exactly the rows j and j + 4 … of its own user."""
    lengths = [12, 5]
    q, k, v = (torch.randn(17, 2, 4, dtype=torch.float64) for _ in range(3))
    visible = torch.cat([torch.arange(n) for n in lengths]).sub(3).clamp(min=0).int()
    before = causal_attention(q, k, v, packed_offsets(lengths), visible=visible, backend=backend)
    k[4] += 1.0
    v[4] -= 1.0
    after = causal_attention(q, k, v, packed_offsets(lengths), visible=visible, backend=backend)
    changed = (before != after).flatten(1).any(1).nonzero()[:, 0].tolist()
    assert changed == [4, 8, 9, 10, 11]


@pytest.mark.parametrize("backend", NAMES)
def test_times_that_run_backwards_count_by_their_distance(backend: str) -> None:
    arguments: dict[str, Any] = drawn([6, 3], 2, times=20)
    out = causal_attention(**arguments, backend=backend)
    arguments.update(query_time=-arguments["query_time"], key_time=-arguments["key_time"])
    assert torch.equal(out, causal_attention(**arguments, backend=backend))


@pytest.mark.parametrize("backend", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scores_of_ten_thousand(backend: str, dtype: torch.dtype) -> None:
    """Scores of ±10⁴ give the key with the largest one, and finite gradients."""
    q = torch.full((4, 1, 1), 100.0, dtype=dtype, requires_grad=True)
    k = torch.tensor([-100.0, 100.0, -100.0, 50.0], dtype=dtype).view(4, 1, 1).requires_grad_()
    v = torch.arange(4.0).to(dtype).view(4, 1, 1).requires_grad_()
    out, statistic = causal_attention(q, k, v, packed_offsets([4]), return_log_sum_exp=True, backend=backend)
    assert out.flatten().tolist() == [0.0, 1.0, 1.0, 1.0]
    assert statistic.flatten().tolist() == [-10_000.0, 10_000.0, 10_000.0, 10_000.0]
    for gradient in torch.autograd.grad(out.sum() + statistic.sum(), [q, k, v]):
        assert bool(gradient.isfinite().all())


@pytest.mark.parametrize("backend", NAMES)
def test_padding_rows_hold_anything(backend: str) -> None:
    arguments: dict[str, Any] = drawn([4, 0, 2], 9, padding=3, mask="lagged", positions=4, times=9)
    clean = causal_attention(**arguments, return_log_sum_exp=True, backend=backend)
    wanted = gradients(clean[0], arguments)
    for name, value in arguments.items():
        if isinstance(value, Tensor) and value.shape[0] == 9:
            dirty = value.detach().clone()
            dirty[6:] = torch.nan if value.is_floating_point() else -(2**31)
            arguments[name] = dirty.requires_grad_(value.requires_grad)
    out, statistic = causal_attention(**arguments, return_log_sum_exp=True, backend=backend)
    assert torch.equal(out, clean[0])
    assert torch.equal(statistic, clean[1])
    assert not out[6:].count_nonzero() and not statistic[:, 6:].count_nonzero()
    for name, gradient in gradients(out, arguments).items():
        assert torch.equal(gradient, wanted[name]), name


@pytest.mark.parametrize("backend", NAMES)
def test_jagged_nested_tensors_in_and_out(backend: str) -> None:
    arguments: dict[str, Any] = drawn([5, 1, 3], 4, times=16)
    expected = causal_attention(**arguments, backend=backend)
    offsets = arguments["offsets"].long()
    leaves = {name: arguments[name].detach().clone().requires_grad_() for name in "qkv"}
    nested: dict[str, Any] = {
        n: torch.nested.nested_tensor_from_jagged(leaf, offsets=offsets) for n, leaf in leaves.items()
    }
    others = {name: arguments[name] for name in ("time_bias", "query_time", "key_time")}
    out = causal_attention(**nested, **others, backend=backend)
    assert out.is_nested and out.shape == nested["q"].shape
    assert torch.equal(out.values(), expected)
    out.values().sum().backward()
    for name, gradient in gradients_of_sum(expected, arguments).items():
        assert torch.equal(leaves[name].grad, gradient)


def gradients_of_sum(result: Tensor, arguments: dict[str, Any]) -> dict[str, Tensor]:
    return dict(zip("qkv", torch.autograd.grad(result.sum(), [arguments[n] for n in "qkv"]), strict=True))


@pytest.mark.parametrize(
    ("offsets", "message"),
    [
        ([1, 3], r"offsets\[0\] is 1, expected 0"),
        ([0, 4, 2], r"offsets\[2\] is 2, expected at least offsets\[1\] = 4"),
        ([0, 7], r"offsets\[1\] is 7, expected at most the 6 rows given"),
    ],
)
def test_offsets_that_are_wrong(offsets: list[int], message: str) -> None:
    q = torch.randn(6, 1, 2)
    with pytest.raises(ValueError, match=message):
        causal_attention(q, q, q, torch.tensor(offsets, dtype=torch.int32))


def test_max_length_too_small() -> None:
    q = torch.randn(6, 1, 2)
    with pytest.raises(ValueError, match="user 1 has 4 events, expected at most max_length = 3"):
        causal_attention(q, q, q, packed_offsets([2, 4]), 3)


@pytest.mark.parametrize(("value", "row"), [(-1, 3), (4, 3)])
def test_visible_out_of_range(value: int, row: int) -> None:
    q = torch.randn(5, 1, 2)
    visible = torch.zeros(5, dtype=torch.int32)
    visible[row] = value
    with pytest.raises(ValueError, match=rf"visible\[{row}\] is {value}, expected 0 to 3, the number"):
        causal_attention(q, q, q, packed_offsets([2, 3]), visible=visible)


def test_every_disagreement_is_named_at_once() -> None:
    q = torch.randn(6, 2, 4)
    with pytest.raises(ValueError) as raised:
        causal_attention(
            q,
            torch.randn(6, 2, 5),
            q.double(),
            torch.tensor([0, 6], dtype=torch.int16),
            -1,
            visible=torch.zeros(6),
            position_bias=torch.randn(3, 4),
            time_bias=torch.randn(2, 0),
            query_time=torch.zeros(5, dtype=torch.int64),
            window=0,
        )
    message = str(raised.value)
    for part in (
        "k has shape [6, 2, 5], expected [6, any, 4] like q",
        "v is torch.float64, expected torch.float32 like q",
        "offsets is torch.int16, expected torch.int32 or torch.int64",
        "visible is torch.float32, expected torch.int32 or torch.int64",
        "query_time has shape [5], expected [6]",
        "position_bias has shape [3, 4], expected [2, any]",
        "time_bias has no buckets",
        "key_time is not given",
        "window is 0, expected at least 1",
        "max_length is -1",
    ):
        assert part in message


def test_unsupported_kinds_of_q() -> None:
    offsets = packed_offsets([3])
    with pytest.raises(ValueError, match=r"q is torch\.int64, expected"):
        whole = torch.zeros(3, 1, 2, dtype=torch.int64)
        causal_attention(whole, whole, whole, offsets)
    with pytest.raises(ValueError, match="q has head width 0"):
        empty = torch.zeros(3, 1, 0)
        causal_attention(empty, empty, empty, offsets)
    flat = torch.zeros(3, 2)
    with pytest.raises(ValueError, match=r"q has shape \[3, 2\], expected \[any, any, any\]"):
        causal_attention(flat, flat, flat, offsets)


def test_nested_and_packed_do_not_mix() -> None:
    q = torch.randn(3, 1, 2)
    offsets = torch.tensor([0, 1, 3])
    nested = torch.nested.nested_tensor_from_jagged(q, offsets=offsets)
    with pytest.raises(ValueError, match="q is jagged and k is packed"):
        causal_attention(nested, q, nested)
    with pytest.raises(ValueError, match="offsets is given, expected None"):
        causal_attention(nested, nested, nested, packed_offsets([1, 2]))
    with pytest.raises(ValueError, match="offsets is not given"):
        causal_attention(q, q, q)
    other = torch.nested.nested_tensor_from_jagged(q, offsets=torch.tensor([0, 2, 3]))
    with pytest.raises(ValueError, match="v does not share k's offsets"):
        causal_attention(nested, nested, other)


def test_times_without_a_time_bias_are_not_looked_at() -> None:
    q = torch.randn(3, 1, 2)
    plain = causal_attention(q, q, q, packed_offsets([3]))
    assert torch.equal(causal_attention(q, q, q, packed_offsets([3]), query_time=torch.zeros(3).long()), plain)
