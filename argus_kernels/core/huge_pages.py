"""Asks for large pages behind a big buffer in host memory: one entry of the processor's page table for 2 MiB.

A kernel that reads gigabytes once is bound by memory, and part of that time is address translation for small pages.
Linux only; a hint, which has no effect where the system decides by itself
(/sys/kernel/mm/transparent_hugepage/enabled).
"""

from __future__ import annotations

import ctypes
import functools
import mmap
from typing import Any

from torch import Tensor

HUGE = 2 << 20


def prefer_huge_pages(tensor: Tensor) -> Tensor:
    """The tensor itself, asked for before its memory is first touched; a tensor elsewhere or a small one as it is."""
    advice = getattr(mmap, "MADV_HUGEPAGE", None)
    if tensor.device.type != "cpu" or advice is None:
        return tensor
    begin = tensor.data_ptr()
    first = -(-begin // HUGE) * HUGE
    last = (begin + tensor.numel() * tensor.element_size()) // HUGE * HUGE
    if last > first:
        # What it returns is left alone: a system that refuses keeps small pages.
        _madvise()(ctypes.c_void_p(first), ctypes.c_size_t(last - first), ctypes.c_int(advice))
    return tensor


@functools.cache
def _madvise() -> Any:
    return ctypes.CDLL(None).madvise
