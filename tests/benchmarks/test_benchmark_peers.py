"""Peers compute what the ops compute, on small cases; and each says why it cannot run."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from argus_kernels import OPS, PagedCache
from argus_kernels.attention.samples import HistoryCase
from argus_kernels.core import Sample
from argus_kernels.ops import causal_attention
from benchmarks.harness.cases import Case, Spec
from benchmarks.peers import PEERS, peers_of
from benchmarks.peers.base import not_installed

NAMES = {
    "eager", "compile", "embedding_dense", "embedding_sparse", "fbgemm", "sparse_adagrad", "sdpa_padded",
    "sdpa_per_user", "sdpa_cudnn", "varlen", "flex", "flash_attn", "linear_cross_entropy", "liger", "cce",
}  # fmt: skip


def test_names_are_those_of_the_json() -> None:
    assert {peer.name for peer in PEERS} == NAMES
    assert len(PEERS) == len(NAMES)


def small_case(op: str, sample: str, dtype: str = "fp32") -> Case:
    found = next(one for one in OPS if one.name == op)
    return Spec(found, next(one for one in found.samples() if one.name == sample), dtype).draw(0, "cpu")


def history_case(**changes: Any) -> Case:
    """Users of different lengths with a head width that every peer takes."""
    case = HistoryCase("small", (40, 0, 17, 1), heads=2, width=16, **changes)
    sample = Sample(case.name, case.make, case.grad())
    return Spec(causal_attention.OP, sample, "fp32").draw(0, "cpu")


def assert_same_result(peer_name: str, case: Case) -> None:
    peer = next(one for one in peers_of(case.op.name) if one.name == peer_name)
    assert peer.why_not(case) is None
    ours, theirs = case.fresh(), case.fresh()
    expected = ours.result(ours.call("reference")())
    found = theirs.result(peer.build(theirs)())
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4, check_dtype=False)
    if case.leaves and peer.why_no_gradients(case) is None:
        gradient = torch.ones_like(expected)
        leaves = [leaf for leaf in case.leaves if leaf.is_leaf]
        for mine, other in zip(
            torch.autograd.grad(expected, leaves, gradient),
            torch.autograd.grad(found, leaves, gradient.to(found.dtype)),
            strict=True,
        ):
            torch.testing.assert_close(other.to_dense(), mine.to_dense(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("op", "sample"),
    [
        ("sampled_softmax_loss", "standard"),
        ("feedback_loss", "three_tasks"),
        ("pairwise_loss", "jagged"),
        ("rowwise_adagrad_", "repeated_rows"),
    ],
)
def test_eager(op: str, sample: str) -> None:
    assert_same_result("eager", small_case(op, sample))


@pytest.mark.parametrize("biases", [0, 12])
@pytest.mark.parametrize("peer", ["sdpa_padded", "sdpa_per_user", "eager"])
def test_attention_peers(peer: str, biases: int) -> None:
    assert_same_result(peer, history_case(position_buckets=biases, time_buckets=biases))


@pytest.mark.slow
@pytest.mark.parametrize("biases", [0, 12])
def test_flex(biases: int) -> None:
    with torch.no_grad():
        assert_same_result("flex", history_case(position_buckets=biases, time_buckets=biases))


@pytest.mark.parametrize("sample", ["first_events", "biases"])
@pytest.mark.parametrize("peer", ["sdpa_padded", "sdpa_per_user"])
def test_decode_peers(peer: str, sample: str) -> None:
    if sample == "first_events":
        case = small_case("decode_attention", sample)
    else:
        case = small_case("decode_attention", "everything")
        kept = {name: value for name, value in case.arguments.items() if name != "window"}
        kept["lengths"] = torch.tensor([5, 1, 1, 4], dtype=torch.int32)
        cache = PagedCache.allocate(4, 6, 2, 4, page_size=2)
        cache.key_pages.normal_()
        cache.value_pages.normal_()
        cache.time_pages.random_(1_600_000_000, 1_700_000_000)
        kept["cache"] = cache
        case = dataclasses.replace(case, arguments=kept)
    assert_same_result(peer, case)


@pytest.mark.parametrize(
    ("sample", "sentence"),
    [
        ("several_events", "has no counterpart of window and offsets"),
        ("silu", "has no counterpart of rule"),
        ("int8", "has no counterpart of window and an int8 cache"),
    ],
)
@pytest.mark.parametrize("peer", ["sdpa_padded", "sdpa_per_user"])
def test_what_decode_peers_have_not(peer: str, sample: str, sentence: str) -> None:
    found = next(one for one in peers_of("decode_attention") if one.name == peer)
    assert found.why_not(small_case("decode_attention", sample)) == sentence


@pytest.mark.parametrize("sample", ["sampled", "full"])
def test_linear_cross_entropy(sample: str) -> None:
    """In the sampled form, without accidental hits, which it cannot leave out."""
    case = small_case("sampled_softmax_loss", "standard")
    arguments = {**case.arguments, "candidate_ids": case.arguments["candidate_ids"] + 100}
    if sample == "full":
        catalogue = case.arguments["candidates"].shape[0]
        arguments["candidate_ids"] = torch.arange(catalogue)
        arguments["positive_ids"] = case.arguments["positive_ids"] % catalogue
        arguments["log_q"] = torch.zeros(catalogue)
        # The catalogue's own rows, so that the positive is the same vector as its row there.
        arguments["positive"] = arguments["candidates"][arguments["positive_ids"]]
    assert_same_result("linear_cross_entropy", dataclasses.replace(case, arguments=arguments))


@pytest.mark.parametrize(
    ("peer", "case", "reason"),
    [
        ("varlen", history_case(), "runs on CUDA only"),
        ("flash_attn", history_case(), "runs on CUDA only"),
        ("sdpa_cudnn", history_case(), "runs on CUDA only"),
        ("sdpa_per_user", history_case(window=3), "has no counterpart of window"),
        ("flex", history_case(mask="lagged"), "has no counterpart of visible"),
        ("compile", history_case(), "loops over users"),
        ("liger", small_case("sampled_softmax_loss", "standard"), "runs on CUDA only"),
        ("cce", small_case("sampled_softmax_loss", "refined"), "positive_log_q, the refined form"),
        ("embedding_sparse", small_case("triple_embedding", "no_bias"), "the case has dense gradients"),
        ("fbgemm", small_case("triple_embedding", "no_bias", "bf16"), "no bfloat16 tables"),
    ],
)
def test_reasons(peer: str, case: Case, reason: str) -> None:
    found = next(one for one in peers_of(case.op.name) if one.name == peer)
    assert reason in str(found.why_not(case))


def test_what_is_not_installed_or_broken(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not_installed("surely_not_there", "surely-not-there") == "surely-not-there is not installed"
    package = tmp_path / "built_for_another_torch"
    package.mkdir()
    (package / "__init__.py").write_text("raise OSError('undefined symbol: c10')\n")
    monkeypatch.syspath_prepend(tmp_path)
    reason = not_installed("built_for_another_torch.inner", "other")
    assert reason is not None and "undefined symbol: c10" in reason
    assert not_installed("json", "json") is None


@pytest.mark.parametrize(
    ("op", "sample", "peers"),
    [
        ("rowwise_adagrad_", "skipped_rows", ("sparse_adagrad",)),
        ("triple_embedding", "all_missing", ("embedding_dense",)),
    ],
)
def test_peers_that_would_read_outside_of_a_table_are_not_given_a_missing_id(
    op: str, sample: str, peers: tuple[str, ...]
) -> None:
    case = small_case(op, sample)
    for peer in peers_of(op):
        if peer.name in peers:
            assert peer.why_not(case) == "takes no id of −1, and the case has some"
