"""The CUDA kernels of causal_attention and hstu_attention, held to the error rule and to their promises on the CPU.

Where there is a GPU, the error rule holds them there too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from argus_kernels import causal_attention, hstu_attention
from argus_kernels.attention.native import MAX_POSITIONS, available_cuda
from argus_kernels.attention.relative_bias import threshold_values
from argus_kernels.attention.samples import HistoryCase, history_samples
from argus_kernels.core import Op, Sample
from argus_kernels.ops.causal_attention import OP as CAUSAL
from argus_kernels.ops.hstu_attention import OP as HSTU
from argus_kernels.testing import require_close, run_op
from argus_kernels.testing.harness import draw
from build_support.resources import SHARED_LIMIT
from tests.csrc.simt import attention_on_host
from tests.drawn_examples import examples

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
OPS = [CAUSAL, HSTU]
NAME = attention_on_host.CAUSAL_ATTENTION.name
BACKENDS = [NAME, *(["cuda"] if available_cuda() is None else [])]


@pytest.fixture(autouse=True)
def _with_backend(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for op, backend in ((CAUSAL, attention_on_host.CAUSAL_ATTENTION), (HSTU, attention_on_host.HSTU_ATTENTION)):
        reason = backend.available()
        if reason is not None:
            pytest.skip(reason)
        assert NAME not in [other.name for other in op.backends]
        monkeypatch.setattr(op, "backends", (*op.backends, backend))
    yield


def sample(op: Op, case: HistoryCase) -> Sample:
    if op is CAUSAL:
        case = replace(case, extra=(("return_log_sum_exp", True),))
    return history_samples([case], forward_products=2, backward_products=5, outputs=lambda q: q.numel())[0]


def hold_to_the_error_rule(op: Op, case: HistoryCase, dtype: torch.dtype, seeds: range, backend: str = NAME) -> None:
    one = sample(op, case)
    device = "cuda" if backend == "cuda" else "cpu"
    results: dict[str, list[list[Tensor]]] = {}
    for seed in seeds:
        given_, exact = draw(one, dtype, seed, device), draw(one, dtype, seed, device, exact=True)
        for place, (values, name_) in enumerate(((given_, backend), (exact, "eager"), (given_, "eager"))):
            for name, value in run_op(op, one, values, name_, dtype=dtype, seed=seed).results.items():
                results.setdefault(name, [[], [], []])[place].append(value)
    assert {"output 0", *(f"d_{name}" for name in case.grad())} <= set(results)
    for name, (ours, truth, theirs) in results.items():
        require_close(name, ours, truth, theirs)


@pytest.mark.parametrize("width", [64, 128])
def test_weights_of_small_scores_over_a_long_history_are_exact_in_half(width: int) -> None:
    """SiLU(score) / 8,192 is far below half's normal numbers where a model begins; d_v is a sum of them."""
    torch.manual_seed(0)
    rows = 200
    q, k, v, d_out = (torch.randn(rows, 1, width).half() for _ in range(4))
    offsets = torch.tensor([0, rows], dtype=torch.int32)

    def gradient(dtype: torch.dtype, backend: str) -> Tensor:
        value = v.to(dtype).requires_grad_()
        q_, k_ = (0.05 * one.to(dtype) for one in (q, k))
        out = hstu_attention(q_, k_, value, offsets, rows, divisor=8192.0, backend=backend)
        # Far above the smallest numbers of the result's own type.
        return torch.autograd.grad(out, value, 256 * d_out.to(dtype))[0]

    truth = gradient(torch.float64, "eager")
    ours, theirs = ((gradient(torch.half, one).double() - truth).norm() / truth.norm() for one in (NAME, "eager"))
    assert ours < 1e-3 and theirs < 1e-3, (ours, theirs)


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("op", OPS, ids=lambda op: str(op.name))
@given(
    lengths=st.lists(st.sampled_from([0, 1, 2, 15, 31, 32, 33, 63, 65]), max_size=4),
    padding=st.integers(0, 3),
    width=st.sampled_from([8, 16, 24, 40, 64]),
    mask=st.sampled_from(["causal", "lagged", "candidates"]),
    positions=st.sampled_from([0, 1, 5, 40]),
    times=st.sampled_from([0, 1, 12, 128]),
    window=st.sampled_from([None, 1, 5, 40]),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**20),
)
@settings(deadline=None, max_examples=examples(5))
def test_any_jagged_batch(
    op: Op, backend: str, lengths: list[int], positions: int, times: int, dtype: torch.dtype, seed: int, **options: Any
) -> None:
    case = HistoryCase("drawn", tuple(lengths), heads=2, position_buckets=positions, time_buckets=times, **options)
    # Several draws, because a table of one column is one number.
    hold_to_the_error_rule(op, case, dtype, range(seed, seed + 3), backend)


