"""The contract of the event rows, checked chunk after chunk."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from python_model.data.description import DatasetInfo
from python_model.data.errors import DataError


class EventChecker:
    """Checks events, chunk after chunk, against the contract; used by the writer and by `validate`.

    `check` takes the columns of the next rows and raises DataError naming column and 1-based row of the first fault.
    """

    def __init__(self, file: Path, info: DatasetInfo, items: int | None) -> None:
        self.file = file
        self.info = info
        self.items = items
        self.rows = 0
        self.user = -1
        self.time = 0

    def check(self, columns: Mapping[str, np.ndarray]) -> None:
        """Check the next rows (any length, also none)."""
        rows = len(columns["user"])
        if rows == 0:
            return
        self._check_order(columns["user"], columns["time"])
        self._range(columns, "item", 0, self.items)
        self._range(columns, "grade", -1, None)
        for name, cardinality in self.info.context.items():
            self._range(columns, f"context_{name}", -1, cardinality)
        for name, classes in self.info.feedback.items():
            self._range(columns, f"feedback_{name}", -1, max(classes, 2))
        if self.info.has_oracle:
            self._refuse(columns, "oracle_affinity", ~np.isfinite(columns["oracle_affinity"]), "a finite number")
            for name in self.info.bernoulli_tasks:
                value = columns[f"oracle_feedback_{name}"]
                self._refuse(columns, f"oracle_feedback_{name}", ~((value >= 0) & (value <= 1)), "a probability")
        self.rows += rows

    def _check_order(self, user: np.ndarray, time: np.ndarray) -> None:
        columns = {"user": user, "time": time}
        step = np.diff(user.astype(np.int64), prepend=self.user)
        if self.rows == 0:
            self._refuse(columns, "user", (np.arange(len(user)) == 0) & (user != 0), "users numbered from 0")
        self._refuse(columns, "user", (step < 0) | (step > 1), "users sorted and numbered without gaps")
        self._refuse(columns, "time", time < 0, "a time that is not negative")
        backwards = (np.diff(time, prepend=self.time) < 0) & (step == 0)
        self._refuse(columns, "time", backwards, "times sorted within a user")
        self.user, self.time = int(user[-1]), int(time[-1])

    def _range(self, columns: Mapping[str, np.ndarray], name: str, low: int, high: int | None) -> None:
        values = columns[name]
        bad = values < low
        if high is not None:
            bad |= values >= high
        expected = f"a value of at least {low}" if high is None else f"a value in [{low}, {high - 1}]"
        self._refuse(columns, name, bad, expected)

    def _refuse(self, columns: Mapping[str, np.ndarray], name: str, bad: np.ndarray, expected: str) -> None:
        if bad.any():
            first = int(np.argmax(bad))
            found = columns[name][first]
            raise DataError(self.file, f"expected {expected}, found {found}", column=name, row=self.rows + first + 1)
