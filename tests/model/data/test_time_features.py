"""Context that follows from times is the same for one event as for a whole log."""

from __future__ import annotations

import numpy as np
import pytest

from python_model.data.description import DatasetInfo
from python_model.data.time_features import (
    DAY,
    GAP_EDGES,
    HOUR,
    TIME_FEATURES,
    TimeFeatures,
    gap_bucket,
    hour_and_day,
)

NAMES = ("gap", "device", "day_of_week", "hour")


@pytest.mark.parametrize("offset", [0, 8 * HOUR, -5 * HOUR])
def test_one_event_is_as_the_whole_log(offset: int) -> None:
    random = np.random.default_rng(offset % 7)
    steps = np.concatenate([GAP_EDGES - 1, GAP_EDGES, GAP_EDGES + 1, random.integers(0, 9 * DAY, 200), [0, 0]])
    time = 1_700_000_000 + np.cumsum(random.permutation(steps))
    hour, day = hour_and_day(time + offset)
    gap = gap_bucket(np.zeros(len(time), np.int32), time)
    features = TimeFeatures(tuple(TIME_FEATURES), offset)
    for row, moment in enumerate(time.tolist()):
        before = int(time[row - 1]) if row else None
        found = features.filled(NAMES, (-1, 3, -1, -1), moment, before)
        assert found == (gap[row], 3, day[row], hour[row])


def test_what_is_given_or_not_derived_stays() -> None:
    assert TimeFeatures(("hour",)).filled(NAMES, (-1, -1, -1, 5), 1_700_000_000, None) == (-1, -1, -1, 5)
    assert TimeFeatures().filled(NAMES, (-1, -1, -1, -1), 1_700_000_000, 0) == (-1, -1, -1, -1)


@pytest.mark.parametrize("derived", [("device",), ("hour", "gap"), ("no such",)])
def test_only_context_can_follow_from_times(derived: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=r"derived: expected names of hour, found (device|gap|no such)"):
        DatasetInfo(
            "n", "s", 1, 1, 1, {"hour": 24, "device": 3}, {}, {}, grades="", pair_window=0, derived=derived
        )  # fmt: skip
