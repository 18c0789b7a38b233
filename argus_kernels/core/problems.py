"""Argument checks that say everything that is wrong at once, in one sentence each.

Only metadata is looked at here (shape, dtype, device), never values: the checks run before the op boundary, under
torch.compile they are traced away into guards, and they never synchronise with a GPU. Values are checked inside the
op, see `argus_kernels.core.varlen`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

FLOATING = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


class Problems:
    """Collects what is wrong with the arguments of `op`; `raise_if_any` turns it into one ValueError."""

    def __init__(self, op: str) -> None:
        self.op = op
        self.found: list[str] = []

    def require(self, condition: bool, sentence: str | Callable[[], str]) -> bool:
        """Notes `sentence` unless `condition` holds; returns the condition.

        A sentence with numbers in it comes as a function: torch.compile with free sizes cannot format them, and need
        not while the condition holds.
        """
        if not condition:
            self.found.append(sentence if isinstance(sentence, str) else sentence())
        return condition

    def tensor(
        self,
        name: str,
        value: object,
        *,
        shape: Sequence[int | None] | None = None,
        dtype: torch.dtype | Sequence[torch.dtype] | None = None,
        device: torch.device | None = None,
        like: str = "",
    ) -> bool:
        """Checks one tensor. `None` in `shape` leaves that size free; `like` names where the expectation comes from."""
        if not isinstance(value, Tensor):
            return self.require(False, f"{name} is {type(value).__name__}, expected a tensor")
        origin = f" like {like}" if like else ""
        before = len(self.found)
        if shape is not None:
            fits = value.dim() == len(shape)
            if fits:
                for have, want in zip(value.shape, shape, strict=True):
                    fits = fits and (want is None or have == want)
            self.require(fits, lambda: f"{name} has shape {list(value.shape)}, expected {_pattern(shape)}{origin}")
        if dtype is not None:
            allowed = (dtype,) if isinstance(dtype, torch.dtype) else tuple(dtype)
            if value.dtype not in allowed:
                self.found.append(f"{name} is {value.dtype}, expected {_either(allowed)}{origin}")
        if device is not None and value.device != device:
            self.found.append(f"{name} is on {value.device}, expected {device}{origin}")
        return len(self.found) == before

    def raise_if_any(self) -> None:
        """Raises ValueError with every sentence noted so far."""
        if self.found:
            raise ValueError(f"{self.op}: " + "; ".join(self.found))


def _pattern(shape: Sequence[int | None]) -> str:
    return "[" + ", ".join("any" if size is None else str(size) for size in shape) + "]"


def _either(dtypes: Sequence[torch.dtype]) -> str:
    return " or ".join(str(dtype) for dtype in dtypes)
