"""The machine's ceilings, measured in the same run as the kernels: copy bandwidth and matrix rates.

A kernel's floor is the longer of flops / matrix rate of its dtype and bytes / copy bandwidth; its share of the ceiling
is floor / measured time. Both are the best rates of torch's own copy and matrix product: what a kernel can reach here,
not the figures of a data sheet.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

DTYPES: dict[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""The names of dtypes in records and on the command line."""


@dataclass(frozen=True)
class Ceilings:
    """Bytes per second of a copy (read and written), and FLOP per second of a matrix product by dtype name."""

    copy_bytes_per_second: float
    flops_per_second: dict[str, float]

    def floor_seconds(self, flops: int, moved_bytes: int, dtype: str) -> float:
        """The shortest time in which the machine could do both at once."""
        return max(flops / self.flops_per_second[dtype], moved_bytes / self.copy_bytes_per_second)

    def best(self, other: Ceilings) -> Ceilings:
        """The higher of each rate: a rate measured while the machine was busy is no ceiling."""
        rates = {name: max(rate, other.flops_per_second[name]) for name, rate in self.flops_per_second.items()}
        return Ceilings(max(self.copy_bytes_per_second, other.copy_bytes_per_second), rates)

    def as_record(self) -> dict[str, float]:
        """The ceilings in the units of a record, GB/s and TFLOP/s."""
        rates = {f"{name}_tflop_per_s": rate / 1e12 for name, rate in self.flops_per_second.items()}
        return {"copy_gb_per_s": self.copy_bytes_per_second / 1e9, **rates}


def measure_ceilings(device: str, dtypes: tuple[str, ...] = ("fp32", "bf16"), *, seconds: float = 1.0) -> Ceilings:
    """Measures each rate for about `seconds`, at least three times, and keeps the best."""
    size = (1 << 30) if device == "cuda" else (1 << 28)
    source = torch.ones(size, dtype=torch.int8, device=device)
    target = torch.empty_like(source)
    copy = 2 * size / _best(_copy(source, target), device, seconds)
    del source, target
    width = 8192 if device == "cuda" else 1536
    rates = {}
    for name in dtypes:
        left, right = (torch.randn(width, width, device=device).to(DTYPES[name]) for _ in range(2))
        out = torch.empty_like(left)
        rates[name] = 2 * width**3 / _best(_product(left, right, out), device, seconds)
    return Ceilings(copy, rates)


def _copy(source: torch.Tensor, target: torch.Tensor) -> Callable[[], object]:
    return lambda: target.copy_(source)


def _product(left: torch.Tensor, right: torch.Tensor, out: torch.Tensor) -> Callable[[], object]:
    return lambda: torch.mm(left, right, out=out)


def _best(call: Callable[[], object], device: str, seconds: float) -> float:
    """The shortest time of one call, in seconds."""
    call()
    best, repeats, started = float("inf"), 0, time.perf_counter()
    while repeats < 3 or time.perf_counter() - started < seconds:
        best = min(best, _timed(call, device))
        repeats += 1
    return best


def _timed(call: Callable[[], object], device: str) -> float:
    if device == "cuda":
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        before.record()
        call()
        after.record()
        after.synchronize()
        return before.elapsed_time(after) / 1e3
    started = time.perf_counter()
    call()
    return time.perf_counter() - started
