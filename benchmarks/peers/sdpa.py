"""`sdpa_padded`, `sdpa_per_user`, `sdpa_cudnn`: torch's scaled_dot_product_attention.

Padded: all users in one call, padded to the longest; padding and its removal are timed. Per user: one call per user.
Bias tables become a dense bias, built in the timed call because its gradient is needed. For decode_attention the padded
form has a dense cache, as a server without pages would have; the per-user form gathers the pages.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from argus_kernels.attention.relative_bias import position_buckets, time_buckets
from benchmarks.harness.cases import Case
from benchmarks.peers import attention_layout as layout
from benchmarks.peers.base import Peer, first_reason, needs_cuda

OPS = ("causal_attention", "decode_attention")


def _why_not_padded(case: Case) -> str | None:
    if case.op.name == "decode_attention" or not layout.has_bias(case):
        return layout.only_causal(case)
    lengths = [end - begin for begin, end in layout.spans(case)]
    needed = layout.dense_bias_bytes(case, lengths, len(lengths))
    return first_reason(layout.only_causal(case), layout.too_large(needed))


def _why_not_per_user(case: Case) -> str | None:
    if case.op.name == "decode_attention" or not layout.has_bias(case):
        return layout.only_causal(case)
    lengths = [end - begin for begin, end in layout.spans(case)]
    return first_reason(layout.only_causal(case), layout.too_large(layout.dense_bias_bytes(case, lengths, 1)))


def _why_not_cudnn(case: Case) -> str | None:
    return first_reason(
        needs_cuda(case),
        "takes 16-bit dtypes only" if case.dtype == torch.float32 else None,
        _why_not_padded(case),
    )


def _build_padded(case: Case) -> Callable[[], Any]:
    if case.op.name == "decode_attention":
        return _decode_padded(case)
    padding = layout.Padding(case)
    given = case.arguments

    def attend() -> Tensor:
        q, k, v = (padding.pad(given[name]) for name in ("q", "k", "v"))
        bias = layout.dense_bias(given, padding.rows, padding.place) if layout.has_bias(case) else None
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, is_causal=bias is None)
        return padding.unpad(out)

    return attend


def _build_per_user(case: Case) -> Callable[[], Any]:
    if case.op.name == "decode_attention":
        return _decode_per_user(case)
    given = case.arguments
    users = layout.spans(case)
    device = given["q"].device

    def attend() -> Tensor:
        outs = []
        for begin, end in users:
            q, k, v = (given[name][begin:end].transpose(0, 1)[None] for name in ("q", "k", "v"))
            bias = None
            if layout.has_bias(case):
                place = torch.arange(end - begin, device=device)
                bias = layout.dense_bias(given, begin + place, place)
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, is_causal=bias is None)
            outs.append(out[0].transpose(0, 1))
        return torch.cat(outs)

    return attend


def _build_cudnn(case: Case) -> Callable[[], Any]:
    attend = _build_padded(case)

    def with_cudnn() -> Any:
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            return attend()

    return with_cudnn


def _decode_padded(case: Case) -> Callable[[], Any]:
    """The new event written into a dense cache [B, L, H, Dh], then one call for all users."""
    given = case.arguments
    cache, lengths = given["cache"], given["lengths"].long()
    pages = cache.block_table.clamp_min(0).long()
    keys, values, times = (
        getattr(cache, name)[pages].flatten(1, 2)[:, : int(lengths.max())].contiguous()
        for name in ("key_pages", "value_pages", "time_pages")
    )
    place = torch.arange(keys.shape[1], device=keys.device)
    users = torch.arange(lengths.shape[0], device=keys.device)
    ragged = bool((lengths != keys.shape[1]).any())

    def attend() -> Tensor:
        if given.get("k") is not None:
            keys[users, lengths - 1], values[users, lengths - 1] = given["k"], given["v"]
            times[users, lengths - 1] = given["key_time"]
        bias = _decode_bias(given, place, lengths, times, ragged)
        q = given["q"][:, :, None]
        out = F.scaled_dot_product_attention(q, keys.transpose(1, 2), values.transpose(1, 2), attn_mask=bias)
        return out[:, :, 0]

    return attend


def _decode_bias(given: dict[str, Any], place: Tensor, lengths: Tensor, times: Tensor, ragged: bool) -> Tensor | None:
    """[B, H or 1, 1, L]: the biases of one query per user, −inf past its length; None if there is nothing to add."""
    total = None
    if ragged:
        hidden = place >= lengths[:, None]
        total = given["q"].new_zeros(hidden.shape).masked_fill(hidden, -torch.inf)[:, None]
    if given.get("position_bias") is not None:
        table = given["position_bias"]
        found = table[:, position_buckets(lengths - 1, place, table.shape[1])].transpose(0, 1)
        total = found if total is None else total + found
    if given.get("time_bias") is not None:
        table = given["time_bias"]
        found = table[:, time_buckets(given["query_time"][:, None] - times, table.shape[1])].transpose(0, 1)
        total = found if total is None else total + found
    return None if total is None else total[:, :, None]


def _decode_per_user(case: Case) -> Callable[[], Any]:
    """Gathers the pages of one user, then makes one call, user by user."""
    given = case.arguments
    cache, lengths = given["cache"], given["lengths"].tolist()
    size = cache.page_size
    pages = [cache.block_table[user, : -(-length // size)].long() for user, length in enumerate(lengths)]

    def attend() -> Tensor:
        rows = []
        for user, length in enumerate(lengths):
            owned, slot = pages[user], length - 1
            if given.get("k") is not None:
                cache.key_pages[owned[slot // size], slot % size] = given["k"][user]
                cache.value_pages[owned[slot // size], slot % size] = given["v"][user]
                cache.time_pages[owned[slot // size], slot % size] = given["key_time"][user]
            keys, values, times = (
                pool[owned].flatten(0, 1)[:length] for pool in (cache.key_pages, cache.value_pages, cache.time_pages)
            )
            one = {**given, "query_time": given["query_time"][user : user + 1]} if "query_time" in given else given
            place = torch.arange(length, device=keys.device)
            bias = _decode_bias(one, place, place[-1:] + 1, times[None], False)
            q = given["q"][user][None, :, None]
            out = F.scaled_dot_product_attention(
                q, keys.transpose(0, 1)[None], values.transpose(0, 1)[None], attn_mask=bias
            )
            rows.append(out[0, :, 0])
        return torch.stack(rows)

    return attend


PADDED = Peer("sdpa_padded", OPS, _build_padded, _why_not_padded)
PER_USER = Peer("sdpa_per_user", OPS, _build_per_user, _why_not_per_user)
CUDNN = Peer("sdpa_cudnn", ("causal_attention",), _build_cudnn, _why_not_cudnn)
