"""Windows: the pieces of histories that training and evaluation show, as ranges of rows, and how they make batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np

from argus_kernels.host import pack_events


@dataclass(frozen=True)
class Windows:
    """Pieces of histories as row ranges: window i shows rows start[i] .. end[i]; rows from target[i] on are targets.

    kept, int64, is set by `StochasticLength`: window i shows kept[i] of its rows. draw, int64: random numbers from
    which those rows follow, and the order of events at the same second (`ties`).
    """

    start: np.ndarray
    target: np.ndarray
    end: np.ndarray
    kept: np.ndarray | None = None
    draw: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.start)

    def take(self, index: np.ndarray | slice) -> Windows:
        """Some of the windows, in the order of `index`."""
        return replace(self, **{name: column[index] for name, column in self.columns().items()})

    def columns(self) -> dict[str, np.ndarray]:
        """The columns that these windows have, by name."""
        found = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: column for name, column in found.items() if column is not None}

    @property
    def lengths(self) -> np.ndarray:
        """Events that each window shows."""
        return self.end - self.start if self.kept is None else self.kept


def joined(parts: Sequence[Windows]) -> Windows:
    """All windows of several lists, in their order; all of the lists have `kept`, or none has; the same of `draw`."""
    columns = [part.columns() for part in parts]
    return replace(parts[0], **{name: np.concatenate([one[name] for one in columns]) for name in columns[0]})


def cut_windows(
    first: np.ndarray,
    last: np.ndarray,
    floor: np.ndarray,
    *,
    window: int,
    overlap: int,
    phase: np.ndarray | None = None,
) -> Windows:
    """Cut row ranges first[i] .. last[i] into windows of at most `window` rows, each led by `overlap` rows of history.

    History never reaches below floor[i], the user's first row; a window there has room for more targets. phase [n] in
    [0, 1) shifts the cuts of a range of several windows. Every row of a range is a target of exactly one window.
    """
    stride = window - overlap
    lead = np.minimum(first - floor, overlap)
    room = window - lead
    length = last - first
    # The first window holds up to `room` targets, less where the phase shortens it; all others `stride`.
    head = np.minimum(length, room)
    if phase is not None:
        cut = np.maximum(np.ceil(room * (1.0 - phase)).astype(np.int64), 1)
        head = np.where(length > room, cut, head)
    pieces = np.where(length > 0, 1 + -(-(length - head) // stride), 0)
    owner = np.repeat(np.arange(len(first)), pieces)
    number = np.arange(len(owner)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    target = first[owner] + np.where(number > 0, head[owner] + (number - 1) * stride, 0)
    end = np.minimum(first[owner] + head[owner] + number * stride, last[owner])
    return Windows(np.maximum(target - overlap, floor[owner]), target, end)


def pack(windows: Windows, token_budget: int, window: int, order: np.ndarray | None = None) -> list[Windows]:
    """The windows in the given order (int64, default their own), cut into batches of at most token_budget tokens."""
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(windows.lengths, dtype=np.int64)])
    # Each window is passed as a separate history, so that the windows of one user are shuffled independently.
    plan = pack_events(offsets, token_budget, window, order=order)
    return [windows.take(batch.users) for batch in plan]
