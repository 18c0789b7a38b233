"""decode_attention: new events of each user against its cached history."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from argus_kernels.attention.arguments import bias_problems, window_problems
from argus_kernels.core import Backend, Op, Problems
from argus_kernels.core.offsets import Offsets, opened
from argus_kernels.core.problems import FLOATING, said
from argus_kernels.core.torch_op import autocast_is_on, plain_number
from argus_kernels.core.triton_support import triton_backend
from argus_kernels.core.varlen import (
    INDICES,
    as_int32,
    check_offsets,
    narrow,
    offsets_problems,
    require_values,
)
from argus_kernels.ops.decode_attention import native, reference, triton_limits
from argus_kernels.ops.decode_attention.arguments import Arguments
from argus_kernels.ops.decode_attention.cache import PagedCache
from argus_kernels.ops.decode_attention.direct import DirectDecoder
from argus_kernels.ops.decode_attention.samples import drawn, grows, samples, tiles

__all__ = ["BACKENDS", "OP", "DirectDecoder", "PagedCache", "check_values", "decode_attention"]

RULES = ("softmax", "silu")
"""How scores become weights."""
SCALES = ("key_scales", "value_scales")
"""What stands beside int8 pages."""

BACKENDS = (
    Backend("cuda", native.forward, why_not=native.why_not_cuda, available=native.available_cuda),
    triton_backend("argus_kernels.ops.decode_attention.triton_kernels", triton_limits.why_not, differentiable=False),
    Backend(
        "cpp",
        native.forward,
        why_not=native.why_not_cpp,
        available=native.available_cpp,
        checks_values=lambda given: True,
    ),
    Backend("reference", reference.forward),
)


def _fake(given: Arguments) -> Tensor:
    return given.q.new_empty(given.q.shape)


def check_values(given: Arguments) -> None:
    """Raises ValueError for offsets, lengths and pages out of bounds, or a page that two users would append to."""
    q, block_table, lengths = given.q, given.block_table, given.lengths
    pages, page_size = given.key_pages.shape[:2]
    capacity = block_table.shape[1] * page_size
    in_use = torch.arange(block_table.shape[1], device=q.device) * page_size < lengths[:, None]
    unowned = in_use & ((block_table < 0) | (block_table >= pages))
    fits = (lengths >= 0) & (lengths <= capacity)
    new = (lengths > 0).int() if given.offsets is None else given.offsets.diff()
    if given.offsets is not None:
        check_offsets(OP.name, given.offsets, q.shape[0])
    if q.device.type != "cpu":
        require_values(fits, "decode_attention: a length is negative or above what the block table holds")
        require_values(new <= lengths, "decode_attention: a user has more new events than its length counts")
        require_values(~unowned, "decode_attention: a user has no page for one of its events")
        return
    if not bool(fits.all()):
        user = int((~fits).nonzero()[0])
        raise ValueError(f"decode_attention: lengths[{user}] is {int(lengths[user])}, expected 0 to {capacity}")
    if bool((new > lengths).any()):
        user = int((new > lengths).nonzero()[0])
        raise ValueError(
            f"decode_attention: lengths[{user}] is {int(lengths[user])}, expected at least the user's {int(new[user])} "
            "new events"
        )
    if bool(unowned.any()):
        user, slot = unowned.nonzero()[0].tolist()
        raise ValueError(
            f"decode_attention: user {user} has length {int(lengths[user])} but no page for its events from "
            f"{slot * page_size} on: cache.block_table[{user}, {slot}] is {int(block_table[user, slot])}, expected 0 "
            f"to {pages - 1}; reserve it first"
        )
    if given.k is not None:
        _require_own_pages(block_table, lengths, new, page_size)


def _require_own_pages(block_table: Tensor, lengths: Tensor, new: Tensor, page_size: int) -> None:
    """Two users that append to one page would overwrite each other's events."""
    slot = torch.arange(block_table.shape[1])
    written = (slot >= ((lengths - new) // page_size)[:, None]) & (slot * page_size < lengths[:, None])
    user, slot = (written & (new > 0)[:, None]).nonzero().unbind(1)
    page, counts = block_table[user, slot].unique(return_counts=True)
    if bool((counts > 1).any()):
        shared = int(page[counts > 1][0])
        both = user[block_table[user, slot] == shared].tolist()
        raise ValueError(
            f"decode_attention: users {both} of cache would all append to page {shared}, expected a page of its own "
            "for each"
        )


OP = Op(
    "decode_attention",
    arguments=Arguments,
    returns="Tensor",
    fake=_fake,
    backends=BACKENDS,
    mutates=("key_pages", "value_pages", "time_pages", "key_scales", "value_scales"),
    check=check_values,
    samples=samples,
    tiles=tiles,
    drawn=drawn,
    grows=grows,
)


def decode_attention(
    q: Tensor,
    cache: PagedCache,
    lengths: Tensor,
    *,
    k: Tensor | None = None,
    v: Tensor | None = None,
    offsets: Tensor | Offsets | None = None,
    position_bias: Tensor | None = None,
    time_bias: Tensor | None = None,
    query_time: Tensor | None = None,
    key_time: Tensor | None = None,
    rule: str = "softmax",
    scale: float | Tensor | None = None,
    divisor: float | Tensor | None = None,
    window: int | None = None,
    backend: str | None = None,
) -> Tensor:
    """Attention of each user's newest events over all its cached events, which they are appended to first.

    The result is the last rows of causal_attention, or of hstu_attention with rule "silu", over the same events: the
    row of the event at position p of its user sees the keys j ≤ p, and

        score_j = scale · q · k_j + position_bias[h, min(p − j, P − 1)] + time_bias[h, bucket(query_time − time_j)]

    Args:
        q: [Tq, H, Dh], float32, bfloat16, float16 or float64; sums are float32 (float64 for float64). Under autocast q,
            k and v are cast to the cache's dtype. Without offsets one row a user.
        cache: the users' pages, in q's dtype or int8 with scales, of Hk heads: H is a multiple of Hk, and head h of q
            reads head h // (H / Hk) of the cache. Row b of its block table is user b's (`PagedCache.rows` picks users).
            Its pages are written in place where k and v are given.
        lengths: int32 or int64 [B], events of each user, all new ones counted. Without offsets 0 is a user without
            events: its output is 0 and nothing is written for it.
        k: [Tq, Hk, Dh], the new events' keys; None where the events are cached already.
        v: like k; both or neither.
        offsets: int32 or int64 [B + 1], rising from 0, or an `argus_kernels.Offsets`: the rows of user b are
            offsets[b] … offsets[b + 1] − 1, its n newest events in their order, in slots lengths[b] − n …
            lengths[b] − 1. n may be 0. Rows from offsets[B] on are padding, and 0 in the output. None: one event a
            user, B rows.
        position_bias: [H, P] in any floating dtype, or None.
        time_bias: [H, N] in any floating dtype, or None; needs query_time, and key_time where k and v are given.
        query_time: int64 [Tq], seconds.
        key_time: int64 [Tq], seconds, written to the cache with k and v; wherever time_bias will ever be used, give it
            with every event.
        rule: "softmax", or "silu": the weights are SiLU(score_j) / divisor, and nothing is normalised.
        scale: factor of q · k (hstu_attention's alpha), finite; 1/√Dh where not given. Also a floating-point tensor of
            no dimension, without a gradient, whose value is read at each call. So is divisor.
        divisor: what SiLU's weights are divided by, above 0; rule "silu" needs it, and "softmax" has none.
        window: how many events back a query looks, itself included; at least 1, or None for no limit.
        backend: a backend's name, "eager" or "auto"; None takes the default.

    Returns:
        out, like q. It has no gradients; call it without grad mode, or on detached tensors.

    Raises:
        ValueError: arguments that disagree in shape, dtype, layout or device (all reasons at once); a length below 0 or
            above what the block table holds, or below the user's new events; an event in a page that its user does not
            own; two users appending to one page.
    """
    if not isinstance(cache, PagedCache):
        raise ValueError(f"{OP.name}: cache is {said(cache)}, expected a PagedCache")
    if offsets is not None:
        offsets = opened(OP.name, offsets, None, q)[0]
    given: tuple[Any, ...] = (
        q, cache.key_pages, cache.value_pages, cache.time_pages, cache.block_table, narrow(lengths),
        k, v, position_bias, time_bias, query_time, key_time, plain_number(scale), window,
    )  # fmt: skip
    key_scales, value_scales, divisor = cache.key_scales, cache.value_scales, plain_number(divisor)
    if not (offsets is None and divisor is None and key_scales is None and value_scales is None):
        given += (offsets, divisor, key_scales, value_scales)
    return OP(given, backend=backend, prepare=_prepare, also=(rule,))


def _prepare(given: Arguments, rule: str) -> Arguments:
    problems = Problems(OP.name)
    scale: float | None = given.scale
    if scale is not None:
        scale = problems.number("scale", scale, or_tensor=True)
    divisor = _divisor(problems, given.divisor, rule)
    window = window_problems(problems, given.window)
    q, k, v = (_like_cache(tensor, given.key_pages) for tensor in (given.q, given.k, given.v))
    given = given._replace(q=q, k=k, v=v)
    if problems.tensor("q", q, shape=(None, None, None), dtype=FLOATING):
        heads = _check_cache(problems, given)
        _check_users(problems, given)
        _check_events(problems, given, heads)
        bias_problems(problems, q.shape[1], q.device, given.position_bias, given.time_bias)
    for name in ("query_time", *(["key_time"] if k is not None else [])):
        missing = given.time_bias is not None and getattr(given, name) is None
        problems.require(not missing, f"{name} is not given, expected int64 seconds with time_bias")
    problems.raise_if_any()
    scale = q.shape[2] ** -0.5 if scale is None else scale
    offsets = None if given.offsets is None else as_int32(given.offsets)
    lengths = as_int32(given.lengths)
    return given._replace(lengths=lengths, offsets=offsets, scale=scale, divisor=divisor, window=window)


def _divisor(problems: Problems, divisor: Any, rule: str) -> Any:
    """The divisor of rule "silu", None of "softmax"."""
    problems.choice("rule", rule, RULES)
    if not isinstance(rule, str) or rule not in RULES:
        return None
    if divisor is not None:
        problems.require(rule == "silu", lambda: f"divisor is {said(divisor)}, expected None with rule 'softmax'")
        return problems.number("divisor", divisor, above=0, or_tensor=True)
    problems.require(rule != "silu", "divisor is not given, expected a number above 0 with rule 'silu'")
    return None


def _like_cache(tensor: Any, key_pages: Tensor) -> Any:
    """Under autocast the cache, which outlives the call, decides the dtype; of int8 none."""
    if isinstance(key_pages, Tensor) and not key_pages.is_floating_point():
        return tensor
    if isinstance(tensor, Tensor) and tensor.is_floating_point() and autocast_is_on(tensor.device.type):
        return tensor.to(key_pages.dtype)
    return tensor


def _check_cache(problems: Problems, given: Arguments) -> int | None:
    """Notes what is wrong with the cache's pages; their heads, None where they have none."""
    q, key_pages = given.q, given.key_pages
    heads, width = q.shape[1:]
    problems.require(heads > 0, "q has 0 heads, expected at least 1")
    problems.require(width > 0, "q has head width 0, expected at least 1")
    found: int | None = None
    quantized = isinstance(key_pages, Tensor) and key_pages.dtype == torch.int8
    dtype = torch.int8 if quantized else q.dtype
    key_shape = (None, None, None, width)
    if problems.tensor("cache.key_pages", key_pages, shape=key_shape, dtype=dtype, device=q.device, like="q"):
        pages = key_pages.shape
        problems.require(pages[1] > 0, "cache.key_pages has page size 0, expected at least 1")
        divides = pages[2] > 0 and heads % pages[2] == 0
        problems.require(divides, f"cache.key_pages has {pages[2]} heads, expected a divisor of q's {heads}")
        found = pages[2] if divides else None
        expected = [("value_pages", pages, dtype), ("time_pages", pages[:2], torch.int64)]
        expected += [(name, pages[:3], torch.float32) for name in SCALES if quantized]
        for name, shape, kind in expected:
            tensor = getattr(given, name)
            problems.tensor(f"cache.{name}", tensor, shape=shape, dtype=kind, device=q.device, like="key_pages")
    for name in SCALES if not quantized else ():
        problems.require(getattr(given, name) is None, f"cache.{name} is given, expected None beside {dtype} pages")
    for name in OP.mutates:
        if getattr(given, name) is not None:
            problems.writable(f"cache.{name}", getattr(given, name))
    return found


def _check_users(problems: Problems, given: Arguments) -> None:
    q, offsets = given.q, given.offsets
    users, like = q.shape[0], "q's rows"
    if offsets is not None:
        offsets_problems(problems, offsets, q.device)
        problems.raise_if_any()
        users, like = offsets.shape[0] - 1, "offsets"
    named: dict[str, Any] = {"device": q.device, "like": like}
    problems.tensor("cache.block_table", given.block_table, shape=(users, None), dtype=torch.int32, **named)
    problems.tensor("lengths", given.lengths, shape=(users,), dtype=INDICES, **named)


def _check_events(problems: Problems, given: Arguments, heads: int | None) -> None:
    q, k, v = given.q, given.k, given.v
    problems.require((k is None) == (v is None), "one of k and v is given, expected both or neither")
    problems.require(
        k is not None or given.key_time is None, "key_time is given without k and v, expected all three or none"
    )
    shape, like = ((q.shape[0], heads, q.shape[2]), "q") if heads else (q.shape, "q")
    if heads not in (None, q.shape[1]):
        like = "q and the cache's heads"
    for name, tensor in (("k", k), ("v", v)):
        if tensor is not None:
            problems.tensor(name, tensor, shape=shape, dtype=q.dtype, device=q.device, like=like)
    for name, time in (("query_time", given.query_time), ("key_time", given.key_time)):
        if time is not None:
            problems.tensor(name, time, shape=(q.shape[0],), dtype=torch.int64, device=q.device, like="q's rows")
