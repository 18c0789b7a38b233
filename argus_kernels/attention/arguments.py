"""The arguments that the attention ops over packed histories share: unpacked, checked in one place, packed again."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from argus_kernels.attention.mask_rule import MOST_PLACES
from argus_kernels.core.offsets import opened
from argus_kernels.core.problems import FLOATING, Problems, kind_of, said
from argus_kernels.core.torch_op import autocast
from argus_kernels.core.varlen import (
    INDICES,
    as_int32,
    check_bounds,
    check_max_length,
    check_offsets,
    narrow,
    offsets_problems,
    user_of_row,
)


class History(NamedTuple):
    """What an attention op over packed histories hands to every backend, in the order of its schema."""

    q: Tensor
    k: Tensor
    v: Tensor
    offsets: Tensor
    """int32, of the queries."""
    max_length: int
    scale: float = 1.0
    """The factor of q · k."""
    divisor: float | None = None
    """What SiLU's weights are divided by; None for softmax."""
    window: int | None = None
    dropout: float = 0.0
    position_bias: Tensor | None = None
    time_bias: Tensor | None = None
    query_time: Tensor | None = None
    """None without time_bias."""
    key_time: Tensor | None = None
    visible: Tensor | None = None
    """int32, as are the next three."""
    position: Tensor | None = None
    own_begin: Tensor | None = None
    own_end: Tensor | None = None
    prefix: Tensor | None = None
    """int32 [B]."""
    key_offsets: Tensor | None = None
    """int32; None where the keys are those of the queries' own rows."""
    key_max_length: int | None = None
    """None without key_offsets."""
    dropout_seed: Tensor | None = None
    """int64 [B]; None without dropout."""

    @property
    def softmax(self) -> bool:
        """Softmax over the keys; else SiLU of every score."""
        return self.divisor is None

    @property
    def causal(self) -> bool:
        """Whether each event sees itself and all before it within the window: no argument says otherwise."""
        changed = (self.key_offsets, self.visible, self.position, self.own_begin, self.prefix)
        return all(one is None for one in changed)

    @property
    def lagged(self) -> bool:
        """As `causal`, but for `visible`."""
        return all(one is None for one in (self.key_offsets, self.position, self.own_begin, self.prefix))

    @property
    def keys(self) -> Tensor:
        """The offsets of the keys."""
        return self.offsets if self.key_offsets is None else self.key_offsets

    @property
    def longest_keys(self) -> int:
        """An upper bound of the users' numbers of keys."""
        return self.max_length if self.key_max_length is None else self.key_max_length


DIFFERENTIABLE = ("q", "k", "v", "position_bias", "time_bias")
"""What of a history gets gradients, in the order of a backend's backward."""


def as_given(
    op: str, q: Any, k: Any, v: Any, offsets: Any, max_length: Any, scale: Any, divisor: Any, window: Any, dropout: Any,
    position_bias: Any, time_bias: Any, query_time: Any, key_time: Any, visible: Any, position: Any, own_begin: Any,
    own_end: Any, prefix: Any, key_offsets: Any, key_max_length: Any, dropout_seed: Any,
) -> tuple[Any, ...]:  # fmt: skip
    """The first fields of the record of a call, up to the last that is given, nothing checked yet: handles of offsets
    opened, counts as int32.

    Most calls give nothing of the mask rule; each field that is not looked at saves them 0.1 µs and more.
    """
    offsets, max_length = opened(op, offsets, max_length, q)
    usual = q, k, v, offsets, max_length, scale, divisor, window, dropout
    if (
        key_offsets is None and visible is None and position is None and own_begin is None and own_end is None
        and prefix is None and key_max_length is None and dropout_seed is None
    ):  # fmt: skip
        if position_bias is None and time_bias is None and query_time is None and key_time is None:
            return usual
        return (*usual, position_bias, time_bias, query_time, key_time)
    if key_offsets is not None:
        key_offsets, key_max_length = opened(op, key_offsets, key_max_length, k, "key_offsets")
    return (
        *usual, position_bias, time_bias, query_time, key_time,
        narrow(visible), narrow(position), narrow(own_begin), narrow(own_end), narrow(prefix),
        key_offsets, key_max_length, dropout_seed,
    )  # fmt: skip


OF_QUERIES = ("visible", "position", "own_begin", "own_end")
"""int32 [Tq]: the numbers of the mask rule."""


