"""The paged cache of keys, values and times that decode_attention reads and appends to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor


@dataclass
class PagedCache:
    """Users' cached events in pages of fixed size, so that memory follows real lengths.

    Event j of user b lies in slot j % page_size of page block_table[b, j // page_size].

    key_pages, value_pages: [pages, page_size, H, Dh]. time_pages: int64 [pages, page_size], the key times in seconds.
    block_table: int32 [B, max_pages], −1 where the user has no page yet. free_pages: the pages nobody owns, the next
    one to hand out last.
    """

    key_pages: Tensor
    value_pages: Tensor
    time_pages: Tensor
    block_table: Tensor
    free_pages: list[int] = field(default_factory=list)

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
    ) -> PagedCache:
        """An empty cache for `users` users of at most `max_events` events.

        With `pages` = None there is room for all of them, and every user owns its pages from the start, one after the
        other. With a number of pages no user owns any: `reserve` hands them out as histories grow.

        Raises ValueError for a size that is not positive.
        """
        sizes = {"heads": heads, "head_width": head_width, "page_size": page_size, "max_events": max_events}
        wrong = [f"{name} is {size}, expected at least 1" for name, size in sizes.items() if size < 1]
        wrong += [f"{name} is {size}, expected at least 0" for name, size in (("users", users),) if size < 0]
        if pages is not None and pages < 0:
            wrong.append(f"pages is {pages}, expected at least 0 or None")
        if wrong:
            raise ValueError("PagedCache.allocate: " + "; ".join(wrong))
        per_user = -(-max_events // page_size)
        count = users * per_user if pages is None else pages
        table = torch.full((users, per_user), -1, dtype=torch.int32, device=device)
        if pages is None:
            table = torch.arange(count, dtype=torch.int32, device=device).view(users, per_user)
        shape = (count, page_size, heads, head_width)
        return cls(
            torch.zeros(shape, dtype=dtype, device=device),
            torch.zeros(shape, dtype=dtype, device=device),
            torch.zeros(shape[:2], dtype=torch.int64, device=device),
            table,
            [] if pages is None else list(range(count - 1, -1, -1)),
        )

    @property
    def page_size(self) -> int:
        """Events a page holds."""
        return self.key_pages.shape[1]

    @property
    def max_events(self) -> int:
        """Events a user can have at most."""
        return self.block_table.shape[1] * self.page_size

    def reserve(self, users: Tensor | Sequence[int], lengths: Tensor | Sequence[int]) -> None:
        """Gives every user in `users` the pages that `lengths` events take; pages it owns already stay as they are.

        Reads the block table on the host, so on a GPU it waits for it: reserve once for many events.

        Raises ValueError, having changed nothing, for a user that the cache does not have, a length above
        `max_events`, or more pages than are free.
        """
        wanted = self._missing(_integers(users), _integers(lengths))
        if len(wanted) > len(self.free_pages):
            user, slot, length = wanted[len(self.free_pages)]
            raise ValueError(
                f"PagedCache.reserve: no free page left for user {user} at length {length} (its page {slot}): "
                f"{len(wanted)} pages are needed, {len(self.free_pages)} are free"
            )
        if wanted:
            pages = [self.free_pages.pop() for _ in wanted]
            rows, columns, _ = (torch.tensor(part) for part in zip(*wanted, strict=True))
            device = self.block_table.device
            values = torch.tensor(pages, dtype=torch.int32, device=device)
            self.block_table[rows.to(device), columns.to(device)] = values

    def rows(self, users: Tensor | Sequence[int]) -> PagedCache:
        """The same pages seen by some users only, in the order given: one row of decode_attention each.

        The pages are shared, so what decode_attention appends is in this cache too. The block table is a copy and
        `free_pages` is empty: reserve on the whole cache, before. Raises ValueError for a user the cache does not
        have, or one named twice.
        """
        chosen = _integers(users)
        self._require_users("rows", chosen)
        if len(set(chosen)) < len(chosen):
            twice = next(user for user in chosen if chosen.count(user) > 1)
            raise ValueError(f"PagedCache.rows: user {twice} is named more than once")
        index = torch.tensor(chosen, dtype=torch.int64, device=self.block_table.device)
        return replace(self, block_table=self.block_table[index], free_pages=[])

    def to(self, device: torch.device | str) -> PagedCache:
        """A copy of the cache on another device; the cache itself where it is there already."""
        moved = {
            name: getattr(self, name).to(device) for name in ("key_pages", "value_pages", "time_pages", "block_table")
        }
        return replace(self, **moved)

    def _missing(self, users: list[int], lengths: list[int]) -> list[tuple[int, int, int]]:
        """(user, place in the block table, length) of every page to hand out."""
        if len(users) != len(lengths):
            raise ValueError(f"PagedCache.reserve: {len(users)} users and {len(lengths)} lengths, expected as many")
        self._require_users("reserve", users)
        table = self.block_table.tolist()
        wanted: dict[tuple[int, int], int] = {}
        for user, length in zip(users, lengths, strict=True):
            if not 0 <= length <= self.max_events:
                raise ValueError(
                    f"PagedCache.reserve: user {user} is to have {length} events, expected 0 to {self.max_events}"
                )
            for slot in range(-(-length // self.page_size)):
                if table[user][slot] < 0:
                    wanted.setdefault((user, slot), length)
        return [(user, slot, length) for (user, slot), length in wanted.items()]

    def _require_users(self, method: str, users: list[int]) -> None:
        count = self.block_table.shape[0]
        for user in users:
            if not 0 <= user < count:
                raise ValueError(f"PagedCache.{method}: the cache has no user {user}, expected 0 to {count - 1}")


def _integers(values: Tensor | Sequence[int]) -> list[int]:
    return [int(value) for value in (values.tolist() if isinstance(values, Tensor) else values)]
