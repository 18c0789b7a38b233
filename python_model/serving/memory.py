"""Users in memory: their events, their cached keys and values, eviction, and the undoing of a request.

A requested user replaces the least recently used one. A request's changes can be undone until it ends: an appended
event is removed again; events are re-encoded into a copy, and the old ones stay until then.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from python_model.io.errors import DataError
from python_model.model.argus import Argus
from python_model.model.incremental import IncrementalEncoder
from python_model.serving import towers
from python_model.serving.archive import Histories, SessionArchive
from python_model.serving.arguments import whole_number
from python_model.serving.events import EventLog, EventRow, batch_of
from python_model.serving.journal import Entry
from python_model.serving.session_files import SavedSession


@dataclass(frozen=True)
class WhatIf:
    """The user of a what-if session; no request can name it as an id."""

    number: int


User = int | str | WhatIf


@dataclass
class Resident:
    """A user in memory: row of the cache, log of the cached events, state [d] after the newest event."""

    slot: int
    log: EventLog
    state: Tensor
    dirty: bool = False
    is_fork: bool = False


@dataclass
class Changes:
    """The changes of a request so far: entries for the journal, how to undo and complete them, and their users."""

    entries: list[Entry] = field(default_factory=list)
    undo: list[Callable[[], None]] = field(default_factory=list)
    complete: list[Callable[[], None]] = field(default_factory=list)
    users: set[User] = field(default_factory=set)


class SessionMemory:
    """At most `resident` users of a model over `pages` pages of page_size events that they share.

    pages: None gives every resident room for max_events. amendable: newest events that may be re-encoded. histories:
    of users who are not in memory, where there is no archive. offloads: whether the archive also stores keys and
    values.

    archive: stores evicted users; None drops them.
    """

    def __init__(
        self, model: Argus, histories: Histories, *, resident: int, max_events: int,
        pages: int | None, page_size: int, amendable: int, dtype: torch.dtype | None, offloads: bool,
    ) -> None:  # fmt: skip
        self.archive: SessionArchive | None = None
        self._histories = histories
        self._max_events, self._offloads = max_events, offloads
        # One event more than stays, and a temporary copy of the events that an amendment re-encodes.
        slots, spare = -(-(max_events + 1) // page_size), 2 + -(-min(amendable, max_events) // page_size)
        shared = (
            resident * slots + spare if pages is None else whole_number(pages, "SessionStore: pages", slots + spare)
        )
        self.encoder = _encoder(model, resident + 1, max_events + 1, page_size=page_size, pages=shared, dtype=dtype)
        self.model, self.fingerprint = self.encoder.model, towers.fingerprint(model)
        self.residents: OrderedDict[User, Resident] = OrderedDict()
        self._free, self._spare, self._forks = list(range(resident - 1, -1, -1)), resident, 0
        self.changes: Changes | None = None

    @torch.inference_mode()
    def absorb(self, users: list[User], found: list[Resident], rows: list[EventRow]) -> None:
        """Append one event to each of these users, who are in memory."""
        changes = self._changing(users)
        self._make_room(0, len(users), users)
        before = [(one, len(one.log), one.state) for one in found]

        def undo() -> None:
            for one, length, state in before:
                one.log.take_back(length)
                one.state = state
                if self.encoder.caches[0].lengths[one.slot] > length:
                    self.encoder.truncate(one.slot, length)

        changes.undo.append(undo)
        changes.entries += [
            Entry(user, one.log.total, row)
            for user, one, row in zip(users, found, rows, strict=True)
            if not isinstance(user, WhatIf)
        ]
        states = self.encoder.append([one.slot for one in found], batch_of(rows, self.model.device))
        for one, row, state in zip(found, rows, states, strict=True):
            one.log.append(row)
            one.state = state
        changes.complete.append(lambda: self._keep(found))

    def _keep(self, found: list[Resident]) -> None:
        """Completes an event: marks the user as unsaved and drops the oldest page of a history that is too long."""
        cache = self.encoder.caches[0]
        for one in found:
            one.dirty = not one.is_fork
            if len(one.log) > self._max_events:
                cache.evict_oldest([one.slot], len(one.log) - cache.page_size)
                one.log.drop_oldest(cache.page_size)

    @torch.inference_mode()
    def take_over(self, user: User, one: Resident, place: int, feedback: tuple[int, ...]) -> None:
        """Re-encodes the events from `place` on into a copy; the old ones stay until the request ends."""
        changes, cache = self._changing([user]), self.encoder.caches[0]
        self._make_room(0, 1 + -(-len(one.log) // cache.page_size) - place // cache.page_size, [user])
        spare, state = self._spare, one.state
        old = one.log.set_feedback(place, feedback)

        def undo() -> None:
            one.log.restore_feedback(place, old)
            one.state = state
            self.encoder.evict([spare])

        def complete() -> None:
            self._spare, one.slot = one.slot, spare
            self.encoder.evict([self._spare])
            one.dirty = not one.is_fork

        changes.undo.append(undo)
        self.encoder.fork(one.slot, [spare])
        self.encoder.truncate(spare, place)
        for again in range(place, len(one.log)):
            one.state = self.encoder.append([spare], batch_of([one.log.row(again)], self.model.device))[0]
        changes.complete.append(complete)
        if not isinstance(user, WhatIf):
            changes.entries.append(Entry(user, one.log.first + place, feedback=feedback))

    def _changing(self, users: Sequence[User]) -> Changes:
        changes = self.changes
        assert changes is not None, "a change outside of a request"
        if twice := changes.users & set(users):
            raise ValueError(f"SessionStore: user {twice.pop()!r} was changed before in the same block")
        changes.users |= set(users)
        return changes

    def admit(self, users: Sequence[User]) -> list[Resident]:
        """Brings the users into memory, all at once, and marks them as just used."""
        self._require_room(sum(user not in self.residents for user in users), 0, users)
        for user in users:
            if user not in self.residents:
                self._bring(user, users)
        for user in users:
            self.residents.move_to_end(user)
        return [self.residents[user] for user in users]

    @torch.inference_mode()
    def _bring(self, user: User, kept: Sequence[User]) -> None:
        log, saved = self.log_of(user)
        usable = saved is not None and self._fits(user, saved) and len(log) <= self._max_events
        log.drop_oldest(len(log) - self._max_events)
        # One more page, for the event for which they are loaded.
        self._make_room(1, 1 + -(-len(log) // self.encoder.caches[0].page_size), kept)
        one = Resident(self._free[-1], log, self.model.start.detach())
        try:
            if usable:
                assert saved is not None and saved.cache is not None and saved.state is not None
                self.encoder.copy_in(one.slot, saved.cache)
                one.state = saved.state.to(self.model.device)
            elif len(log):
                one.state = self.encoder.prefill(one.slot, log.batch(self.model.device))
        except BaseException:
            self.encoder.evict([one.slot])
            raise
        if self.archive is not None and not isinstance(user, WhatIf):
            one.dirty = self.archive.is_pending(user)
            self.archive.taken(user)
        self.residents[user] = one
        self._free.pop()

    def _fits(self, user: User, saved: SavedSession) -> bool:
        """Whether keys, values and state of a file can be used unchanged; DataError where they are damaged."""
        if saved.cache is None or saved.state is None or saved.model != self.fingerprint:
            return False
        config, start, cached = self.model.config, self.model.start, len(saved.log)
        kind = saved.cache[0].dtype
        part = [cached, config.heads, config.width // config.heads]
        sides = 2 * config.layers
        expected = [(part, kind)] * sides + [(part[:2], torch.float32)] * (sides if kind == torch.int8 else 0)
        expected += [([cached], torch.int64), (list(start.shape), start.dtype)]
        wrong = None
        if [(list(one.shape), one.dtype) for one in (*saved.cache, saved.state)] != expected:
            wrong = "keys, values or state are of other shapes"
        elif not all(bool(one.isfinite().all()) for one in (*saved.cache, saved.state)):
            wrong = "keys, values or state have numbers that are not finite"
        elif saved.cache[-1].tolist() != saved.log.columns()["time"].tolist():
            wrong = "the times of its keys are not those of its events"
        if wrong is not None:
            assert self.archive is not None and not isinstance(user, WhatIf)
            raise DataError(self.archive.files.path(user), f"a damaged session: {wrong}")
        return kind == self.encoder.caches[0].key_pages.dtype

    def log_of(self, user: User) -> tuple[EventLog, SavedSession | None]:
        """A user's events, including the journal's, and their saved file where the journal adds nothing to it."""
        if isinstance(user, WhatIf):
            raise ValueError("this what-if was closed")
        if self.archive is not None:
            return self.archive.log_of(user)
        return self._histories(user) or EventLog.empty(self.model.features), None

    def fork(self, user: User) -> WhatIf:
        """A new user who continues another one's events and shares their pages; `drop` removes them."""
        [source] = self.admit([user])
        self._make_room(1, 1, [user])
        slot = self._free[-1]
        if len(source.log):
            self.encoder.fork(source.slot, [slot])
        self._free.pop()
        self._forks += 1
        log = EventLog({name: values.copy() for name, values in source.log.columns().items()}, source.log.first)
        self.residents[WhatIf(self._forks)] = Resident(slot, log, source.state, is_fork=True)
        return WhatIf(self._forks)

    def _require_room(self, slots: int, pages: int, kept: Sequence[User]) -> None:
        """ValueError, before any eviction, where so many rows and pages cannot be freed."""
        if len(self._free) >= slots and self.encoder.caches[0].free_pages >= pages:
            return
        named = self._kept(kept)
        staying = {user for user, one in self.residents.items() if user in named or one.is_fork}
        pool = self.encoder.caches[0].pool
        assert pool is not None
        held = [self.residents[user].slot for user in staying] + [self._spare]
        slots_there = len(self._free) + len(self.residents) - len(staying)
        if slots_there < slots or pool.book.least_recently_used(pages, held) is None:
            raise ValueError(
                f"SessionStore: no room for {len(kept)} users at once, {len(self.residents)} are in use: open it "
                "with more resident users or pages, or close what-ifs"
            )

    def _make_room(self, slots: int, pages: int, kept: Sequence[User]) -> None:
        """Evicts the least recently used of the other users until so many rows and pages are free."""
        self._require_room(slots, pages, kept)
        staying = self._kept(kept)
        while len(self._free) < slots or self.encoder.caches[0].free_pages < pages:
            chosen = next(user for user, one in self.residents.items() if user not in staying and not one.is_fork)
            one = self.residents[chosen]
            if self.archive is not None and one.dirty:
                self.save(chosen, one)
            self.drop(chosen)

    def _kept(self, users: Sequence[User]) -> set[User]:
        """Users who must not be evicted: those requested, and those changed by the request."""
        return set(users) | (self.changes.users if self.changes is not None else set())

    def drop(self, user: User) -> None:
        """Removes a user from memory."""
        one = self.residents.pop(user)
        self.encoder.evict([one.slot])
        self._free.append(one.slot)

    def save(self, user: User, one: Resident) -> None:
        """Writes a user's file."""
        assert self.archive is not None and not isinstance(user, WhatIf)
        self.archive.files.save(user, self._to_save(one))
        one.dirty = False

    def save_all(self) -> None:
        """Writes the file of every user who has changed."""
        assert self.archive is not None
        dirty = {user: one for user, one in self.residents.items() if one.dirty and not isinstance(user, WhatIf)}
        for user in self.archive.files.save_all((user, self._to_save(one)) for user, one in dirty.items()):
            dirty[user].dirty = False

    def _to_save(self, one: Resident) -> SavedSession:
        # They differ after a signal between the two updates; the events are authoritative.
        is_cached = self.encoder.caches[0].lengths[one.slot] == len(one.log) > 0
        cache = self.encoder.copy_out(one.slot) if self._offloads and is_cached else None
        return SavedSession(one.log, self.fingerprint, one.state, cache)


def _encoder(model: Argus, *sizes: int, **options: Any) -> IncrementalEncoder:
    try:
        return IncrementalEncoder(model, *sizes, **options)
    except (RuntimeError, MemoryError, OverflowError) as error:
        what = f"{options['pages']:,} pages of {options['page_size']} events"
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"SessionStore: no memory for {what}; give fewer resident or max_events ({reason})") from error
