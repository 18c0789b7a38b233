"""The checks of `argus_kernels.host`: one sentence each, a ValueError that names the function and the argument."""

from __future__ import annotations

import operator
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from argus_kernels.host_reference import Int64Array

Array = npt.NDArray[Any]
MAX_WINDOWS = 2**28
WINDOW_BYTES = 64
"""Of a plan: four numbers a window, their batch's, and as much again for what the caller makes of them."""


def check_offsets(offsets: Int64Array) -> None:
    if len(offsets) == 0:
        raise ValueError("pack_events: offsets is empty, expected [U + 1] values, the first of them 0")
    if offsets[0] != 0:
        raise ValueError(f"pack_events: offsets[0] is {offsets[0]}, expected 0")
    falls = offsets[1:] < offsets[:-1]
    if falls.any():
        at = int(falls.argmax()) + 1
        raise ValueError(f"pack_events: offsets[{at}] is {offsets[at]} after {offsets[at - 1]}, expected no fall")


def check_plan_size(
    offsets: Int64Array, order: Int64Array, window: int, stride: int, min_events: int, mode: str
) -> None:
    """Before a list of windows grows until the process is killed."""
    lengths = (offsets[1:] - offsets[:-1])[order]
    lengths = lengths[lengths >= max(1, min_events)]
    windows = len(lengths)
    if mode == "all":
        older = (np.maximum(lengths - window, 0) + (stride - 1)) // stride
        # By halves: the sum of a few users may be beyond int64.
        windows += (int((older >> 32).sum()) << 32) + int((older & 0xFFFFFFFF).sum())
    if windows > MAX_WINDOWS:
        raise ValueError(f"pack_events: the histories have {windows} windows, expected at most {MAX_WINDOWS}")
    require_memory("pack_events", f"{windows} windows", WINDOW_BYTES * windows)


def checked_order(order: Int64Array, users: int) -> Int64Array:
    order = vector("pack_events", "order", order, np.int64)
    outside = (order < 0) | (order >= users)
    if outside.any():
        at = int(outside.argmax())
        raise ValueError(f"pack_events: order[{at}] is {order[at]}, expected 0 to {users - 1}, the users of offsets")
    repeated = np.bincount(order, minlength=users) > 1
    if repeated.any():
        raise ValueError(f"pack_events: order names user {int(repeated.argmax())} more than once")
    return order


def check_windows(where: str, users: Int64Array, starts: Int64Array, ends: Int64Array, contexts: Int64Array) -> None:
    given = {"users": users, "starts": starts, "ends": ends, "contexts": contexts}
    for name, values in given.items():
        vector(where, name, values, np.int64)
        if len(values) != len(users):
            raise ValueError(f"{where}: {name} has {len(values)} values, expected {len(users)} as users")
    for name, values, wrong, expected in (
        ("users", users, users < 0, lambda at: "0 or more"),
        ("starts", starts, (starts < 0) | (starts > ends), lambda at: f"0 to ends[{at}] = {ends[at]}"),
        ("contexts", contexts, (contexts < 0) | (contexts > ends - starts), lambda at: f"0 to {ends[at] - starts[at]}"),
    ):
        if wrong.any():
            at = int(wrong.argmax())
            raise ValueError(f"{where}: {name}[{at}] is {values[at]}, expected {expected(at)}")


def require_memory(where: str, what: str, size: int) -> None:
    """Before an array is made that the system would promise and then kill the process for."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    if size > memory:
        raise ValueError(f"{where}: {what} take {size} bytes, expected at most half of the machine's memory, {memory}")


def require_entries(where: str, state: Any, names: tuple[str, ...]) -> None:
    if not isinstance(state, Mapping):
        raise ValueError(f"{where}: the state is {type(state).__name__}, expected a mapping")
    missing = set(names) - set(state)
    if missing:
        raise ValueError(f"{where}: no {', '.join(sorted(missing))} in the state")


def integer(where: str, name: str, value: Any) -> int:
    """A whole number as a file may hold it: an int, or an integer array of no dimensions."""
    if isinstance(value, bool):
        raise ValueError(f"{where}: {name} is {value!r}, expected an integer")
    try:
        return operator.index(value)
    except TypeError:
        raise ValueError(f"{where}: {name} is {value!r}, expected an integer") from None


def count(where: str, name: str, value: Any) -> float:
    array = np.asarray(value)
    if array.ndim != 0 or array.dtype.kind not in "iuf" or not (np.isfinite(array) and array >= 0):
        raise ValueError(f"{where}: {name} is {value!r}, expected a finite number ≥ 0")
    return float(array)


def vector(where: str, name: str, value: Array, dtype: type[np.generic]) -> Array:
    expected = np.dtype(dtype)
    if not isinstance(value, np.ndarray):
        raise ValueError(f"{where}: {name} is {type(value).__name__}, expected a numpy array of {expected} [n]")
    if value.dtype != expected or value.ndim != 1:
        raise ValueError(f"{where}: {name} is {value.dtype} {list(value.shape)}, expected {expected} [n]")
    return np.ascontiguousarray(value)


def check_range(where: str, name: str, value: int, low: int, high: int, note: str = "") -> None:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise ValueError(f"{where}: {name} is {value!r}, expected an integer")
    if not low <= value <= high:
        raise ValueError(f"{where}: {name} is {value}, expected {low} to {high}{note}")
