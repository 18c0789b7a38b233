"""Packed users of different lengths: `offsets` int32 [B + 1], user b owns rows offsets[b] … offsets[b + 1] − 1.

Rows past offsets[B] are padding. This is the one place where offsets are validated and taken apart.
"""

from __future__ import annotations

import operator
import os
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from argus_kernels.core.problems import Problems

_device_checks = os.environ.get("ARGUS_DEVICE_CHECKS", "1") != "0"


def set_device_checks(enabled: bool) -> None:
    """Turns the checks of values on a GPU on or off for the process; ARGUS_DEVICE_CHECKS=0 turns them off at start.

    On a GPU a value that breaks the contract (falling offsets, an id outside its table) stops the stream with a
    device-side assertion: nothing waits for the host, and no message can carry the value. On the CPU values are
    always checked and the error names the position.
    """
    global _device_checks
    problems = Problems("set_device_checks")
    wanted = problems.flag("enabled", enabled)
    problems.raise_if_any()
    _device_checks = wanted


def device_checks() -> bool:
    """Whether values on a GPU are checked."""
    return _device_checks


def require_values(holds: Tensor, sentence: str) -> None:
    """Device-side assertion that every element of `holds` is True; used for tensors that are not on the CPU."""
    if _device_checks and holds.numel():
        torch._assert_async(holds.all(), sentence)


INDICES = (torch.int32, torch.int64)
"""What offsets and other counts of a user's events may come in: int64 is what torch's cumsum gives."""

_INT32 = torch.iinfo(torch.int32)


def as_int32(counts: Tensor) -> Tensor:
    """int64 counts in the int32 of the kernels. What does not fit becomes the nearest that does, for the checks of
    values to refuse: no batch has so many rows.
    """
    return counts if counts.dtype == torch.int32 else counts.clamp(_INT32.min, _INT32.max).to(torch.int32)


def narrow(counts: Any) -> Any:
    """int64 offsets, lengths or limits as the kernels take them; anything else as it is, for the checks to refuse."""
    wide = type(counts) is Tensor and counts.dtype == torch.int64
    return as_int32(counts) if wide and counts.layout is torch.strided and not counts.is_nested else counts


def offsets_problems(problems: Problems, offsets: Tensor, device: torch.device) -> None:
    """Notes what is wrong with the shape, dtype and device of `offsets`."""
    if problems.tensor("offsets", offsets, shape=(None,), dtype=INDICES, device=device):
        problems.require(offsets.shape[0] >= 1, "offsets is empty, expected [B + 1] values, the first of them 0")


class Validated:
    """What is known of the values of an offsets tensor that belongs to an `Offsets`; it is the tensor's attribute.

    kept: what backends have worked out from the values, by what it depends on besides.
    """

    __slots__ = ("kept", "max_length", "rows")

    def __init__(self, rows: int, max_length: int) -> None:
        self.rows = rows
        self.max_length = max_length
        self.kept: dict[Any, Any] = {}


def validated(offsets: Tensor) -> Validated | None:
    """What is known of the values of `offsets`; None of a tensor that is not a handle's, or was written in place."""
    known: Validated | None = getattr(offsets, "argus_validated", None)
    return known if known is not None and (offsets.is_inference() or offsets._version == 0) else None


def check_offsets(op: str, offsets: Tensor, total: int, name: str = "offsets") -> None:
    """Raises ValueError unless offsets start at 0, never fall and end at or before row `total`, which int32 holds."""
    if total > _INT32.max:
        raise ValueError(f"{op}: {total} rows are given, expected at most 2^31 - 1, the largest offset")
    known = validated(offsets)
    if known is not None and known.rows <= total:
        return
    if offsets.device.type != "cpu":
        require_values(offsets[:1] == 0, f"{op}: {name}[0] is not 0")
        require_values(offsets[1:] >= offsets[:-1], f"{op}: {name} fall")
        require_values(offsets[-1:] <= total, f"{op}: {name} pass the last row")
        return
    values = offsets.tolist()
    if values[0] != 0:
        raise ValueError(f"{op}: {name}[0] is {_said(values[0])}, expected 0")
    if any(map(operator.gt, values, values[1:])):
        index = next(index for index in range(1, len(values)) if values[index] < values[index - 1])
        raise ValueError(
            f"{op}: {name}[{index}] is {_said(values[index])}, expected at least {name}[{index - 1}] = "
            f"{_said(values[index - 1])}"
        )
    if values[-1] > total:
        raise ValueError(
            f"{op}: {name}[{len(values) - 1}] is {_said(values[-1])}, expected at most the {total} rows given"
        )


def _said(count: int) -> str:
    """A count in a sentence; the outermost stand for what `as_int32` made of more."""
    return {_INT32.min: f"{count} or less", _INT32.max: f"{count} or more"}.get(count, str(count))


def check_max_length(op: str, offsets: Tensor, max_length: int, name: str = "offsets") -> None:
    """Raises ValueError if a user is longer than `max_length`; of key_offsets, if one has more keys than its bound."""
    bound, events = ("max_length", "events") if name == "offsets" else ("key_max_length", "keys")
    known = validated(offsets)
    if known is not None and known.max_length <= max_length:
        return
    if offsets.device.type != "cpu":
        require_values(offsets[1:] - offsets[:-1] <= max_length, f"{op}: a user is longer than {bound}")
        return
    values = offsets.tolist()
    longest = max(map(operator.sub, values[1:], values), default=0)
    if longest > max_length:
        user = next(user for user, (first, last) in enumerate(pairwise(values)) if last - first == longest)
        raise ValueError(f"{op}: user {user} has {longest} {events}, expected at most {bound} = {max_length}")


def check_bounds(
    op: str,
    name: str,
    counts: Tensor,
    least: int,
    most: Tensor | int | None,
    real: Tensor | None = None,
    why: str = "",
) -> None:
    """Raises ValueError unless least ≤ counts[i] ≤ most (of each row, of all, or without limit) wherever `real` is."""
    wrong = counts < least
    if most is not None:
        wrong = wrong | (counts > most)
    if real is not None:
        wrong = wrong & real
    if counts.device.type != "cpu":
        require_values(~wrong, f"{op}: {name} is outside its bounds")
    elif bool(wrong.any()):
        row = int(wrong.nonzero()[0])
        bound = int(most[row]) if isinstance(most, Tensor) else most
        expected = f"at least {least}" if bound is None else f"{least} to {bound}{why}"
        raise ValueError(f"{op}: {name}[{row}] is {_said(int(counts[row]))}, expected {expected}")


def user_of_row(offsets: Tensor, total: int) -> Tensor:
    """The user of each row, int64 [total]; padding rows get B, the number of users."""
    rows = torch.arange(total, device=offsets.device, dtype=offsets.dtype)
    return torch.searchsorted(offsets[1:].contiguous(), rows, right=True)


def local_positions(offsets: Tensor, total: int) -> Tensor:
    """Each row's place within its user, int64 [total]; padding rows get −1."""
    user = user_of_row(offsets, total)
    starts = torch.cat([offsets, offsets[-1:]]).long()[user]
    rows = torch.arange(total, device=offsets.device)
    return torch.where(user < offsets.shape[0] - 1, rows - starts, -1)


def spans(offsets: Tensor) -> list[tuple[int, int]]:
    """(first row, past-the-last row) of every user, as Python integers: synchronises on a GPU (reference only)."""
    values = offsets.tolist()
    return list(pairwise(values))
