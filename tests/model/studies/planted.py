"""Results of trials that were never run, with known figures of known users."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from python_model.studies.trials import TrialResult


def planted(
    name: str, by_user: Mapping[str, np.ndarray], *, seed: int = 0, parameters: int = 1000, events: int = 100
) -> TrialResult:
    """A result whose users [n] have these figures, with 10 events each."""
    return TrialResult(
        name=name, seed=seed, parameters={"encoder": parameters}, events=events, seconds={"pretrain": 1.0},
        metrics={metric: float(users.mean()) for metric, users in by_user.items()}, standard_errors={}, feedback={},
        counts={}, by_user={m: (tuple(10 * users), (10.0,) * len(users)) for m, users in by_user.items()},
    )  # fmt: skip
