"""Sessions of many users in bounded memory, with eviction, saving and loading.

At most `resident` users have their keys and values in the paged cache. Other users are loaded from the folder or from
the export's history, or start empty; the least recently used user is evicted for them. The changes of a request that
ends with an error are undone. The journal has every event before it is answered, so that a killed process loses no
answered event.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from argus_kernels.attention.relative_bias import time_buckets
from python_model.data.identifiers import id_of, integer_of
from python_model.data.names import Names
from python_model.data.times import second_of
from python_model.io.errors import DataError
from python_model.model.argus import Argus
from python_model.model.incremental import direct_head
from python_model.serving import towers
from python_model.serving.answers import Reading, Scored
from python_model.serving.archive import Histories, SessionArchive
from python_model.serving.arguments import flag, whole_number
from python_model.serving.bundle import HISTORY, INFO, Export
from python_model.serving.events import AHEAD, Event, EventLog, EventReader, EventRow
from python_model.serving.ids import IdTable
from python_model.serving.index import INDEX, SETTINGS, CandidateIndex
from python_model.serving.memory import Changes, Resident, SessionMemory, User, WhatIf
from python_model.serving.search import ItemSearch, Query

ON_FULL = ("offload", "replay")

logger = logging.getLogger(__name__)


class SessionStore:
    """Sessions over one model of the simplified form; not for several threads at once.

    items: original item ids, dense numbers where None. folder: stores evicted users, owned by this store until `close`
    (InUseError, naming the owner, where another process owns it); None drops evicted users.
    on_full: "offload" writes keys and values with the events, "replay" only the events, which are encoded again in one
    pass when the user returns. resident: users in memory. pages: pages of page_size events that they share; None gives
    every resident room for max_events. max_events: longest history, at most the model's; a longer history drops its
    oldest page.
    dtype: of keys and values (see `IncrementalEncoder`). amendable: how many events back late feedback may apply.
    save_every: events after which `save` is called automatically. fsync: whether an event waits for the disk.
    histories: user → log of a user who was never saved. users: original user ids; where they are integers, a text that
    spells one is that user. ahead: seconds by which an event may be later than the clock of this machine.
    """

    def __init__(
        self, model: Argus, items: IdTable | None = None, *, folder: str | Path | None = None, resident: int = 64,
        max_events: int | None = None, pages: int | None = None, page_size: int = 64, on_full: str = "offload",
        dtype: torch.dtype | None = None, amendable: int = 64, save_every: int = 100_000,
        fsync: bool = False, histories: Histories = lambda user: None, users: IdTable | None = None,
        index: CandidateIndex | None = None, export: Export | None = None, ahead: int = AHEAD,
    ) -> None:  # fmt: skip
        if on_full not in ON_FULL:
            raise ValueError(f"SessionStore: on_full is {on_full!r}, expected one of {', '.join(ON_FULL)}")
        for name, value, least in (
            ("resident", resident, 1), ("page_size", page_size, 1), ("save_every", save_every, 1),
            ("amendable", amendable, 0), ("ahead", ahead, 0),
        ):  # fmt: skip
            whole_number(value, f"SessionStore: {name}", least)
        most = model.config.max_events
        wanted = whole_number(most if max_events is None else max_events, "SessionStore: max_events", 1)
        if not page_size < wanted <= most:
            expected = f"more than a page of {page_size}, at most {most}, the model's longest history"
            raise ValueError(f"SessionStore: max_events is {wanted}, expected {expected}")
        self.model, self.kind = model, towers.kind_of(model)
        self.items = items or IdTable(np.arange(model.features.items), "the items of the model")
        self._users, self._export, self._amendable = users, export, amendable
        self.names = Names() if export is None else export.names
        times = None if export is None else export.info.time_features
        self.reader = EventReader(model.features, self.items, self.names, times, ahead)
        self._save_every, self._save_at, self.most_resident = save_every, save_every, resident
        self._heads = {kind: direct_head(towers.head_of(model, kind)) for kind in towers.KINDS}
        self.search = ItemSearch(model, self.items, self.names, index)
        self._is_closed = False
        self.memory = SessionMemory(
            model, histories, resident=resident, max_events=wanted, pages=pages, page_size=page_size,
            amendable=amendable, dtype=dtype, offloads=on_full == "offload",
        )  # fmt: skip
        if export is not None and self.fingerprint != export.info.model:
            raise DataError(export.path / INFO, "the vectors are of another model than model/ holds", column="model")
        # Open the folder last: a store that cannot be created must not touch it.
        self._archive: SessionArchive | None = None
        if folder is not None:
            vocabulary = towers.vocabulary_fingerprint(model)
            self._archive = SessionArchive(Path(folder), vocabulary, self.reader, histories, fsync=fsync)
        self.memory.archive = self._archive

    @classmethod
    def open(cls, export: str | Path | Export, folder: str | Path | None = None, **options: Any) -> SessionStore:
        """A store over an export: its model, ids and index, and its histories for the users it knows.

        options: those of SessionStore. Raises DataError for a damaged export or folder.
        """
        found = export if isinstance(export, Export) else Export.open(export)
        model = found.model(options.pop("device", "cpu"))
        reader = EventReader(model.features, found.item_ids)

        def history(user: int | str) -> EventLog | None:
            number = found.user_ids.number(user)
            if number < 0:
                return None
            columns = found.history(number)
            try:
                reader.require_log(columns, found.path / HISTORY)
            except DataError as error:
                raise found.of_history(number, error) from error
            return EventLog(columns)

        found.open_histories()
        has_index = any((found.path / name).is_file() for name in (INDEX, SETTINGS))
        index = CandidateIndex.open(found) if has_index else None
        return cls(
            model, found.item_ids, folder=folder, histories=history, users=found.user_ids, index=index, export=found,
            **options,
        )  # fmt: skip

    def session(self, user: Any) -> Session:
        """The session of a user, known or not: text or an integer."""
        return Session(self, self._key(user))

    @contextmanager
    def atomically(self) -> Iterator[None]:
        """A block of requests; its changes are undone, journal included, where it ends with an error.

        Each user can be changed once in a block.
        """
        self._require_open()
        memory = self.memory
        if memory.changes is not None:
            yield
            return
        changes = memory.changes = Changes()
        try:
            yield
            if self._archive is not None:
                self._archive.journal.write(changes.entries)
        except BaseException:
            for undo in reversed(changes.undo):
                undo()
            raise
        else:
            for complete in changes.complete:
                complete()
        finally:
            memory.changes = None
        self._save_in_time()

    def add(self, events: Sequence[tuple[Any, Event]]) -> list[Reading]:
        """Absorbs one more event of each of several users in one step; the readings in their order.

        ValueError, having changed nothing, for values out of bounds, a user named twice, or more users than fit in
        memory at once.
        """
        return self.add_rows([(self._key(user), self.reader.row(event)) for user, event in events])

    def add_rows(self, rows: Sequence[tuple[User, EventRow]]) -> list[Reading]:
        """`add` for rows of this store's `reader` and users of its sessions."""
        users = [user for user, _ in rows]
        if len(set(users)) < len(users):
            twice = next(user for user in users if users.count(user) > 1)
            raise ValueError(f"SessionStore.add: user {twice!r} is named more than once")
        if not rows:
            return []
        with self.atomically():
            found = self._admitted(users)
            complete = [self.reader.after(row, one.log) for (_, row), one in zip(rows, found, strict=True)]
            self.memory.absorb(users, found, complete)
            return self._readings(found)

    def amend(self, user: Any, number: int, feedback: Mapping[str, int | str]) -> Reading:
        """See `Session.amend`."""
        user = self._key(user)
        number = whole_number(number, "amend", 0)
        values = self.reader.values("feedback", feedback)
        if not feedback:
            raise ValueError("feedback has no names, expected what came of the event")
        with self.atomically():
            log = self._log(user)
            oldest = max(log.total - self._amendable, log.first)
            if not oldest <= number < log.total:
                expected = f"one of its last {self._amendable}: {oldest} to {log.total - 1}"
                if len(log) == 0:
                    expected = "a user with events"
                raise ValueError(f"amend: event {number} of user {user!r}, expected {expected}")
            [one] = self._admitted([user])
            self.memory.take_over(user, one, number - one.log.first, values)
            return self._readings([one])[0]

    def reading(self, user: Any) -> Reading:
        """See `Session.reading`."""
        with self.atomically():
            return self._readings(self._admitted([self._key(user)]))[0]

    def totals(self, users: Sequence[Any]) -> list[int]:
        """Events of each of several users so far."""
        distinct = list(dict.fromkeys(self._key(user) for user in users))
        there = dict(zip(distinct, self._admitted(distinct), strict=True))
        return [there[self._key(user)].log.total for user in users]

    @property
    def example_user(self) -> int | str:
        """The id of a user whom the export knows, for examples."""
        ids = None if self._users is None else self._users.ids
        return "user" if ids is None or len(ids) == 0 else ids[:1].tolist()[0]

    @property
    def is_finetuned(self) -> bool:
        """Whether the model has the vectors of the score "pair"."""
        return self.model.stage == "finetune"

    def vector(self, user: Any, **asked: Any) -> np.ndarray:
        """See `Session.vector`."""
        return self.vectors([(user, asked)])[0]

    @torch.inference_mode()
    def vectors(self, asked: Sequence[tuple[Any, Mapping[str, Any]]]) -> list[np.ndarray]:
        """The vectors that several questions ask for in one step: (user, arguments of `Session.vector`) each."""
        users = [self._key(user) for user, _ in asked]
        wanted = [self.require_asked(**one) for _, one in asked]
        distinct = list(dict.fromkeys(users))
        there = dict(zip(distinct, self._admitted(distinct), strict=True))
        found: list[np.ndarray] = [np.empty(0)] * len(users)
        for kind in towers.KINDS:
            places = [place for place, one in enumerate(wanted) if one[0] == kind]
            if places:
                residents = [there[users[place]] for place in places]
                requests = [self._request(one, *wanted[place]) for one, place in zip(residents, places, strict=True)]
                vectors = self._vectors_of(self._read(residents, requests), kind)
                for place, vector in zip(places, vectors, strict=True):
                    found[place] = vector
        return found

    def require_asked(
        self, *, score: str | None = None, now: int | None = None, organic: bool | None = None,
        context: Mapping[str, int | str] | None = None,
    ) -> tuple[str, int | None, bool | None, tuple[int, ...] | None]:  # fmt: skip
        """The checked arguments of `vector`: kind, now, organic, context columns; ValueError naming what is wrong."""
        return (
            towers.kind_of(self.model, score),
            None if now is None else second_of(now, "now"),
            None if organic is None else flag(organic, "organic"),
            None if context is None else self.reader.values("context", context),
        )

    def query(
        self, user: Any, vector: np.ndarray, k: int, *, exclude_seen: bool = False, blocked: Sequence[Any] = ()
    ) -> Query:
        """What `search.best` takes for the arguments of `Session.top_k`; ValueError naming what is wrong."""
        # Limit k to the catalogue: the search allocates memory for k results.
        k = min(whole_number(k, "k", 1), len(self.items))
        if isinstance(blocked, (str, bytes)):
            raise ValueError(f"blocked is {blocked!r}, expected several item ids")
        left_out = np.array([self.items.number(id_of(one, "blocked")) for one in blocked], np.int64)
        left_out = left_out[left_out >= 0]
        if flag(exclude_seen, "exclude_seen"):
            left_out = np.concatenate([left_out, self._seen(self._key(user))])
        return Query(vector, k, np.unique(left_out))

    def fork(self, user: Any) -> Session:
        """See `Session.what_if`."""
        self._require_open()
        return Session(self, self.memory.fork(self._key(user)))

    def close_fork(self, user: Any) -> None:
        """Removes a what-if session; leaves any other session unchanged."""
        if isinstance(user, WhatIf) and user in self.memory.residents:
            self.memory.drop(user)

    def is_resident(self, user: User) -> bool:
        """Whether a session's user is in memory."""
        return user in self.memory.residents

    @property
    def unsaved(self) -> int:
        """Lines of the journal: changes since the last save."""
        return 0 if self._archive is None else self._archive.journal.lines

    @property
    def resident(self) -> list[User]:
        """Users in memory, the least recently used first."""
        return list(self.memory.residents)

    def save(self) -> None:
        """Writes every session that has changed, each file whole or not at all, and empties the journal."""
        if self._archive is None:
            raise ValueError("SessionStore.save: the store was opened without a folder")
        self._require_open()
        self.memory.save_all()
        self._archive.settle(self.fingerprint)
        self._save_at = self._save_every

    def close(self) -> None:
        """Saves, where there is a folder, and releases the folder even if saving fails; further calls do nothing."""
        if self._is_closed:
            return
        try:
            if self._archive is not None:
                self.save()
        finally:
            self._is_closed = True
            if self._archive is not None:
                self._archive.close()

    def _require_open(self) -> None:
        if self._is_closed:
            raise ValueError("SessionStore: the store was closed")

    def __enter__(self) -> SessionStore:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def _save_in_time(self) -> None:
        """Saves after `save_every` events; on a full disk the journal is kept and saving is tried again later."""
        if self._archive is None or self._archive.journal.lines < self._save_at:
            return
        try:
            self.save()
        except (OSError, ValueError, MemoryError, RuntimeError) as error:
            # The request is complete and in the journal, so it is answered normally.
            self._save_at = self._archive.journal.lines + self._save_every
            logger.warning("sessions are not saved, the journal has their events: %s", error)

    @torch.inference_mode()
    def _readings(self, found: list[Resident]) -> list[Reading]:
        kinds = ["next_item", "pair"] if self.is_finetuned else ["next_item"]
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
        found = towers.vectors_of(self.model, readings, kind, self._heads[kind]).numpy(force=True)
        return towers.require_finite(found, "user vectors")

    @torch.inference_mode()
    def _read(self, found: list[Resident], asked: list[list[int]]) -> Tensor:
        """Inputs [n, ·] of the heads from the users' states at these requests."""
        model = self.model
        ids = torch.tensor(asked, dtype=torch.int64, device=model.device).T.contiguous()
        bucket = time_buckets(ids[1], model.config.time_buckets)
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
            return [int(organic or False), -1, *self.reader.first_context(context, now)]
        newest = one.log.row(len(one.log) - 1)
        delay = towers.delay_of(self.model, kind)
        since = delay if now is None else max(now - newest.time, delay)
        own = newest.organic if organic is None else organic
        return [int(own), since, *self.reader.later_context(context, newest, since if since > delay else None)]

    def _seen(self, user: User) -> np.ndarray:
        items = np.unique(self._admitted([user])[0].log.columns()["items"]).astype(np.int64)
        number = -1 if self._users is None or isinstance(user, WhatIf) else self._users.number(user)
        if number >= 0 and self._export is not None:
            items = np.union1d(items, self._export.seen(number))
        return items[items >= 0]

    @property
    def fingerprint(self) -> str:
        """Of the model."""
        return self.memory.fingerprint

    def _admitted(self, users: Sequence[User]) -> list[Resident]:
        self._require_open()
        return self.memory.admit(users)

    def _log(self, user: User) -> EventLog:
        """A user's events, without loading the user into memory."""
        found = self.memory.residents.get(user)
        return found.log if found is not None else self.memory.log_of(user)[0]

    def _key(self, user: Any) -> User:
        """The user of an id, compared exactly, except that a text may spell an integer where users are integers."""
        if isinstance(user, WhatIf):
            return user
        found = id_of(user, "user")
        if isinstance(found, str) and self._users is not None and self._users.are_integers:
            number = integer_of(found)
            return found if number is None else number
        return found


