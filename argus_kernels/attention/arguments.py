"""The arguments that the attention ops over packed histories share: unpacked, checked in one place, packed again."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from argus_kernels.core.problems import FLOATING, Problems, kind_of, said
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
    """What an attention op over packed histories hands to every backend, in the order of its schema."""

    q: Tensor
    k: Tensor
    v: Tensor
    offsets: Tensor
    """int32."""
    max_length: int
    visible: Tensor | None
    """int32."""
    position_bias: Tensor | None
    time_bias: Tensor | None
    query_time: Tensor | None
    """None without time_bias."""
    key_time: Tensor | None
    scale: float
    """The factor of q · k."""
    divisor: float | None
    """What SiLU's weights are divided by; None for softmax."""
    window: int | None

    @property
    def softmax(self) -> bool:
        """Softmax over the keys; else SiLU of every score."""
        return self.divisor is None


DIFFERENTIABLE = ("q", "k", "v", "position_bias", "time_bias")
"""What of a history gets gradients, in the order of a backend's backward."""


def packed_history(problems: Problems, given: History) -> History:
    """The arguments packed, under autocast and checked; ValueError with all that is wrong.

    given: as the user gave them: any of them may be wrong, offsets, max_length and scale also None. Looks at metadata
    only, so it traces under torch.compile and never synchronises.
    """
    packed, offsets = _packed(problems, given.offsets, {"q": given.q, "k": given.k, "v": given.v})
    others = {"visible": given.visible, "query_time": given.query_time, "key_time": given.key_time}
    visible, query_time, key_time = (_per_event(problems, name, one, given.q) for name, one in others.items())
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
        bias_problems(problems, q.shape[1], q.device, given.position_bias, given.time_bias)
    time_problems(problems, given.time_bias, query_time, key_time)
    window = window_problems(problems, given.window)
    max_length: int | None = given.max_length
    if max_length is not None:
        max_length = problems.integer("max_length", max_length, least=0, or_none=True)
    problems.raise_if_any()
    timed = given.time_bias is not None
    return given._replace(
        q=q,
        k=k,
        v=v,
        offsets=as_int32(offsets),
        max_length=q.shape[0] if max_length is None else max_length,
        visible=None if visible is None else as_int32(visible),
        query_time=query_time if timed else None,
        key_time=key_time if timed else None,
        scale=q.shape[2] ** -0.5 if given.scale is None else given.scale,
        window=window,
    )


def like_query(packed: Tensor, q: Any) -> Tensor:
    """A packed result as a jagged NestedTensor where the query was one, in the query's layout."""
    if not q.is_nested:
        return packed
    nested = torch.nested.nested_tensor_from_jagged(packed, offsets=q.offsets())
    return nested if q._ragged_idx == 1 else nested.transpose(1, q._ragged_idx)


def check_history(op: str, given: History) -> None:
    """Checks the values of the arguments, behind the op boundary."""
    check_offsets(op, given.offsets, given.q.shape[0])
    check_max_length(op, given.offsets, given.max_length)
    if given.visible is not None:
        check_visible(op, given.visible, given.offsets)


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
