"""Sessions of many users in bounded memory: who is in it, who makes room, what is saved and what comes back.

`resident` users at most have their keys and values in the paged cache. Whoever else is needed comes from the folder,
from the export's history or, never seen before, from nothing; the least recently used makes room. A journal takes every
event before it is absorbed, so that a process that is killed loses none of those it answered.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from python_model.incremental import IncrementalEncoder, direct_head
from python_model.layers import time_bucket
from python_model.model import Argus
from python_model.serving import towers
from python_model.serving.bundle import Export
from python_model.serving.events import Event, EventLog, EventReader, EventRow, batch_of
from python_model.serving.exact import best_items
from python_model.serving.ids import IdTable
from python_model.serving.index import INDEX, CandidateIndex
from python_model.serving.session import Reading, Scored, Session
from python_model.serving.session_files import JOURNAL, Journal, SavedSession, SessionFiles

ON_FULL = ("offload", "replay")


@dataclass
class Resident:
    """A user in memory: row of the cache, log of the events that are cached, state [d] after the newest."""

    slot: int
    log: EventLog
    state: Tensor
    dirty: bool = False
    is_fork: bool = False


class SessionStore:
    """Sessions over one model of the simplified form; not for several threads at once.

    items: original item ids, dense numbers where None. folder: where users are kept; None forgets who makes room.
    on_full: "offload" writes keys and values with the events, "replay" the events alone, which are encoded again in
    one pass when the user returns. resident: users in memory. pages: pages of page_size events that they share; None
    gives every resident room for max_events. max_events: longest history; the oldest page slides out of a full one.
    dtype: of keys and values (see `IncrementalEncoder`). amendable: how far back feedback may come late, in events.
    save_every: events after which `save` is called by itself. histories: user → log of a user who was never saved.
    """

    def __init__(
        self, model: Argus, items: IdTable | None = None, *, folder: str | Path | None = None, resident: int = 64,
        max_events: int | None = None, pages: int | None = None, page_size: int = 64, on_full: str = "offload",
        dtype: torch.dtype | None = None, amendable: int = 64, save_every: int = 100_000,
        histories: Callable[[Hashable], EventLog | None] = lambda user: None, users: IdTable | None = None,
        index: CandidateIndex | None = None, export: Export | None = None,
    ) -> None:  # fmt: skip
        if on_full not in ON_FULL:
            raise ValueError(f"SessionStore: on_full is {on_full!r}, expected one of {', '.join(ON_FULL)}")
        for name, value in (("resident", resident), ("page_size", page_size), ("save_every", save_every)):
            if value < 1:
                raise ValueError(f"SessionStore: {name} is {value}, expected at least 1")
        wanted = model.config.max_events if max_events is None else max_events
        if not page_size < wanted:
            raise ValueError(f"SessionStore: max_events is {wanted}, expected more than a page of {page_size}")
        slots = -(-wanted // page_size)
        self._pages = resident * slots if pages is None else pages
        if self._pages < slots + 1:
            raise ValueError(f"SessionStore: pages is {pages}, expected at least {slots + 1}, a full history and one")
        self.encoder = IncrementalEncoder(model, resident, wanted, page_size=page_size, pages=self._pages, dtype=dtype)
        self.model, self.kind = self.encoder.model, towers.kind_of(model)
        self._heads = {kind: direct_head(towers.head_of(model, kind)) for kind in towers.KINDS}
        self.items = items or IdTable(np.arange(model.features.items), "the items of the model")
        self._users, self._export, self._index = users, export, index
        self._reader = EventReader(model.features, self.items)
        self._residents: OrderedDict[Hashable, Resident] = OrderedDict()
        self._free = list(range(resident - 1, -1, -1))
        self._on_full, self._dtype, self._amendable = on_full, dtype, amendable
        self._save_every, self._histories, self._forks = save_every, histories, 0
        self._fingerprint = towers.fingerprint(model)
        self._files: SessionFiles | None = None
        self._journal: Journal | None = None
        self._pending: dict[Hashable, list[dict[str, Any]]] = {}
        if folder is not None:
            self._files = SessionFiles(Path(folder), towers.vocabulary_fingerprint(model))
            self._journal = Journal(Path(folder) / JOURNAL)
            for entry in self._journal.entries():
                self._pending.setdefault(entry["user"], []).append(entry)
        self._vectors: np.ndarray | None = None

    @classmethod
    def open(cls, export: str | Path | Export, folder: str | Path | None = None, **options: Any) -> SessionStore:
        """A store over an export: its model, ids and index, and its histories for the users it knows.

        options: those of SessionStore. Raises DataError for a damaged export or folder.
        """
        found = export if isinstance(export, Export) else Export.open(export)
        device = options.pop("device", "cpu")

        def history(user: Hashable) -> EventLog | None:
            number = found.user_ids.number(user)
            return None if number < 0 else EventLog(found.history(number))

        index = CandidateIndex.open(found) if (found.path / INDEX).is_file() else None
        return cls(
            found.model(device), found.item_ids, folder=folder, histories=history, users=found.user_ids, index=index,
            export=found, **options,
        )  # fmt: skip

    # ---- what a session asks for ----------------------------------------------------------------------------------

    def session(self, user: Hashable) -> Session:
        """The session of a user, known or not: text or a whole number."""
        if isinstance(user, bool) or not isinstance(user, (str, int, np.integer)) or user == "":
            raise ValueError(f"user: expected text or a whole number, found {user!r}")
        return Session(self, self._canonical(user))

    def add(self, events: Sequence[tuple[Hashable, Event]]) -> list[Reading]:
        """Absorbs one more event of each of several users in one step; the readings in their order.

        ValueError, having changed nothing, for values out of bounds, a user named twice, or more users than there is
        room for at once.
        """
        users = [user if isinstance(user, tuple) else self.session(user).user for user, _ in events]
        if len(set(users)) < len(users):
            twice = next(user for user in users if users.count(user) > 1)
            raise ValueError(f"SessionStore.add: user {twice!r} is named more than once")
        if not events:
            return []
        rows = [self._reader.row(event) for _, event in events]
        found = self._admit(users)
        rows = [
            replace(row, time=max(row.time, one.log.newest_time())) if len(one.log) else row
            for row, one in zip(rows, found, strict=True)
        ]
        entries = [
            {"user": user, "number": one.log.total, "row": [row.item, row.time, row.organic, row.context, row.feedback]}
            for user, one, row in zip(users, found, rows, strict=True)
            if not one.is_fork
        ]
        self._logged(entries, lambda: self._absorb(users, found, rows))
        readings = self._readings(found)
        if self._journal is not None and self._journal.lines >= self._save_every:
            self.save()
        return readings

    def amend(self, user: Hashable, number: int, feedback: Mapping[str, int]) -> Reading:
        """See `Session.amend`."""
        values = self._reader.values("feedback", feedback)
        [one] = self._admit([user])
        place = number - one.log.first
        oldest = max(one.log.total - self._amendable, one.log.first)
        if not 0 <= place < len(one.log) or number < oldest:
            raise ValueError(
                f"amend: event {number!r} of user {user!r}, expected one of its last {self._amendable}: "
                f"{oldest} to {one.log.total - 1}"
            )
        entries = [] if one.is_fork else [{"user": user, "amend": number, "feedback": values}]
        self._logged(entries, lambda: self._take_over(user, one, place, values))
        return self._readings([one])[0]

    def reading(self, user: Hashable) -> Reading:
        """See `Session.reading`."""
        return self._readings(self._admit([user]))[0]

    def events_of(self, user: Hashable) -> int:
        """Events of a user so far."""
        return self._admit([user])[0].log.total

    @torch.inference_mode()
    def vector(
        self, user: Hashable, *, score: str | None = None, now: int | None = None, organic: bool | None = None,
        context: Mapping[str, int] | None = None,
    ) -> np.ndarray:  # fmt: skip
        """See `Session.vector`."""
        kind = towers.kind_of(self.model, score or self.kind)
        if now is not None and (isinstance(now, bool) or not isinstance(now, (int, np.integer))):
            raise ValueError(f"now: expected whole seconds since 1970, found {now!r}")
        given = None if context is None else self._reader.values("context", context)
        found = self._admit([user])
        readings = self._read(found, [self._request(found[0], kind, now, organic, given)])
        return self._vectors_of(readings, kind)[0]

    def best(
        self, user: Hashable, vector: np.ndarray, k: int, *, exclude_seen: bool = False, blocked: Sequence[Any] = ()
    ) -> list[Scored]:
        """The k best items for a vector; see `Session.top_k`."""
        if k < 1:
            raise ValueError(f"k: expected at least 1, found {k}")
        numbers = np.array([self.items.number(one) for one in blocked], np.int64)
        left_out = [numbers[numbers >= 0]]
        if exclude_seen:
            left_out.append(self._seen(user))
        excluded = [np.unique(np.concatenate(left_out))] if len(left_out[0]) or exclude_seen else None
        if self._index is not None:
            items, scores = self._index.search(vector[None], k, excluded)
        else:
            items, scores = best_items(vector[None], self._item_vectors(), k, excluded)
        ids = self.items.original(items[0][items[0] >= 0]).tolist()
        return [Scored(one, float(score)) for one, score in zip(ids, scores[0], strict=False)]

    def fork(self, user: Hashable) -> Session:
        """See `Session.what_if`."""
        [source] = self._admit([user])
        self._make_room(1, 1, [user])
        self._forks += 1
        slot = self._free.pop()
        if len(source.log):
            self.encoder.fork(source.slot, [slot])
        log = EventLog({name: values.copy() for name, values in source.log.columns().items()}, source.log.first)
        self._residents["what if", self._forks] = Resident(slot, log, source.state, is_fork=True)
        return Session(self, ("what if", self._forks))

    def close_fork(self, user: Hashable) -> None:
        """Forgets a what-if; leaves any other session as it is."""
        found = self._residents.get(user)
        if found is not None and found.is_fork:
            self._drop(user)

    # ---- what is kept ---------------------------------------------------------------------------------------------

    @property
    def resident(self) -> list[Hashable]:
        """Users in memory, the least recently used first."""
        return list(self._residents)

    def save(self) -> None:
        """Writes every session that has changed, each file whole or not at all, and empties the journal."""
        if self._files is None or self._journal is None:
            raise ValueError("SessionStore.save: the store was opened without a folder")
        for user, one in self._residents.items():
            if one.dirty and not one.is_fork:
                self._save(user, one)
        for user in list(self._pending):
            # Nobody asked for them since: their events are put where they belong, the state can wait.
            self._files.save(user, SavedSession(self._log_of(user)[0], self._fingerprint, None, None))
            del self._pending[user]
        self._journal.clear()

    def close(self) -> None:
        """Saves, where there is a folder, and ends the journal."""
        if self._journal is not None:
            self.save()
            self._journal.close()

    # ---- events ---------------------------------------------------------------------------------------------------

    def _logged(self, entries: list[dict[str, Any]], change: Callable[[], None]) -> None:
        """Makes a change that the journal knows of; where it fails the journal forgets it."""
        if self._journal is None:
            change()
            return
        mark = self._journal.mark()
        try:
            for entry in entries:
                self._journal.write(entry)
            change()
        except BaseException:
            self._journal.take_back(mark)
            raise

    @torch.inference_mode()
    def _absorb(self, users: list[Hashable], found: list[Resident], rows: list[EventRow]) -> None:
        self._make_room(0, len(users), users)
        for one in found:
            self._slide(one)
        states = self.encoder.append([one.slot for one in found], batch_of(rows, self.model.device))
        for one, row, state in zip(found, rows, states, strict=True):
            one.log.append(row)
            one.state, one.dirty = state, True

    def _slide(self, one: Resident) -> None:
        """Lets the oldest page of a full history go."""
        cache = self.encoder.caches[0]
        if len(one.log) >= cache.max_events:
            cache.evict_oldest([one.slot], len(one.log) - cache.page_size)
            one.log.drop_oldest(cache.page_size)

    @torch.inference_mode()
    def _take_over(self, user: Hashable, one: Resident, place: int, feedback: tuple[int, ...]) -> None:
        self._make_room(0, 2 + (len(one.log) - place) // self.encoder.caches[0].page_size, [user])
        one.log.set_feedback(place, feedback)
        one.dirty = True
        self.encoder.truncate(one.slot, place)
        for again in range(place, len(one.log)):
            one.state = self.encoder.append([one.slot], batch_of([one.log.row(again)], self.model.device))[0]

    # ---- vectors --------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def _readings(self, found: list[Resident]) -> list[Reading]:
        kinds = ["next_item", "pair"] if self.model.stage == "finetune" else ["next_item"]
        asked = [self._request(one, kind) for kind in kinds for one in found]
        readings = self._read(found * len(kinds), asked)
        queries = self._vectors_of(readings[: len(found)], "next_item")
        pairs = readings[len(found) :]
        vectors = self._vectors_of(pairs, "pair") if len(pairs) else None
        return [
            Reading(one.log.total - 1, queries[row], None if vectors is None else vectors[row])
            for row, one in enumerate(found)
        ]

    def _vectors_of(self, readings: Tensor, kind: str) -> np.ndarray:
        return towers.vectors_of(self.model, readings, kind, self._heads[kind]).numpy(force=True)

    @torch.inference_mode()
    def _read(self, found: list[Resident], asked: list[list[int]]) -> Tensor:
        """What the heads read [n, ·] of the users' states at these requests."""
        model = self.model
        ids = torch.tensor(asked, dtype=torch.int64, device=model.device).T.contiguous()
        bucket = time_bucket(ids[1], model.config.time_buckets)
        ids[1] = torch.where(ids[1] >= 0, bucket, -1)
        return torch.cat(
            [torch.stack([one.state for one in found]), model.context_embedding.of_few(model.tables, ids)], -1
        )

    def _request(
        self, one: Resident, kind: str, now: int | None = None, organic: bool | None = None,
        context: tuple[int, ...] | None = None,
    ) -> list[int]:  # fmt: skip
        """organic, seconds since the newest event (−1 without one), context columns of a request."""
        if len(one.log) == 0:
            return [int(organic or False), -1, *(context or (-1,) * len(self.model.features.context))]
        newest = one.log.row(len(one.log) - 1)
        delay = towers.delay_of(self.model, kind)
        since = delay if now is None else max(now - newest.time, delay)
        own = newest.organic if organic is None else organic
        return [int(own), since, *(newest.context if context is None else context)]

    @torch.inference_mode()
    def _item_vectors(self) -> np.ndarray:
        if self._vectors is None:
            self._vectors = self.model.item_matrix().cpu().numpy()
        return self._vectors

    def _seen(self, user: Hashable) -> np.ndarray:
        items = np.unique(self._admit([user])[0].log.columns()["items"]).astype(np.int64)
        number = -1 if self._users is None or isinstance(user, tuple) else self._users.number(user)
        if number >= 0 and self._export is not None:
            items = np.union1d(items, self._export.seen(number))
        return items[items >= 0]

    # ---- who is in memory -----------------------------------------------------------------------------------------

    def _canonical(self, user: str | int | np.integer) -> Hashable:
        """Users of an export with whole numbers for ids may come as text."""
        if isinstance(user, str) and self._users is not None and self._users.are_integers:
            return int(user) if user.lstrip("-").isdigit() else user
        return int(user) if isinstance(user, np.integer) else user

    def _admit(self, users: Sequence[Hashable]) -> list[Resident]:
        """The users in memory, all of them at once, and marked as just used."""
        for user in users:
            if user in self._residents:
                self._residents.move_to_end(user)
        for user in users:
            if user not in self._residents:
                self._bring(user, users)
        return [self._residents[user] for user in users]

    @torch.inference_mode()
    def _bring(self, user: Hashable, kept: Sequence[Hashable]) -> None:
        if isinstance(user, tuple):
            raise ValueError("this what-if was closed")
        log, saved = self._log_of(user)
        cache = self.encoder.caches[0]
        if len(log) > cache.max_events:
            log.drop_oldest(len(log) - cache.max_events)
        self._make_room(1, 1 + -(-len(log) // cache.page_size), kept)
        one = Resident(self._free[-1], log, self.model.start.detach())
        usable = saved is not None and saved.model == self._fingerprint and saved.cache is not None
        if usable and saved is not None and self._fits(saved, log):
            assert saved.cache is not None and saved.state is not None
            self.encoder.copy_in(one.slot, saved.cache)
            one.state = saved.state.to(self.model.device)
        elif len(log):
            one.state = self.encoder.prefill(one.slot, log.batch(self.model.device))
        one.dirty = user in self._pending
        self._pending.pop(user, None)
        self._residents[user] = one
        self._free.pop()

    def _fits(self, saved: SavedSession, log: EventLog) -> bool:
        cache, parts = self.encoder.caches[0], saved.cache or []
        same = bool(parts) and parts[0].dtype == cache.key_pages.dtype and len(parts[0]) == len(log)
        return same and saved.log is log and saved.state is not None

    def _log_of(self, user: Hashable) -> tuple[EventLog, SavedSession | None]:
        """A user's events, those of the journal too, and the file they came from where it needs no repair."""
        saved = self._files.load(user) if self._files is not None and self._files.has(user) else None
        log = saved.log if saved is not None else self._histories(user) or EventLog.empty(self.model.features)
        changed = False
        for entry in self._pending.get(user, ()):
            if "amend" in entry:
                place = entry["amend"] - log.first
                if 0 <= place < len(log):
                    log.set_feedback(place, tuple(entry["feedback"]))
                    changed = True
            elif entry["number"] == log.total:
                item, time, organic, context, feedback = entry["row"]
                log.append(EventRow(item, time, organic, tuple(context), tuple(feedback)))
                changed = True
        return log, None if changed else saved

    def _make_room(self, slots: int, pages: int, kept: Sequence[Hashable]) -> None:
        """Lets the least recently used of the other users go until there are so many free rows and pages."""
        while len(self._free) < slots or self.encoder.caches[0].free_pages < pages:
            chosen = next((user for user, one in self._residents.items() if user not in kept and not one.is_fork), None)
            if chosen is None:
                raise ValueError(
                    f"SessionStore: no room for {len(kept)} users at once, {len(self._residents)} are in use: open it "
                    "with more resident users or pages, or close what-ifs"
                )
            one = self._residents[chosen]
            if self._files is not None and one.dirty:
                self._save(chosen, one)
            self._drop(chosen)

    def _drop(self, user: Hashable) -> None:
        one = self._residents.pop(user)
        self.encoder.evict([one.slot])
        self._free.append(one.slot)

    def _save(self, user: Hashable, one: Resident) -> None:
        assert self._files is not None
        cache = self.encoder.copy_out(one.slot) if self._on_full == "offload" and len(one.log) else None
        self._files.save(user, SavedSession(one.log, self._fingerprint, one.state, cache))
        one.dirty = False