class Session:
    """A user of a `SessionStore`; the handle stays valid while the user is evicted and loaded again."""

    def __init__(self, store: SessionStore, user: User) -> None:
        self._store, self.user = store, user

    def add(self, event: Event) -> Reading:
        """Absorbs one more event with the feedback known so far; `amend` adds later feedback.

        An event older than the newest one takes that one's time: a user's time never runs backwards. ValueError,
        having changed nothing, for values that are out of bounds.
        """
        return self._store.add([(self.user, event)])[0]

    def amend(self, number: int, feedback: Mapping[str, int | str]) -> Reading:
        """Late feedback: replaces the feedback of event `number` and re-encodes the events from it on.

        ValueError where the event is further back than the store's `amendable`, or values are out of bounds.
        """
        return self._store.amend(self.user, number, feedback)

    def reading(self) -> Reading:
        """The last result of `add`, or the reading of a user without events (number −1)."""
        return self._store.reading(self.user)

    def vector(
        self, *, score: str | None = None, now: int | None = None, organic: bool | None = None,
        context: Mapping[str, int | str] | None = None,
    ) -> np.ndarray:  # fmt: skip
        """float32 [D] whose dot products with item vectors are the score, "pair" or "next_item", as of `now`.

        now: seconds; never before the newest event, and for "pair" at least the model's lag after it, so that the
        ranker may use it; None: the earliest such time. organic, context: of the request; None: those of the newest
        event. It is the vector that `argus export` gives a user with this history.
        """
        return self._store.vector(self.user, score=score, now=now, organic=organic, context=context)

    def top_k(
        self, k: int, *, score: str | None = None, now: int | None = None, organic: bool | None = None,
        context: Mapping[str, int | str] | None = None, exclude_seen: bool = False, blocked: Sequence[Any] = (),
    ) -> list[Scored]:  # fmt: skip
        """The k best items, best first; fewer where the catalogue has no more.

        k: at least 1. now, organic, context: as for `vector`. ValueError for values of other types or out of bounds.
        exclude_seen leaves out the items of the user's history, blocked (item ids) others. From the store's index
        where it has one, by exact search otherwise.
        """
        vector = self.vector(score=score, now=now, organic=organic, context=context)
        query = self._store.query(self.user, vector, k, exclude_seen=exclude_seen, blocked=blocked)
        return self._store.search.best([query])[0]

    def what_if(self) -> Session:
        """An independent session that continues this one's history, without copying it; close it when done.

        It stays in memory until then and is never saved: use it in a `with` statement.
        """
        return self._store.fork(self.user)

    def __len__(self) -> int:
        """Number of events of the user, including those dropped from the history."""
        return self._store.totals([self.user])[0]

    def close(self) -> None:
        """Ends a what-if session; other sessions need not be closed."""
        self._store.close_fork(self.user)

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
