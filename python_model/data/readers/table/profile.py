"""What was found in a log, in figures and in a few lines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

import numpy as np

from python_model.data.feedback import FeedbackComponent
from python_model.data.readers.table.events import Events, Note
from python_model.data.readers.table.items import Items
from python_model.io.errors import counted

_DAY = 86_400


class Profile:
    """Figures of a log, gathered range by range."""

    def __init__(self, feedback: Mapping[str, FeedbackComponent], labels: Mapping[str, Sequence[str]]) -> None:
        self._feedback = feedback
        self._labels = labels
        self._classes = {name: np.zeros(one.classes + 1, np.int64) for name, one in feedback.items()}
        self._lengths: list[np.ndarray] = []
        self._first, self._last = np.iinfo(np.int64).max, 0
        self._organic = self._duplicates = self._future = 0
        self._now = int(datetime.now(timezone.utc).timestamp()) + _DAY

    def add(self, events: Events) -> None:
        """The events of the next users."""
        columns = events.columns
        user, time = columns["user"], columns["time"]
        self._lengths.append(np.bincount(user - user[0]))
        self._first, self._last = min(self._first, int(time.min())), max(self._last, int(time.max()))
        self._organic += int(columns["organic"].sum())
        self._future += int((time > self._now).sum())
        self._duplicates += events.duplicates
        for name, counts in self._classes.items():
            counts += np.bincount(columns[f"feedback_{name}"] + 1, minlength=len(counts))

    def figures(self, notes: Sequence[Note], items: Items | None, read: int, once: bool) -> dict[str, Any]:
        """All figures, JSON-ready; once: whether duplicates were left out.

        feedback: share of the events that say yes, or of each class; null where it was never observed.
        """
        lengths = np.concatenate(self._lengths)
        dropped: Counter[str] = Counter()
        for note in notes:
            dropped.update(note.dropped)
        out = {
            "rows": read, "events": int(lengths.sum()), "users": len(lengths),
            "events_a_user": {"least": int(lengths.min()), "median": int(np.median(lengths)),
                              "mean": round(float(lengths.mean()), 2), "most": int(lengths.max()),
                              "alone": int((lengths == 1).sum())},
            "times": next(note.times for note in notes if note.rows),
            "first_time": self._first, "last_time": self._last, "in_the_future": self._future,
            "organic": round(self._organic / int(lengths.sum()), 4),
            "feedback": {name: self._shares(name) for name in self._feedback},
            "duplicates": self._duplicates, "duplicates_dropped": once, "dropped": dict(dropped),
        }  # fmt: skip
        if items is not None:
            out["items_described"], out["items_unused"] = items.known, items.unused
        return out

    def _shares(self, name: str) -> Any:
        counts = self._classes[name][1:]
        seen = int(counts.sum())
        if seen == 0:
            return None
        if self._feedback[name].is_binary:
            return round(int(counts[1]) / seen, 4)
        labels = self._labels[f"feedback_{name}"]
        return {label: round(int(count) / seen, 4) for label, count in zip(labels, counts, strict=True)}


def lines(figures: Mapping[str, Any], items: int) -> list[str]:
    """The figures in words, a line each."""
    length = figures["events_a_user"]
    span = " to ".join(_moment(figures[name]) for name in ("first_time", "last_time"))
    out = [
        f"Rows: {figures['rows']:,}; {counted(figures['events'], 'event')} of {counted(figures['users'], 'user')} on "
        f"{counted(items, 'item')}",
        f"Events a user: {length['least']:,} to {length['most']:,}, median {length['median']:,}, mean "
        f"{length['mean']:,}; {counted(length['alone'], 'user')} with one event",
        f"Times: read as {figures['times']}, {span} UTC",
    ]
    out += [f"Feedback {name}: {_rates(rates)}" for name, rates in figures["feedback"].items()]
    if figures["organic"]:
        out.append(f"Organic: {100 * figures['organic']:.1f} % of the events")
    if "items_described" in figures:
        out.append(f"Items: {figures['items_described']:,} of {items:,} are in the file of items, "
                   f"which has {figures['items_unused']:,} that the log does not have")  # fmt: skip
    if figures["duplicates"]:
        what = "left out" if figures["duplicates_dropped"] else "kept (--duplicates drop leaves them out)"
        out.append(f"Duplicates: {counted(figures['duplicates'], 'row')} the same as one before, {what}")
    out += [f"Left out: {counted(count, 'row')} without {name}" for name, count in figures["dropped"].items()]
    if figures["in_the_future"]:
        out.append(f"Warning: {counted(figures['in_the_future'], 'event')} later than now")
    return out


def _rates(rates: Any) -> str:
    if rates is None:
        return "never observed"
    if isinstance(rates, dict):
        shown = [f"{label} {100 * rate:.1f} %" for label, rate in list(rates.items())[:8]]
        return ", ".join(shown) + (f", … ({len(rates)} classes)" if len(rates) > 8 else "")
    return f"{100 * rates:.1f} % yes" + (": the same throughout, nothing to learn" if rates in (0, 1) else "")


def _moment(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%d %H:%M:%S")
