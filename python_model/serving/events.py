"""Events that a server receives, their dense rows, and each user's log of rows."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from python_model.config import FeatureSpec
from python_model.data.batches import JaggedBatch
from python_model.data.identifiers import id_of
from python_model.data.names import Names
from python_model.data.time_features import TimeFeatures
from python_model.data.times import SECONDS, second_of, times_of
from python_model.io.errors import DataError
from python_model.io.settings import shown
from python_model.serving.arguments import flag, whole_number
from python_model.serving.bundle import HISTORY_COLUMNS
from python_model.serving.ids import IdTable

AHEAD = 86_400
"""A day: clocks of devices are wrong by hours and by time zones, seldom by more."""


@dataclass(frozen=True)
class Event:
    """One interaction: item, time (seconds since 1970), whether the user chose the item, context and feedback.

    item: an integer or text; an id that is not in the catalogue counts as an unknown item.
    context, feedback: name → number, or its label where the data set has labels; absent names are missing or not
    observed.
    """

    item: Any
    time: int
    organic: bool = False
    context: Mapping[str, int | str] = field(default_factory=dict)
    feedback: Mapping[str, int | str] = field(default_factory=dict)


@dataclass(frozen=True)
class EventRow:
    """An event in dense numbers: item −1 where the catalogue does not have it, −1 where missing or not observed."""

    item: int
    time: int
    organic: bool
    context: tuple[int, ...]
    feedback: tuple[int, ...]

    def plain(self) -> list[Any]:
        """The row as JSON values; see `EventReader.row_of`."""
        return [self.item, self.time, self.organic, list(self.context), list(self.feedback)]


class EventReader:
    """Checks events against a vocabulary and turns them into rows; times: which context follows from times.

    ahead: seconds by which an event may be later than the clock of this machine and the user's newest event.
    """

    def __init__(
        self, features: FeatureSpec, items: IdTable, names: Names | None = None, times: TimeFeatures | None = None,
        ahead: int = AHEAD,
    ) -> None:  # fmt: skip
        self.features, self.items, self.names = features, items, names or Names()
        self._times, self._context, self._ahead = times or TimeFeatures(), tuple(features.context), ahead
        self.bounds: dict[str, dict[str, int]] = {
            "context": dict(features.context),
            "feedback": {name: component.classes for name, component in features.feedback.items()},
        }

    def row(self, event: Event) -> EventRow:
        """The row of an event; ValueError naming an invalid value. An unknown item is −1."""
        return EventRow(
            self.items.number(id_of(event.item, "item")),
            second_of(event.time, "time"),
            flag(event.organic, "organic"),
            self.values("context", event.context),
            self.values("feedback", event.feedback),
        )

    def after(self, row: EventRow, log: EventLog) -> EventRow:
        """The row as the next event of a log: not before its newest one, with the context that follows from times.

        ValueError where its time is too far ahead: every later event of the user would get that time.
        """
        before = log.newest_time() if len(log) else None
        latest = max(before or 0, int(time.time())) + self._ahead
        if row.time > latest:
            raise ValueError(
                f"time is {row.time}, expected at most {latest}, which is {self._ahead:,} s after the clock of this "
                "machine: a user's time never runs backwards"
            )
        second = row.time if before is None else max(row.time, before)
        return replace(row, time=second, context=self._times.filled(self._context, row.context, second, before))

    def first_context(self, given: tuple[int, ...] | None, now: int | None) -> tuple[int, ...]:
        """The context of a request for a user without events."""
        context = given or (-1,) * len(self._context)
        return context if now is None else self._times.filled(self._context, context, now, None)

    def later_context(self, given: tuple[int, ...] | None, newest: EventRow, since: int | None) -> tuple[int, ...]:
        """The context of a request `since` seconds after a user's newest event; None: at the same time as an export's.

        What is not given is that of the newest event; what follows from times is computed for a later time.
        """
        derived = [name in self._times.names for name in self._context]
        if since is None:
            values = newest.context if given is None else given
            return tuple(
                old if follows and value < 0 else value
                for value, old, follows in zip(values, newest.context, derived, strict=True)
            )
        values = given or tuple(
            -1 if follows else value for value, follows in zip(newest.context, derived, strict=True)
        )
        return self._times.filled(self._context, values, newest.time + since, newest.time)

    def values(self, what: str, given: Mapping[str, int | str]) -> tuple[int, ...]:
        """The values of `context` or `feedback` in the order of the vocabulary, −1 where none is given."""
        counts = self.bounds[what]
        if not isinstance(given, Mapping):
            raise ValueError(f"{what} is {given!r}, expected a mapping from name to value")
        found = dict.fromkeys(counts, -1)
        for name, value in given.items():
            if name not in counts:
                raise ValueError(f"{what} has {name!r}, expected names of {', '.join(counts) or 'nothing'}")
            found[name] = self._number(what, name, value)
        return tuple(found.values())

    def _number(self, what: str, name: str, value: Any) -> int:
        """The number of a value, which may be given as its label."""
        column, high = f"{what}_{name}", self.bounds[what][name] - 1
        labelled = column in self.names.labels
        if isinstance(value, str) and labelled:
            number = self.names.number(column, value)
            if number is None or number > high:
                number_too = "" if self.names.mistakable(column) else f", or a number to {high}"
                expected = f"one of {self._labels(column)}{number_too}"
                raise ValueError(f"{what} {name!r} is {shown(value)}, expected {expected}")
            return number
        if self.names.mistakable(column) and value != -1:
            # The number 4 is the label "5" where the classes are 1 to 5 stars: nobody who sends 4 means five.
            expected = f"−1 or a label as text, since labels are numbers here: {self._labels(column)}"
            raise ValueError(f"{what} {name!r} is {shown(value)}, expected {expected}")
        try:
            return whole_number(value, f"{what} {name!r}", -1, high)
        except ValueError as error:
            if not labelled:
                raise
            raise ValueError(f"{error}, or a label: {self._labels(column)}") from None

    def _labels(self, column: str) -> str:
        """The first labels of a column, for sentences."""
        return ", ".join(f'"{label}"' for label in list(self.names.labels[column].values())[:20])

    def row_of(self, values: Any) -> EventRow:
        """The row that `EventRow.plain` wrote; ValueError where it does not fit this vocabulary."""
        if not isinstance(values, list) or len(values) != len(fields(EventRow)):
            raise ValueError(f"row is {values!r}, expected item, time, organic, context, feedback")
        item, time, organic, context, feedback = values
        return EventRow(
            whole_number(item, "item", -1, len(self.items) - 1),
            second_of(time, "time"),
            flag(organic, "organic"),
            self.values_of("context", context),
            self.values_of("feedback", feedback),
        )

    def values_of(self, what: str, values: Any) -> tuple[int, ...]:
        """The stored result of `values` for `context` or `feedback`; ValueError where it is invalid."""
        counts = self.bounds[what]
        if not isinstance(values, list) or len(values) != len(counts):
            raise ValueError(f"{what} is {values!r}, expected {len(counts)} values")
        pairs = zip(values, counts.items(), strict=True)
        return tuple(whole_number(value, f"{what} {name!r}", -1, count - 1) for value, (name, count) in pairs)

    def require_log(self, columns: Mapping[str, np.ndarray], file: Path) -> None:
        """DataError naming column and row where `HISTORY_COLUMNS` of a file do not fit this vocabulary."""
        events = len(columns["items"]) if columns["items"].ndim else 0
        for name, empty in EventLog.empty(self.features).columns().items():
            found, shape = columns[name], (events, *empty.shape[1:])
            if found.dtype != empty.dtype or found.shape != shape:
                message = f"expected {empty.dtype} {list(shape)}, found {found.dtype} {list(found.shape)}"
                raise DataError(file, message, column=name)
        _require_range(columns["items"][:, None], [len(self.items)], file, "items")
        for name, counts in self.bounds.items():
            _require_range(columns[name], list(counts.values()), file, name)
        step = np.diff(times_of(columns["time"], SECONDS, file, "time"))
        if (step < 0).any():
            row = int(np.argmax(step < 0)) + 2
            raise DataError(file, "expected times that do not fall", column="time", row=row)


def _require_range(values: np.ndarray, counts: list[int], file: Path, column: str) -> None:
    wrong = (values < -1) | (values >= np.array(counts, np.int64))
    if wrong.any():
        row, place = np.unravel_index(int(np.argmax(wrong)), wrong.shape)
        message = f"expected a value in [-1, {counts[place] - 1}], found {values[row, place]}"
        raise DataError(file, message, column=column, row=int(row) + 1)


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
        """Number of events of the user so far, dropped ones included: the number of the next event."""
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

    def take_back(self, length: int) -> None:
        """Removes the newest events, so that `length` are left."""
        self._length = length

    def drop_oldest(self, events: int) -> None:
        """Drops some of the oldest events."""
        events = min(max(events, 0), self._length)
        self._columns = {name: values[events : self._length].copy() for name, values in self._columns.items()}
        self._length -= events
        self.first += events

    def set_feedback(self, place: int, feedback: tuple[int, ...]) -> np.ndarray:
        """Replaces the feedback of the event at `place`, −1 keeps a value; returns the old feedback."""
        old = self._columns["feedback"][place].copy()
        self._columns["feedback"][place] = np.where(np.array(feedback) >= 0, feedback, old)
        return old

    def restore_feedback(self, place: int, feedback: np.ndarray) -> None:
        """Restores the feedback that `set_feedback` returned."""
        self._columns["feedback"][place] = feedback

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
