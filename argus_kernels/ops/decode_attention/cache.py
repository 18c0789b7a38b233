"""The paged cache of keys, values and times that decode_attention reads and appends to."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from argus_kernels.core.huge_pages import prefer_huge_pages
from argus_kernels.core.problems import FLOATING, INT64_MIN, Problems, said
from argus_kernels.ops.decode_attention.int8_rows import quantize
from argus_kernels.ops.decode_attention.page_book import PageBook
from argus_kernels.ops.decode_attention.page_pool import ON_FULL, PagePool

CACHED = (*FLOATING, torch.int8)
"""What keys and values may be cached in."""


@dataclass
class PagedCache:
    """Users' cached events in pages of fixed size, so that memory follows real lengths; one layer of a model.

    Event j of user b lies in slot j % page_size of page block_table[b, j // page_size].

    key_pages, value_pages: [pages, page_size, Hk, Dh]; or int8 codes, with key_scales, value_scales beside them,
    float32 [pages, page_size, Hk]: a head's row is code · scale (`int8_rows.quantize`). time_pages: int64
    [pages, page_size], the key times in seconds. block_table: int32 [B, max_pages], −1 where the user has no page.
    pool: who holds which page, shared by the layers; None on a cache that was put together from tensors (made when
    first needed) and on `rows` of one.

    Users get pages by `reserve` or `extend`, lose them by `evict` and `evict_oldest`, share them by `fork`, and leave
    and come back by `offload` and `restore`. These work on the host, for all layers at once; each does all it is asked
    or raises ValueError and changes nothing.
    """

    key_pages: Tensor
    value_pages: Tensor
    time_pages: Tensor
    block_table: Tensor
    pool: PagePool | None = None
    is_view: bool = False
    key_scales: Tensor | None = None
    value_scales: Tensor | None = None

    @classmethod
    def allocate(
        cls,
        users: int,
        max_events: int,
        heads: int,
        head_width: int,
        *,
        page_size: int = 64,
        pages: int | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
        on_full: str = "refuse",
        folder: str | Path | None = None,
    ) -> PagedCache:
        """An empty cache for `users` users of at most `max_events` events.

        With `pages` = None there is room for all of them, and every user owns its pages from the start, one after the
        other. With a number of pages no user owns any: `reserve` and `extend` hand them out as histories grow. on_full
        says what happens when none is left: "refuse", or "offload" the least recently used users, to `folder` or, where
        that is None, to host memory; they come back when they are next reserved or extended.

        Raises ValueError for a size that is not positive, or an unknown `on_full`.
        """
        return cls.allocate_layers(
            1, users, max_events, heads, head_width, page_size=page_size, pages=pages, dtype=dtype, device=device,
            on_full=on_full, folder=folder,
        )[0]  # fmt: skip

    @classmethod
    def allocate_layers(
        cls,
        layers: int,
        users: int,
        max_events: int,
        heads: int,
        head_width: int,
        *,
        page_size: int = 64,
        pages: int | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
        on_full: str = "refuse",
        folder: str | Path | None = None,
    ) -> list[PagedCache]:
        """One cache per layer as by `allocate`, with one block table, one time per event and one pool for all."""
        problems = Problems("PagedCache.allocate")
        layers = problems.integer("layers", layers, least=1)
        heads = problems.integer("heads", heads, least=1)
        head_width = problems.integer("head_width", head_width, least=1)
        page_size = problems.integer("page_size", page_size, least=1)
        max_events = problems.integer("max_events", max_events, least=1)
        users = problems.integer("users", users, least=0)
        pages = None if pages is None else problems.integer("pages", pages, least=0, or_none=True)
        problems.require(dtype in CACHED, lambda: f"dtype is {dtype}, expected one of {', '.join(map(str, CACHED))}")
        problems.choice("on_full", on_full, ON_FULL)
        named = folder is None or isinstance(folder, (str, Path))
        problems.require(named, lambda: f"folder is {said(folder)}, expected a path or None")
        if named and folder is not None:
            # Made by the first user that is offloaded, much later.
            file = next((place for place in (Path(folder), *Path(folder).parents) if place.is_file()), None)
            problems.require(file is None, lambda: f"folder is {said(str(folder))}, and {file} is a file")
        problems.raise_if_any()
        per_user = -(-max_events // page_size)
        count = users * per_user if pages is None else pages
        table = torch.full((users, per_user), -1, dtype=torch.int32, device=device)
        if pages is None:
            table = torch.arange(count, dtype=torch.int32, device=device).view(users, per_user)
        shape = (count, page_size, heads, head_width)
        keys, values = (
            [prefer_huge_pages(torch.empty(shape, dtype=dtype, device=device)).zero_() for _ in range(layers)]
            for _ in ("keys", "values")
        )
        times = torch.zeros(shape[:2], dtype=torch.int64, device=device)
        sides = range(2 * layers if dtype == torch.int8 else 0)
        # A head's scales lie side by side within a page, for vector loads.
        kept = (count, heads, page_size)
        scales = [torch.zeros(kept, dtype=torch.float32, device=device).transpose(1, 2) for _ in sides]
        book = PageBook.from_table(table.tolist(), per_user, page_size, count)
        tensors = [*keys, *values, *scales, times]
        pool = PagePool(tensors, table, book, on_full, None if folder is None else Path(folder))
        found = [cls(key, value, times, table, pool) for key, value in zip(keys, values, strict=True)]
        for layer, cache in enumerate(found if scales else []):
            cache.key_scales, cache.value_scales = scales[layer], scales[layers + layer]
        return found

    @property
    def page_size(self) -> int:
        """Events a page holds."""
        return self.key_pages.shape[1]

    @property
    def max_events(self) -> int:
        """Events a user can have at most."""
        return self.block_table.shape[1] * self.page_size

    @property
    def free_pages(self) -> int:
        """Pages that nobody holds."""
        return len(self._pool("free_pages").book.free)

    @property
    def lengths(self) -> list[int]:
        """Events of each user, as far as `reserve` and `extend` were told; 0 for an offloaded one."""
        return list(self._pool("lengths").book.lengths)

    @property
    def offloaded(self) -> dict[int, int]:
        """Events of each user that is offloaded."""
        return {user: kept.length for user, kept in self._pool("offloaded").away.items()}

    def reserve(self, users: Tensor | Sequence[int], lengths: Tensor | Sequence[int]) -> None:
        """Gives every user in `users` the pages that `lengths` events take; pages it owns already stay as they are.

        A page it shares with others (see `fork`) and that its new events go to is copied first. On a GPU nothing waits
        for the device, but `lengths` on a GPU are read from there: hand over lists.

        Raises ValueError, having changed nothing, for a user that the cache does not have or that is offloaded (where
        on_full is "refuse"), a length above `max_events`, or more pages than are free.
        """
        chosen, wanted = _integers("reserve", "users", users), _integers("reserve", "lengths", lengths)
        if len(chosen) != len(wanted):
            raise ValueError(f"PagedCache.reserve: {len(chosen)} users and {len(wanted)} lengths, expected as many")
        pool = self._pool("reserve")
        pool.require_users("reserve", chosen)
        pool.grow("reserve", chosen, wanted)

    def extend(self, users: Tensor | Sequence[int], events: int = 1) -> Tensor:
        """Reserves `events` more events for every user; their new lengths, int32, as decode_attention takes them.

        Raises ValueError as `reserve` does, and for a user named twice.
        """
        chosen, events = _integers("extend", "users", users), _integer("extend", "events", events, least=0)
        pool = self._pool("extend")
        pool.require_users("extend", chosen, once=True, present=pool.on_full == "refuse")
        known = [pool.away[user].length if user in pool.away else pool.book.lengths[user] for user in chosen]
        lengths = [length + events for length in known]
        pool.grow("extend", chosen, lengths)
        return torch.tensor(lengths, dtype=torch.int32, device=self.block_table.device)

    def evict(self, users: Tensor | Sequence[int]) -> None:
        """Forgets the users: their events are gone, pages that nobody shares are free."""
        chosen = _integers("evict", "users", users)
        pool = self._pool("evict")
        pool.require_users("evict", chosen)
        pool.drop(chosen)

    def evict_oldest(self, users: Tensor | Sequence[int], keep: int) -> None:
        """Drops the oldest pages of every user, as long as its newest `keep` events are left: a sliding history.

        Up to page_size − 1 events more than `keep` stay, because pages are dropped whole; decode_attention with
        window = keep sees exactly `keep` of them. The user's length falls by the events dropped, and nothing else
        changes: positions count back from the newest event. Raises ValueError for a negative `keep`.
        """
        chosen, keep = _integers("evict_oldest", "users", users), _integer("evict_oldest", "keep", keep, least=0)
        pool = self._pool("evict_oldest")
        pool.require_users("evict_oldest", chosen, present=True)
        pool.apply(pool.book.drop_oldest(chosen, keep))

    def truncate(self, users: Tensor | Sequence[int], lengths: Tensor | Sequence[int]) -> None:
        """Forgets the newest events of every user, so that its first `lengths` are left: a history taken back.

        Raises ValueError, having changed nothing, for a length that the user does not have or an offloaded user.
        """
        chosen, wanted = _integers("truncate", "users", users), _integers("truncate", "lengths", lengths)
        pool = self._pool("truncate")
        pool.require_users("truncate", chosen, once=True, present=True)
        if len(chosen) != len(wanted):
            raise ValueError(f"PagedCache.truncate: {len(chosen)} users and {len(wanted)} lengths, expected as many")
        for user, length in zip(chosen, wanted, strict=True):
            if not 0 <= length <= pool.book.lengths[user]:
                raise ValueError(
                    f"PagedCache.truncate: user {user} is to keep {length} events, expected 0 to "
                    f"{pool.book.lengths[user]}, which it has"
                )
        pool.apply(pool.book.truncate(chosen, wanted))

    def copy_out(self, user: int) -> list[Tensor]:
        """The user's events on the host: keys of every layer [events, Hk, Dh], values of every layer, times [events].

        Of an int8 cache the scales [events, Hk] of keys, then of values, stand before the times.
        """
        user = _integer("copy_out", "user", user)
        pool = self._pool("copy_out")
        pool.require_users("copy_out", [user], present=True)
        return pool.copy_out(user)

    def copy_in(self, user: int, parts: Sequence[Tensor]) -> None:
        """Gives a user without events those of a `copy_out`, of this cache or of another with the same layers.

        Raises ValueError, having changed nothing, where the user has events, the tensors do not fit or pages run out.
        """
        user = _integer("copy_in", "user", user)
        pool = self._pool("copy_in")
        pool.require_users("copy_in", [user])
        if pool.book.lengths[user] > 0 or user in pool.away:
            raise ValueError(f"PagedCache.copy_in: user {user} has events, expected none; evict it first")
        found = [(list(part.shape[1:]), part.dtype, len(part)) for part in parts]
        events = len(parts[0]) if parts else 0
        expected = [(list(tensor.shape[2:]), tensor.dtype, events) for tensor in pool.tensors]
        if found != expected:
            raise ValueError(f"PagedCache.copy_in: the tensors are {found}, expected {expected}")
        pool.copy_in(user, parts)

    def encoded(self, rows: Sequence[Tensor]) -> list[Tensor]:
        """Keys of every layer, then values, [events, Hk, Dh] in any floating dtype, as `copy_in` takes them.

        The times are to be added.
        """
        if self.key_scales is None:
            return [one.to(self.key_pages.dtype) for one in rows]
        pairs = [quantize(one) for one in rows]
        return [*(codes for codes, _ in pairs), *(scales for _, scales in pairs)]

    def fork(self, source: int, targets: Tensor | Sequence[int]) -> None:
        """Gives the targets the source's history, without copying it: candidates or beams that go on from one user.

        Pages are shared until somebody appends: `reserve` and `extend` copy the page that is then written to. Raises
        ValueError for a source without events, an offloaded one, or a target that has events of its own.
        """
        chosen, source = _integers("fork", "targets", targets), _integer("fork", "source", source)
        pool = self._pool("fork")
        pool.require_users("fork", [source, *chosen], once=True, present=True)
        if pool.book.lengths[source] == 0:
            raise ValueError(f"PagedCache.fork: user {source} has no events; reserve or extend says how many it has")
        for target in chosen:
            if pool.book.lengths[target] > 0:
                raise ValueError(
                    f"PagedCache.fork: user {target} has {pool.book.lengths[target]} events, expected none; evict it "
                    "first"
                )
        pool.apply(pool.book.fork(source, chosen))

    def offload(self, users: Tensor | Sequence[int]) -> None:
        """Moves the users' events to the cache's folder, or to host memory, and frees their pages."""
        chosen = _integers("offload", "users", users)
        pool = self._pool("offload")
        pool.require_users("offload", chosen, once=True, present=True)
        for user in chosen:
            if pool.book.lengths[user] == 0:
                raise ValueError(f"PagedCache.offload: user {user} has no events")
        pool.offload(chosen)

    def restore(self, users: Tensor | Sequence[int]) -> None:
        """Brings offloaded users back. Raises ValueError where one is not offloaded or too few pages are free."""
        chosen = _integers("restore", "users", users)
        pool = self._pool("restore")
        pool.require_users("restore", chosen, once=True)
        for user in chosen:
            if user not in pool.away:
                raise ValueError(f"PagedCache.restore: user {user} is not offloaded")
        pool.restore("restore", chosen)

    def layer_like(self, rows: PagedCache) -> PagedCache:
        """This layer's pages seen by the users of `rows` of another layer of the same cache."""
        pages = {name: getattr(self, name) for name in ("key_pages", "value_pages", "key_scales", "value_scales")}
        return replace(rows, **pages)

    def rows(self, users: Tensor | Sequence[int]) -> PagedCache:
        """The same pages seen by some users only, in the order given: one row of decode_attention each.

        The pages are shared, so what decode_attention appends is in this cache too. The block table is a copy: reserve
        on the whole cache, before. Raises ValueError for a user the cache does not have or that is offloaded, or one
        named twice.
        """
        chosen = _integers("rows", "users", users)
        pool = self._pool("rows")
        pool.require_users("rows", chosen, once=True, present=True)
        pool.book.touch(chosen)
        index = torch.tensor(chosen, dtype=torch.int64, device=self.block_table.device)
        return replace(self, block_table=self.block_table[index], pool=None, is_view=True)

    def to(self, device: torch.device | str) -> PagedCache:
        """A copy on another device; the cache itself where it is there already.

        Raises ValueError for one of several layers, and while users are offloaded: save and load the state instead.
        """
        if self.block_table.device == torch.device(device):
            return self
        names = ["key_pages", "value_pages", "time_pages", "block_table"]
        names += [name for name in ("key_scales", "value_scales") if getattr(self, name) is not None]
        moved = replace(self, **{name: getattr(self, name).to(device) for name in names}, pool=None)
        if self.pool is not None:
            tensors = moved._pooled()
            if len(self.pool.tensors) > len(tensors) or self.pool.away:
                raise ValueError("PagedCache.to: expected a cache of one layer whose users are all present")
            moved.pool = PagePool(
                tensors, moved.block_table, deepcopy(self.pool.book), self.pool.on_full, self.pool.folder
            )
        return moved

    def state_dict(self) -> dict[str, Any]:
        """All users' events and lengths, of all layers, offloaded ones too: tensors and plain values for torch.save."""
        return self._pool("state_dict").state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Puts the users of a `state_dict` in the place of those that are here.

        Raises ValueError, having changed nothing, where users, sizes or dtype differ or its pages do not fit.
        """
        self._pool("load_state_dict").load_state_dict(state)

    def _pool(self, method: str) -> PagePool:
        if self.is_view:
            raise ValueError(f"PagedCache.{method}: these are rows of a cache, expected the whole cache")
        if self.pool is None:
            slots, pages = self.block_table.shape[1], self.key_pages.shape[0]
            book = PageBook.from_table(self.block_table.tolist(), slots, self.page_size, pages)
            self.pool = PagePool(self._pooled(), self.block_table, book)
        return self.pool

    def _pooled(self) -> list[Tensor]:
        """The tensors of one layer, as a pool holds them."""
        scales = [one for one in (self.key_scales, self.value_scales) if one is not None]
        return [self.key_pages, self.value_pages, *scales, self.time_pages]


def _integer(method: str, name: str, value: int, least: int = INT64_MIN) -> int:
    problems = Problems(f"PagedCache.{method}")
    found: int = problems.integer(name, value, least=least)
    problems.raise_if_any()
    return found


def _integers(method: str, name: str, values: Tensor | Sequence[int]) -> list[int]:
    """A one-dimensional tensor or array of integers, or a sequence of them, as a list."""
    listed: Any = values
    if isinstance(values, (Tensor, np.ndarray)) and values.ndim == 1:
        listed = values.tolist()
    problems = Problems(f"PagedCache.{method}")
    if not problems.sequence(name, listed, "integers"):
        problems.raise_if_any()
    found = [problems.integer(f"{name}[{i}]", value, least=INT64_MIN) for i, value in enumerate(listed)]
    problems.raise_if_any()
    return found
