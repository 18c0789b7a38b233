"""The paged cache: whatever is reserved, forked, evicted, offloaded and restored, every user keeps its own events."""

from __future__ import annotations

import io
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from argus_kernels import PagedCache, causal_attention, decode_attention
from tests.drawn_examples import examples

USERS, PAGE, MOST = 5, 3, 14


def write(cache: PagedCache, user: int, length: int, value: float) -> None:
    """Appends one event, as decode_attention does."""
    event = torch.full((1, *cache.key_pages.shape[2:]), value)
    lengths = torch.tensor([length], dtype=torch.int32)
    time = torch.tensor([int(value)])
    decode_attention(event, cache.rows([user]), lengths, k=event, v=-event, key_time=time)


def append(cache: PagedCache, user: int, value: float) -> None:
    length = int(cache.extend([user])[0])
    write(cache, user, length, value)


def events(cache: PagedCache, user: int) -> list[float]:
    """The user's events as the pages hold them, keys, values and times agreeing."""
    length = cache.lengths[user]
    pages = cache.block_table[user].long()[: -(-length // cache.page_size)]
    assert bool((pages >= 0).all())
    keys, values, times = (
        tensor[pages].flatten(0, 1)[:length].double()
        for tensor in (cache.key_pages[..., 0, 0], cache.value_pages[..., 0, 0], cache.time_pages)
    )
    assert torch.equal(keys, -values) and torch.equal(keys, times)
    found: list[float] = keys.tolist()
    return found


def snapshot(cache: PagedCache) -> Any:
    book = cache._pool("test").book
    tensors = [one.clone() for one in (cache.key_pages, cache.value_pages, cache.time_pages, cache.block_table)]
    return tensors, [list(row) for row in book.rows], list(book.lengths), sorted(book.free), cache.offloaded


def assert_unchanged(before: Any, cache: PagedCache) -> None:
    after = snapshot(cache)
    assert all(torch.equal(left, right) for left, right in zip(before[0], after[0], strict=True))
    assert before[1:] == after[1:]


@given(seed=st.integers(0, 2**31), pages=st.integers(2, 14), policy=st.sampled_from(["refuse", "offload"]))
@settings(max_examples=examples(60))
def test_any_sequence_of_calls_keeps_every_users_events(seed: int, pages: int, policy: str) -> None:
    draw = random.Random(seed)
    cache = PagedCache.allocate(USERS, MOST, 1, 2, page_size=PAGE, pages=pages, on_full=policy)
    known: dict[int, list[float]] = {user: [] for user in range(USERS)}
    for step in range(1, 60):
        user, other = draw.sample(range(USERS), 2)
        call = draw.choice(["append", "append", "append", "evict", "oldest", "fork", "offload", "restore"])
        before = snapshot(cache)
        try:
            if call == "append":
                append(cache, user, float(step))
                known[user].append(float(step))
            elif call == "evict":
                cache.evict([user])
                known[user] = []
            elif call == "oldest":
                keep = draw.randrange(6)
                cache.evict_oldest([user], keep)
                dropped = max(len(known[user]) - keep, 0) // PAGE * PAGE
                known[user] = known[user][dropped:]
            elif call == "fork":
                cache.fork(user, [other])
                known[other] = list(known[user])
            elif call == "offload":
                cache.offload([user])
            else:
                cache.restore([user])
        except ValueError:
            assert_unchanged(before, cache)
        for one in range(USERS):
            if one in cache.offloaded:
                assert cache.offloaded[one] == len(known[one])
            else:
                assert events(cache, one) == known[one]
        book = cache._pool("test").book
        held = [page for row in book.rows for page in row]
        assert sorted({*held, *book.free}) == list(range(pages)) and not set(held) & set(book.free)
        assert [held.count(page) for page in range(pages)] == book.holders


def test_a_full_cache_says_what_is_wanted_what_is_free_and_what_to_do() -> None:
    cache = PagedCache.allocate(3, 12, 1, 2, page_size=2, pages=4)
    cache.reserve([0, 1], [4, 2])
    before = snapshot(cache)
    message = "reserve: 3 pages are wanted and 1 of 4 are free; evict users or offload them"
    with pytest.raises(ValueError, match=message):
        cache.reserve([2, 0], [3, 5])
    with pytest.raises(ValueError, match="extend: 2 pages are wanted and 1 of 4 are free"):
        cache.extend([2, 1])
    assert_unchanged(before, cache)
    cache.evict([0])
    cache.reserve([2], [5])
    assert cache.free_pages == 0


def test_a_sliding_history_is_attention_with_a_window() -> None:
    """A user of any number of events in three pages."""
    torch.manual_seed(1)
    keep, count = 5, 23
    q, k, v = (torch.randn(count, 2, 4, dtype=torch.float64) for _ in range(3))
    bias = torch.randn(2, 9, dtype=torch.float64)
    times = torch.randint(0, 10**6, (count,))
    time_bias = torch.randn(2, 20, dtype=torch.float64)
    shared: dict[str, Any] = {"position_bias": bias, "time_bias": time_bias, "window": keep}
    offsets = torch.tensor([0, count], dtype=torch.int32)
    expected = causal_attention(q, k, v, offsets, query_time=times, key_time=times, **shared)
    cache = PagedCache.allocate(1, 9, 2, 4, page_size=3, pages=3, dtype=torch.float64)
    for event in range(count):
        now = slice(event, event + 1)
        cache.evict_oldest([0], keep - 1)
        lengths = cache.extend([0])
        out = decode_attention(
            q[now], cache, lengths, k=k[now], v=v[now], query_time=times[now], key_time=times[now], **shared
        )
        torch.testing.assert_close(out, expected[now], rtol=1e-12, atol=1e-12)


def test_forks_share_pages_until_they_append() -> None:
    cache = PagedCache.allocate(4, 8, 1, 2, page_size=2, pages=6)
    for value in (1.0, 2.0, 3.0):
        append(cache, 0, value)
    cache.fork(0, [1, 2])
    assert cache.free_pages == 4
    # The half-full last page is copied for the first two who write to it; the last holder keeps it.
    for user, left in ((1, 3), (0, 2), (2, 2)):
        append(cache, user, 10.0 + user)
        assert cache.free_pages == left
    assert [events(cache, user) for user in range(3)] == [[1, 2, 3, 10], [1, 2, 3, 11], [1, 2, 3, 12]]
    cache.evict([0, 1])
    assert events(cache, 2) == [1, 2, 3, 12] and cache.free_pages == 4
    cache.evict([2])
    assert cache.free_pages == 6


def test_what_cannot_be_forked() -> None:
    cache = PagedCache.allocate(3, 8, 1, 2, page_size=2, pages=6)
    append(cache, 0, 1.0)
    append(cache, 1, 2.0)
    before = snapshot(cache)
    for source, targets, message in (
        (2, [0], "fork: user 2 has no events"),
        (0, [1], "fork: user 1 has 1 events, expected none; evict it first"),
        (0, [0], "fork: user 0 is named more than once"),
        (0, [3], "fork: the cache has no user 3, expected 0 to 2"),
        (-1, [2], "fork: the cache has no user -1"),
    ):
        with pytest.raises(ValueError, match=message):
            cache.fork(source, targets)
    assert_unchanged(before, cache)


@pytest.mark.parametrize("on_disk", [False, True])
def test_offloading_frees_pages_and_restoring_brings_every_event_back(on_disk: bool, tmp_path: Path) -> None:
    folder = tmp_path / "users" if on_disk else None
    cache = PagedCache.allocate(2, 8, 1, 2, page_size=2, pages=4, folder=folder)
    for value in (1.0, 2.0, 3.0):
        append(cache, 1, value)
    cache.offload([1])
    assert cache.free_pages == 4 and cache.offloaded == {1: 3} and cache.lengths == [0, 0]
    assert bool((cache.block_table == -1).all())
    assert not on_disk or [path.name for path in tmp_path.rglob("*.pt")] == ["user-1.pt"]
    for call in (cache.extend, cache.rows, cache.offload):
        with pytest.raises(ValueError, match=r"user 1 was offloaded; restore it first"):
            call([1])
    for value in (5.0, 6.0, 7.0, 8.0, 9.0):
        append(cache, 0, value)
    before = snapshot(cache)
    with pytest.raises(ValueError, match="restore: 2 pages are wanted and 1 of 4 are free; evict or offload other"):
        cache.restore([1])
    assert_unchanged(before, cache)
    cache.offload([0])
    cache.restore([1])
    append(cache, 1, 4.0)
    assert events(cache, 1) == [1, 2, 3, 4]
    cache.evict([0])
    assert cache.offloaded == {} and not list(tmp_path.rglob("*.pt"))
    with pytest.raises(ValueError, match="restore: user 0 is not offloaded"):
        cache.restore([0])
    with pytest.raises(ValueError, match="offload: user 0 has no events"):
        cache.offload([0])


def test_a_table_of_users_larger_than_memory() -> None:
    """Forty users of up to six events in the pages of four; whoever was not used for longest makes room."""
    cache = PagedCache.allocate(40, 6, 1, 2, page_size=2, pages=12, on_full="offload")
    known: dict[int, list[float]] = {user: [] for user in range(40)}
    draw = random.Random(0)
    for step in range(1, 70):
        chosen = draw.sample([user for user in range(40) if len(known[user]) < 6], 3)
        lengths = cache.extend(chosen)
        for user, length in zip(chosen, lengths.tolist(), strict=True):
            write(cache, user, length, float(step))
            known[user].append(float(step))
            assert events(cache, user) == known[user]
    assert len(cache.offloaded) > 10
    for user in range(40):
        if user in cache.offloaded:
            cache.reserve([user], [cache.offloaded[user]])
        assert events(cache, user) == known[user]


def test_too_few_pages_for_the_users_of_one_call() -> None:
    cache = PagedCache.allocate(4, 6, 1, 2, page_size=2, pages=3, on_full="offload")
    append(cache, 3, 1.0)
    before = snapshot(cache)
    with pytest.raises(ValueError, match=r"4 pages are wanted and 2 of 3 are free; .* allocate more pages"):
        cache.reserve([0, 1], [3, 3])
    with pytest.raises(ValueError, match="user 0 is to have 7 events, expected 0 to 6"):
        cache.reserve([1, 0], [6, 7])
    assert_unchanged(before, cache)


def test_layers_share_one_table_and_move_together(tmp_path: Path) -> None:
    layers = PagedCache.allocate_layers(2, 3, 8, 1, 2, page_size=2, pages=6, folder=tmp_path)
    for value in (1.0, 2.0, 3.0):
        length = int(layers[0].extend([0])[0])
        for cache in layers:
            write(cache, 0, length, value)
    layers[1].fork(0, [2])
    length = int(layers[0].extend([2])[0])
    for cache in layers:
        write(cache, 2, length, 7.0)
    layers[0].offload([0])
    layers[1].restore([0])
    for cache in layers:
        assert events(cache, 0) == [1, 2, 3] and events(cache, 2) == [1, 2, 3, 7]
    with pytest.raises(ValueError, match="to: expected a cache of one layer"):
        layers[0].to("meta")


def saved_and_loaded(state: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    loaded: dict[str, Any] = torch.load(file, weights_only=True)
    return loaded


def test_state_is_saved_and_restored() -> None:
    cache = PagedCache.allocate(4, 8, 1, 2, page_size=2, pages=9)
    for user, value in ((0, 1.0), (1, 2.0), (0, 3.0), (0, 4.0), (3, 5.0)):
        append(cache, user, value)
    cache.fork(0, [2])
    cache.offload([1])
    state = saved_and_loaded(cache.state_dict())
    other = PagedCache.allocate(4, 8, 1, 2, page_size=2, pages=7)
    append(other, 1, 9.0)
    other.load_state_dict(state)
    assert [events(other, user) for user in (0, 2, 3)] == [[1, 3, 4], [1, 3, 4], [5]]
    assert other.offloaded == {1: 1} and other.free_pages == 4
    other.restore([1])
    append(other, 2, 6.0)
    assert [events(other, user) for user in range(4)] == [[1, 3, 4], [2], [1, 3, 4, 6], [5]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pages": 2}, "the state holds 3 pages, expected at most 2"),
        ({"users": 3}, "the state has users 4, expected 3"),
        ({"page_size": 4}, "the state has page_size 2, expected 4"),
        ({"dtype": torch.float64}, "a page of the state is .* torch.float32, expected .* torch.float64"),
        ({"head_width": 3}, r"a page of the state is \[2, 1, 2\]"),
    ],
)
def test_a_state_that_does_not_fit(options: dict[str, Any], message: str) -> None:
    cache = PagedCache.allocate(4, 8, 1, 2, page_size=2, pages=9)
    for user in (0, 1, 2):
        append(cache, user, 1.0)
    sizes = {"users": 4, "max_events": 8, "heads": 1, "head_width": 2, "page_size": 2, "pages": 9, **options}
    other = PagedCache.allocate(**sizes)
    before = snapshot(other)
    with pytest.raises(ValueError, match=f"load_state_dict: .*{message}"):
        other.load_state_dict(cache.state_dict())
    with pytest.raises(ValueError, match="format is None, expected 1"):
        other.load_state_dict({})
    assert_unchanged(before, other)


def test_a_cache_put_together_from_tensors() -> None:
    pages = torch.zeros(4, 2, 1, 2)
    table = torch.tensor([[3, -1], [0, 2]], dtype=torch.int32)
    cache = PagedCache(pages, pages.clone(), torch.zeros(4, 2, dtype=torch.int64), table)
    cache.reserve([0], [4])
    assert table.tolist() == [[3, 1], [0, 2]] and cache.free_pages == 0
    cache.block_table = torch.tensor([[-1, 3], [0, 2]], dtype=torch.int32)
    cache.pool = None
    with pytest.raises(ValueError, match=r"row 0 of the block table is \[-1, 3\], expected pages below 4, then -1"):
        cache.evict([0])


def test_rows_are_not_the_cache() -> None:
    view = PagedCache.allocate(2, 4, 1, 2).rows([1])
    calls: list[tuple[str, Any]] = [("reserve", ([0], [1])), ("fork", (0, [1])), ("evict", ([0],)), ("state_dict", ())]
    for name, arguments in calls:
        with pytest.raises(ValueError, match=f"{name}: these are rows of a cache, expected the whole cache"):
            getattr(view, name)(*arguments)
    with pytest.raises(ValueError, match="on_full is 'swap', expected one of refuse, offload"):
        PagedCache.allocate(1, 4, 1, 2, on_full="swap")
    with pytest.raises(ValueError, match="keep is -1, expected at least 0"):
        PagedCache.allocate(1, 4, 1, 2).evict_oldest([0], -1)


def test_a_folder_that_cannot_be_made_is_refused_before_a_user_is_offloaded(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "within"):
        with pytest.raises(ValueError, match=rf"folder is .*, and {tmp_path}/file is a file"):
            PagedCache.allocate(1, 4, 1, 2, pages=1, on_full="offload", folder=folder)
    PagedCache.allocate(1, 4, 1, 2, pages=1, on_full="offload", folder=tmp_path / "not" / "yet")


def test_lengths_come_ready_for_the_op() -> None:
    cache = PagedCache.allocate(3, 8, 1, 2, page_size=2, pages=6)
    lengths: Tensor = cache.extend([2, 0], 3)
    assert lengths.dtype == torch.int32 and lengths.tolist() == [3, 3] and cache.lengths == [3, 0, 3]
    with pytest.raises(ValueError, match="extend: user 1 is named more than once"):
        cache.extend([1, 1])


def test_truncate_takes_back_the_newest_events() -> None:
    """Another user is not touched, a shared page is copied before the taken-back user writes to it again."""
    first, second = PagedCache.allocate_layers(2, 3, 8, 1, 2, page_size=2, pages=9)
    first.reserve([0, 1], [5, 3])
    first.fork(0, [2])
    first.truncate([0], [3])
    assert first.lengths == [3, 3, 5] and first.free_pages == 4
    page = int(first.block_table[0, 1])
    assert page == int(first.block_table[2, 1]) and int(first.block_table[0, 2]) == -1
    assert first.extend([0]).tolist() == [4]
    assert int(second.block_table[0, 1]) != page == int(second.block_table[2, 1])
    first.truncate([0, 1], [0, 3])
    assert first.lengths == [0, 3, 5] and (first.block_table[0] == -1).all()
    for users, lengths, sentence in (
        ([1], [4], "user 1 is to keep 4 events, expected 0 to 3, which it has"),
        ([1, 1], [1, 1], "user 1 is named more than once"),
        ([1], [1, 2], "1 users and 2 lengths, expected as many"),
    ):
        with pytest.raises(ValueError, match=sentence):
            first.truncate(users, lengths)
    assert first.lengths == [0, 3, 5]


def test_copy_out_and_in_moves_a_user_to_another_cache() -> None:
    draw = torch.Generator().manual_seed(0)
    caches = PagedCache.allocate_layers(2, 2, 9, 2, 4, page_size=2, pages=6)
    for cache in caches:
        cache.key_pages.normal_(generator=draw)
        cache.value_pages.normal_(generator=draw)
    caches[0].time_pages.random_(0, 1000, generator=draw)
    caches[0].reserve([1, 0], [5, 2])
    parts = caches[0].copy_out(1)
    assert [list(part.shape) for part in parts] == [[5, 2, 4]] * 4 + [[5]]
    other = PagedCache.allocate_layers(2, 4, 9, 2, 4, page_size=4, pages=3)
    other[0].copy_in(3, parts)
    assert other[0].lengths == [0, 0, 0, 5] and other[0].free_pages == 1
    for one, again in zip(parts, other[0].copy_out(3), strict=True):
        assert torch.equal(one, again)
    with pytest.raises(ValueError, match="copy_in: user 3 has events, expected none; evict it first"):
        other[0].copy_in(3, parts)
    with pytest.raises(ValueError, match="copy_in: the tensors are"):
        other[0].copy_in(0, parts[:-1])
    with pytest.raises(ValueError, match="2 pages are wanted and 1 of 3 are free"):
        other[0].copy_in(0, parts)
    assert other[0].lengths == [0, 0, 0, 5]


@pytest.mark.parametrize(
    ("method", "arguments", "sentence"),
    [
        ("reserve", ([1.7], [2]), r"reserve: users\[0\] is 1\.7, expected an integer"),
        ("reserve", ([True], [2]), r"reserve: users\[0\] is True, expected an integer"),
        ("reserve", (torch.tensor([0.0]), [2]), r"reserve: users\[0\] is 0\.0, expected an integer"),
        ("reserve", ([0], [2**63]), r"reserve: lengths\[0\] is 9223372036854775808, expected at most 2\^63 - 1"),
        ("reserve", (0, [2]), "reserve: users is 0, expected a list of integers"),
        ("extend", ([0], 1.0), "extend: events is 1.0, expected an integer"),
        ("extend", ([0], -1), "extend: events is -1, expected at least 0"),
        ("evict_oldest", ([0], None), "evict_oldest: keep is None, expected an integer"),
        ("fork", ("0", [1]), "fork: source is '0', expected an integer"),
        ("copy_out", (0.5,), "copy_out: user is 0.5, expected an integer"),
    ],
)
def test_what_is_no_integer_is_named(method: str, arguments: Any, sentence: str) -> None:
    cache = PagedCache.allocate(2, 4, 1, 2, pages=2)
    before = cache.state_dict()
    with pytest.raises(ValueError, match="PagedCache." + sentence):
        getattr(cache, method)(*arguments)
    after = cache.state_dict()
    assert {**after, "pages": 0} == {**before, "pages": 0}
    users: Any = np.array([1], np.int32)
    cache.reserve(users, torch.tensor([2]))
    assert cache.lengths == [0, 2]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"page_size": 2.0}, "page_size is 2.0, expected an integer"),
        ({"users": None, "heads": True}, "heads is True, expected an integer; users is None, expected an integer"),
        ({"pages": 2**63}, r"pages is 9223372036854775808, expected at most 2\^63 - 1 \(int64\) or None"),
        ({"dtype": torch.int64}, "dtype is torch.int64, expected one of torch.float32"),
        ({"folder": 3}, "folder is 3, expected a path or None"),
    ],
)
def test_a_cache_that_cannot_be_allocated(change: dict[str, Any], sentence: str) -> None:
    sizes: dict[str, Any] = {"users": 2, "max_events": 4, "heads": 1, "head_width": 2}
    with pytest.raises(ValueError, match="PagedCache.allocate: " + sentence):
        PagedCache.allocate(**{**sizes, **change})
