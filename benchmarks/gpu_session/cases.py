"""The cases of a session besides the small samples: the rooms' samples of several tiles, and NaN in the padding."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from argus_kernels import OPS
from argus_kernels.core import Op, Sample

SCALE = 2
"""A session's samples of several tiles have twice the events of those that the executor runs."""


def op_of(name: str) -> Op:
    """The op of that name."""
    return next(op for op in OPS if op.name == name)


def tile_samples(op: str, rehearse: bool) -> list[Sample]:
    """An op's samples of several tiles; a rehearsal takes the first two, in the executor's small sizes."""
    return op_of(op).tiles(1)[:2] if rehearse else op_of(op).tiles(SCALE)


def with_nan_padding(arguments: dict[str, Any]) -> dict[str, Any] | None:
    """The arguments with NaN, and the largest integers, in the rows past the last offset; None without such rows."""
    if "offsets" not in arguments:
        return None
    rows = next(arguments[name].shape[0] for name in ("q", "scores") if name in arguments)
    used = int(arguments["offsets"][-1])
    if used == rows:
        return None
    return {
        name: _garbage_from(value, used) if _is_per_row(name, value, rows) else value
        for name, value in arguments.items()
    }


def _is_per_row(name: str, value: Any, rows: int) -> bool:
    return isinstance(value, Tensor) and value.dim() > 0 and value.shape[0] == rows and name != "offsets"


def _garbage_from(value: Tensor, used: int) -> Tensor:
    value = value.clone()
    value[used:] = torch.nan if value.is_floating_point() else torch.iinfo(value.dtype).max
    return value
