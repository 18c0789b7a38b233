"""The offsets of a packed batch as one handle: validated once, shared by every op and layer of the batch."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from argus_kernels.core.problems import Problems
from argus_kernels.core.varlen import INDICES, Validated, as_int32, check_max_length, check_offsets, narrow


class Offsets:
    """Where the users of a packed batch begin and end, in place of the tensor `offsets` of any op.

    Values are checked here and not again at each call; int64 offsets are converted once; `max_length` need not be
    given at each call; and what a backend works out from the offsets, such as Triton's order of tiles, is kept with
    them for all layers, forward and backward. Results have the same bits as with the tensor.

    A handle has memory of its own: writes to the tensor that it was made of do not reach it. It can be pickled and
    copied. On a GPU use it on the stream that it was made on. A handle that is made outside a CUDA graph stays as it is
    in every replay.
    """

    __slots__ = ("_max_length", "_rows", "_tensor")

    def __init__(self, offsets: Tensor, *, rows: int | None = None, max_length: int | None = None) -> None:
        """Validates and copies `offsets`.

        Args:
            offsets: int32 or int64 [B + 1], rising from 0: user b owns rows offsets[b] … offsets[b + 1] − 1.
            rows: T, how many rows the packed tensors have, padding after the last user counted; offsets[B] where not
                given.
            max_length: an upper bound of the users' lengths; the longest user's where not given. On a GPU reading
                either waits for it. Under torch.compile and of fake tensors both must be given; values are then
                checked at each call.

        Raises:
            ValueError: a shape, dtype or layout does not fit; offsets that do not start at 0, fall or pass `rows`; a
                user longer than `max_length`. On a GPU wrong values are device-side assertions where both are given.
        """
        problems = Problems("Offsets")
        if problems.tensor("offsets", offsets, shape=(None,), dtype=INDICES):
            problems.require(offsets.shape[0] >= 1, "offsets is empty, expected [B + 1] values, the first of them 0")
        for name, value in (("rows", rows), ("max_length", max_length)):
            problems.integer(name, 0 if value is None else value, least=0, or_none=True)
        problems.raise_if_any()
        tensor = as_int32(offsets.detach()).clone(memory_format=torch.contiguous_format)
        if not torch.compiler.is_compiling() and type(tensor) is Tensor and (tensor.is_cpu or tensor.is_cuda):
            rows, max_length = _validated(tensor, rows, max_length)
            tensor.argus_validated = Validated(rows, max_length)  # type: ignore[attr-defined]
        for name, value in (("rows", rows), ("max_length", max_length)):
            problems.require(value is not None, f"{name} is not given, expected it where values cannot be read")
        problems.raise_if_any()
        self._tensor, self._rows, self._max_length = tensor, rows, max_length

    @property
    def tensor(self) -> Tensor:
        """int32 [B + 1], contiguous; not to be written."""
        return self._tensor

    @property
    def rows(self) -> int:
        """T, how many rows the packed tensors have."""
        assert self._rows is not None
        return self._rows

    @property
    def max_length(self) -> int:
        """An upper bound of the users' lengths."""
        assert self._max_length is not None
        return self._max_length

    @property
    def users(self) -> int:
        """B."""
        return self._tensor.shape[0] - 1

    @property
    def device(self) -> torch.device:
        """Where the offsets are, and the packed tensors have to be."""
        return self._tensor.device

    def to(self, device: torch.device | str) -> Offsets:
        """The same on another device; itself where it is there already."""
        there = torch.device(device)
        if there.type == self.device.type and there.index in (None, self.device.index):
            return self
        return Offsets(self._tensor.to(there), rows=self.rows, max_length=self.max_length)

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuilt, (self._tensor, self._rows, self._max_length)

    def __repr__(self) -> str:
        return f"Offsets(users={self.users}, rows={self._rows}, max_length={self._max_length}, device={self.device})"


def _rebuilt(tensor: Tensor, rows: int, max_length: int) -> Offsets:
    return Offsets(tensor, rows=rows, max_length=max_length)


def _validated(tensor: Tensor, rows: int | None, max_length: int | None) -> tuple[int, int]:
    """Rows and bound, read where they are not given, of offsets whose values fit them."""
    if rows is None or max_length is None:
        values = tensor.tolist()
        # The largest int32 stands for whatever is larger.
        rows = min(max(values[-1], 0), torch.iinfo(torch.int32).max - 1) if rows is None else rows
        if max_length is None:
            max_length = max([0, *(last - first for first, last in pairwise(values))])
    check_offsets("Offsets", tensor, rows)
    check_max_length("Offsets", tensor, max_length)
    return rows, max_length


def opened(op: str, offsets: Any, max_length: Any, rows: Any, name: str = "offsets") -> tuple[Any, Any]:
    """The tensor and the bound that an op computes with; anything but a handle as it is, for the checks to refuse.

    rows: the op's packed tensor; ValueError where the handle is of another number of rows.
    """
    if type(offsets) is not Offsets:
        return narrow(offsets), max_length
    if isinstance(rows, Tensor) and not rows.is_nested and rows.dim() > 0 and rows.shape[0] != offsets.rows:
        problems = Problems(op)
        problems.require(
            False,
            lambda: (
                f"{name} is a handle of {offsets.users} users in {offsets.rows} rows, expected one of the "
                f"{rows.shape[0]} rows given"
            ),
        )
        problems.raise_if_any()
    return offsets.tensor, offsets.max_length if max_length is None else max_length
