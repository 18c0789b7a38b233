"""A user's session: events one by one, and after each of them the vectors and the best items."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from python_model.serving.events import Event

if TYPE_CHECKING:
    from python_model.serving.memory import User
    from python_model.serving.store import SessionStore


@dataclass(frozen=True)
class Reading:
    """What a session says after an event.

    number: of the event, counted from 0 over the user's life, for `Session.amend`. query float32 [D]: its dot products
    with item vectors order what comes next. user_vector float32 [D]: the two-tower ranker's; None of a model that was
    not fine-tuned. Both speak of the moment in which they may know all events: see `Session.vector`.
    """

    number: int
    query: np.ndarray
    user_vector: np.ndarray | None


@dataclass(frozen=True)
class Scored:
    """An item and its score."""

    item_id: Any
    score: float


class Session:
    """A user of a `SessionStore`; a handle that stays good while the user is moved out of memory and back."""

    def __init__(self, store: SessionStore, user: User) -> None:
        self._store, self.user = store, user

    def add(self, event: Event) -> Reading:
        """Absorbs one more event; its feedback is what is known of it now, see `amend`.

        An event older than the newest one takes that one's time: a user's time never runs backwards. ValueError,
        having changed nothing, for values that are out of bounds.
        """
        return self._store.add([(self.user, event)])[0]

    def amend(self, number: int, feedback: Mapping[str, int]) -> Reading:
        """Feedback that came later: replaces what is known of event `number` and takes the events since over again.

        ValueError where the event is further back than the store's `amendable`, or values are out of bounds.
        """
        return self._store.amend(self.user, number, feedback)

    def reading(self) -> Reading:
        """What `add` said last, or what can be said of a user without events (number −1)."""
        return self._store.reading(self.user)

    def vector(
        self, *, score: str | None = None, now: int | None = None, organic: bool | None = None,
        context: Mapping[str, int] | None = None,
    ) -> np.ndarray:  # fmt: skip
        """float32 [D] whose dot products with item vectors are the score, "pair" or "next_item", as of `now`.

        now: seconds; never before the newest event, and for "pair" at least the model's lag after it, from when on the
        ranker may know it; that moment where None. organic, context: of the request, those of the newest event where
        None. It is the vector that `argus export` gives a user with this history.
        """
        return self._store.vector(self.user, score=score, now=now, organic=organic, context=context)

    def top_k(
        self, k: int, *, score: str | None = None, now: int | None = None, organic: bool | None = None,
        context: Mapping[str, int] | None = None, exclude_seen: bool = False, blocked: Sequence[Any] = (),
    ) -> list[Scored]:  # fmt: skip
        """The k best items, best first; fewer where the catalogue has no more.

        k: at least 1. now, organic, context: as for `vector`. ValueError for values of other types or out of bounds.
        exclude_seen leaves out the items of the user's history, blocked (item ids) others. From the store's index
        where it has one, by exact search otherwise.
        """
        vector = self.vector(score=score, now=now, organic=organic, context=context)
        return self._store.best(self.user, vector, k, exclude_seen=exclude_seen, blocked=blocked)

    def what_if(self) -> Session:
        """A session that goes on from this one's history by itself, without copying it; close it when done.

        It is kept in memory until then and never saved: use it in a `with` statement.
        """
        return self._store.fork(self.user)

    def __len__(self) -> int:
        """Events of the user, those included that slid out of the history."""
        return self._store.events_of(self.user)

    def close(self) -> None:
        """Ends a what-if; of any other session nothing is lost by not calling it."""
        self._store.close_fork(self.user)

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
