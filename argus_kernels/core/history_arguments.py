"""The arguments that the attention ops over packed histories share: unpacked, checked in one place, packed again."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from argus_kernels.core.problems import FLOATING, Problems
from argus_kernels.core.registry import Inputs
from argus_kernels.core.torch_op import autocast
from argus_kernels.core.varlen import check_max_length, check_offsets, check_visible, offsets_problems


class History(NamedTuple):
    """An attention op's packed arguments, in the order of its schema, as far as the ops share them."""

    q: Tensor
    k: Tensor
    v: Tensor
    offsets: Tensor
    max_length: int
    visible: Tensor | None
    position_bias: Tensor | None
    time_bias: Tensor | None
    query_time: Tensor | None
    key_time: Tensor | None


def packed_history(
    op: str,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor | None,
    max_length: int | None,
    visible: Tensor | None,
    position_bias: Tensor | None,
    time_bias: Tensor | None,
    query_time: Tensor | None,
    key_time: Tensor | None,
    window: int | None,
) -> History:
    """The arguments packed, under autocast and checked: ValueError with every disagreement in shape, dtype or device.

    Looks at metadata only, so it traces under torch.compile and never synchronises.
    """
    problems = Problems(op)
    offsets = _offsets(problems, q, k, v, offsets)
    q, k, v = autocast(_packed(q), _packed(k), _packed(v))
    visible, query_time, key_time = _packed(visible), _packed(query_time), _packed(key_time)
    if problems.tensor("q", q, shape=(None, None, None), dtype=FLOATING):
        problems.require(q.shape[2] > 0, "q has head width 0")
        problems.tensor("k", k, shape=q.shape, dtype=q.dtype, device=q.device, like="q")
        problems.tensor("v", v, shape=q.shape, dtype=q.dtype, device=q.device, like="q")
        offsets_problems(problems, offsets, q.device)
        _per_event(problems, q, torch.int32, visible=visible)
        _per_event(problems, q, torch.int64, query_time=query_time, key_time=key_time)
        bias_problems(problems, q.shape[1], q.device, position_bias, time_bias)
    time_problems(problems, time_bias, query_time, key_time)
    window_problems(problems, window)
    if max_length is not None and max_length < 0:
        problems.require(False, f"max_length is {int(max_length)}, expected at least 0")
    problems.raise_if_any()
    longest = q.shape[0] if max_length is None else max_length
    if time_bias is None:
        query_time = key_time = None
    return History(q, k, v, offsets, longest, visible, position_bias, time_bias, query_time, key_time)


def like_query(packed: Tensor, q: Tensor) -> Tensor:
    """A packed result as a jagged NestedTensor where the query was one."""
    return torch.nested.nested_tensor_from_jagged(packed, offsets=_jagged(q).offsets()) if q.is_nested else packed


def check_history(op: str, inputs: Inputs) -> None:
    """Checks the values of the arguments, behind the op boundary."""
    check_offsets(op, inputs.offsets, inputs.q.shape[0])
    check_max_length(op, inputs.offsets, inputs.max_length)
    if inputs.visible is not None:
        check_visible(op, inputs.visible, inputs.offsets)


def bias_problems(
    problems: Problems, heads: int, device: torch.device, position_bias: Tensor | None, time_bias: Tensor | None
) -> None:
    """Notes what is wrong with the two bias tables."""
    for name, table in (("position_bias", position_bias), ("time_bias", time_bias)):
        if table is not None and problems.tensor(name, table, shape=(heads, None), dtype=FLOATING, device=device):
            problems.require(table.shape[1] >= 1, f"{name} has no buckets, expected at least 1")


def time_problems(
    problems: Problems, time_bias: Tensor | None, query_time: Tensor | None, key_time: Tensor | None
) -> None:
    """Notes a time that the time bias needs and that was not given."""
    if time_bias is not None:
        for name, time in (("query_time", query_time), ("key_time", key_time)):
            problems.require(time is not None, f"{name} is not given, expected int64 seconds with time_bias")


def window_problems(problems: Problems, window: int | None) -> None:
    """Notes a window that hides a query from itself."""
    if window is not None and window < 1:
        problems.require(False, f"window is {int(window)}, expected at least 1 (the event itself) or None")


def _per_event(problems: Problems, q: Tensor, dtype: torch.dtype, **tensors: Tensor | None) -> None:
    for name, tensor in tensors.items():
        if tensor is not None:
            problems.tensor(name, tensor, shape=(q.shape[0],), dtype=dtype, device=q.device, like="q's rows")


def _offsets(problems: Problems, q: Tensor, k: Tensor, v: Tensor, offsets: Tensor | None) -> Tensor:
    """The offsets given, or those of the jagged q."""
    for name, tensor in (("k", k), ("v", v)):
        if isinstance(tensor, Tensor) and isinstance(q, Tensor) and tensor.is_nested != q.is_nested:
            kinds = ("jagged", "packed") if q.is_nested else ("packed", "jagged")
            problems.require(False, f"q is {kinds[0]} and {name} is {kinds[1]}, expected both alike")
            problems.raise_if_any()
    if not isinstance(q, Tensor) or not q.is_nested:
        problems.require(offsets is not None, "offsets is not given, expected int32 [B + 1] with packed q, k, v")
        problems.raise_if_any()
        return offsets  # type: ignore[return-value]
    problems.require(offsets is None, "offsets is given, expected None where q, k and v are jagged: they carry it")
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        jagged = tensor.layout is torch.jagged and tensor.dim() == 4
        if problems.require(jagged, f"{name} is nested but not jagged, expected layout torch.jagged, [B, j, H, Dh]"):
            problems.require(
                _jagged(tensor).lengths() is None, f"{name} is jagged with holes, expected contiguous rows"
            )
            problems.require(tensor.shape[1] == q.shape[1], f"{name} does not share q's offsets")
    problems.raise_if_any()
    return _jagged(q).offsets().to(torch.int32)


def _jagged(tensor: Tensor) -> Any:
    """The tensor as what has `offsets()` and `lengths()`, which Tensor's type does not list."""
    return tensor


def _packed(tensor: Any) -> Any:
    """The rows of a jagged tensor; anything else as it is."""
    return tensor.values() if isinstance(tensor, Tensor) and tensor.is_nested else tensor
