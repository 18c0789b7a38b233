"""Argument checks that report all problems at once, in one sentence each.

The checks look at metadata (type, layout, shape, dtype, device) and plain numbers, never at a tensor's values. They run
before the op boundary, become guards under torch.compile and never synchronise with a GPU. Values are checked inside
the op, see `argus_kernels.core.varlen`.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

FLOATING = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
INT64_MIN, INT64_MAX = torch.iinfo(torch.int64).min, torch.iinfo(torch.int64).max


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
        """Checks one dense tensor. `None` in `shape` leaves that size free; `like` names what it has to agree with."""
        if not isinstance(value, Tensor):
            return self.require(False, f"{name} is {said(value)}, expected a tensor")
        if value.layout is not torch.strided or value.is_nested:
            return self.require(False, f"{name} is {kind_of(value)}, expected a dense tensor")
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

    def writable(self, name: str, value: object) -> None:
        """Checks a tensor that is written in place: its elements do not overlap, and it needs no gradient."""
        if not isinstance(value, Tensor) or value.layout is not torch.strided or value.is_nested:
            return
        shared = not value.is_contiguous() and _may_overlap(value)
        self.require(not shared, f"{name} is expanded or overlaps itself, expected memory of its own for every element")
        # torch.compile cannot ask for it, and has resolved it in what it hands to an op.
        negated = not torch.compiler.is_compiling() and value.is_neg()
        self.require(not negated, f"{name} is a negated view, expected the tensor itself (resolve_neg)")
        tracked = value.requires_grad and torch.is_grad_enabled()
        self.require(not tracked, f"{name} requires a gradient, expected a call under torch.no_grad()")

    def integer(self, name: str, value: Any, *, least: int, why: str = "", or_none: bool = False) -> Any:
        """An integer from `least` to int64's largest; numpy's are taken. Returns it, or `least` where it is refused.

        `why` explains the least one; `or_none` says that None is one of the answers.
        """
        otherwise = " or None" if or_none else ""
        if not isinstance(value, (int, torch.SymInt, numbers.Integral)) or isinstance(value, bool):
            self.require(False, lambda: f"{name} is {said(value)}, expected an integer{otherwise}")
            return least
        if not isinstance(value, (int, torch.SymInt)):
            value = int(value)
        if value < least:
            self.require(False, lambda: f"{name} is {said(value)}, expected at least {least}{why}{otherwise}")
            return least
        if value > INT64_MAX:
            self.require(False, lambda: f"{name} is {said(value)}, expected at most 2^63 - 1 (int64){otherwise}")
            return least
        return value

    def number(
        self,
        name: str,
        value: Any,
        *,
        least: float | None = None,
        above: float | None = None,
        below: float | None = None,
        or_tensor: bool = False,
    ) -> Any:
        """A finite number, at least `least` or above `above`, below `below`; numpy's are taken. Returns it as a float.

        or_tensor: an op's number, which `plain_number` has read where it was a tensor; what only torch.compile and the
        like leave a tensor is returned as it is, and its value is checked behind the op boundary.
        """
        bound = "" if least is None else f" of at least {least:g}"
        bound = bound if above is None else f" above {above:g}"
        bound = bound if below is None else f"{bound} and below {below:g}"
        if isinstance(value, (torch.SymInt, torch.SymFloat)):
            return value
        if or_tensor and isinstance(value, Tensor):
            return self._number_tensor(name, value, bound)
        if not isinstance(value, (int, float, numbers.Real)) or isinstance(value, bool):
            self.require(False, f"{name} is {said(value)}, expected a finite number{bound}")
            return 1.0
        try:
            given = float(value)
        except OverflowError:
            given = math.inf
        # Not math.isfinite, which torch.compile does not trace for a number that it leaves free.
        holds = -math.inf < given < math.inf
        holds = holds and (least is None or given >= least) and (above is None or given > above)
        holds = holds and (below is None or given < below)
        self.require(holds, lambda: f"{name} is {said(value)}, expected a finite number{bound}")
        return given

    def _number_tensor(self, name: str, value: Tensor, bound: str) -> Tensor:
        expected = f"expected a finite number{bound}, or a floating-point tensor of no dimension without a gradient"
        dense = value.layout is torch.strided and not value.is_nested
        if not dense:
            self.require(False, lambda: f"{name} is {kind_of(value)}, {expected}")
        elif value.dim() != 0:
            self.require(False, lambda: f"{name} is a tensor of shape {list(value.shape)}, {expected}")
        elif value.dtype not in FLOATING:
            self.require(False, lambda: f"{name} is a tensor of {value.dtype}, {expected}")
        elif value.device.type == "meta":
            self.require(False, lambda: f"{name} is a tensor on meta, {expected}")
        else:
            self.require(not value.requires_grad, lambda: f"{name} is a tensor that requires a gradient, {expected}")
        return value

    def flag(self, name: str, value: object) -> bool:
        """True or False (numpy's too), and nothing that only counts as one of them. Returns it."""
        self.require(isinstance(value, (bool, np.bool_)), lambda: f"{name} is {said(value)}, expected True or False")
        return bool(value) if isinstance(value, (bool, np.bool_)) else False

    def choice(self, name: str, value: object, options: Sequence[str]) -> None:
        """One of some words."""
        known = isinstance(value, str) and value in options
        self.require(known, lambda: f"{name} is {said(value)}, expected one of {', '.join(options)}")

    def sequence(self, name: str, value: Any, of: str) -> bool:
        """A list or tuple (torch's ParameterList too): what can be gone through more than once, in one order."""
        fits = isinstance(value, (list, tuple, range, torch.nn.ParameterList))
        return self.require(fits, lambda: f"{name} is {said(value)}, expected a list of {of}")

    def raise_if_any(self) -> None:
        """Raises ValueError with every sentence noted so far."""
        if self.found:
            raise ValueError(f"{self.op}: " + "; ".join(self.found))


def _may_overlap(tensor: Tensor) -> bool:
    """Whether elements may share memory; False where every stride steps over all that the smaller ones reach."""
    # By position, not by the pairs: torch.compile with free sizes cannot sort tuples of symbols, and guards the order.
    reach = 0
    strides, sizes = list(tensor.stride()), list(tensor.shape)
    while strides:
        smallest = 0
        for place in range(1, len(strides)):
            if strides[place] < strides[smallest]:
                smallest = place
        stride, size = strides.pop(smallest), sizes.pop(smallest)
        if size > 1 and stride <= reach:
            return tensor.numel() > 0
        reach += stride * (size - 1)
    return False


_MOST_WORK: Any = 1_000_000
"""Steps of numpy's search for a shared element; its annotations allow −1 and 0 alone."""


class _Place:
    """Where a tensor's elements lie in its storage, as numpy takes it; nothing is read."""

    def __init__(self, tensor: Tensor) -> None:
        size = tensor.element_size()
        self.__array_interface__ = {
            "version": 3, "typestr": f"|V{size}", "shape": tuple(tensor.shape),
            # Counted from a made-up address, the same for all: tensors of one storage are compared, on any device.
            "data": ((1 << 20) + tensor.storage_offset() * size, True),
            "strides": tuple(stride * size for stride in tensor.stride()),
        }  # fmt: skip


def share_memory(one: Tensor, other: Tensor) -> bool:
    """Whether two dense tensors have an element in the same place; columns side by side in one storage have none."""
    if one.untyped_storage()._cdata != other.untyped_storage()._cdata:
        return False
    import numpy as np

    try:
        return np.shares_memory(np.asarray(_Place(one)), np.asarray(_Place(other)), max_work=_MOST_WORK)
    except np.exceptions.TooHardError:
        return True


def kind_of(tensor: Tensor) -> str:
    """What sort of tensor it is, for sentences about one that is not dense."""
    if tensor.is_nested:
        return "a jagged NestedTensor" if tensor.layout is torch.jagged else "a NestedTensor that is not jagged"
    return f"a tensor of layout {tensor.layout}"


def said(value: object) -> str:
    """A wrong value as a sentence has it: itself where it is short, else its type."""
    if value is None or isinstance(value, (bool, str)):
        text = repr(value)
        return text if len(text) <= 60 else f"{text[:60]}…"
    # Of a number that torch.compile leaves free it traces int or float and a format, and no str.
    if isinstance(value, (int, torch.SymInt)):
        return f"{int(value)}" if abs(int(value)) <= 2**256 else f"an integer of {int(value).bit_length()} bits"
    if isinstance(value, (float, torch.SymFloat)):
        return f"{float(value)}"
    return str(value) if isinstance(value, numbers.Number) else type(value).__name__


def _pattern(shape: Sequence[int | None]) -> str:
    return "[" + ", ".join("any" if size is None else str(size) for size in shape) + "]"


def _either(dtypes: Sequence[torch.dtype]) -> str:
    return " or ".join(str(dtype) for dtype in dtypes)