def packed_history(problems: Problems, given: History) -> History:
    """The arguments packed, under autocast and checked; ValueError with all that is wrong.

    given: as the user gave them: any of them may be wrong; offsets, max_length and scale also None, prefix a number.
    Looks at metadata only, so it traces under torch.compile and never synchronises.
    """
    packed, offsets, key_offsets = _packed(problems, given)
    numbers = {name: _per_event(problems, name, getattr(given, name), given.q, "q") for name in OF_QUERIES}
    query_time = _per_event(problems, "query_time", given.query_time, given.q, "q")
    key_time = _per_event(problems, "key_time", given.key_time, given.k, "k")
    q, k, v = autocast(*packed)
    if problems.tensor("q", q, shape=(None, None, None), dtype=FLOATING):
        _key_problems(problems, q, k, v, key_offsets is None)
        offsets_problems(problems, offsets, q.device)
        if key_offsets is not None and problems.tensor(
            "key_offsets", key_offsets, shape=offsets.shape, dtype=INDICES, device=q.device, like="offsets"
        ):
            problems.require(k.shape[0] < 2**31, lambda: f"k has {k.shape[0]} rows, expected below 2^31")
        for name, tensor in numbers.items():
            if tensor is not None:
                problems.tensor(name, tensor, shape=q.shape[:1], dtype=INDICES, device=q.device, like="q's rows")
        for name, tensor, like in (("query_time", query_time, q), ("key_time", key_time, k)):
            if tensor is not None and isinstance(like, Tensor) and like.dim() > 0:
                problems.tensor(
                    name, tensor, shape=like.shape[:1], dtype=torch.int64, device=q.device, like=f"{name[0]}'s rows"
                )
        bias_problems(problems, q.shape[1], q.device, given.position_bias, given.time_bias)
        _seed_problems(problems, given, offsets, q.device)
    pair = (given.own_begin is None) == (given.own_end is None)
    problems.require(pair, "one of own_begin and own_end is given, expected both or neither")
    time_problems(problems, given.time_bias, query_time, key_time)
    window = window_problems(problems, given.window)
    max_length, key_max_length = _longest(problems, given)
    prefix = _prefix(problems, given.prefix, offsets)
    problems.raise_if_any()
    timed = given.time_bias is not None
    return given._replace(
        q=q,
        k=k,
        v=v,
        offsets=as_int32(offsets),
        max_length=q.shape[0] if max_length is None else max_length,
        key_offsets=_int32_or_none(key_offsets),
        key_max_length=None if key_offsets is None else k.shape[0] if key_max_length is None else key_max_length,
        prefix=prefix,
        query_time=query_time if timed else None,
        key_time=key_time if timed else None,
        dropout_seed=given.dropout_seed if given.dropout else None,
        scale=q.shape[2] ** -0.5 if given.scale is None else given.scale,
        window=window,
        visible=_int32_or_none(numbers["visible"]),
        position=_int32_or_none(numbers["position"]),
        own_begin=_int32_or_none(numbers["own_begin"]),
        own_end=_int32_or_none(numbers["own_end"]),
    )


def _int32_or_none(counts: Tensor | None) -> Tensor | None:
    return None if counts is None else as_int32(counts)


def _key_problems(problems: Problems, q: Tensor, k: Any, v: Any, own: bool) -> None:
    """Notes what is wrong with keys and values. own: they are of the same events as the queries."""
    problems.require(q.shape[1] > 0, "q has 0 heads, expected at least 1")
    problems.require(q.shape[2] > 0, "q has head width 0, expected at least 1")
    shape = (q.shape[0] if own else None, None, q.shape[2])
    problems.tensor("v", v, dtype=q.dtype, device=q.device, like="q")
    dense = isinstance(v, Tensor) and v.layout is torch.strided and not v.is_nested
    if problems.tensor("k", k, shape=shape, dtype=q.dtype, device=q.device, like="q"):
        groups = k.shape[1] > 0 and q.shape[1] % k.shape[1] == 0
        problems.require(
            groups or q.shape[1] == 0,
            lambda: f"k has {k.shape[1]} heads, expected a divisor of q's {q.shape[1]} (grouped queries)",
        )
        if dense:
            problems.tensor("v", v, shape=k.shape, like="k")


def _seed_problems(problems: Problems, given: History, offsets: Any, device: torch.device) -> None:
    """Notes a missing or wrong seed of dropout."""
    if not given.dropout:
        return
    if given.dropout_seed is None:
        problems.require(False, "dropout_seed is not given, expected int64 [B] with dropout")
    elif isinstance(offsets, Tensor) and offsets.dim() == 1 and offsets.shape[0]:
        users = (offsets.shape[0] - 1,)
        problems.tensor(
            "dropout_seed", given.dropout_seed, shape=users, dtype=torch.int64, device=device, like="the users"
        )


def _longest(problems: Problems, given: History) -> tuple[int | None, int | None]:
    """The bounds of the users' lengths, checked; None where not given."""
    problems.require(
        given.key_max_length is None or given.key_offsets is not None or is_jagged(given.k),
        "key_max_length is given without key_offsets, expected both or neither",
    )
    found: list[int | None] = [given.max_length, given.key_max_length]
    for place, name in enumerate(("max_length", "key_max_length")):
        if found[place] is not None:
            found[place] = problems.integer(name, found[place], least=0, or_none=True)
    return found[0], found[1]