def arguments(op: Op, dtype: torch.dtype, lengths: tuple[int, ...] = (70, 0, 33, 1), **options: Any) -> dict[str, Any]:
    case = HistoryCase("", lengths, width=16, mask="lagged", position_buckets=30, time_buckets=40, **options)
    found = case.make(torch.Generator().manual_seed(3), dtype)
    if op is HSTU:
        found["divisor"] = 50.0
    return found


def everything(op: Op, given_: dict[str, Any]) -> dict[str, Tensor]:
    """The outputs and all gradients."""
    one = sample(op, HistoryCase("", (), position_buckets=1, time_buckets=1))
    return run_op(op, one, given_, NAME, dtype=given_["q"].dtype).results


@pytest.mark.parametrize(
    ("op", "dtype"),
    [
        pytest.param(op, dtype, id=f"{op.name}-{dtype}", marks=[pytest.mark.slow] * (i != j))
        for i, op in enumerate(OPS)
        for j, dtype in enumerate(DTYPES)
    ],
)
def test_same_bits_in_every_order_of_the_threads(op: Op, dtype: torch.dtype) -> None:
    given_ = arguments(op, dtype)
    first = everything(op, given_)
    for _ in range(3):
        for name, value in everything(op, given_).items():
            assert torch.equal(value, first[name]), name


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
@pytest.mark.parametrize("op", OPS, ids=lambda op: str(op.name))
def test_a_users_numbers_do_not_depend_on_the_batch(op: Op, dtype: torch.dtype) -> None:
    lengths = (20, 70, 1, 64)
    together = arguments(op, dtype, lengths)
    rows = {name for name, value in together.items() if isinstance(value, Tensor) and len(value) == sum(lengths)}

    def outcome(given_: dict[str, Any]) -> list[Tensor]:
        leaves = [given_[name].detach().requires_grad_() for name in "qkv"]
        function: Callable[..., Tensor] = causal_attention if op is CAUSAL else hstu_attention
        out = function(**{**given_, **dict(zip("qkv", leaves, strict=True))}, backend=NAME)
        weight = (torch.arange(out.shape[2]) % 7 - 3).expand_as(out).to(dtype)
        return [out, *torch.autograd.grad(out, leaves, weight)]

    packed = outcome(together)
    for user, length in enumerate(lengths):
        begin = sum(lengths[:user])
        mine = {name: v[begin : begin + length] if name in rows else v for name, v in together.items()}
        mine["offsets"], mine["max_length"] = torch.tensor([0, length], dtype=torch.int32), length
        for alone, shared in zip(outcome(mine), packed, strict=True):
            assert torch.equal(alone, shared[begin : begin + length])


