"""Train, validation and test rows: the global temporal split, the split of the Yambda benchmark, leave-last-out.

The training rows of a user are always a prefix of their history, so no model trains on events later than its test
events: later in time under the temporal splits, in the user's own order under leave-last-out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from python_model.data.feedback import PositiveEvents
from python_model.data.schema import Dataset

PROTOCOLS = ("temporal", "leave-last-out", "yambda")
YAMBDA_GAP, YAMBDA_SPAN = 1_800, 86_400


@dataclass(frozen=True)
class Split:
    """Bool masks [T] over event rows, disjoint; rows in a gap are in none. `name` says how they were made."""

    name: str
    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


def split_at(dataset: Dataset, validation_start: int, test_start: int, *, gap: int = 0) -> Split:
    """Global temporal split at two times (seconds): train | gap | validation | gap | test, gap in seconds.

    ValueError where the times are out of order or one of the three parts is empty.
    """
    if gap < 0 or validation_start > test_start:
        raise ValueError(
            f"expected gap >= 0 and validation_start <= test_start, found {gap}, {validation_start}, {test_start}"
        )
    time = dataset.time
    split = Split(
        name="temporal",
        train=time < validation_start - gap,
        validation=(time >= validation_start) & (time < test_start - gap),
        test=time >= test_start,
    )
    for part in ("train", "validation", "test"):
        if not getattr(split, part).any():
            raise ValueError(
                f"temporal split at {validation_start} and {test_start} with gap {gap}: the {part} part is empty; "
                f"the events span {int(time.min())} to {int(time.max())}: {_other_protocols(dataset)}"
            )
    return split


def _other_protocols(dataset: Dataset) -> str:
    """The protocols that remain for a data set that is too small or too short to be split in time."""
    advice = "pretrain with --protocol all, which trains on every event and holds none out"
    if int(np.diff(dataset.offsets).max()) >= 4:
        advice += ", or leave-last-out, which holds out the last two of each user"
    return advice


def temporal_split(dataset: Dataset, *, validation_share: float = 0.05, test_share: float = 0.1, gap: int = 0) -> Split:
    """Global temporal split whose last parts hold about these shares of the events."""
    if not 0 < validation_share < 1 or not 0 < test_share < 1 or validation_share + test_share >= 1:
        raise ValueError(
            f"expected shares in (0, 1) that leave some for training, found {validation_share} and {test_share}"
        )
    ranks = np.array([1 - validation_share - test_share, 1 - test_share])
    places = np.minimum((ranks * len(dataset)).astype(np.int64), len(dataset) - 1)
    starts = np.partition(dataset.time, places)[places]
    return split_at(dataset, int(starts[0]), int(starts[1]), gap=gap)


def yambda_starts(dataset: Dataset) -> dict[str, int]:
    """Start times of validation and test of the Yambda benchmark, in seconds: a day each, after a gap of 1,800 s."""
    test = int(dataset.time.max()) - YAMBDA_SPAN
    return {"validation": test - YAMBDA_GAP - YAMBDA_SPAN, "test": test}


def yambda_split(dataset: Dataset) -> Split:
    """The split of the Yambda benchmark: a day of test at the end, a day of validation before it, gaps of 1,800 s."""
    starts = yambda_starts(dataset)
    return split_at(dataset, starts["validation"], starts["test"], gap=YAMBDA_GAP)


def positive_events(dataset: Dataset) -> np.ndarray:
    """Mask [T] of the positive events (Listen+ of Yambda). ValueError where the data set does not define them."""
    positive = targets_of(dataset, "yambda")
    assert positive is not None
    return dataset.feedback(positive.feedback) >= positive.at_least


def targets_of(dataset: Dataset, protocol: str) -> PositiveEvents | None:
    """The events whose items are predicted under a protocol; None for all of them.

    ValueError where the data set does not define them.
    """
    if protocol != "yambda":
        return None
    if dataset.info.positive is None:
        raise ValueError(
            f"protocol yambda: {dataset.path} was prepared from {dataset.info.source}, which does not say what events "
            "are positive (`positive` in dataset.json): make it with `argus prepare yambda`"
        )
    return dataset.info.positive


def events_to_predict(dataset: Dataset, protocol: str) -> np.ndarray:
    """The same for every event: bool [T]."""
    return positive_events(dataset) if targets_of(dataset, protocol) else np.ones(len(dataset), bool)


def make_split(dataset: Dataset, protocol: str) -> Split:
    """The split of one of PROTOCOLS; ValueError for an unknown protocol or one that does not apply to the data."""
    if protocol == "temporal":
        return temporal_split(dataset)
    if protocol == "leave-last-out":
        return leave_last_out(dataset)
    if protocol == "yambda":
        targets_of(dataset, protocol)
        return yambda_split(dataset)
    raise ValueError(f"protocol: expected one of {', '.join(PROTOCOLS)}, found {protocol!r}")


def leave_last_out(dataset: Dataset, *, least_events: int = 3) -> Split:
    """Each user's last event is test, the one before it validation; users of fewer events only train."""
    if least_events < 3:
        raise ValueError(f"least_events: expected at least 3, found {least_events}")
    ends = dataset.offsets[1:]
    long_enough = np.diff(dataset.offsets) >= least_events
    if not long_enough.any():
        raise ValueError(f"leave-last-out: no user has {least_events} events: {_other_protocols(dataset)}")
    test = np.zeros(len(dataset), bool)
    validation = np.zeros(len(dataset), bool)
    test[ends[long_enough] - 1] = True
    validation[ends[long_enough] - 2] = True
    return Split(name="leave-last-out", train=~(test | validation), validation=validation, test=test)
