"""Events of a user at the same second, whose order says nothing: training can see them in a new order in every pass.

Half of the events of MovieLens 100K share their second with the event before, as a page of films was rated at once.
Where a log keeps no order within a second, every order of such events is as likely as the one in the file.
"""

from __future__ import annotations

import numpy as np

from argus_kernels.host import MAX_SLOTS, hash_ids


def shuffled_ties(time: np.ndarray, offsets: np.ndarray, draw: np.ndarray) -> np.ndarray:
    """The places [T] of a batch's events in an order where those of equal time in a window are shuffled.

    time: int64 [T], rising in each of the B windows of offsets [B + 1]; draw: int64 [B], from which the order follows.
    """
    lengths = np.diff(offsets)
    owner = np.repeat(np.arange(len(lengths)), lengths)
    keys = hash_ids(draw[owner] + np.arange(len(owner)) - offsets[owner], 1, MAX_SLOTS)[0]
    return np.lexsort((keys, time, owner))
