"""decode_attention of several events a user, by SiLU, with grouped queries: the last rows of the whole history."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from argus_kernels import DirectDecoder, Offsets, PagedCache, causal_attention, decode_attention, hstu_attention
from tests.drawn_examples import examples
from tests.ops.decode_backends import serving

HEADS, WIDTH = 2, 3


@dataclass
class Histories:
    """Whole histories of users, of which the last `new` events each are new; packed q, k, v of all events."""

    lengths: list[int]
    new: list[int]
    q: Tensor
    k: Tensor
    v: Tensor
    time: Tensor
    biases: dict[str, Any]
    window: int | None
    rule: str
    page_size: int

    @classmethod
    def drawn(
        cls, lengths: list[int], new: list[int], *, group: int = 1, positions: int = 0, times: int = 0,
        window: int | None = None, rule: str = "softmax", page_size: int = 2, seed: int = 0,
        dtype: torch.dtype = torch.float64,
    ) -> Histories:  # fmt: skip
        draw, total = torch.Generator().manual_seed(seed), sum(lengths)
        q = torch.randn(total, HEADS * group, WIDTH, generator=draw, dtype=dtype)
        k, v = (torch.randn(total, HEADS, WIDTH, generator=draw, dtype=dtype) for _ in range(2))
        biases: dict[str, Any] = {}
        if positions:
            biases["position_bias"] = torch.randn(HEADS * group, positions, generator=draw, dtype=dtype)
        if times:
            biases["time_bias"] = torch.randn(HEADS * group, times, generator=draw, dtype=dtype)
        time = torch.randint(0, 10**7, (total,), generator=draw)
        return cls(lengths, new, q, k, v, time, biases, window, rule, page_size)

    @property
    def rows(self) -> Tensor:
        """The new events among all of them."""
        ends = torch.tensor([0, *self.lengths]).cumsum(0)[1:].tolist()
        found = [torch.arange(end - new, end) for end, new in zip(ends, self.new, strict=True)]
        return torch.cat(found) if found else torch.zeros(0, dtype=torch.int64)

    def expected(self) -> Tensor:
        """The rows of the op over the whole histories, with the keys of a group repeated."""
        offsets = torch.tensor([0, *self.lengths]).cumsum(0).int()
        group = self.q.shape[1] // HEADS
        k, v = (one.repeat_interleave(group, 1) for one in (self.k, self.v))
        options = {"query_time": self.time + 9, "key_time": self.time, "window": self.window, **self.biases}
        if self.rule == "silu":
            out = hstu_attention(self.q, k, v, offsets, alpha=0.7, divisor=5.0, backend="reference", **options)
        else:
            out = causal_attention(self.q, k, v, offsets, scale=0.7, backend="reference", **options)
        return out[self.rows]

    def cache(self) -> PagedCache:
        """A cache of the earlier events, with pages for the new ones."""
        users, longest = len(self.lengths), max([1, *self.lengths])
        needed = sum(-(-length // self.page_size) for length in self.lengths)
        cache = PagedCache.allocate(
            users, longest, HEADS, WIDTH, page_size=self.page_size, pages=needed, dtype=self.k.dtype
        )
        start = 0
        for user, (length, new) in enumerate(zip(self.lengths, self.new, strict=True)):
            old = slice(start, start + length - new)
            cache.copy_in(user, [self.k[old], self.v[old], self.time[old]])
            start += length
        cache.reserve(range(users), self.lengths)
        return cache

    def arguments(self) -> dict[str, Any]:
        """Those of decode_attention for the new events, in one call."""
        rows = self.rows
        numbers = {"rule": "silu", "divisor": 5.0} if self.rule == "silu" else {}
        return {
            "q": self.q[rows],
            "cache": self.cache(),
            "lengths": torch.tensor(self.lengths, dtype=torch.int32),
            "k": self.k[rows],
            "v": self.v[rows],
            "offsets": torch.tensor([0, *self.new]).cumsum(0).int(),
            "query_time": self.time[rows] + 9,
            "key_time": self.time[rows],
            "scale": 0.7,
            "window": self.window,
            **numbers,
            **self.biases,
        }


DRAWN = {
    "users": st.lists(st.tuples(st.integers(0, 7), st.integers(0, 4)), min_size=0, max_size=4),
    "group": st.sampled_from([1, 1, 2, 3]),
    "positions": st.sampled_from([0, 1, 4]),
    "times": st.sampled_from([0, 30]),
    "window": st.sampled_from([None, 1, 3]),
    "rule": st.sampled_from(["softmax", "silu"]),
    "page_size": st.integers(1, 5),
    "seed": st.integers(0, 2**31),
}


def require_last_rows(backend: str, dtype: torch.dtype, users: list[tuple[int, int]], **options: Any) -> None:
    lengths, new = [old + fresh for old, fresh in users], [fresh for _, fresh in users]
    histories = Histories.drawn(lengths, new, dtype=dtype, **options)
    given = histories.arguments()
    out = decode_attention(**given, backend=backend)
    tolerance = 1e-12 if dtype == torch.float64 else 2e-5
    torch.testing.assert_close(out, histories.expected(), rtol=tolerance, atol=tolerance)
    cache: PagedCache = given["cache"]
    start = 0
    for user, length in enumerate(lengths):
        whole = slice(start, start + length)
        keys, values, times = cache.copy_out(user)
        assert torch.equal(keys, histories.k[whole]) and torch.equal(values, histories.v[whole])
        assert torch.equal(times, histories.time[whole])
        start += length


@pytest.mark.parametrize("backend", serving(torch.float64))
@given(**DRAWN)
@settings(deadline=None, max_examples=examples(40))
def test_new_events_are_the_last_rows(backend: str, **drawn: Any) -> None:
    require_last_rows(backend, torch.float64, **drawn)


@pytest.mark.parametrize("backend", [one for one in serving() if one not in serving(torch.float64)])
@given(**DRAWN)
@settings(deadline=None, max_examples=examples(4))
def test_new_events_are_the_last_rows_in_float32(backend: str, **drawn: Any) -> None:
    require_last_rows(backend, torch.float32, **drawn)


@pytest.mark.parametrize("backend", serving())
@pytest.mark.parametrize("rule", ["softmax", "silu"])
def test_several_events_have_the_bits_of_one_after_the_other(backend: str, rule: str) -> None:
    histories = Histories.drawn(
        [9, 4, 3], [4, 0, 3], group=2, positions=4, times=30, window=5, rule=rule, dtype=torch.float32
    )
    given = histories.arguments()
    together = decode_attention(**given, backend=backend)
    given = histories.arguments()
    view = given.pop("cache")
    row = 0
    for user, new in enumerate(histories.new):
        for event in range(histories.lengths[user] - new, histories.lengths[user]):
            one = {name: given[name][row : row + 1] for name in ("q", "k", "v", "query_time", "key_time")}
            alone = {**given, **one, "offsets": None, "lengths": torch.tensor([event + 1], dtype=torch.int32)}
            out = decode_attention(**alone, cache=view.rows([user]), backend=backend)
            assert torch.equal(out[0], together[row])
            row += 1


@pytest.mark.parametrize("backend", serving())
def test_offsets_of_one_event_each_are_no_offsets(backend: str) -> None:
    histories = Histories.drawn([6, 1, 3], [1, 1, 1], positions=3, dtype=torch.float32)
    given = histories.arguments()
    expected = decode_attention(**given, backend=backend)
    alone = {**histories.arguments(), "offsets": None}
    assert torch.equal(decode_attention(**alone, backend=backend), expected)
    handle = {**histories.arguments(), "offsets": Offsets(given["offsets"])}
    assert torch.equal(decode_attention(**handle, backend=backend), expected)


@pytest.mark.parametrize("backend", serving())
def test_rows_of_padding_are_zero_and_write_nothing(backend: str) -> None:
    histories = Histories.drawn([5, 2], [3, 1], dtype=torch.float32)
    given = histories.arguments()
    expected = decode_attention(**given, backend=backend)
    padded = histories.arguments()
    for name in ("q", "k", "v"):
        padded[name] = torch.cat([padded[name], torch.full((2, HEADS, WIDTH), torch.nan)])
    for name in ("query_time", "key_time"):
        padded[name] = torch.cat([padded[name], torch.zeros(2, dtype=torch.int64)])
    out = decode_attention(**padded, backend=backend)
    assert torch.equal(out[:4], expected) and not out[4:].any()
    assert torch.equal(padded["cache"].key_pages, given["cache"].key_pages)


@pytest.mark.parametrize("backend", serving())
def test_a_later_new_event_reaches_no_earlier_row(backend: str) -> None:
    """Whatever its keys and values hold."""
    histories = Histories.drawn([6], [3], dtype=torch.float32)
    expected = decode_attention(**histories.arguments(), backend=backend)
    broken = replace(histories, k=histories.k.clone(), v=histories.v.clone())
    broken.k[-1], broken.v[-1] = torch.nan, torch.inf
    out = decode_attention(**broken.arguments(), backend=backend)
    assert torch.equal(out[:2], expected[:2]) and out[2].isnan().all()


@pytest.mark.parametrize("backend", serving())
def test_reading_the_newest_events_again(backend: str) -> None:
    """Without k and v the rows are those of events that are cached already."""
    given = Histories.drawn([6, 3], [3, 2], positions=3, dtype=torch.float32).arguments()
    first = decode_attention(**given, backend=backend)
    before = given["cache"].key_pages.clone()
    again = {**given, "k": None, "v": None, "key_time": None}
    assert torch.equal(decode_attention(**again, backend=backend), first)
    assert torch.equal(given["cache"].key_pages, before)


@pytest.mark.parametrize("backend", ["cpp", "reference", None])
def test_the_direct_path_has_the_bits_of_the_op(backend: str | None) -> None:
    histories = Histories.drawn([6, 1, 3], [2, 0, 3], group=2, positions=3, rule="silu", dtype=torch.float32)
    given = histories.arguments()
    expected = decode_attention(**given, backend=backend)
    again = histories.arguments()
    fixed = {name: again.pop(name) for name in ("position_bias", "rule", "divisor", "scale", "window")}
    with torch.inference_mode():
        decoder = DirectDecoder(**fixed, backend=backend)
        for offsets in (again.pop("offsets"), Offsets(given["offsets"])):
            assert torch.equal(decoder(**again, offsets=offsets), expected)


@pytest.mark.parametrize("backend", ["cpp", "reference"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"offsets": torch.tensor([0, 3, 2], dtype=torch.int32)}, r"offsets\[2\] is 2, expected at least offsets\[1\]"),
        ({"offsets": torch.tensor([1, 3, 4], dtype=torch.int32)}, r"offsets\[0\] is 1, expected 0"),
        ({"offsets": torch.tensor([0, 3, 5], dtype=torch.int32)}, r"offsets\[2\] is 5, expected at most the 4 rows"),
        ({"lengths": torch.tensor([2, 2])}, r"lengths\[0\] is 2, expected at least the user's 3 new events"),
        ({"lengths": torch.tensor([5, 7])}, r"lengths\[1\] is 7, expected 0 to 6"),
        ({"lengths": torch.tensor([5, 4])}, r"user 1 has length 4 but no page for its events from 2 on"),
    ],
)  # fmt: skip
def test_values_out_of_bounds(backend: str, change: dict[str, Any], message: str) -> None:
    given = {**Histories.drawn([5, 2], [3, 1], dtype=torch.float32).arguments(), **change}
    before = given["cache"].key_pages.clone()
    with pytest.raises(ValueError, match="^decode_attention: " + message):
        decode_attention(**given, backend=backend)
    assert torch.equal(given["cache"].key_pages, before)


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_every_page_that_is_written_belongs_to_one_user(backend: str) -> None:
    """The shared page is not the newest one."""
    given = Histories.drawn([5, 6], [4, 3], dtype=torch.float32).arguments()
    given["cache"].block_table[1, 1] = given["cache"].block_table[0, 1]
    page = int(given["cache"].block_table[0, 1])
    with pytest.raises(ValueError, match=rf"users \[0, 1\] of cache would all append to page {page}, expected a page"):
        decode_attention(**given, backend=backend)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rule": "relu"}, "rule is 'relu', expected one of softmax, silu"),
        ({"rule": "silu"}, "divisor is not given, expected a number above 0 with rule 'silu'"),
        ({"rule": "silu", "divisor": 0.0}, "divisor is 0.0, expected a finite number above 0"),
        ({"divisor": 2.0}, "divisor is 2.0, expected None with rule 'softmax'"),
        ({"offsets": torch.zeros(0, dtype=torch.int32)}, r"offsets is empty, expected \[B \+ 1\] values"),
        ({"offsets": torch.zeros(3)}, "offsets is torch.float32, expected torch.int32 or torch.int64"),
        ({"offsets": torch.zeros(4, dtype=torch.int64)}, r"lengths has shape \[2\], expected \[3\] like offsets"),
        ({"offsets": Offsets(torch.tensor([0, 1, 2]))}, "offsets is a handle of 2 users in 2 rows, expected one"),
        ({"k": torch.zeros(4, 4, WIDTH)}, rf"k has shape \[4, 4, {WIDTH}\], expected \[4, 2, {WIDTH}\]"),
        ({"q": torch.zeros(4, 3, WIDTH)}, "cache.key_pages has 2 heads, expected a divisor of q's 3"),
        ({"query_time": torch.zeros(2, dtype=torch.int64)}, r"query_time has shape \[2\], expected \[4\]"),
    ],
)  # fmt: skip
def test_arguments_that_disagree(change: dict[str, Any], message: str) -> None:
    given = {**Histories.drawn([5, 2], [3, 1], dtype=torch.float32).arguments(), **change}
    with pytest.raises(ValueError, match="^decode_attention: .*" + message):
        decode_attention(**given)
