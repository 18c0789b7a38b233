"""Samples of hstu_attention: small ones for tests, histories of production length for benchmarks, and their costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from argus_kernels.attention.samples import (
    FEW_HISTORY_SIZES,
    HISTORY_SIZES,
    SMALL_CASES,
    HistoryCase,
    drawn_case,
    grown_case,
    held_by_history,
    history_samples,
    production_cases,
    tile_cases,
)
from argus_kernels.core import Sample
from argus_kernels.core.sample import Growth


def samples() -> list[Sample]:
    """All samples of the op: 2 matrix products forward, 5 backward (the scores are computed again)."""
    small = [replace(SMALL_CASES[0], extra=(("alpha", 0.7), ("divisor", 3.0))), *SMALL_CASES[1:]]
    return _of(*small, *production_cases())


def tiles(scale: int = 1) -> list[Sample]:
    """Several tiles in every direction; `scale` multiplies the users' lengths."""
    return _of(*(replace(case, extra=(("alpha", 0.7), ("divisor", 50.0))) for case in tile_cases(scale)))


def drawn(lengths: Sequence[int], padding: int, variant: int) -> Sample:
    """A case for any users; `variant` picks the optional arguments."""
    return _of(drawn_case(lengths, padding, variant))[0]


def grows(machine: str) -> Growth:
    """One user's history."""
    return Growth(
        "events per user", HISTORY_SIZES, FEW_HISTORY_SIZES, lambda size: _of(grown_case(size))[0], held_by_history
    )


def _of(*cases: HistoryCase) -> list[Sample]:
    return history_samples(cases, forward_products=2, backward_products=5, outputs=_output_bytes)


def _output_bytes(q: Tensor) -> int:
    return q.numel() * q.element_size()
