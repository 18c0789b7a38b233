"""Context that follows from times: hour of day, day of week, and the bucket of the gap since the event before.

Readers compute it for whole logs; a server computes it for an event as it comes, so no client has to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np

from python_model.io.settings import Between

DAY, HOUR = 86_400, 3_600
GAP_EDGES = np.array([1, 10, 60, 600, 3_600, DAY, 7 * DAY])
"""Upper edges in seconds of the time since the user's event before: same page, minute, sitting, hour, day, week."""
GAP_BUCKETS = len(GAP_EDGES) + 1
TIME_FEATURES = {"hour": 24, "day_of_week": 7, "gap": GAP_BUCKETS}
"""Name → cardinality."""
UtcOffset = Annotated[int, Between(-DAY, DAY)]


def hour_and_day(time: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Hour of day and day of week (Monday = 0) in UTC of unix seconds, int32."""
    return (time // HOUR % 24).astype(np.int32), ((time // DAY + 3) % 7).astype(np.int32)


def gap_bucket(user: np.ndarray, time: np.ndarray) -> np.ndarray:
    """int32: bucket (GAP_EDGES) of the time since the user's previous event, -1 for the first; rows in event order."""
    gap = np.diff(time, prepend=time[:1])
    bucket = np.searchsorted(GAP_EDGES, gap, side="right").astype(np.int32)
    bucket[np.diff(user.astype(np.int64), prepend=-1) != 0] = -1
    return bucket


@dataclass(frozen=True)
class TimeFeatures:
    """Which context follows from times: names of TIME_FEATURES, and the seconds by which local time is ahead of UTC."""

    names: tuple[str, ...] = ()
    utc_offset: int = 0

    def filled(self, context: Sequence[str], values: Sequence[int], time: int, before: int | None) -> tuple[int, ...]:
        """The values of `context` at a time, those that are missing (−1) and follow from times computed.

        before: time of the user's event before; None without one.
        """
        hour, day = hour_and_day(np.array([time + self.utc_offset]))
        gap = -1 if before is None else int(np.searchsorted(GAP_EDGES, time - before, side="right"))
        known = {"hour": int(hour[0]), "day_of_week": int(day[0]), "gap": gap}
        return tuple(
            known[name] if value < 0 and name in self.names else value
            for name, value in zip(context, values, strict=True)
        )


def require_time_features(names: Sequence[str], context: Sequence[str]) -> None:
    """ValueError for a name that is none of TIME_FEATURES or no context."""
    if unknown := [name for name in names if name not in TIME_FEATURES or name not in context]:
        known = ", ".join(name for name in TIME_FEATURES if name in context) or "nothing"
        raise ValueError(f"derived: expected names of {known}, found {unknown[0]}")
