"""Samples of decode_attention: small caches for tests, one of production size for benchmarks, and their costs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from argus_kernels.attention.samples import FEW_HISTORY_SIZES, HISTORY_SIZES
from argus_kernels.core import Sample
from argus_kernels.core.huge_pages import prefer_huge_pages
from argus_kernels.core.sample import Cut, Growth, tensor_bytes
from argus_kernels.ops.decode_attention.cache import PagedCache
from argus_kernels.ops.decode_attention.int8_rows import quantize

DISTINCT_PAGES = 1024
"""Pages that are drawn; a larger cache repeats them. Eight users' worth: drawing more would take longer than timing."""


@dataclass(frozen=True)
class _Case:
    """Users of the given lengths, new events counted, in a cache of randomly placed pages.

    new: events of each user in the call, followed by a row of padding; None is one of each, without offsets. group:
    heads of q to a head of the cache. divisor: of SiLU's weights; None for softmax. int8: codes with scales are cached.
    """

    name: str
    lengths: tuple[int, ...]
    heads: int = 2
    width: int = 4
    page_size: int = 2
    append: bool = True
    position_buckets: int = 0
    time_buckets: int = 0
    window: int | None = None
    new: tuple[int, ...] | None = None
    group: int = 1
    divisor: float | None = None
    int8: bool = False
    production: bool = False
    gpu: bool = False

    def make(self, generator: torch.Generator, dtype: torch.dtype) -> dict[str, Any]:
        rows, query_heads = self.rows(), self.heads * self.group
        shape = (rows, self.heads, self.width)
        arguments: dict[str, Any] = {
            "q": torch.randn(rows, query_heads, self.width, generator=generator).to(dtype),
            "cache": self._cache(generator, dtype),
            "lengths": torch.tensor(self.lengths, dtype=torch.int32),
        }
        times = 1_700_000_000 + torch.randint(0, 10**7, (rows,), generator=generator)
        if self.append:
            arguments["k"] = torch.randn(shape, generator=generator).to(dtype)
            arguments["v"] = torch.randn(shape, generator=generator).to(dtype)
            arguments["key_time"] = times
        if self.new is not None:
            arguments["offsets"] = torch.tensor([0, *accumulate(self.new)], dtype=torch.int32)
        if self.position_buckets:
            table = torch.randn(query_heads, self.position_buckets, generator=generator)
            arguments["position_bias"] = table.to(dtype)
        if self.time_buckets:
            arguments["time_bias"] = torch.randn(query_heads, self.time_buckets, generator=generator).to(dtype)
            arguments["query_time"] = times + 300
        if self.divisor is not None:
            arguments |= {"rule": "silu", "divisor": self.divisor}
        if self.window is not None:
            arguments["window"] = self.window
        return arguments

    def rows(self) -> int:
        """Rows of q."""
        return len(self.lengths) if self.new is None else sum(self.new) + 1

    def _cache(self, generator: torch.Generator, dtype: torch.dtype) -> PagedCache:
        """Pages full of events, a few of them owned by nobody; places without a page are −1."""
        needed = [-(-length // self.page_size) for length in self.lengths]
        count = sum(needed) + 3
        shuffled = torch.randperm(count, generator=generator).int()
        table = torch.full((len(needed), max(needed, default=0) + 1), -1, dtype=torch.int32)
        taken = 0
        for user, pages in enumerate(needed):
            table[user, :pages] = shuffled[taken : taken + pages]
            taken += pages
        shape = (count, self.page_size, self.heads, self.width)

        def drawn() -> tuple[Tensor, Tensor | None]:
            distinct = torch.randn(min(count, DISTINCT_PAGES), *shape[1:], generator=generator)
            if not self.int8:
                return repeated(distinct, dtype), None
            codes, scales = quantize(distinct)
            return repeated(codes, torch.int8), repeated(scales.transpose(1, 2), torch.float32).transpose(1, 2)

        def repeated(distinct: Tensor, kept: torch.dtype) -> Tensor:
            # As `PagedCache.allocate` makes them.
            pages = prefer_huge_pages(torch.empty((count, *distinct.shape[1:]), dtype=kept))
            for part in pages.split(len(distinct)):
                part.copy_(distinct[: len(part)])
            return pages

        (keys, key_scales), (values, value_scales) = drawn(), drawn()
        times = 1_690_000_000 + torch.randint(0, 10**7, shape[:2], generator=generator)
        return PagedCache(keys, values, times, table, key_scales=key_scales, value_scales=value_scales)

    def seen(self) -> int:
        """Cached events that some query sees, those of each query counted."""
        new = [1 if length else 0 for length in self.lengths] if self.new is None else self.new
        ends = [length - back for length, count in zip(self.lengths, new, strict=True) for back in range(count)]
        return sum(end if self.window is None else min(end, self.window) for end in ends)

    def flops(self, arguments: dict[str, Any]) -> int:
        """Two products of Dh for each seen event and head of q."""
        return 4 * self.seen() * self.heads * self.group * self.width

    def bytes(self, arguments: dict[str, Any]) -> int:
        """Keys and values of the seen events once (and their times where they count), the vectors in and out."""
        q = arguments["q"]
        row = self.width + 4 if self.int8 else self.width * q.element_size()
        event = 2 * self.heads * row + (8 if self.time_buckets else 0)
        read = self.seen() if self.new is None else sum(self.lengths)
        vectors = tensor_bytes(*(value for value in arguments.values() if isinstance(value, Tensor)))
        written = tensor_bytes(q, arguments.get("k"), arguments.get("v"), arguments.get("key_time"))
        return read * event + vectors + written


_CASES = (
    _Case("everything", (5, 0, 1, 4), position_buckets=3, time_buckets=50, window=4),
    _Case("no_users", ()),
    _Case("all_empty", (0, 0)),
    _Case("first_events", (1, 1, 1)),
    _Case("jagged", (0, 7, 2, 3), width=3, page_size=3),
    _Case("read_only", (4, 1, 6), append=False, time_buckets=40),
    _Case("window", (6, 2, 0), window=2),
    _Case("several_events", (7, 0, 5, 4), new=(3, 0, 0, 4), position_buckets=3, time_buckets=40, window=4),
    _Case("silu", (6, 0, 3), group=2, divisor=5.0, position_buckets=3, time_buckets=40),
    _Case("several_events_silu", (6, 2), new=(2, 2), group=3, divisor=0.5, page_size=3),
    _Case("int8", (5, 0, 1, 4), int8=True, position_buckets=3, time_buckets=40, window=4),
    _Case("int8_several_events", (6, 0, 3), new=(3, 0, 1), group=2, int8=True, divisor=4.0),
    _Case("users_64_events_8192", (8192,) * 64, heads=4, width=64, page_size=64, production=True),
    _Case(
        "users_64_events_8192_biases",
        (8192,) * 64,
        heads=4,
        width=64,
        page_size=64,
        position_buckets=128,
        time_buckets=128,
        production=True,
    ),
    _Case("users_8_events_8192_new_16", (8192,) * 8, new=(16,) * 8, heads=4, width=64, page_size=64, production=True),
    _Case("users_64_events_8192_silu", (8192,) * 64, divisor=8192.0, heads=4, width=64, page_size=64, production=True),
    _Case("users_64_events_8192_int8", (8192,) * 64, int8=True, heads=4, width=64, page_size=64, production=True),
    _Case("users_128_events_8192", (8192,) * 128, heads=8, width=64, page_size=64, production=True, gpu=True),
)


def _pieces(arguments: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """One piece: four users, of the full length, about half, about an eighth, and of one event."""
    cache, users = arguments["cache"], 4
    longest = int(arguments["lengths"][0])
    lengths = torch.tensor([longest, longest // 2 + 1, longest // 8 + 3, 1][:users], dtype=torch.int32)
    users = min(users, arguments["lengths"].shape[0])
    table = cache.block_table[:users]
    owned = table[table >= 0].long()
    renamed = torch.full_like(table, -1)
    renamed[table >= 0] = torch.arange(owned.shape[0], dtype=table.dtype, device=table.device)
    names = ("key_pages", "value_pages", "time_pages", "key_scales", "value_scales")
    pages = {name: getattr(cache, name)[owned] for name in names if getattr(cache, name) is not None}
    small = replace(cache, block_table=renamed, pool=None, **pages)
    per_row = ("q", "k", "v", "query_time", "key_time")
    cut = {name: value[:users] if name in per_row else value for name, value in arguments.items()}
    if "offsets" in cut:
        cut["offsets"] = torch.arange(users + 1, dtype=torch.int32, device=table.device)
    yield {**cut, "cache": small, "lengths": lengths[:users].to(table.device)}


_CUT = Cut("four users of the case, of different lengths", _pieces)


def samples() -> list[Sample]:
    """All samples of the op."""
    return [_sample(case) for case in _CASES]


def tiles(scale: int = 1) -> list[Sample]:
    """Several tiles of cached events, without and with biases, at each width; `scale` multiplies the users' lengths."""
    lengths = tuple(scale * length for length in (150, 0, 129, 4))
    kinds: tuple[tuple[str, int, int | None], ...] = (("", 0, None), ("_biases", 40, 100 * scale))
    return [
        _sample(
            _Case(
                f"tiles_{width}{end}",
                lengths,
                heads=1,
                width=width,
                page_size=16,
                position_buckets=buckets,
                time_buckets=buckets,
                window=window,
            )
        )
        for width in (64, 128, 256)
        for end, buckets, window in kinds
    ]


def drawn(lengths: Sequence[int], padding: int, variant: int) -> Sample:
    """A case for any users; `variant` picks the optional arguments (a cache has no rows of padding)."""
    case = _Case(
        "drawn",
        tuple(lengths),
        page_size=1 + variant % 3,
        append=variant % 4 != 3,
        position_buckets=(0, 5)[variant // 3 % 2],
        time_buckets=(0, 30)[variant // 6 % 2],
        window=(None, 1, 4)[variant // 12 % 3],
        new=(None, tuple(min(length, 2) for length in lengths))[variant // 2 % 2],
        group=(1, 2)[variant // 5 % 2],
        divisor=(None, 3.0)[variant // 7 % 2],
    )
    return _sample(case)


def grows(machine: str) -> Growth:
    """One new event of each user against caches of so many events, nothing appended."""
    users, heads, width = 2 if machine == "tiny" else 64, 4, 64

    def sample(size: int) -> Sample:
        return _sample(_Case("cached", (size,) * users, heads=heads, width=width, page_size=64, append=False))

    return Growth(
        "cached events per user", HISTORY_SIZES, FEW_HISTORY_SIZES, sample,
        lambda size, element: 2 * users * size * heads * width * element,
    )  # fmt: skip


def _sample(case: _Case) -> Sample:
    return Sample(case.name, case.make, (), case.production, gpu=case.gpu, flops=case.flops, bytes=case.bytes, cut=_CUT)
