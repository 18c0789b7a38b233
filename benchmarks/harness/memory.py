"""Peak extra memory of a call: bytes above those before it, all allocators included.

On the CPU the kernel's own high-water mark of the process's resident memory is reset and read again
(`/proc/self/clear_refs`, `VmHWM`), so that native allocations outside torch count as well. Freed memory that the
allocator kept is returned to the system first, because its reuse would not be counted; and Python collects no garbage
during the call, because what others left would be subtracted. What glibc cannot return, a heap's end that is not the
program's break, is reused unseen: a process that has done little else before measures best. The resolution is about a
megabyte. On a GPU it is the peak of torch's caching allocator; memory that a library allocates directly from the driver
is not counted.
"""

from __future__ import annotations

import ctypes
import gc
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")


class PeakMemory:
    """Measures a chain of calls against one baseline, taken when this object is made.

    `peak_of(call)` runs the call and returns its result and the peak of extra bytes during it, including memory that
    earlier calls still hold; the peak is None if the system does not report it.
    """

    def __init__(self, device: str) -> None:
        self.device = device
        gc.collect(1)
        _trim()
        self._base = self._now()

    def peak_of(self, call: Callable[[], Any]) -> tuple[Any, int | None]:
        """The call's result, and its peak in bytes above the baseline."""
        if self.device == "cuda":
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        else:
            _trim()
            if not _reset_high_water():
                return call(), None
        with _no_collection():
            value = call()
            peak = self._peak()
        return value, None if peak is None or self._base is None else max(0, peak - self._base)

    def _now(self) -> int | None:
        if self.device == "cuda":
            torch.cuda.synchronize()
            return torch.cuda.memory_allocated()
        return _status("VmRSS")

    def _peak(self) -> int | None:
        if self.device == "cuda":
            torch.cuda.synchronize()
            return torch.cuda.max_memory_allocated()
        return _status("VmHWM")


def peak_extra_bytes(device: str, call: Callable[[], Any]) -> tuple[int | None, Any]:
    """(peak bytes above those before, the call's result)."""
    value, peak = PeakMemory(device).peak_of(call)
    return peak, value


@contextmanager
def _no_collection() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _trim() -> None:
    """Returns memory that was freed but kept by the allocator to the system."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _reset_high_water() -> bool:
    try:
        _CLEAR_REFS.write_text("5")
    except OSError:
        return False
    return True


def _status(field: str) -> int | None:
    try:
        found = re.search(rf"{field}:\s+(\d+) kB", _STATUS.read_text())
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None
