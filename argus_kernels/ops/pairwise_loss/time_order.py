"""The order in which the CUDA kernels take the events: user by user, each user's in the order of time."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from argus_kernels.core import varlen


class TimeOrder(NamedTuple):
    """All T events, those that can be in no pair (padding, a negative grade) last, as of user B."""

    order: Tensor
    """[T] int64: the row of the k-th event."""
    users: Tensor
    """[T] int32, ascending."""
    times: Tensor
    """[T] int64, ascending within a user; events of equal time keep the order given."""


def time_order(grades: Tensor, offsets: Tensor, times: Tensor) -> TimeOrder:
    """Two stable sorts, by time and then by user: sizes known beforehand, no host synchronisation."""
    user = varlen.user_of_row(offsets, times.shape[0])
    user = torch.where(grades < 0, offsets.shape[0] - 1, user).to(torch.int32)
    by_time = times.sort(stable=True)
    by_user = user[by_time.indices].sort(stable=True)
    return TimeOrder(by_time.indices[by_user.indices], by_user.values, by_time.values[by_user.indices])
