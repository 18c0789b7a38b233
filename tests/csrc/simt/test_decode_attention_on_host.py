"""The CUDA kernels of decode_attention, held to the error rule and to their promises on the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from argus_kernels import PagedCache, decode_attention
from argus_kernels.ops.decode_attention import OP
from argus_kernels.ops.decode_attention.arguments import Arguments
from argus_kernels.ops.decode_attention.int8_rows import quantize
from tests.csrc.simt import decode_attention_on_host

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
BACKEND = decode_attention_on_host.DECODE_ATTENTION
NAME = BACKEND.name


@pytest.fixture(autouse=True)
def _with_backend(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    reason = BACKEND.available()
    if reason is not None:
        pytest.skip(reason)
    assert NAME not in [backend.name for backend in OP.backends]
    monkeypatch.setattr(OP, "backends", (*OP.backends, BACKEND))
    yield


def arguments(
    lengths: list[int], dtype: torch.dtype = torch.float32, *, heads: int = 2, width: int = 32, append: bool = True,
    **options: Any,
) -> dict[str, Any]:  # fmt: skip
    draw_from = torch.Generator().manual_seed(len(lengths) + width)
    cache = PagedCache.allocate(len(lengths), max(lengths), heads, width, page_size=16, dtype=dtype)
    table = torch.randperm(cache.block_table.numel(), generator=draw_from).int()
    cache.block_table.copy_(table.view_as(cache.block_table))
    for pages in (cache.key_pages, cache.value_pages):
        pages.copy_(torch.randn(pages.shape, generator=draw_from))
    cache.time_pages.random_(0, 10**7, generator=draw_from)
    q, k, v = (torch.randn(len(lengths), heads, width, generator=draw_from).to(dtype) for _ in range(3))
    now = torch.randint(10**7, 2 * 10**7, (len(lengths),), generator=draw_from)
    events = {"k": k, "v": v, "key_time": now} if append else {}
    lengths_given = torch.tensor(lengths, dtype=torch.int32)
    return {"q": q, "cache": cache, "lengths": lengths_given, "query_time": now + 50, **events, **options}


def biases(heads: int = 2) -> dict[str, Any]:
    draw_from = torch.Generator().manual_seed(3)
    return {
        "position_bias": torch.randn(heads, 40, generator=draw_from),
        "time_bias": torch.randn(heads, 60, generator=draw_from),
    }


def decoded(given: dict[str, Any], backend: str) -> tuple[Tensor, ...]:
    cache: PagedCache = given["cache"]
    keys, values, times = (one.clone() for one in (cache.key_pages, cache.value_pages, cache.time_pages))
    out = decode_attention(**{**given, "cache": PagedCache(keys, values, times, cache.block_table)}, backend=backend)
    return out, keys, values, times


@pytest.mark.parametrize(
    ("width", "dtype"),
    [
        pytest.param(width, dtype, id=f"{dtype}-{width}", marks=[pytest.mark.slow] * ((i + j) % 3 != 0))
        for i, width in enumerate([16, 32, 64, 128, 256, 24, 40, 200])
        for j, dtype in enumerate(DTYPES)
    ],
)
def test_every_width(width: int, dtype: torch.dtype) -> None:
    """Whole rows and padded ones; more than a chunk; everything written where it belongs."""
    given = arguments([150, 1, 0, 20], dtype, heads=1, width=width, **biases(1))
    ours, theirs = decoded(given, NAME), decoded(given, "reference")
    tolerance = 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(ours[0], theirs[0], rtol=tolerance, atol=max(tolerance, 2e-5))
    for ours_written, theirs_written in zip(ours[1:], theirs[1:], strict=True):
        assert torch.equal(ours_written, theirs_written)


@pytest.mark.parametrize("window", [None, 1, 100, 128, 200])
def test_several_chunks(window: int | None) -> None:
    given = arguments([400, 129, 256, 127], window=window, **biases())
    torch.testing.assert_close(decoded(given, NAME)[0], decoded(given, "reference")[0], rtol=1e-5, atol=1e-5)


def test_chunks_of_several_tiles() -> None:
    """A cache for histories of 12,000 events: chunks are two tiles then."""
    given = arguments([300, 20], heads=1, width=32, **biases(1))
    table = torch.cat([given["cache"].block_table, torch.full((2, 750 - 19), -1, dtype=torch.int32)], 1)
    given["cache"].block_table = table
    torch.testing.assert_close(decoded(given, NAME)[0], decoded(given, "reference")[0], rtol=1e-5, atol=1e-5)


def test_same_bits_in_every_order_of_the_threads_and_with_anybody() -> None:
    given = arguments([300, 20], torch.bfloat16, width=32, **biases())
    first = decoded(given, NAME)[0]
    for _ in range(3):
        assert torch.equal(decoded(given, NAME)[0], first)
    alone = {**given, "cache": given["cache"].rows([0])}
    for name in ("q", "k", "v", "lengths", "query_time", "key_time"):
        alone[name] = given[name][:1]
    assert torch.equal(decoded(alone, NAME)[0][0], first[0])


def test_poison_in_slots_that_do_not_count() -> None:
    given = arguments([37, 5], append=False)
    cache: PagedCache = given["cache"]
    clean = decoded(given, NAME)[0]
    for user, length in enumerate((37, 5)):
        place = torch.arange(48)
        slots = cache.block_table[user].long()[place // 16], place % 16
        for pages in (cache.key_pages, cache.value_pages):
            pages[slots[0][length:], slots[1][length:]] = torch.nan
    assert torch.equal(decoded(given, NAME)[0], clean)


def test_pages_that_lie_apart() -> None:
    pool = torch.randn(6, 2, 4, 2, 32)
    table = torch.tensor([[4, 1, 0], [5, 2, 3]], dtype=torch.int32)
    times = torch.zeros(6, 4, dtype=torch.int64)
    q, lengths = torch.randn(2, 2, 32), torch.tensor([11, 6], dtype=torch.int32)
    expected = decode_attention(
        q, PagedCache(pool[:, 0].clone(), pool[:, 1].clone(), times, table), lengths, backend="reference"
    )
    out = decode_attention(q, PagedCache(pool[:, 0], pool[:, 1], times, table), lengths, backend=NAME)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)


def test_lengths_and_pages_out_of_bounds_give_nan_and_write_nothing() -> None:
    """What a GPU does where its assertions are switched off."""
    given = arguments([40, 40, 40, 40], append=True)
    cache: PagedCache = given["cache"]
    given["lengths"] = torch.tensor([40, 49, -1, 40], dtype=torch.int32)
    cache.block_table[3, 2] = 400
    before = cache.key_pages.clone()
    values = Arguments(given["q"], cache.key_pages, cache.value_pages, cache.time_pages, cache.block_table,
                       given["lengths"], given["k"], given["v"], None, None, None, None, 0.2, None)  # fmt: skip
    out = decode_attention_on_host.forward(values)
    assert out[0].isfinite().all() and out[1:].isnan().all()
    written = (cache.key_pages != before).any(-1).any(-1).nonzero().tolist()
    assert written == [[int(cache.block_table[0, 2]), 7]]


def test_inputs_that_cuda_refuses_are_refused() -> None:
    with pytest.raises(ValueError, match=r"decode_attention\[cuda_on_host\]: q is float64"):
        decode_attention(**arguments([3], torch.float64), backend=NAME)
    with pytest.raises(ValueError, match="head width is 264, expected at most 256"):
        decode_attention(**arguments([3], width=264), backend=NAME)


OFTEN = [(64, "softmax"), (72, "silu")]
"""What `make test` takes of the int8 caches: whole rows and padded ones."""


def several(rule: str = "softmax", dtype: torch.dtype = torch.float32, width: int = 32) -> dict[str, Any]:
    """Two heads of the cache for four of q; users of 4, 0, 1 and 131 new events, more than a chunk, and padding."""
    new, rows = [4, 0, 1, 131], 138
    given = arguments([300, 20, 1, 140], dtype, width=width, **biases(4))
    draw_from = torch.Generator().manual_seed(5)
    given["q"] = torch.randn(rows, 4, width, generator=draw_from).to(dtype)
    given["k"], given["v"] = (torch.randn(rows, 2, width, generator=draw_from).to(dtype) for _ in range(2))
    given["key_time"] = torch.randint(10**7, 2 * 10**7, (rows,), generator=draw_from)
    given["query_time"] = given["key_time"] + 50
    given["offsets"] = torch.tensor([0, *new]).cumsum(0).int()
    return given | ({"rule": "silu", "divisor": 7.0} if rule == "silu" else {})


@pytest.mark.parametrize(
    ("rule", "window", "dtype"),
    [
        pytest.param(rule, window, dtype, id=f"{rule}-{window}-{dtype}", marks=[pytest.mark.slow] * ((i + j + k) % 2))
        for i, rule in enumerate(["softmax", "silu"])
        for j, window in enumerate([None, 130])
        for k, dtype in enumerate([torch.float32, torch.bfloat16])
    ],
)
def test_several_events_of_grouped_queries(rule: str, window: int | None, dtype: torch.dtype) -> None:
    given = several(rule, dtype) | {"window": window}
    ours, theirs = decoded(given, NAME), decoded(given, "reference")
    tolerance = max(2e-5, 4 * torch.finfo(dtype).eps)
    torch.testing.assert_close(ours[0], theirs[0], rtol=tolerance, atol=tolerance)
    for ours_written, theirs_written in zip(ours[1:], theirs[1:], strict=True):
        assert torch.equal(ours_written, theirs_written)
    assert not ours[0][136:].any()


def test_several_events_have_the_bits_of_one_after_the_other() -> None:
    given = several()
    together = decoded(given, NAME)[0]
    cache: PagedCache = given["cache"]
    for row, length in ((0, 297), (1, 298), (2, 299), (3, 300)):
        one = {name: given[name][row : row + 1] for name in ("q", "k", "v", "query_time", "key_time")}
        alone = {**given, **one, "offsets": None, "lengths": torch.tensor([length], dtype=torch.int32)}
        out = decode_attention(**{**alone, "cache": cache.rows([0])}, backend=NAME)
        assert torch.equal(out[0], together[row])


def test_more_new_events_than_the_length_counts_give_nan() -> None:
    given = several()
    given["lengths"][0] = 3
    cache: PagedCache = given["cache"]
    pages = cache.key_pages, cache.value_pages, cache.time_pages, cache.block_table
    before = cache.key_pages[cache.block_table[0].long()].clone()
    values = Arguments(given["q"], *pages, given["lengths"], given["k"], given["v"], None, None, None, None, 0.2, None,
                       given["offsets"])  # fmt: skip
    out = decode_attention_on_host.forward(values)
    assert out[:4].isnan().all() and out[4:].isfinite().all()
    assert torch.equal(cache.key_pages[cache.block_table[0].long()], before)


@pytest.mark.parametrize(
    ("width", "rule"),
    [
        pytest.param(width, rule, id=f"{rule}-{width}", marks=[pytest.mark.slow] * ((width, rule) not in OFTEN))
        for width in (64, 72, 128, 256, 32)
        for rule in ("softmax", "silu")
    ],
)
def test_an_int8_cache(width: int, rule: str) -> None:
    """Codes and scales as the definition has them, also of rows that are not finite."""
    given = several(rule, width=width)
    cache: PagedCache = given["cache"]
    keys, values = quantize(cache.key_pages), quantize(cache.value_pages)
    cache.key_pages, cache.key_scales, cache.value_pages, cache.value_scales = *keys, *values
    given["k"][137], given["v"][3, 1, 0] = torch.nan, torch.inf
    found = []
    for backend in (NAME, "reference"):
        names = ("key_pages", "value_pages", "time_pages", "key_scales", "value_scales")
        one = replace(cache, **{name: getattr(cache, name).clone() for name in names}, pool=None)
        out = decode_attention(**{**given, "cache": one}, backend=backend)
        found.append([out, *(getattr(one, name) for name in names)])
    torch.testing.assert_close(found[0][0], found[1][0], rtol=2e-5, atol=2e-5, equal_nan=True)
    assert found[0][0][2].isfinite().all() and found[0][0][3, 2:].isnan().any()
    for ours_written, theirs_written in zip(found[0][1:], found[1][1:], strict=True):
        torch.testing.assert_close(ours_written, theirs_written, rtol=0, atol=0, equal_nan=True)
