"""hstu_attention against a plain transcription of HSTU's formula on padded histories, and against bad arguments."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from argus_kernels import hstu_attention
from argus_kernels.ops.hstu_attention import BACKENDS
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


def padded_hstu(arguments: dict[str, Any]) -> Tensor:
    """A = SiLU(α·Q Kᵀ + rab) / n on [B, H, n, n], times the mask, times V; n is the longest history unless given."""
    offsets, q = arguments["offsets"], arguments["q"]
    lengths = (offsets[1:] - offsets[:-1]).tolist()
    n = max(lengths, default=0)
    padded = {name: q.new_zeros(len(lengths), q.shape[1], n, q.shape[2]) for name in "qkv"}
    bias, mask = q.new_zeros(len(lengths), q.shape[1], n, n), torch.zeros(len(lengths), 1, n, n, dtype=torch.bool)
    for user, length in enumerate(lengths):
        *parts, visible, query_time, key_time = user_parts(
            offsets, user, *(arguments.get(name) for name in ("q", "k", "v", "visible", "query_time", "key_time"))
        )
        for name, part in zip("qkv", parts, strict=True):
            padded[name][user, :, :length] = part.transpose(0, 1)
        mask[user, 0, :length, :length] = dense_mask(
            length, None if visible is None else visible.tolist(), arguments.get("window")
        )
        bias[user, :, :length, :length] = dense_bias(
            length,
            q.shape[1],
            arguments.get("position_bias"),
            arguments.get("time_bias"),
            None if query_time is None else query_time.tolist(),
            None if key_time is None else key_time.tolist(),
        )
    scores = arguments.get("alpha", 1.0) * torch.einsum("bhid,bhjd->bhij", padded["q"], padded["k"]) + bias
    weights = torch.nn.functional.silu(scores) / (arguments.get("divisor") or max(n, 1)) * mask
    out = torch.einsum("bhij,bhjd->bihd", weights, padded["v"])
    rows = [out[user, :length] for user, length in enumerate(lengths)]
    return torch.cat([*rows, q.new_zeros(len(q) - int(offsets[-1]), *q.shape[1:])])


def assert_right(arguments: dict[str, Any], backend: str) -> None:
    lengths = arguments["offsets"].diff().tolist()
    out = hstu_attention(**arguments, max_length=max(lengths, default=0), backend=backend)
    expected = padded_hstu(arguments)
    torch.testing.assert_close(out, expected, rtol=1e-11, atol=1e-11)
    ours = gradients(out, arguments)
    if not expected.requires_grad:  # there are no events, so nothing depends on anything
        assert not any(gradient.count_nonzero() for gradient in ours.values())
        return
    for name, gradient in gradients(expected, arguments).items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("backend", NAMES)
@given(
    lengths=jagged_lengths,
    padding=st.integers(0, 3),
    mask=st.sampled_from(["causal", "lagged"]),
    positions=st.sampled_from([0, 1, 4, 64]),
    times=st.sampled_from([0, 1, 12, 128]),
    window=st.sampled_from([None, 1, 5, 100]),
    alpha=st.sampled_from([1.0, 0.125]),
    divisor=st.sampled_from([None, 50.0]),
    seed=st.integers(0, 2**31),
)
@settings(deadline=None, max_examples=examples(40))
def test_any_jagged_batch(
    backend: str, lengths: list[int], seed: int, alpha: float, divisor: float | None, **options: Any
) -> None:
    assert_right(drawn(lengths, seed, **options) | {"alpha": alpha, "divisor": divisor}, backend)


@pytest.mark.parametrize("backend", NAMES)
@pytest.mark.parametrize("window", [None, 37])
def test_histories_longer_than_a_block(backend: str, window: int | None) -> None:
    assert_right(drawn([300, 0, 129], 3, padding=2, mask="lagged", positions=64, times=40, window=window), backend)


@pytest.mark.parametrize("backend", NAMES)
def test_the_divisor_is_max_length_not_the_batch(backend: str) -> None:
    arguments: dict[str, Any] = drawn([6, 2], 8)
    given_length = hstu_attention(**arguments, max_length=100, backend=backend)
    divided = hstu_attention(**arguments, divisor=100.0, backend=backend)
    assert torch.equal(given_length, divided)
    by_rows = hstu_attention(**arguments, backend=backend)
    assert torch.equal(by_rows, hstu_attention(**arguments, divisor=8.0, backend=backend))


@pytest.mark.parametrize("backend", NAMES)
def test_a_row_that_sees_only_itself(backend: str) -> None:
    arguments: dict[str, Any] = drawn([5], 8, window=1)
    q, k, v = (arguments[name] for name in "qkv")
    expected = torch.nn.functional.silu((q * k).sum(-1, keepdim=True)) / 4 * v
    torch.testing.assert_close(hstu_attention(**arguments, divisor=4.0, backend=backend), expected)


@pytest.mark.parametrize("backend", NAMES)
def test_scores_of_ten_thousand(backend: str) -> None:
    """SiLU of −10⁴ is 0 and of 10⁴ is 10⁴; gradients stay finite."""
    q = torch.full((2, 1, 1), 100.0, requires_grad=True)
    k = torch.tensor([-100.0, 100.0]).view(2, 1, 1).requires_grad_()
    v = torch.ones(2, 1, 1, requires_grad=True)
    out = hstu_attention(q, k, v, packed_offsets([2]), divisor=1.0, backend=backend)
    assert out.flatten().tolist() == [0.0, 10_000.0]
    for gradient in torch.autograd.grad(out.sum(), [q, k, v]):
        assert bool(gradient.isfinite().all())


@pytest.mark.parametrize("backend", NAMES)
def test_a_users_numbers_do_not_depend_on_the_batch(backend: str) -> None:
    lengths = [5, 300, 0, 1, 130, 16]
    q, k, v = (torch.randn(sum(lengths), 2, 16) for _ in range(3))
    offsets = packed_offsets(lengths)
    together = hstu_attention(q, k, v, offsets, divisor=300.0, backend=backend)
    for user, length in enumerate(lengths):
        query, key, value = user_parts(offsets, user, q, k, v)
        alone = hstu_attention(query, key, value, packed_offsets([length]), divisor=300.0, backend=backend)
        assert torch.equal(together[int(offsets[user]) : int(offsets[user + 1])], alone)


@pytest.mark.parametrize("backend", NAMES)
def test_jagged_nested_tensors_in_and_out(backend: str) -> None:
    q, k, v = (torch.randn(9, 2, 4) for _ in range(3))
    offsets = torch.tensor([0, 5, 6, 9])
    query, key, value = (torch.nested.nested_tensor_from_jagged(t, offsets=offsets) for t in (q, k, v))
    out = hstu_attention(query, key, value, divisor=5.0, backend=backend)
    assert torch.equal(out.values(), hstu_attention(q, k, v, offsets.int(), divisor=5.0, backend=backend))


@pytest.mark.parametrize("divisor", [0.0, -3.0, float("nan")])
def test_divisor_that_is_not_positive(divisor: float) -> None:
    q = torch.randn(3, 1, 2)
    with pytest.raises(ValueError, match=f"divisor is {divisor}, expected a finite number above 0"):
        hstu_attention(q, q, q, packed_offsets([3]), divisor=divisor)


def test_values_are_checked_under_the_ops_own_name() -> None:
    q = torch.randn(3, 1, 2)
    with pytest.raises(ValueError, match=r"hstu_attention: offsets\[1\] is 4, expected at most the 3 rows"):
        hstu_attention(q, q, q, packed_offsets([4]))
    with pytest.raises(ValueError, match="hstu_attention: user 0 has 3 events, expected at most max_length = 2"):
        hstu_attention(q, q, q, packed_offsets([3]), 2)
    with pytest.raises(ValueError, match=r"hstu_attention: visible\[1\] is 4, expected 0 to 3"):
        hstu_attention(q, q, q, packed_offsets([3]), visible=torch.tensor([0, 4, 0], dtype=torch.int32))
    with pytest.raises(ValueError, match=r"hstu_attention: k has shape .* query_time is not given"):
        hstu_attention(q, q[:2], q, packed_offsets([3]), time_bias=torch.zeros(1, 4), key_time=torch.zeros(3).long())
