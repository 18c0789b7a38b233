"""decode_attention in plain PyTorch: user by user, over the pages gathered into one history, in any floating dtype."""

from __future__ import annotations

import torch
from torch import Tensor

from argus_kernels.attention.relative_bias import position_buckets, time_buckets


def forward(
    q: Tensor,
    key_pages: Tensor,
    value_pages: Tensor,
    time_pages: Tensor,
    block_table: Tensor,
    lengths: Tensor,
    k: Tensor | None,
    v: Tensor | None,
    position_bias: Tensor | None,
    time_bias: Tensor | None,
    query_time: Tensor | None,
    key_time: Tensor | None,
    scale: float,
    window: int | None,
) -> Tensor:
    """Writes the new events to their slots, then computes out [B, H, Dh] in q's dtype."""
    append(key_pages, value_pages, time_pages, block_table, lengths, k, v, key_time)
    wide = torch.promote_types(q.dtype, torch.float32)
    page_size = key_pages.shape[1]
    rows = []
    for user, length in enumerate(lengths.tolist()):
        if length == 0:
            rows.append(torch.zeros_like(q[user]))
            continue
        first = 0 if window is None else max(0, length - window)
        pages = block_table[user, first // page_size : -(-length // page_size)].long()
        within = slice(first % page_size, length - first // page_size * page_size)
        key = key_pages[pages].flatten(0, 1)[within].to(wide)
        value = value_pages[pages].flatten(0, 1)[within].to(wide)

        scores = torch.einsum("hd,jhd->hj", q[user].to(wide) * scale, key)
        if position_bias is not None:
            place = torch.arange(first, length, device=q.device)
            scores = scores + position_bias.to(wide)[:, position_buckets(place[-1:], place, position_bias.shape[1])[0]]
        if time_bias is not None and query_time is not None:
            difference = query_time[user] - time_pages[pages].flatten()[within]
            scores = scores + time_bias.to(wide)[:, time_buckets(difference, time_bias.shape[1])]
        rows.append(torch.einsum("hj,jhd->hd", torch.softmax(scores, -1), value).to(q.dtype))
    return torch.stack(rows) if rows else torch.zeros_like(q)


def append(
    key_pages: Tensor,
    value_pages: Tensor,
    time_pages: Tensor,
    block_table: Tensor,
    lengths: Tensor,
    k: Tensor | None,
    v: Tensor | None,
    key_time: Tensor | None,
) -> None:
    """Writes every user's new event to slot lengths − 1; users of length 0 have none."""
    if k is None or v is None:
        return
    users = lengths.nonzero()[:, 0]
    slots = lengths[users].long() - 1
    pages = block_table[users, slots // key_pages.shape[1]].long()
    places = slots % key_pages.shape[1]
    key_pages[pages, places] = k[users]
    value_pages[pages, places] = v[users]
    if key_time is not None:
        time_pages[pages, places] = key_time[users]
