"""The arguments that the attention ops over packed histories share: unpacked, checked in one place, packed again."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from argus_kernels.core.problems import FLOATING, Problems, kind_of, said
from argus_kernels.core.registry import Inputs
from argus_kernels.core.torch_op import autocast
from argus_kernels.core.varlen import (
    INDICES,
    as_int32,
    check_max_length,
    check_offsets,
    check_visible,
    offsets_problems,
)


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
    problems: Problems,
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
) -> tuple[History, int | None]:
    """The arguments packed, under autocast and checked, and the window; ValueError with all that is wrong.

    Looks at metadata only, so it traces under torch.compile and never synchronises.
    """
    packed, offsets = _packed(problems, offsets, {"q": q, "k": k, "v": v})
    others = {"visible": visible, "query_time": query_time, "key_time": key_time}
    visible, query_time, key_time = (_per_event(problems, name, given, q) for name, given in others.items())
    q, k, v = autocast(*packed)
    if problems.tensor("q", q, shape=(None, None, None), dtype=FLOATING):
        problems.require(q.shape[1] > 0, "q has 0 heads, expected at least 1")
        problems.require(q.shape[2] > 0, "q has head width 0, expected at least 1")
        problems.tensor("k", k, shape=q.shape, dtype=q.dtype, device=q.device, like="q")
        problems.tensor("v", v, shape=q.shape, dtype=q.dtype, device=q.device, like="q")
        offsets_problems(problems, offsets, q.device)
        for name, tensor in (("visible", visible), ("query_time", query_time), ("key_time", key_time)):
            if tensor is not None:
                allowed = INDICES if name == "visible" else torch.int64
                problems.tensor(name, tensor, shape=q.shape[:1], dtype=allowed, device=q.device, like="q's rows")
        bias_problems(problems, q.shape[1], q.device, position_bias, time_bias)
    time_problems(problems, time_bias, query_time, key_time)
    window = window_problems(problems, window)
    if max_length is not None:
        max_length = problems.integer("max_length", max_length, least=0, or_none=True)
    problems.raise_if_any()
    if time_bias is None:
        query_time = key_time = None
    history = History(
        q,
        k,
        v,
        as_int32(offsets),
        q.shape[0] if max_length is None else max_length,
        None if visible is None else as_int32(visible),
        position_bias,
        time_bias,
        query_time,
        key_time,
    )
    return history, window


def like_query(packed: Tensor, q: Any) -> Tensor:
    """A packed result as a jagged NestedTensor where the query was one, in the query's layout."""
    if not q.is_nested:
        return packed
    nested = torch.nested.nested_tensor_from_jagged(packed, offsets=q.offsets())
    return nested if q._ragged_idx == 1 else nested.transpose(1, q._ragged_idx)


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


def window_problems(problems: Problems, window: int | None) -> Any:
    """Notes a window that hides a query from itself, or is none; returns it."""
    if window is None:
        return None
    return problems.integer("window", window, least=1, why=" (the event itself)", or_none=True)


def _packed(problems: Problems, offsets: Tensor | None, given: dict[str, Any]) -> tuple[list[Any], Any]:
    """The rows of q, k and v, [T, H, Dh], and the offsets given, or those of the jagged q.

    A jagged tensor is [B, j, H, Dh], or [B, H, j, Dh] as scaled_dot_product_attention takes it.
    """
    q = given["q"]
    jagged = isinstance(q, Tensor) and q.is_nested
    for name, tensor in given.items():
        if isinstance(tensor, Tensor) and isinstance(q, Tensor) and tensor.is_nested != jagged:
            kinds = ("jagged", "packed") if jagged else ("packed", "jagged")
            problems.require(False, f"q is {kinds[0]} and {name} is {kinds[1]}, expected both alike")
            problems.raise_if_any()
    if not jagged:
        problems.require(offsets is not None, "offsets is not given, expected int32 [B + 1] with packed q, k, v")
        problems.raise_if_any()
        return list(given.values()), offsets
    problems.require(offsets is None, "offsets is given, expected None where q, k and v are jagged: they carry it")
    for name, tensor in given.items():
        _check_jagged(problems, name, tensor)
    problems.raise_if_any()
    for name, tensor in given.items():
        problems.require(_ragged(tensor) == _ragged(q), f"{name} does not share q's offsets")
    problems.raise_if_any()
    rows = [tensor.values().transpose(0, tensor._ragged_idx - 1) for tensor in given.values()]
    return rows, q.offsets()


def _check_jagged(problems: Problems, name: str, tensor: Any) -> None:
    if not isinstance(tensor, Tensor):
        problems.require(False, f"{name} is {said(tensor)}, expected a tensor")
    elif tensor.layout is not torch.jagged:
        problems.require(False, f"{name} is nested but not jagged, expected layout torch.jagged")
    else:
        jagged: Any = tensor
        fits = tensor.dim() == 4 and jagged._ragged_idx in (1, 2)
        layouts = "[B, j, H, Dh] or its transpose(1, 2)"
        problems.require(fits, lambda: f"{name} is jagged of shape {list(tensor.shape)}, expected {layouts}")
        problems.require(jagged.lengths() is None, f"{name} is jagged with holes, expected contiguous rows")


def _ragged(tensor: Any) -> Any:
    """The size of the jagged dimension: a symbol that tensors share where they share their offsets."""
    return tensor.shape[tensor._ragged_idx]


def _per_event(problems: Problems, name: str, given: Any, q: Any) -> Any:
    """The rows of an argument over events, which may be jagged [B, j] where q is; None as it is."""
    if not isinstance(given, Tensor) or not given.is_nested:
        return given
    alike = isinstance(q, Tensor) and q.is_nested and given.layout is torch.jagged and given.dim() == 2
    if problems.require(
        alike, f"{name} is {kind_of(given)}, expected a dense tensor, or a jagged [B, j] like a jagged q"
    ):
        jagged: Any = given
        problems.require(_ragged(jagged) == _ragged(q), f"{name} does not share q's offsets")
        problems.require(jagged.lengths() is None, f"{name} is jagged with holes, expected contiguous rows")
    problems.raise_if_any()
    return jagged.values()
