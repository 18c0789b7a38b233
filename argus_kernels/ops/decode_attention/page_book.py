"""Who holds which page: the bookkeeping of a paged cache, in plain Python, on the host.

Pages are counted by holders, so that users can share them: a page is free when nobody holds it, and is copied before
a user writes to it while others hold it. Every method either does all it is asked or raises ValueError and changes
nothing; it returns what the cache has to do to its tensors.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field


@dataclass
class Changes:
    """What follows for the tensors: pages to copy (from, to), then entries of the block table to set."""

    copies: list[tuple[int, int]] = field(default_factory=list)
    entries: dict[tuple[int, int], int] = field(default_factory=dict)


class NoFreePage(ValueError):
    """More pages were wanted than are free; the bookkeeping is as it was."""

    def __init__(self, method: str, wanted: int, free: int, pages: int, remedy: str) -> None:
        super().__init__(f"PagedCache.{method}: {wanted} pages are wanted and {free} of {pages} are free; {remedy}")
        self.wanted, self.free = wanted, free


class PageBook:
    """Pages and lengths of `users` users, each with room for `slots` pages in its row of the block table.

    rows: each user's pages, oldest events first. lengths: each user's events, as far as the book was told. holders: how
    many users hold each page. free: pages nobody holds, the next to hand out last. used: when each user was last used.
    """

    def __init__(self, users: int, slots: int, page_size: int, pages: int) -> None:
        self.slots, self.page_size = slots, page_size
        self.rows: list[list[int]] = [[] for _ in range(users)]
        self.lengths = [0] * users
        self.holders = [0] * pages
        self.free = list(range(pages - 1, -1, -1))
        self.used = [0] * users
        self.clock = 0

    @classmethod
    def from_table(cls, table: Sequence[Sequence[int]], slots: int, page_size: int, pages: int) -> PageBook:
        """The book of a block table that exists already; the lengths are not known yet and count as 0."""
        book = cls(len(table), slots, page_size, pages)
        for user, entries in enumerate(table):
            row = [page for page in entries if page >= 0]
            if any(page >= pages for page in row) or list(entries[: len(row)]) != row:
                found = f"row {user} of the block table is {list(entries)}"
                raise ValueError(f"PagedCache: {found}, expected pages below {pages}, then -1")
            book.rows[user] = row
            for page in row:
                book.holders[page] += 1
        book.free = [page for page in reversed(range(pages)) if book.holders[page] == 0]
        return book

    def grow(
        self, method: str, users: Sequence[int], lengths: Sequence[int], remedy: str = "evict users or offload them"
    ) -> Changes:
        """Makes room for `lengths` events of `users`: missing pages, and copies of shared pages to be written to."""
        self.require_lengths(method, users, lengths)
        fresh = self._all_wanted(users, lengths)
        if len(fresh) > len(self.free):
            raise NoFreePage(method, len(fresh), len(self.free), len(self.holders), remedy)
        changes = Changes()
        for user, slot, copied in fresh:
            page = self._take()
            if slot < len(self.rows[user]):
                self._release([self.rows[user][slot]])
                self.rows[user][slot] = page
            else:
                self.rows[user].append(page)
            if copied >= 0:
                changes.copies.append((copied, page))
            changes.entries[user, slot] = page
        for user, length in zip(users, lengths, strict=True):
            self.lengths[user] = max(self.lengths[user], length)
        self.touch(users)
        return changes

    def pages_wanted(self, users: Sequence[int], lengths: Sequence[int]) -> int:
        """How many pages `grow` would take."""
        return len(self._all_wanted(users, lengths))

    def require_lengths(self, method: str, users: Sequence[int], lengths: Sequence[int]) -> None:
        """ValueError for a length that no user can have."""
        most = self.slots * self.page_size
        for user, length in zip(users, lengths, strict=True):
            if not 0 <= length <= most:
                raise ValueError(f"PagedCache.{method}: user {user} is to have {length} events, expected 0 to {most}")

    def fork(self, source: int, targets: Sequence[int]) -> Changes:
        """Lets the targets hold the source's pages, as many as its events take."""
        shared = self.rows[source][: self.pages_of(self.lengths[source])]
        changes = self.drop(targets)
        for target in targets:
            self.rows[target] = list(shared)
            self.lengths[target] = self.lengths[source]
            for slot, page in enumerate(shared):
                self.holders[page] += 1
                changes.entries[target, slot] = page
        self.touch([source, *targets])
        return changes

    def drop(self, users: Iterable[int]) -> Changes:
        """Takes all pages from the users."""
        changes = Changes()
        for user in users:
            changes.entries.update(((user, slot), -1) for slot in range(len(self.rows[user])))
            self._release(self.rows[user])
            self.rows[user], self.lengths[user] = [], 0
        return changes

    def drop_oldest(self, users: Iterable[int], keep: int) -> Changes:
        """Takes the oldest pages from the users, as long as `keep` events are left; the others move up."""
        changes = Changes()
        for user in users:
            dropped = max(self.lengths[user] - keep, 0) // self.page_size
            row = self.rows[user]
            if dropped == 0:
                continue
            self._release(row[:dropped])
            left = row[dropped:]
            changes.entries.update(((user, slot), page) for slot, page in enumerate(left))
            changes.entries.update(((user, slot), -1) for slot in range(len(left), len(row)))
            self.rows[user] = left
            self.lengths[user] -= dropped * self.page_size
        return changes

    def truncate(self, users: Iterable[int], lengths: Iterable[int]) -> Changes:
        """Takes the newest events from the users, and the pages that no event is left in."""
        changes = Changes()
        for user, length in zip(users, lengths, strict=True):
            row, kept = self.rows[user], self.pages_of(length)
            self._release(row[kept:])
            changes.entries.update(((user, slot), -1) for slot in range(kept, len(row)))
            self.rows[user], self.lengths[user] = row[:kept], length
        return changes

    def least_recently_used(
        self, pages: int, kept: Sequence[int], lengths: Sequence[int] | None = None
    ) -> list[int] | None:
        """Users to drop, the longest unused first, so that `pages` are free; None where there are too few.

        lengths: that the users of `kept` grow to, whose pages are wanted besides. A dropped user no longer shares its
        pages, so that the copies to make become fewer.
        """
        staying, left = set(kept), dict[int, int]()
        free, chosen = len(self.free), list[int]()
        candidates = iter(sorted(range(len(self.rows)), key=lambda user: (self.used[user], user)))
        while free < pages + (0 if lengths is None else len(self._all_wanted(kept, lengths, left))):
            user = next((user for user in candidates if user not in staying and self.rows[user]), None)
            if user is None:
                return None
            chosen.append(user)
            for page in self.rows[user]:
                left[page] = left.get(page, self.holders[page]) - 1
                free += left[page] == 0
        return chosen

    def touch(self, users: Iterable[int]) -> None:
        """Notes that the users were used just now."""
        self.clock += 1
        for user in users:
            self.used[user] = self.clock

    def pages_of(self, length: int) -> int:
        """Pages that so many events take."""
        return -(-length // self.page_size)

    def _all_wanted(
        self, users: Sequence[int], lengths: Sequence[int], holders: Mapping[int, int] | None = None
    ) -> list[tuple[int, int, int]]:
        """(user, slot, page to copy or -1) of every page that growing takes; the last holder of a page keeps it.

        holders: of pages that will have other holders than now.
        """
        most: dict[int, int] = {}
        for user, length in zip(users, lengths, strict=True):
            most[user] = max(most.get(user, 0), length)
        left, wanted = dict(holders or {}), []
        for user, length in most.items():
            row, known = self.rows[user], self.lengths[user]
            for slot in range(min(known // self.page_size, len(row)), self.pages_of(length)):
                if slot >= len(row):
                    wanted.append((user, slot, -1))
                elif left.get(row[slot], self.holders[row[slot]]) > 1 and length > known:
                    left[row[slot]] = left.get(row[slot], self.holders[row[slot]]) - 1
                    wanted.append((user, slot, row[slot] if slot * self.page_size < known else -1))
        return wanted

    def _take(self) -> int:
        page = self.free.pop()
        self.holders[page] = 1
        return page

    def _release(self, pages: Iterable[int]) -> None:
        for page in pages:
            self.holders[page] -= 1
            if self.holders[page] == 0:
                self.free.append(page)
