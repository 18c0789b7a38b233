"""decode_attention in plain PyTorch: row by row, over the pages gathered into one history, in any floating dtype."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import silu

from argus_kernels.attention.relative_bias import position_buckets, time_buckets
from argus_kernels.ops.decode_attention.arguments import Arguments, Row, rows_of
from argus_kernels.ops.decode_attention.int8_rows import quantize, widened


def forward(given: Arguments) -> Tensor:
    """Writes the new events to their slots, then computes out [Tq, H, Dh] in q's dtype."""
    rows = rows_of(given)
    append(given, rows)
    found = [
        torch.zeros_like(given.q[place]) if row is None else _attend(given, place, row)
        for place, row in enumerate(rows)
    ]
    return torch.stack(found) if found else torch.zeros_like(given.q)


def _attend(given: Arguments, place: int, row: Row) -> Tensor:
    """Row `place` of out, [H, Dh]."""
    wide = torch.promote_types(given.q.dtype, torch.float32)
    page_size, length = given.key_pages.shape[1], row.length
    first = 0 if given.window is None else max(0, length - given.window)
    pages = given.block_table[row.user, first // page_size : -(-length // page_size)].long()
    within = slice(first % page_size, length - first // page_size * page_size)
    key, value = (
        widened(codes[pages], None if scales is None else scales[pages], wide)
        .flatten(0, 1)[within]
        .repeat_interleave(given.group, 1)
        for codes, scales in ((given.key_pages, given.key_scales), (given.value_pages, given.value_scales))
    )

    scores = torch.einsum("hd,jhd->hj", given.q[place].to(wide) * given.scale, key)
    if given.position_bias is not None:
        event = torch.arange(first, length, device=given.q.device)
        bucket = position_buckets(event[-1:], event, given.position_bias.shape[1])[0]
        scores = scores + given.position_bias.to(wide)[:, bucket]
    if given.time_bias is not None and given.query_time is not None:
        difference = given.query_time[place] - given.time_pages[pages].flatten()[within]
        scores = scores + given.time_bias.to(wide)[:, time_buckets(difference, given.time_bias.shape[1])]
    weights = torch.softmax(scores, -1) if given.divisor is None else silu(scores) / given.divisor
    return torch.einsum("hj,jhd->hd", weights, value).to(given.q.dtype)


def append(given: Arguments, rows: list[Row | None]) -> None:
    """Writes every new event to its slot, length − 1 of its row."""
    if given.k is None or given.v is None:
        return
    device, page_size = given.q.device, given.key_pages.shape[1]
    new = [(place, row.user, row.length - 1) for place, row in enumerate(rows) if row is not None]
    place, user, event = torch.tensor(new, dtype=torch.int64, device=device).reshape(-1, 3).unbind(1)
    slot = given.block_table[user, event // page_size].long(), event % page_size
    for pages, scales, rows_given in (
        (given.key_pages, given.key_scales, given.k), (given.value_pages, given.value_scales, given.v)
    ):  # fmt: skip
        if scales is None:
            pages[slot] = rows_given[place]
        else:
            pages[slot], scales[slot] = quantize(rows_given[place])
    if given.key_time is not None:
        given.time_pages[slot] = given.key_time[place]
