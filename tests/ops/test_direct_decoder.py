"""The direct path of decode_attention: the same bits as the op, the same refusals, validated once."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from argus_kernels import DirectDecoder, PagedCache, decode_attention, use_backend


def arguments(users: int = 3, events: int = 9) -> dict[str, Any]:
    cache = PagedCache.allocate(users, 16, 2, 8, page_size=4)
    for pages in (cache.key_pages, cache.value_pages):
        pages.normal_()
    q, k, v = (torch.randn(users, 2, 8) for _ in range(3))
    now = torch.randint(0, 10**6, (users,))
    lengths = torch.full((users,), events, dtype=torch.int32)
    return {"q": q, "cache": cache, "lengths": lengths, "k": k, "v": v, "query_time": now, "key_time": now}


@pytest.mark.parametrize("backend", ["cpp", "reference", None])
def test_the_same_bits_as_the_op(backend: str | None) -> None:
    biases: dict[str, Any] = {"position_bias": torch.randn(2, 5), "time_bias": torch.randn(2, 20), "window": 6}
    decoder = DirectDecoder(**biases, backend=backend)
    with torch.inference_mode():
        given = arguments()
        for events in (9, 10, 11):
            given["lengths"].fill_(events)
            expected = decode_attention(**given, **biases, backend=backend)
            assert torch.equal(decoder(**given), expected)
        alone = {**given, "k": None, "v": None, "key_time": None}
        assert torch.equal(decoder(**alone), decode_attention(**alone, **biases, backend=backend))


def test_every_kind_of_arguments_is_validated() -> None:
    decoder = DirectDecoder(backend="reference")
    with torch.no_grad():
        given = arguments()
        decoder(**given)
        with pytest.raises(
            ValueError, match=r"k has shape \[2, 2, 8\], expected \[3, 2, 8\] like q; v is torch.float64"
        ):
            decoder(**{**given, "k": given["k"][:2], "v": given["v"].double()})
        with pytest.raises(ValueError, match="one of k and v is given"):
            decoder(**{**given, "k": None, "key_time": None})
        with pytest.raises(ValueError, match=r"lengths is torch\.float32"):
            decoder(**{**given, "lengths": given["lengths"].float()})
        with pytest.raises(ValueError, match="decode_attention: cache is list, expected a PagedCache"):
            decoder(**{**given, "cache": []})
        with pytest.raises(ValueError, match="decode_attention: q is list, expected a tensor"):
            decoder(**{**given, "q": []})
        assert torch.equal(decoder(**{**given, "lengths": given["lengths"].long()}), decoder(**given))


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_values_are_checked_every_time(backend: str) -> None:
    decoder = DirectDecoder(backend=backend)
    with torch.no_grad():
        given = arguments()
        decoder(**given)
        given["lengths"][1] = 17
        with pytest.raises(ValueError, match=r"lengths\[1\] is 17, expected 0 to 16"):
            decoder(**given)
        given["cache"].block_table[2, 1] = -1
        given["lengths"][1] = 9
        with pytest.raises(ValueError, match=r"user 2 has length 9 but no page for its events from 4 on"):
            decoder(**given)


def test_grad_mode_is_refused() -> None:
    with pytest.raises(RuntimeError, match=r"grad mode is on, expected torch.inference_mode\(\) or torch.no_grad\(\)"):
        DirectDecoder()(**arguments())


def test_the_default_backend_is_asked_every_time() -> None:
    decoder = DirectDecoder()
    with torch.no_grad():
        given = arguments()
        decoder(**given)
        with use_backend("nonsense"), pytest.raises(ValueError, match="backend is 'nonsense'"):
            decoder(**given)
        with use_backend("eager"):
            assert torch.equal(decoder(**given), decode_attention(**given, backend="reference"))
