"""Events as they come to a server, the rows they become, and a user's log of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from python_model.config import FeatureSpec
from python_model.data.batches import JaggedBatch
from python_model.serving.bundle import HISTORY_COLUMNS
from python_model.serving.ids import IdTable

LATEST_TIME = 4_102_444_800
"""2100-01-01 in seconds: a later time is one in milliseconds, and would hold the user's clock for ever."""


@dataclass(frozen=True)
class Event:
    """One interaction: which item, when (seconds since 1970), whether the user chose it, where, and what came of it.

    context, feedback: name → value; what is not named is missing or not observed.
    """

    item: Any
    time: int
    organic: bool = False
    context: Mapping[str, int] = field(default_factory=dict)
    feedback: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class EventRow:
    """An event in dense numbers: item −1 where the catalogue does not have it, −1 where missing or not observed."""

    item: int
    time: int
    organic: bool
    context: tuple[int, ...]
    feedback: tuple[int, ...]


class EventReader:
    """Checks events against a vocabulary and turns them into rows."""

    def __init__(self, features: FeatureSpec, items: IdTable) -> None:
        self.features, self.items = features, items
        self._feedback = {name: max(count, 2) for name, count in features.feedback.items()}

    def row(self, event: Event) -> EventRow:
        """ValueError naming what of the event is out of bounds or unknown; an unknown item is −1."""
        if isinstance(event.time, bool) or not isinstance(event.time, (int, np.integer)):
            raise ValueError(f"event: time is {event.time!r}, expected whole seconds since 1970")
        if not -LATEST_TIME <= event.time <= LATEST_TIME:
            raise ValueError(f"event: time is {event.time}, expected seconds since 1970 (are these milliseconds?)")
        if not isinstance(event.organic, (bool, np.bool_)):
            raise ValueError(f"event: organic is {event.organic!r}, expected true or false")
        context = self.values("context", event.context)
        return EventRow(self.items.number(event.item), int(event.time), bool(event.organic), context,
                        self.values("feedback", event.feedback))  # fmt: skip

    def values(self, what: str, given: Mapping[str, int]) -> tuple[int, ...]:
        """The values of `context` or `feedback` in the order of the vocabulary, −1 where none is given."""
        counts = self.features.context if what == "context" else self._feedback
        if not isinstance(given, Mapping):
            raise ValueError(f"event: {what} is {given!r}, expected a mapping from name to value")
        for name, value in given.items():
            if name not in counts:
                raise ValueError(f"event: {what} has {name!r}, expected names of {', '.join(counts) or 'nothing'}")
            if isinstance(value, float) or not isinstance(value, (int, np.integer)) or not -1 <= value < counts[name]:
                raise ValueError(f"event: {what} {name!r} is {value!r}, expected a value in [-1, {counts[name] - 1}]")
        return tuple(int(given.get(name, -1)) for name in counts)


class EventLog:
    """A user's newest events as columns, oldest first; `first` events before them were dropped."""

    def __init__(self, columns: Mapping[str, np.ndarray], first: int = 0) -> None:
        self._columns = {name: np.asarray(columns[name]) for name in HISTORY_COLUMNS}
        self._length, self.first = len(self._columns["items"]), first

    @classmethod
    def empty(cls, features: FeatureSpec) -> EventLog:
        """A log without events."""
        context, feedback = len(features.context), len(features.feedback)
        return cls({
            "items": np.zeros(0, np.int32), "time": np.zeros(0, np.int64), "organic": np.zeros(0, np.bool_),
            "context": np.zeros((0, context), np.int32), "feedback": np.zeros((0, feedback), np.int16),
        })  # fmt: skip

    def __len__(self) -> int:
        return self._length

    @property
    def total(self) -> int:
        """Events of the user so far, dropped ones too: the number of the next one."""
        return self.first + self._length

    def columns(self) -> dict[str, np.ndarray]:
        """The columns, as views."""
        return {name: values[: self._length] for name, values in self._columns.items()}

    def newest_time(self) -> int:
        """Seconds of the newest event."""
        return int(self._columns["time"][self._length - 1])

    def append(self, row: EventRow) -> None:
        """One more event."""
        if self._length == len(self._columns["items"]):
            room = max(16, self._length)
            for name, values in self._columns.items():
                self._columns[name] = np.concatenate([values, np.zeros((room, *values.shape[1:]), values.dtype)])
        columns, at = self._columns, self._length
        columns["items"][at], columns["time"][at], columns["organic"][at] = row.item, row.time, row.organic
        columns["context"][at], columns["feedback"][at] = row.context, row.feedback
        self._length += 1

    def drop_oldest(self, events: int) -> None:
        """Forgets some of the oldest events."""
        events = min(max(events, 0), self._length)
        self._columns = {name: values[events : self._length].copy() for name, values in self._columns.items()}
        self._length -= events
        self.first += events

    def set_feedback(self, place: int, feedback: tuple[int, ...]) -> None:
        """Replaces what came of the event at `place`; values of −1 leave what is there."""
        old = self._columns["feedback"][place]
        self._columns["feedback"][place] = np.where(np.array(feedback) >= 0, feedback, old)

    def row(self, place: int) -> EventRow:
        """The event at `place`."""
        columns = self._columns
        return EventRow(
            int(columns["items"][place]), int(columns["time"][place]), bool(columns["organic"][place]),
            tuple(columns["context"][place].tolist()), tuple(columns["feedback"][place].tolist()),
        )  # fmt: skip

    def batch(self, device: torch.device) -> JaggedBatch:
        """The whole log as the history of one user."""
        columns = self.columns()
        return jagged(columns, np.array([0, len(self)], np.int32), device)


def batch_of(rows: list[EventRow], device: torch.device) -> JaggedBatch:
    """One event of each of several users."""
    columns = {
        "items": np.array([row.item for row in rows], np.int64), "time": np.array([row.time for row in rows], np.int64),
        "organic": np.array([row.organic for row in rows], np.bool_),
        "context": np.array([row.context for row in rows], np.int64).reshape(len(rows), -1),
        "feedback": np.array([row.feedback for row in rows], np.int64).reshape(len(rows), -1),
    }  # fmt: skip
    return jagged(columns, np.arange(len(rows) + 1, dtype=np.int32), device)


def jagged(columns: Mapping[str, np.ndarray], offsets: np.ndarray, device: torch.device) -> JaggedBatch:
    """A batch of the histories that `offsets` int32 [B + 1] cuts the columns into."""
    events = len(columns["items"])

    def integers(name: str) -> torch.Tensor:
        return torch.from_numpy(columns[name].astype(np.int64)).to(device)

    return JaggedBatch(
        offsets=torch.from_numpy(offsets).to(device),
        max_length=int(np.diff(offsets).max(initial=0)),
        users=torch.arange(len(offsets) - 1, device=device),
        rows=torch.arange(events, device=device),
        items=integers("items"),
        time=integers("time"),
        organic=torch.from_numpy(columns["organic"].copy()).to(device),
        grade=torch.full((events,), -1, dtype=torch.int64, device=device),
        context=integers("context").T.contiguous(),
        feedback=integers("feedback"),
        is_target=torch.ones(events, dtype=torch.bool, device=device),
    )