@pytest.mark.parametrize("op", OPS, ids=lambda op: str(op.name))
def test_views_of_one_projection_and_of_odd_strides(op: Op) -> None:
    given_ = arguments(op, torch.bfloat16)
    total, heads, width = given_["q"].shape
    projection = torch.randn(total, heads, 3 * width + 8, generator=torch.Generator().manual_seed(1)).bfloat16()
    for begin in (8, 3):  # at multiples of 16 bytes, and not
        views = {name: projection[..., begin + i * width :][..., :width] for i, name in enumerate("qkv")}
        dense = {name: view.contiguous() for name, view in views.items()}
        expected = everything(op, {**given_, **dense})
        for name, value in everything(op, {**given_, **views}).items():
            assert torch.equal(value, expected[name]), name


@pytest.mark.parametrize("op", OPS, ids=lambda op: str(op.name))
def test_padding_full_of_nan(op: Op) -> None:
    given_ = arguments(op, torch.float16, padding=5)
    expected = everything(op, given_)
    for name in "qkv":
        given_[name][-5:] = torch.nan
    for name, value in everything(op, given_).items():
        assert torch.equal(value, expected[name]), name
    assert not expected["output 0"][-5:].any() and not expected["d_k"][-5:].any()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_large_scores(dtype: torch.dtype) -> None:
    given_ = arguments(CAUSAL, dtype)
    given_["scale"] = 1e4
    out = causal_attention(**given_, backend=NAME)
    expected = causal_attention(
        **{**given_, "q": given_["q"].double(), "k": given_["k"].double(), "v": given_["v"].double()}, backend="eager"
    )
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=0.05)


def test_time_buckets_at_every_edge() -> None:
    """A key a second before an edge, one on it: each weighs what its bucket says."""
    given_: dict[str, Any]
    edges = [edge for edge in threshold_values(146)[3:] if edge < 2**62]
    for edge in (*edges[:20], *edges[-3:]):
        times = torch.tensor([0, 1, edge], dtype=torch.int64)
        bias = torch.randn(1, 146, generator=torch.Generator().manual_seed(0), requires_grad=True)
        q = torch.zeros(3, 1, 8)
        v = torch.eye(3, 8).view(3, 1, 8)
        given_ = {"q": q, "k": q, "v": v, "time_bias": bias, "query_time": times, "key_time": times}
        given_["offsets"] = torch.tensor([0, 3], dtype=torch.int32)
        ours = causal_attention(**given_, backend=NAME)
        theirs = causal_attention(**given_, backend="eager")
        torch.testing.assert_close(ours, theirs)
        (gradient,) = torch.autograd.grad(ours[2, 0, 0], bias)
        (expected,) = torch.autograd.grad(theirs[2, 0, 0], bias)
        torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_kernel_fits_the_smallest_target(dtype: torch.dtype) -> None:
    for width in (32, 64, 128, 256):
        most = attention_on_host.library().most_shared_bytes(attention_on_host.DTYPES[dtype], width)
        assert 0 < most <= SHARED_LIMIT["80"], width


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_the_loops_of_sm_90_fit_its_shared_memory(dtype: torch.dtype) -> None:
    for width in (64, 128):
        most = attention_on_host.library().most_loop_bytes(attention_on_host.DTYPES[dtype], width)
        # The tiles of the backward loop alone take 192 KiB.
        assert 192 << 10 < most <= SHARED_LIMIT["90a"], width


def test_inputs_that_cuda_refuses_are_refused() -> None:
    given_ = arguments(CAUSAL, torch.float32)
    wide = {name: torch.zeros(len(given_["q"]), 2, 264) for name in "qkv"}
    table = torch.zeros(2, MAX_POSITIONS + 1)
    with pytest.raises(ValueError, match=r"head width is 264, expected a multiple of 8 up to 256; position_bias has"):
        causal_attention(**{**given_, **wide, "position_bias": table}, backend=NAME)
    double = {name: given_[name].double() for name in "qkv"}
    with pytest.raises(ValueError, match=r"causal_attention\[cuda_on_host\]: q is float64"):
        causal_attention(**{**given_, **double}, backend=NAME)
