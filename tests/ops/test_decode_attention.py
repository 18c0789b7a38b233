"""decode_attention against the last row of causal_attention, and the paged cache under it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from argus_kernels import PagedCache, causal_attention, decode_attention
from tests.drawn_examples import examples
from tests.ops.decode_backends import serving


def ints(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


NAMES = serving()


HISTORIES = {
    "lengths": st.lists(st.integers(0, 9), min_size=1, max_size=4),
    "page_size": st.integers(1, 5),
    "positions": st.sampled_from([0, 1, 4]),
    "times": st.sampled_from([0, 30]),
    "window": st.sampled_from([None, 1, 3]),
    "on_demand": st.booleans(),
    "seed": st.integers(0, 2**31),
}


@pytest.mark.parametrize("backend", serving(torch.float64))
@given(**HISTORIES)
@settings(deadline=None, max_examples=examples(40))
def test_event_by_event_equals_one_pass(
    backend: str,
    lengths: list[int],
    page_size: int,
    positions: int,
    times: int,
    window: int | None,
    on_demand: bool,
    seed: int,
) -> None:
    feed_event_by_event(backend, torch.float64, lengths, page_size, positions, times, window, on_demand, seed)


@pytest.mark.parametrize("backend", [name for name in NAMES if name not in serving(torch.float64)])
@given(**HISTORIES)
@settings(max_examples=examples(4))
def test_event_by_event_equals_one_pass_in_float32(
    backend: str,
    lengths: list[int],
    page_size: int,
    positions: int,
    times: int,
    window: int | None,
    on_demand: bool,
    seed: int,
) -> None:
    feed_event_by_event(backend, torch.float32, lengths, page_size, positions, times, window, on_demand, seed)


def feed_event_by_event(
    backend: str,
    dtype: torch.dtype,
    lengths: list[int],
    page_size: int,
    positions: int,
    times: int,
    window: int | None,
    on_demand: bool,
    seed: int,
) -> None:
    """Every user's history fed one event at a time gives causal_attention's rows, users ending at their own times."""
    torch.manual_seed(seed)
    heads, width, users, longest = 2, 3, len(lengths), max(lengths)
    total = sum(lengths)
    tolerance = 1e-12 if dtype == torch.float64 else 2e-5
    q, k, v = (torch.randn(total, heads, width, dtype=dtype) for _ in range(3))
    biases: dict[str, Any] = {"window": window}
    if positions:
        biases["position_bias"] = torch.randn(heads, positions, dtype=dtype)
    if times:
        biases["time_bias"] = torch.randn(heads, times, dtype=dtype)
    key_time = torch.randint(0, 10**7, (total,))
    offsets = torch.tensor([0, *lengths]).cumsum(0).int()
    expected = causal_attention(q, k, v, offsets, query_time=key_time + 9, key_time=key_time, **biases)

    pages = users * -(-longest // page_size) if on_demand else None
    cache = PagedCache.allocate(users, max(longest, 1), heads, width, page_size=page_size, pages=pages, dtype=dtype)
    for step in range(longest):
        now = torch.tensor([step + 1 if step < length else 0 for length in lengths], dtype=torch.int32)
        rows = (offsets[:-1] + step).clamp(max=total - 1).long()
        if on_demand:
            cache.reserve(range(users), now)
        out = decode_attention(
            q[rows], cache, now, k=k[rows], v=v[rows], query_time=key_time[rows] + 9, key_time=key_time[rows],
            backend=backend, **biases,
        )  # fmt: skip
        for user in range(users):
            wanted = expected[rows[user]] if now[user] else torch.zeros(heads, width, dtype=dtype)
            torch.testing.assert_close(out[user], wanted, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("backend", NAMES)
def test_reading_alone_changes_nothing(backend: str) -> None:
    cache = PagedCache.allocate(1, 4, 1, 2, page_size=2)
    k, v = torch.randn(1, 1, 2), torch.randn(1, 1, 2)
    decode_attention(torch.randn(1, 1, 2), cache, ints(1), k=k, v=v, backend=backend)
    pages = cache.key_pages.clone(), cache.value_pages.clone()
    out = decode_attention(torch.randn(1, 1, 2), cache, ints(1), backend=backend)
    assert torch.equal(out, v)
    assert torch.equal(cache.key_pages, pages[0]) and torch.equal(cache.value_pages, pages[1])


@pytest.mark.parametrize("backend", NAMES)
def test_only_the_new_slots_are_written(backend: str) -> None:
    """Poison everywhere else stays where it is and reaches nothing; a user of length 0 writes nothing."""
    cache = PagedCache.allocate(3, 4, 1, 2, page_size=2)
    for pages in (cache.key_pages, cache.value_pages):
        pages.fill_(torch.nan)
    k, v = torch.randn(3, 1, 2), torch.randn(3, 1, 2)
    out = decode_attention(torch.randn(3, 1, 2), cache, ints(1, 0, 1), k=k, v=v, backend=backend)
    assert torch.equal(out, torch.stack([v[0], torch.zeros(1, 2), v[2]]))
    written = (~cache.key_pages.isnan()).all(-1)[..., 0].nonzero().tolist()
    assert written == [[0, 0], [4, 0]]


@pytest.mark.parametrize("backend", NAMES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(backend: str, dtype: torch.dtype) -> None:
    if backend not in serving(dtype):
        pytest.skip(f"{backend} does not take {dtype} here")
    q, k, v = (torch.randn(6, 2, 8, dtype=dtype) for _ in range(3))
    cache = PagedCache.allocate(1, 6, 2, 8, page_size=4, dtype=dtype)
    expected = causal_attention(q, k, v, ints(0, 6))
    for event in range(6):
        here = slice(event, event + 1)
        out = decode_attention(q[here], cache, ints(event + 1), k=k[here], v=v[here], backend=backend)
        torch.testing.assert_close(out, expected[here], rtol=0.02, atol=0.005)


def test_rows_share_the_pages() -> None:
    cache = PagedCache.allocate(4, 2, 1, 2, page_size=2)
    k = torch.randn(2, 1, 2)
    decode_attention(k, cache.rows([3, 1]), ints(1, 1), k=k, v=k)
    assert torch.equal(cache.key_pages[cache.block_table[3, 0], 0], k[0])
    assert torch.equal(cache.key_pages[cache.block_table[1, 0], 0], k[1])


def test_reserve_grows_users_from_the_free_pages() -> None:
    cache = PagedCache.allocate(3, 8, 1, 2, page_size=2, pages=4)
    cache.reserve([2, 0], [3, 1])
    assert cache.block_table.tolist() == [[2, -1, -1, -1], [-1, -1, -1, -1], [0, 1, -1, -1]]
    cache.reserve([2], [4])
    assert cache.free_pages == 1
    cache.reserve(torch.tensor([0]), torch.tensor([3]))
    assert cache.block_table[0].tolist() == [2, 3, -1, -1]
    before = cache.block_table.clone()
    with pytest.raises(ValueError, match=r"reserve: 1 pages are wanted and 0 of 4 are free; evict users or offload"):
        cache.reserve([1], [2])
    assert torch.equal(cache.block_table, before)


def test_a_user_the_cache_does_not_have() -> None:
    cache = PagedCache.allocate(3, 8, 1, 2)
    with pytest.raises(ValueError, match="reserve: the cache has no user 3, expected 0 to 2"):
        cache.reserve([0, 3], [1, 1])
    with pytest.raises(ValueError, match="rows: the cache has no user -1, expected 0 to 2"):
        cache.rows([-1])
    with pytest.raises(ValueError, match="user 1 is named more than once"):
        cache.rows([1, 0, 1])
    with pytest.raises(ValueError, match="user 0 is to have 65 events, expected 0 to 64"):
        cache.reserve([0], [65])
    with pytest.raises(ValueError, match="2 users and 1 lengths"):
        cache.reserve([0, 1], [1])


def test_allocating_nonsense() -> None:
    with pytest.raises(ValueError, match="page_size is 0, expected at least 1; max_events is -1"):
        PagedCache.allocate(1, -1, 1, 2, page_size=0)
    with pytest.raises(ValueError, match=r"users is -1.*pages is -2"):
        PagedCache.allocate(-1, 1, 1, 2, pages=-2)


def test_events_without_a_page() -> None:
    cache = PagedCache.allocate(2, 8, 1, 2, page_size=2, pages=3)
    cache.reserve([0, 1], [2, 2])
    q = torch.randn(2, 1, 2)
    with pytest.raises(ValueError, match=r"user 1 has length 3 but no page for its events from 2 on.*reserve it first"):
        decode_attention(q, cache, ints(2, 3), k=q, v=q)
    assert not cache.key_pages.count_nonzero()
    with pytest.raises(ValueError, match=r"lengths\[0\] is 9, expected 0 to 8"):
        decode_attention(q, cache, ints(9, 1))
    with pytest.raises(ValueError, match=r"lengths\[1\] is -1, expected 0 to 8"):
        decode_attention(q, cache, ints(0, -1))
    cache.block_table[1, 0] = 3
    with pytest.raises(ValueError, match=r"block_table\[1, 0\] is 3, expected 0 to 2"):
        decode_attention(q, cache, ints(0, 1))


def test_two_users_may_not_append_to_one_page() -> None:
    cache = PagedCache.allocate(2, 2, 1, 2, page_size=2)
    cache.block_table[1] = cache.block_table[0]
    q = torch.randn(2, 1, 2)
    with pytest.raises(ValueError, match=r"users \[0, 1\] of cache would all append to page 0"):
        decode_attention(q, cache, ints(1, 2), k=q, v=q)
    decode_attention(q, cache, ints(1, 2))


def test_every_disagreement_is_named_at_once() -> None:
    cache = PagedCache.allocate(2, 4, 2, 4)
    with pytest.raises(ValueError) as raised:
        decode_attention(
            torch.randn(3, 2, 8),
            cache,
            torch.ones(3),
            k=torch.randn(3, 2, 4),
            position_bias=torch.randn(1, 3),
            time_bias=torch.randn(2, 3),
            query_time=torch.zeros(2, dtype=torch.int64),
            window=0,
        )
    message = str(raised.value)
    for part in (
        "cache.key_pages has shape [2, 64, 2, 4], expected [any, any, any, 8] like q",
        "cache.block_table has shape [2, 1], expected [3, any] like q's rows",
        "lengths is torch.float32, expected torch.int32 or torch.int64",
        "one of k and v is given",
        "k has shape [3, 2, 4], expected [3, 2, 8] like q",
        "query_time has shape [2], expected [3]",
        "position_bias has shape [1, 3], expected [2, any]",
        "key_time is not given",
        "decode_attention: window is 0",
    ):
        assert part in message, message
    with pytest.raises(ValueError, match="cache is Tensor, expected a PagedCache"):
        decode_attention(torch.zeros(1, 1, 1), torch.zeros(1), ints(1))  # type: ignore[arg-type]
    q = torch.randn(2, 2, 4)
    with pytest.raises(ValueError, match="key_time is given without k and v"):
        decode_attention(q, cache, ints(1, 1), key_time=torch.zeros(2, dtype=torch.int64))


def test_it_has_no_gradients() -> None:
    cache = PagedCache.allocate(1, 1, 1, 2)
    q = torch.randn(1, 1, 2, requires_grad=True)
    out = decode_attention(q, cache, ints(1), k=torch.randn(1, 1, 2), v=torch.randn(1, 1, 2))
    with pytest.raises(RuntimeError, match="decode_attention"):
        out.sum().backward()