def _prefix(problems: Problems, prefix: Any, offsets: Any) -> Tensor | None:
    """The prefix of every user, int32 [B], of a number or a tensor; None where it is 0 for all."""
    users = offsets.shape[0] - 1 if isinstance(offsets, Tensor) and offsets.dim() == 1 else None
    if prefix is None or users is None:
        return None
    if isinstance(prefix, Tensor):
        problems.tensor("prefix", prefix, shape=(users,), dtype=INDICES, device=offsets.device, like="the users")
        return as_int32(prefix)
    number = problems.integer("prefix", prefix, least=0, or_none=True)
    if number == 0 or users < 0:
        return None
    return torch.full((users,), min(number, 2**31 - 1), dtype=torch.int32, device=offsets.device)


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
    if given.key_offsets is not None:
        check_offsets(op, given.key_offsets, given.k.shape[0], "key_offsets")
        check_max_length(op, given.key_offsets, given.longest_keys, "key_offsets")
    if given.prefix is not None:
        check_bounds(op, "prefix", given.prefix, 0, None)
    if any(getattr(given, name) is not None for name in OF_QUERIES):
        _check_queries(op, given)


def _check_queries(op: str, given: History) -> None:
    """Raises ValueError for numbers of queries that point past their user's keys; padding rows hold anything."""
    user = user_of_row(given.offsets, given.q.shape[0])
    real = user < given.offsets.shape[0] - 1
    keys = torch.cat([given.keys[1:] - given.keys[:-1], given.keys.new_zeros(1)])[user]
    why = ", the number of its user's keys"
    if given.visible is not None:
        check_bounds(op, "visible", given.visible, 0, keys, real, why)
    if given.position is not None:
        check_bounds(op, "position", given.position, -MOST_PLACES, MOST_PLACES, real)
    if given.own_begin is not None and given.own_end is not None:
        check_bounds(op, "own_end", given.own_end, 0, keys, real, why)
        check_bounds(op, "own_begin", given.own_begin, 0, given.own_end, real, ", its own_end")


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


def is_jagged(tensor: Any) -> bool:
    """Whether it is a nested tensor."""
    return isinstance(tensor, Tensor) and tensor.is_nested


def _packed(problems: Problems, given: History) -> tuple[list[Any], Any, Any]:
    """The rows of q, k and v, [T, H, Dh]; the offsets given, or those of the jagged q; those of the keys, or None.

    A jagged tensor is [B, j, H, Dh], or [B, H, j, Dh] as scaled_dot_product_attention takes it.
    """
    tensors: dict[str, Any] = {"q": given.q, "k": given.k, "v": given.v}
    q: Any = given.q
    k: Any = given.k
    jagged = is_jagged(q)
    for name, tensor in tensors.items():
        if isinstance(tensor, Tensor) and isinstance(q, Tensor) and tensor.is_nested != jagged:
            kinds = ("jagged", "packed") if jagged else ("packed", "jagged")
            problems.require(False, f"q is {kinds[0]} and {name} is {kinds[1]}, expected both alike")
            problems.raise_if_any()
    if not jagged:
        problems.require(given.offsets is not None, "offsets is not given, expected int32 [B + 1] with packed q, k, v")
        problems.raise_if_any()
        return list(tensors.values()), given.offsets, given.key_offsets
    for name in ("offsets", "key_offsets"):
        problems.require(
            getattr(given, name) is None, f"{name} is given, expected None where q, k and v are jagged: they carry it"
        )
    for name, tensor in tensors.items():
        _check_jagged(problems, name, tensor)
    problems.raise_if_any()
    problems.require(_ragged(given.v) == _ragged(k), "v does not share k's offsets")
    problems.raise_if_any()
    rows = [tensor.values().transpose(0, tensor._ragged_idx - 1) for tensor in tensors.values()]
    return rows, q.offsets(), None if _ragged(k) == _ragged(q) else k.offsets()


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


def _per_event(problems: Problems, name: str, given: Any, q: Any, of: str) -> Any:
    """The rows of an argument over the events of q or k, which may be jagged [B, j] where that is; None as it is."""
    if not isinstance(given, Tensor) or not given.is_nested:
        return given
    alike = isinstance(q, Tensor) and q.is_nested and given.layout is torch.jagged and given.dim() == 2
    if problems.require(
        alike, f"{name} is {kind_of(given)}, expected a dense tensor, or a jagged [B, j] like a jagged {of}"
    ):
        jagged: Any = given
        problems.require(_ragged(jagged) == _ragged(q), f"{name} does not share {of}'s offsets")
        problems.require(jagged.lengths() is None, f"{name} is jagged with holes, expected contiguous rows")
    problems.raise_if_any()
    return jagged.values()
