"""decode_attention in plain PyTorch: user by user, over the pages gathered into one history, in any floating dtype."""

from __future__ import annotations

import torch
from torch import Tensor

from argus_kernels.attention.relative_bias import position_buckets, time_buckets
from argus_kernels.ops.decode_attention.arguments import Arguments


def forward(given: Arguments) -> Tensor:
    """Writes the new events to their slots, then computes out [B, H, Dh] in q's dtype."""
    append(given)
    wide = torch.promote_types(given.q.dtype, torch.float32)
    page_size = given.key_pages.shape[1]
    rows = []
    for user, length in enumerate(given.lengths.tolist()):
        if length == 0:
            rows.append(torch.zeros_like(given.q[user]))
            continue
        first = 0 if given.window is None else max(0, length - given.window)
        pages = given.block_table[user, first // page_size : -(-length // page_size)].long()
        within = slice(first % page_size, length - first // page_size * page_size)
        key = given.key_pages[pages].flatten(0, 1)[within].to(wide)
        value = given.value_pages[pages].flatten(0, 1)[within].to(wide)

        scores = torch.einsum("hd,jhd->hj", given.q[user].to(wide) * given.scale, key)
        if given.position_bias is not None:
            place = torch.arange(first, length, device=given.q.device)
            scores = (
                scores
                + given.position_bias.to(wide)[:, position_buckets(place[-1:], place, given.position_bias.shape[1])[0]]
            )
        if given.time_bias is not None and given.query_time is not None:
            difference = given.query_time[user] - given.time_pages[pages].flatten()[within]
            scores = scores + given.time_bias.to(wide)[:, time_buckets(difference, given.time_bias.shape[1])]
        rows.append(torch.einsum("hj,jhd->hd", torch.softmax(scores, -1), value).to(given.q.dtype))
    return torch.stack(rows) if rows else torch.zeros_like(given.q)


def append(given: Arguments) -> None:
    """Writes every user's new event to slot lengths − 1; users of length 0 have none."""
    if given.k is None or given.v is None:
        return
    users = given.lengths.nonzero()[:, 0]
    slots = given.lengths[users].long() - 1
    pages = given.block_table[users, slots // given.key_pages.shape[1]].long()
    places = slots % given.key_pages.shape[1]
    given.key_pages[pages, places] = given.k[users]
    given.value_pages[pages, places] = given.v[users]
    if given.key_time is not None:
        given.time_pages[pages, places] = given.key_time[users]
