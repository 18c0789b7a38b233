"""What the simulated users have heard so far: draws from the whole past, from its seasons, and what is new to them.

Only events that the user liked are drawn again, all of them with the same probability.
"""

from __future__ import annotations

import numpy as np

from python_model.data.synthetic.config import DAY, YEAR, SyntheticConfig
from python_model.data.synthetic.tastes import season_number


class Past:
    """The past of users 0 … n − 1 of a chunk; only what the service's settings need is kept."""

    def __init__(self, config: SyntheticConfig, users: int) -> None:
        self._config = config
        self._repeats = config.loyalty > 0 or config.cycles > 0
        self._items = np.zeros((users, 64 if self._repeats else 0), np.int32)
        # Likes among a user's first events up to each one, that one included.
        self._up_to = np.zeros(self._items.shape, np.int64)
        self._total = np.zeros(users, np.int64)
        self._events = np.zeros(users, np.int64)
        # A session may run past the last day of the calendar.
        seasons = 2 + config.days * DAY * config.seasons // YEAR if config.cycles > 0 else 0
        self._of_season = np.zeros((users, seasons), np.int64)
        self._before_season = np.zeros((users, seasons), np.int64)
        self._heard = np.zeros((users, config.items if config.discovery > 0 else 0), bool)

    def add(self, rows: np.ndarray, time: np.ndarray, item: np.ndarray, liked: np.ndarray) -> None:
        """Add an event of each of users `rows` [n]: its time, its item and whether it was liked [n]."""
        if self._heard.shape[1]:
            self._heard[rows, item] = True
        if not self._repeats:
            return
        number = self._events[rows]
        if number.max() >= self._items.shape[1]:
            self._items = np.concatenate([self._items, np.zeros_like(self._items)], axis=1)
            self._up_to = np.concatenate([self._up_to, np.zeros_like(self._up_to)], axis=1)
        added = liked.astype(np.int64)
        if self._of_season.shape[1]:
            season = season_number(time, self._config.seasons)
            first = self._of_season[rows, season] == 0
            self._before_season[rows[first], season[first]] = self._total[rows[first]]
            self._of_season[rows, season] += added
        self._total[rows] += added
        self._items[rows, number], self._up_to[rows, number] = item, self._total[rows]
        self._events[rows] += 1

    def season_likes(self, rows: np.ndarray, time: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Seasons [n, years] that were the current season of an earlier year, and the number of likes in each."""
        if not self._of_season.shape[1]:
            return np.zeros((len(rows), 1), np.int64), np.zeros((len(rows), 1), np.int64)
        now, per_year = season_number(time, self._config.seasons), self._config.seasons
        years = 1 + self._of_season.shape[1] // per_year
        season = now[:, None] % per_year + per_year * np.arange(years)
        earlier = season < now[:, None]
        season = np.where(earlier, season, 0)
        return season, np.where(earlier, self._of_season[rows[:, None], season], 0)

    def has_likes(self, rows: np.ndarray) -> np.ndarray:
        """Bool [n]: whether a past event was liked."""
        return self._total[rows] > 0

    def draw(self, rows: np.ndarray, uniform: np.ndarray) -> np.ndarray:
        """int64 [n]: the item of a past event that was liked."""
        return self._item_at(rows, np.floor(uniform * self._total[rows]).astype(np.int64))

    def draw_of_season(self, rows: np.ndarray, time: np.ndarray, uniform: np.ndarray) -> np.ndarray:
        """int64 [n]: the item of an event of the same season of an earlier year that was liked."""
        season, likes = self.season_likes(rows, time)
        cumulative = np.cumsum(likes, axis=1)
        target = np.floor(uniform * cumulative[:, -1]).astype(np.int64)
        year = (cumulative <= target[:, None]).sum(axis=1)
        n = np.arange(len(rows))
        inside = target - (cumulative[n, year] - likes[n, year])
        return self._item_at(rows, self._before_season[rows, season[n, year]] + inside)

    def new(self, rows: np.ndarray) -> np.ndarray:
        """Bool [n, V]: the items that are new to each user."""
        return ~self._heard[rows]

    def has_new(self, rows: np.ndarray) -> np.ndarray:
        """Bool [n]: whether an item is new to the user."""
        return ~self._heard[rows].all(axis=1)

    def _item_at(self, rows: np.ndarray, target: np.ndarray) -> np.ndarray:
        """The item of the first event up to which there are more than `target` likes: a binary search in each row."""
        low, high = np.zeros(len(rows), np.int64), self._events[rows]
        while (low < high).any():
            middle = (low + high) // 2
            more = (self._up_to[rows, middle] > target) | (low >= high)
            high, low = np.where(more, middle, high), np.where(more, low, middle + 1)
        return self._items[rows, low].astype(np.int64)
