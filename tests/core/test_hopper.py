"""What `explain` says of the CUDA kernels that run: those of sm_90a where they can, and why not elsewhere."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from argus_kernels import explain, triple_embedding
from argus_kernels.attention import native as attention
from argus_kernels.core import Op, hopper
from argus_kernels.ops.causal_attention import OP as CAUSAL
from argus_kernels.ops.hstu_attention import OP as HSTU
from argus_kernels.ops.sampled_softmax_loss import OP as SOFTMAX
from argus_kernels.ops.sampled_softmax_loss import native as softmax
from argus_kernels.ops.triple_embedding import OP as EMBEDDING
from argus_kernels.ops.triple_embedding import native as embedding
from argus_kernels.testing import captured_arguments, small_samples

LOOP = "runs on TMA and wgmma (sm_90a)"


def given_of(op: Op, dtype: torch.dtype = torch.bfloat16, **changes: Any) -> Any:
    sample = small_samples(op)[0]
    return captured_arguments(op, sample.draw(dtype))._replace(**changes)


@pytest.fixture(autouse=True)
def hopper_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(hopper, "build_info", lambda: {"libraries": {"cuda": {"architectures": ["80", "90a"]}}})


def embedding_call(width: int = 16, dtype: torch.dtype = torch.bfloat16, height: int = 8) -> Any:
    tables = [torch.zeros(3, height)]
    ids = torch.zeros(1, 2, dtype=torch.int64)
    return given_of(EMBEDDING, ids=ids, tables=tables, columns=[0], weight=torch.zeros(height, width, dtype=dtype))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"width": 12}, "a row of weight has 24 bytes, expected a multiple of 16"),
        ({"dtype": torch.float32}, "weight is float32, expected bfloat16 or float16"),
        ({"height": 648}, "the columns have 81 chunks of 8 elements, expected 1 to 80"),
        ({"height": 0}, "the columns have 0 chunks of 8 elements, expected 1 to 80"),
    ],
)
def test_what_the_loop_of_triple_embedding_refuses(changes: dict[str, Any], reason: str) -> None:
    assert embedding.kernels_cuda(embedding_call()) == "forward runs on TMA and wgmma (sm_90a)"
    said = embedding.kernels_cuda(embedding_call(**changes))
    assert said == f"forward runs on mma.sync, not on TMA and wgmma: {reason}"


def test_a_matrix_inside_another_is_asked_where_it_begins() -> None:
    memory = torch.zeros(8 * 16 + 8, dtype=torch.bfloat16)

    def weight(first: int) -> Tensor:
        return memory[first : first + 8 * 16].view(8, 16)

    call = embedding_call()
    assert not embedding.why_not_loop(call._replace(weight=weight(8)))
    said = embedding.why_not_loop(call._replace(weight=weight(4)))
    assert said == ["weight begins 8 bytes into its memory, expected a multiple of 16"]


def test_what_the_loop_of_the_softmax_refuses() -> None:
    matrix = torch.zeros(3, 16, dtype=torch.bfloat16)
    call = given_of(SOFTMAX, query=matrix, candidates=matrix)
    assert softmax.kernels_cuda(call) == "every product runs on TMA and wgmma (sm_90a)"
    assert softmax.why_not_loop(call._replace(query=matrix.float())) == [
        "query is float32, expected bfloat16 or float16"
    ]
    assert softmax.why_not_loop(call._replace(candidates=matrix[:0])) == [
        "candidates has no row, expected at least one"
    ]


@pytest.mark.parametrize("op", [CAUSAL, HSTU], ids=lambda op: str(op.name))
def test_what_the_loops_of_attention_refuse(op: Op) -> None:
    def said(rows: int = 3, width: int = 64, dtype: torch.dtype = torch.bfloat16) -> str:
        heads = torch.zeros(rows, 2, width, dtype=dtype)
        return attention.kernels_cuda(given_of(op, q=heads, k=heads, v=heads))

    assert said(width=128) == f"forward {LOOP}; backward {LOOP}"
    for found, reason in (
        (said(dtype=torch.float32), "q is float32, expected bfloat16 or float16"),
        (said(width=136), "head width is 136, expected at most 128"),
        (said(rows=0), "q has no row, expected at least one; k has no row, expected at least one"),
    ):
        refused = f"runs on mma.sync, not on TMA and wgmma: {reason}"
        assert found == f"forward {refused}; backward {refused}"
    # Softmax's loop takes the largest product for the largest score.
    falling = attention.kernels_cuda(given_of(op, scale=-0.5))
    assert falling.count("scale is -0.5, expected above 0") == (2 if op is CAUSAL else 0)


@pytest.mark.parametrize("op", [CAUSAL, HSTU], ids=lambda op: str(op.name))
@pytest.mark.parametrize("name", ["position_bias", "time_bias"])
def test_gradients_of_bias_tables_are_told_apart_where_they_are_wanted(op: Op, name: str) -> None:
    heads = torch.zeros(3, 2, 64, dtype=torch.bfloat16)
    times = torch.zeros(3, dtype=torch.int64)
    table = torch.zeros(2, 4)

    def said(table: Tensor, dtype: torch.dtype = torch.bfloat16) -> str:
        rows = dict.fromkeys("qkv", heads.to(dtype))
        tables = {"position_bias": None, "time_bias": None, name: table}
        return attention.kernels_cuda(given_of(op)._replace(**rows, **tables, query_time=times, key_time=times))

    assert said(table) == f"forward {LOOP}; backward {LOOP}"
    learned = table.clone().requires_grad_()
    assert said(learned) == f"forward {LOOP}; backward {LOOP}, gradients of bias tables on mma.sync"
    # Where all of it runs there, one sentence says so.
    assert said(learned, torch.float32).endswith("q is float32, expected bfloat16 or float16")


@pytest.mark.parametrize(
    ("capability", "architectures", "reason"),
    [
        ((8, 0), ["80", "90a"], "the GPU has compute capability 8.0, expected 9.0"),
        ((10, 0), ["90a", "100+PTX"], "the GPU has compute capability 10.0, expected 9.0"),
        ((9, 0), ["80"], "the CUDA library is built for 80, expected 90a"),
        ((9, 0), [], "the CUDA library is built for nothing, expected 90a"),
    ],
)
def test_other_gpus_and_builds_keep_mma_sync(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], architectures: list[str], reason: str
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(hopper, "build_info", lambda: {"libraries": {"cuda": {"architectures": architectures}}})
    assert embedding.kernels_cuda(embedding_call()).endswith(f"not on TMA and wgmma: {reason}")


def test_the_environment_switches_them_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARGUS_WGMMA", "0")
    assert embedding.kernels_cuda(embedding_call()).endswith("not on TMA and wgmma: ARGUS_WGMMA is 0")


def test_a_backend_that_does_not_serve_names_no_kernels() -> None:
    call = embedding_call()
    verdicts = explain(triple_embedding, call.ids, call.tables, call.columns, call.weight)
    assert next((one.backend, one.serves, one.kernels) for one in verdicts) == ("cuda", False, "")


def test_rows_and_heads_that_share_memory_get_their_own() -> None:
    """The gradient of a sum over rows has a stride of 0, which is none of a tensor map's."""
    packed = torch.randn(7, 2, 16).bfloat16()
    assert attention.heads(packed, aligned=True).data_ptr() == packed.data_ptr()
    for shared in (packed[:1].expand(7, 2, 16), packed[:, :1].expand(7, 2, 16)):
        own = attention.heads(shared, aligned=True)
        assert own.is_contiguous() and torch.equal(own, shared)
