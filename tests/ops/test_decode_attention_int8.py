"""The int8 cache: what is written is the same on every backend, and reads as the codes times their scales."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from argus_kernels import DirectDecoder, PagedCache, decode_attention
from argus_kernels.ops.decode_attention.int8_rows import quantize, widened
from tests.drawn_examples import examples
from tests.ops.decode_backends import serving

NAMES = serving(torch.int8)
NUMBERS = st.floats(width=32, allow_nan=True, allow_infinity=True, allow_subnormal=False)


@given(row=st.lists(NUMBERS, min_size=1, max_size=9))
@settings(deadline=None, max_examples=examples(100))
def test_a_row_is_its_codes_times_its_scale(row: list[float]) -> None:
    """Within half a step, and NaN where it holds one or an infinity."""
    given_row = torch.tensor(row)
    codes, scale = quantize(given_row)
    assert codes.dtype == torch.int8 and scale.dtype == torch.float32 and scale.shape == ()
    read = widened(codes, scale, torch.float64)
    if not given_row.isfinite().all():
        assert read.isnan().all()
    elif float(scale) > 0:
        assert float((read - given_row.double()).abs().max()) <= 0.5001 * float(scale)
        assert int(codes.abs().max()) == 127
    else:
        assert not read.any()


def test_ties_round_to_even_codes() -> None:
    codes, scale = quantize(torch.tensor([127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -126.5]))
    assert float(scale) == 1.0 and codes.tolist() == [127, 0, 2, 2, 0, -2, -126]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_rows_of_any_dtype_are_quantised_in_float32(dtype: torch.dtype) -> None:
    rows = torch.randn(5, 2, 16, dtype=dtype)
    for found, expected in zip(quantize(rows), quantize(rows.float()), strict=True):
        assert torch.equal(found, expected)


def fed(backend: str, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, PagedCache]:
    """Nine events of one user: six in one call, three more in another."""
    cache = PagedCache.allocate(2, 12, k.shape[1], k.shape[2], page_size=4, pages=5, dtype=torch.int8)
    outs = []
    for begin, end in ((0, 6), (6, 9)):
        lengths, rows = cache.extend([1], end - begin), slice(begin, end)
        events: dict[str, Any] = {"k": k[rows], "v": v[rows], "key_time": torch.arange(begin, end)}
        offsets = torch.tensor([0, end - begin])
        outs.append(decode_attention(q[rows], cache.rows([1]), lengths, **events, offsets=offsets, backend=backend))
    return torch.cat(outs), cache


@pytest.mark.parametrize("backend", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("width", [3, 32, 64, 72])
def test_every_backend_writes_the_same_codes_and_scales(backend: str, dtype: torch.dtype, width: int) -> None:
    """Rows of zeros and rows that are not finite too."""
    draw = torch.Generator().manual_seed(width)
    q, k, v = (torch.randn(9, 2, width, generator=draw).mul(3).to(dtype) for _ in range(3))
    k[2, 0], k[3, 1, -1], v[4, 0, 0] = 0.0, torch.nan, torch.inf
    out, cache = fed(backend, q, k, v)
    parts = cache.copy_out(1)
    codes, scales = quantize(torch.stack([k, v]))
    assert torch.equal(parts[0], codes[0]) and torch.equal(parts[1], codes[1])
    for found, expected in zip(parts[2:4], scales, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
    assert parts[4].tolist() == list(range(9))
    assert out.dtype == dtype and out[:3].isfinite().all()
    assert out[3:, 1].isnan().all() and out[4:, 0].isnan().all() and out[3, 0].isfinite().all()


@pytest.mark.parametrize("backend", NAMES)
@pytest.mark.parametrize("rule", ["softmax", "silu"])
def test_it_reads_as_a_cache_of_the_widened_rows(backend: str, rule: str) -> None:
    draw = torch.Generator().manual_seed(0)
    cache = PagedCache.allocate(3, 700, 2, 64, page_size=16, dtype=torch.int8)
    for pages, scales in ((cache.key_pages, cache.key_scales), (cache.value_pages, cache.value_scales)):
        assert scales is not None
        codes, found = quantize(torch.randn(pages.shape, generator=draw))
        pages.copy_(codes)
        scales.copy_(found)
    cache.time_pages.random_(0, 10**7, generator=draw)
    wide = replace(
        cache, key_pages=widened(cache.key_pages, cache.key_scales, torch.float64), key_scales=None,
        value_pages=widened(cache.value_pages, cache.value_scales, torch.float64), value_scales=None, pool=None,
    )  # fmt: skip
    given: dict[str, Any] = {
        "q": torch.randn(3, 4, 64, generator=draw), "lengths": torch.tensor([700, 3, 0]), "window": 600,
        "position_bias": torch.randn(4, 50, generator=draw), "time_bias": torch.randn(4, 60, generator=draw),
        "query_time": torch.randint(10**7, 2 * 10**7, (3,), generator=draw), "rule": rule,
        "divisor": 30.0 if rule == "silu" else None,
    }  # fmt: skip
    truth = decode_attention(**{**given, "q": given["q"].double()}, cache=wide, backend="reference")
    out = decode_attention(**given, cache=cache, backend=backend)
    torch.testing.assert_close(out.double(), truth, rtol=2e-5, atol=2e-5)
    with torch.inference_mode():
        fixed = {name: given.pop(name) for name in ("position_bias", "time_bias", "window", "rule", "divisor")}
        assert torch.equal(DirectDecoder(**fixed, backend=backend)(**given, cache=cache), out)


def filled(dtype: torch.dtype = torch.int8, layers: int = 2) -> list[PagedCache]:
    """Two layers of three users: two of 5 and 2 events, the third a fork of the first."""
    draw = torch.Generator().manual_seed(1)
    caches = PagedCache.allocate_layers(layers, 3, 8, 2, 4, page_size=2, pages=9, dtype=dtype)
    for user, length in ((0, 5), (1, 2)):
        caches[0].reserve([user], [length])
        for cache in caches:
            rows = torch.randn(length, 2, 4, generator=draw)
            decode_attention(
                rows, cache.rows([user]), torch.tensor([length]), k=rows, v=-rows, key_time=torch.arange(length),
                offsets=torch.tensor([0, length]),
            )  # fmt: skip
    caches[0].fork(0, [2])
    return caches


def test_scales_go_wherever_the_codes_go(tmp_path: Any) -> None:
    """To a copied page, to another cache, to a file and to the host, and back."""
    caches = filled()
    before = {user: caches[0].copy_out(user) for user in range(3)}
    assert [part.dtype for part in before[0]] == [torch.int8] * 4 + [torch.float32] * 4 + [torch.int64]
    caches[0].extend([2])  # copies the page that both share
    caches[0].truncate([2], [5])
    caches[0].offload([1])
    caches[0].restore([1])
    other = PagedCache.allocate_layers(2, 1, 8, 2, 4, page_size=3, dtype=torch.int8)
    other[0].copy_in(0, before[0])
    file = io.BytesIO()
    torch.save(caches[0].state_dict(), file)
    file.seek(0)
    loaded = PagedCache.allocate_layers(2, 3, 8, 2, 4, page_size=2, pages=9, dtype=torch.int8)
    loaded[0].load_state_dict(torch.load(file, weights_only=True))
    for user, parts in before.items():
        for cache in (caches[1], loaded[1]):
            assert all(torch.equal(one, again) for one, again in zip(parts, cache.copy_out(user), strict=True))
    assert all(torch.equal(one, again) for one, again in zip(before[0], other[1].copy_out(0), strict=True))
    single = filled(layers=1)[0]
    assert single.to("cpu") is single


def test_caches_of_two_dtypes_do_not_mix() -> None:
    caches, wide = filled(), filled(torch.float32)
    before = caches[0].state_dict()
    with pytest.raises(ValueError, match="load_state_dict: the state has tensors 5, expected 9; a page of"):
        caches[0].load_state_dict(wide[0].state_dict())
    caches[0].evict([1])
    with pytest.raises(ValueError, match="copy_in: the tensors are"):
        caches[0].copy_in(1, wide[0].copy_out(1))
    with pytest.raises(ValueError, match="load_state_dict: the state has tensors 9, expected 5"):
        wide[0].load_state_dict(before)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"key_scales": None}, "cache.key_scales is None, expected a tensor"),
        ({"value_scales": torch.ones(9, 2, 3)}, r"cache.value_scales has shape \[9, 2, 3\], expected \[9, 2, 2\] like"),
        ({"key_scales": torch.ones(9, 2, 2).double()}, "cache.key_scales is torch.float64, expected torch.float32"),
        ({"value_pages": torch.zeros(9, 2, 2, 4)}, "cache.value_pages is torch.float32, expected torch.int8"),
        ({"key_pages": torch.zeros(9, 2, 2, 4)}, "cache.key_scales is given, expected None beside torch.float32 pages"),
    ],
)
def test_a_cache_whose_parts_disagree(change: dict[str, Any], message: str) -> None:
    cache = replace(filled()[0], pool=None, **change)
    q = torch.randn(3, 2, 4)
    with pytest.raises(ValueError, match="^decode_attention: .*" + message):
        decode_attention(q, cache, torch.tensor([5, 2, 5]))


def test_what_backends_without_it_say() -> None:
    cache = filled()[0]
    with pytest.raises(ValueError, match=r"decode_attention\[cpp\]: q is float64, expected one of float32, bfloat16"):
        decode_attention(torch.randn(3, 2, 4).double(), cache, torch.tensor([5, 2, 5]), backend="cpp")
    out = decode_attention(torch.randn(3, 2, 4).double(), cache, torch.tensor([5, 2, 5]))
    assert out.dtype == torch.float64


def test_it_takes_half_of_the_memory_of_bfloat16() -> None:
    """A head of 64 columns: 68 bytes against 128."""
    sizes = {
        dtype: sum(
            one.nbytes
            for one in PagedCache.allocate(1, 1024, 4, 64, dtype=dtype)._pooled()
            if one.dtype in (dtype, torch.float32)
        )
        for dtype in (torch.bfloat16, torch.int8)
    }
    assert sizes[torch.int8] / sizes[torch.bfloat16] == 68 / 128
