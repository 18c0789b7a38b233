"""The tensors behind a paged cache and what is done to them: the book decides, the pool copies."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from argus_kernels.ops.decode_attention.page_book import Changes, NoFreePage, PageBook

STATE_FORMAT = 1
ON_FULL = ("refuse", "offload")
"""What a pool does when no page is left."""


@dataclass
class Offloaded:
    """A user's events outside the cache: `parts`, one tensor [its pages, ...] per tensor of the pool, or a file."""

    length: int
    parts: list[Tensor] | Path

    def load(self) -> list[Tensor]:
        """The tensors, read back where they lie in a file."""
        if isinstance(self.parts, Path):
            found: list[Tensor] = torch.load(self.parts, weights_only=True)
            return found
        return self.parts

    def discard(self) -> None:
        """Removes the file, if it is one."""
        if isinstance(self.parts, Path):
            self.parts.unlink(missing_ok=True)


class PagePool:
    """Pages of all layers, [pages, ...] in each of `tensors`, their block table, and the book that rules them.

    on_full: "refuse", or "offload" to make room by offloading the users that were not used for longest.
    folder: where offloaded users are written; None keeps them in host memory (pinned, where the pool is on a GPU).
    """

    def __init__(
        self,
        tensors: Sequence[Tensor],
        block_table: Tensor,
        book: PageBook,
        on_full: str = "refuse",
        folder: Path | None = None,
    ) -> None:
        if on_full not in ON_FULL:
            raise ValueError(f"PagedCache: on_full is {on_full!r}, expected 'refuse' or 'offload'")
        self.tensors, self.block_table, self.book = list(tensors), block_table, book
        self.on_full, self.folder = on_full, folder
        self.away: dict[int, Offloaded] = {}

    def require_users(self, method: str, users: Sequence[int], *, once: bool = False, present: bool = False) -> None:
        """ValueError for a user that is not there, is named twice (`once`) or is offloaded (`present`)."""
        count = len(self.book.rows)
        for user in users:
            if not 0 <= user < count:
                raise ValueError(f"PagedCache.{method}: the cache has no user {user}, expected 0 to {count - 1}")
            if present and user in self.away:
                raise ValueError(f"PagedCache.{method}: user {user} was offloaded; restore it first")
        if once and len(set(users)) < len(users):
            twice = next(user for user in users if users.count(user) > 1)
            raise ValueError(f"PagedCache.{method}: user {twice} is named more than once")

    def grow(self, method: str, users: Sequence[int], lengths: Sequence[int]) -> None:
        """Room for so many events of each user; offloaded users come back first where the pool may offload others."""
        if self.on_full == "refuse":
            self.require_users(method, users, present=True)
            self.apply(self.book.grow(method, users, lengths))
            return
        self.book.require_lengths(method, users, lengths)
        self._make_room(method, users, lengths)
        back = [user for user in dict.fromkeys(users) if user in self.away]
        if back:
            self.restore(method, back)
        self.apply(self.book.grow(method, users, lengths))

    def _make_room(self, method: str, users: Sequence[int], lengths: Sequence[int]) -> None:
        """Offloads the least recently used of the other users until `grow` will find its pages."""
        away = {user: self.away[user].length for user in users if user in self.away}
        # An offloaded user may have more events than are now asked for.
        more = 0
        for user, length in away.items():
            asked = max(length for other, length in zip(users, lengths, strict=True) if other == user)
            more += max(self.book.pages_of(length) - self.book.pages_of(asked), 0)
        victims = self.book.least_recently_used(more, users, lengths)
        if victims is None:
            wanted = self.book.pages_wanted(users, lengths) + more
            remedy = "the other users' pages together are too few: allocate more pages"
            raise NoFreePage(method, wanted, len(self.book.free), len(self.book.holders), remedy)
        if victims:
            self.offload(victims)

    def apply(self, changes: Changes) -> None:
        """Copies pages and updates the block table."""
        device = self.block_table.device
        if changes.copies:
            old, new = (torch.tensor(part, device=device) for part in zip(*changes.copies, strict=True))
            for tensor in self.tensors:
                tensor.index_copy_(0, new, tensor.index_select(0, old))
        if changes.entries:
            users, slots = (torch.tensor(part, device=device) for part in zip(*changes.entries, strict=True))
            pages = torch.tensor(list(changes.entries.values()), dtype=torch.int32, device=device)
            self.block_table[users, slots] = pages

    def drop(self, users: Iterable[int]) -> None:
        """Forgets the users, wherever their events are."""
        for user in users:
            left = self.away.pop(user, None)
            if left is not None:
                left.discard()
            self.apply(self.book.drop([user]))

    def offload(self, users: Sequence[int]) -> None:
        """Moves the users' events out of the pool."""
        for user in users:
            row = self.book.rows[user][: self.book.pages_of(self.book.lengths[user])]
            parts = [self._to_host(tensor, row) for tensor in self.tensors]
            kept = Offloaded(self.book.lengths[user], parts)
            if self.folder is not None:
                self.folder.mkdir(parents=True, exist_ok=True)
                path = self.folder / f"user-{user}.pt"
                torch.save(parts, path)
                kept = Offloaded(kept.length, path)
            self.apply(self.book.drop([user]))
            self.away[user] = kept

    def restore(self, method: str, users: Sequence[int]) -> None:
        """Brings offloaded users back to the pool, all of them or none."""
        found = {user: self.away[user] for user in users}
        loaded = {user: kept.load() for user, kept in found.items()}
        lengths = [kept.length for kept in found.values()]
        self.apply(self.book.grow(method, list(found), lengths, "evict or offload other users first"))
        for user, parts in loaded.items():
            row = self.book.rows[user][: self.book.pages_of(found[user].length)]
            index = torch.tensor(row, dtype=torch.int64, device=self.block_table.device)
            for tensor, part in zip(self.tensors, parts, strict=True):
                tensor.index_copy_(0, index, part.to(tensor.device))
            self.away.pop(user).discard()

    def copy_out(self, user: int) -> list[Tensor]:
        """The user's events, one tensor [events, ...] on the host per tensor of the pool."""
        places = self._places(user)
        return [tensor[places].cpu() for tensor in self.tensors]

    def copy_in(self, user: int, parts: Sequence[Tensor]) -> None:
        """Puts such events in the place of a user who has none."""
        length = len(parts[0])
        self.grow("copy_in", [user], [length])
        places = self._places(user)
        for tensor, part in zip(self.tensors, parts, strict=True):
            tensor[places] = part.to(tensor.device)

    def _places(self, user: int) -> tuple[Tensor, Tensor]:
        """Page and slot of each of the user's events."""
        event = torch.arange(self.book.lengths[user], device=self.block_table.device)
        row = torch.tensor(self.book.rows[user], dtype=torch.int64, device=self.block_table.device)
        return row[event // self.book.page_size], event % self.book.page_size

    def _to_host(self, tensor: Tensor, row: Sequence[int]) -> Tensor:
        index = torch.tensor(row, dtype=torch.int64, device=tensor.device)
        taken = tensor.index_select(0, index)
        if tensor.device.type != "cuda":
            return taken.cpu()
        pinned = torch.empty(taken.shape, dtype=taken.dtype, pin_memory=True)
        return pinned.copy_(taken)

    def state_dict(self) -> dict[str, Any]:
        """The events of all users, tensors and plain values only."""
        held = [page for page, holders in enumerate(self.book.holders) if holders > 0]
        number = {page: place for place, page in enumerate(held)}
        index = torch.tensor(held, dtype=torch.int64, device=self.block_table.device)
        return {
            "format": STATE_FORMAT,
            "page_size": self.book.page_size,
            "slots": self.book.slots,
            "rows": [[number[page] for page in row] for row in self.book.rows],
            "lengths": list(self.book.lengths),
            "used": list(self.book.used),
            "pages": [tensor.index_select(0, index) for tensor in self.tensors],
            "offloaded": {user: {"length": kept.length, "parts": kept.load()} for user, kept in self.away.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Puts the users of a `state_dict` in the place of those that are here."""
        wrong = self._state_problems(state)
        if wrong:
            raise ValueError("PagedCache.load_state_dict: " + "; ".join(wrong))
        count = int(state["pages"][0].shape[0])
        book = PageBook(len(state["rows"]), self.book.slots, self.book.page_size, len(self.book.holders))
        book.rows = [list(row) for row in state["rows"]]
        book.lengths, book.used = list(state["lengths"]), list(state["used"])
        book.clock = max(book.used, default=0)
        for page in (page for row in book.rows for page in row):
            book.holders[page] += 1
        book.free = list(range(len(book.holders) - 1, count - 1, -1))
        for tensor, pages in zip(self.tensors, state["pages"], strict=True):
            tensor[:count] = pages.to(tensor.device)
        for kept in self.away.values():
            kept.discard()
        self.away = {int(user): Offloaded(one["length"], one["parts"]) for user, one in state["offloaded"].items()}
        self.book = book
        self.block_table.fill_(-1)
        self.apply(Changes(entries={(u, s): page for u, row in enumerate(book.rows) for s, page in enumerate(row)}))

    def _state_problems(self, state: dict[str, Any]) -> list[str]:
        if state.get("format") != STATE_FORMAT:
            return [f"format is {state.get('format')!r}, expected {STATE_FORMAT}"]
        book = self.book
        pairs = [
            ("page_size", state["page_size"], book.page_size),
            ("pages a user", state["slots"], book.slots),
            ("users", len(state["rows"]), len(book.rows)),
            ("tensors", len(state["pages"]), len(self.tensors)),
        ]
        wrong = [f"the state has {name} {have}, expected {want}" for name, have, want in pairs if have != want]
        for ours, theirs in zip(self.tensors, state["pages"], strict=False):
            have, want = (list(theirs.shape[1:]), theirs.dtype), (list(ours.shape[1:]), ours.dtype)
            if have != want:
                wrong.append(f"a page of the state is {have[0]} {have[1]}, expected {want[0]} {want[1]}")
        if state["pages"] and len(state["pages"][0]) > len(book.holders):
            wrong.append(f"the state holds {len(state['pages'][0])} pages, expected at most {len(book.holders)}")
        return wrong
