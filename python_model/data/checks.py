"""Checks event rows against their contract, chunk by chunk."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from python_model.data.columns import require_range
from python_model.data.description import ITEMS, DatasetInfo
from python_model.data.times import SECONDS, times_of
from python_model.io.errors import DataError


def event_ranges(info: DatasetInfo, items: int | None) -> dict[str, tuple[int, int | None]]:
    """Smallest and largest value of each bounded event column; items: catalogue size, None where not yet known."""
    ranges: dict[str, tuple[int, int | None]] = {"item": (0, None if items is None else items - 1), "grade": (-1, None)}
    ranges |= {f"context_{name}": (-1, cardinality - 1) for name, cardinality in info.context.items()}
    return ranges | {f"feedback_{name}": (-1, one.classes - 1) for name, one in info.feedback.items()}


class EventChecker:
    """Checks events, chunk after chunk, against the contract; used by the writer and by `validate`.

    `check` takes the columns of the next rows and raises DataError naming column and 1-based row of the first fault.
    """

    def __init__(self, file: Path, info: DatasetInfo, items: int | None) -> None:
        self.file = file
        self.info = info
        self._ranges = event_ranges(info, items)
        self.rows = 0
        self.user = -1
        self.time = 0
        self.longest = 0

    def check(self, columns: Mapping[str, np.ndarray]) -> None:
        """Check the next rows (any number, also zero), in the types of the schema."""
        rows = len(columns["user"])
        if rows == 0:
            return
        for name, (low, high) in self._ranges.items():
            require_range(columns[name], low, high, self.file, name, self.rows + 1)
        if self.info.has_oracle:
            self._refuse(columns, "oracle_affinity", ~np.isfinite(columns["oracle_affinity"]), "a finite number")
            for name in self.info.binary_feedback:
                value = columns[f"oracle_feedback_{name}"]
                self._refuse(columns, f"oracle_feedback_{name}", ~((value >= 0) & (value <= 1)), "a probability")
        # Advance the state last: refused rows have changed nothing.
        self._check_order(columns["user"], columns["time"])
        self.rows += rows

    def finish(self, items: int, unpublished: Path | None = None) -> None:
        """Call after the last rows: DataError where there is nothing to learn from, or only one item.

        unpublished: the directory of a data set that is being written, whose files are not there to be named yet.
        """
        events = unpublished or self.file
        if self.rows == 0:
            raise DataError(events, "the data set is empty: no event was written")
        if self.longest < 2:
            message = f"nobody has two events (no two of these {self.rows:,} are of one user): what comes next "
            message += "cannot be learned; check which column has the users, or take a longer log"
            raise DataError(events, message, column="user")
        if items < 2:
            message = f"expected at least 2 items to choose from, found {items}: check which column has the items"
            raise DataError(unpublished or self.file.parent / ITEMS, message, column="item")

    def _check_order(self, user: np.ndarray, time: np.ndarray) -> None:
        columns = {"user": user}
        step = np.diff(user.astype(np.int64), prepend=self.user)
        if self.rows == 0:
            self._refuse(columns, "user", (np.arange(len(user)) == 0) & (user != 0), "users numbered from 0")
        self._refuse(columns, "user", (step < 0) | (step > 1), "users sorted and numbered without gaps")
        times_of(time, SECONDS, self.file, "time", np.arange(self.rows + 1, self.rows + len(time) + 1))
        backwards = (np.diff(time, prepend=self.time) < 0) & (step == 0)
        self._refuse({"time": time}, "time", backwards, "times sorted within a user")
        self.user, self.time = int(user[-1]), int(time[-1])
        self.longest = max(self.longest, 2 if (step == 0).any() else 1)

    def _refuse(self, columns: Mapping[str, np.ndarray], name: str, bad: np.ndarray, expected: str) -> None:
        if bad.any():
            first = int(np.argmax(bad))
            found = columns[name][first]
            raise DataError(self.file, f"expected {expected}, found {found}", column=name, row=self.rows + first + 1)
