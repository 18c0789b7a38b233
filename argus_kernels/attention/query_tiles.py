"""Cuts the score matrices of packed users into padded rectangles that plain PyTorch computes in a few large ops.

The reference backends of the attention ops walk over these tiles. A tile holds a block of query rows of several users
of about the same length, and all keys that those rows may see: no tile holds a whole long history squared, hidden
blocks above the diagonal and behind the window are never built, and many short users cost few ops.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from argus_kernels.attention.arguments import History
from argus_kernels.core.varlen import spans

QUERY_BLOCK = 128
# Keeps the elementwise passes over a tile's scores in a core's L2 cache: four times as much was 1.2 times slower.
TILE_SCORES = 1 << 18


@dataclass(frozen=True)
class Tile:
    """G users' queries at places query_place [Lq] against their keys at places key_place [Lk].

    `query_rows` int64 [G, Lq] and `key_rows` [G, Lk] are rows of the packed tensors; places past a user's end repeat
    its last row, so that padding is never read. `real_queries` and `real_keys` index the rows that are no repeats in
    the flattened [G · L], and `target_queries`, `target_keys` are their packed rows.
    """

    query_place: Tensor
    key_place: Tensor
    query_rows: Tensor
    key_rows: Tensor
    real_queries: Tensor
    real_keys: Tensor
    target_queries: Tensor
    target_keys: Tensor

    def query_is_real(self) -> Tensor:
        """Bool [G, Lq]: False where a row only repeats its user's last one."""
        mask = torch.zeros(self.query_rows.numel(), dtype=torch.bool, device=self.query_rows.device)
        return mask.index_fill(0, self.real_queries, True).view(self.query_rows.shape)


def tiles(given: History) -> Iterator[Tile]:
    """All tiles of a batch; every query row of a user that has keys is in exactly one.

    A user's tiles depend on its own lengths alone, so that its numbers do not depend on who shares the batch. Under the
    causal rule a tile has no keys above the diagonal and behind the window, else all keys of its users.
    """
    heads, causal = given.q.shape[1], given.causal
    users = defaultdict(list)
    for (begin, end), (key_begin, key_end) in zip(spans(given.offsets), spans(given.keys), strict=True):
        if end > begin and key_end > key_begin:
            lengths = _padded_length(end - begin), 0 if causal else _padded_length(key_end - key_begin)
            users[lengths].append(_User(begin, end, key_begin, key_end))
    for (padded, padded_keys), members in users.items():
        for first in range(0, padded, QUERY_BLOCK):
            last = min(first + QUERY_BLOCK, padded)
            oldest = 0 if not causal or given.window is None else max(0, first - given.window + 1)
            newest = last if causal else padded_keys
            together = max(1, TILE_SCORES // (heads * (last - first) * (newest - oldest)))
            reaching = [user for user in members if user.end - user.begin > first]
            for start in range(0, len(reaching), together):
                yield _tile(reaching[start : start + together], (first, last), (oldest, newest), given.q.device)


def heads_first(packed: Tensor, rows: Tensor, dtype: torch.dtype, heads: int) -> Tensor:
    """Rows [G, L] of a packed [T, Hk, Dh] as [H, G, L, Dh] in `dtype`; each of its heads serves H / Hk of the H."""
    found = packed.index_select(0, rows.flatten()).view(*rows.shape, *packed.shape[1:]).permute(2, 0, 1, 3).to(dtype)
    return found if packed.shape[1] == heads else found.repeat_interleave(heads // packed.shape[1], 0)


def rows_first(tile_values: Tensor, real: Tensor, heads: int) -> Tensor:
    """The real rows of a tile's [H, G, L, Dh] as [rows, Hk, Dh], summed over the heads that share one of the Hk."""
    found = tile_values.permute(1, 2, 0, 3).flatten(0, 1).index_select(0, real)
    return found if found.shape[1] == heads else found.unflatten(1, (heads, -1)).sum(2)


def _padded_length(length: int) -> int:
    """`length` rounded up by at most an eighth, or to 16: users of nearby lengths share a tile."""
    step = max(16, 1 << max(length.bit_length() - 4, 0))
    return -(-length // step) * step


class _User(NamedTuple):
    begin: int
    end: int
    key_begin: int
    key_end: int


def _tile(users: list[_User], queries: tuple[int, int], keys: tuple[int, int], device: torch.device) -> Tile:
    begins, ends, key_begins, key_ends = torch.tensor(users, device=device).T[:, :, None]
    query_place = torch.arange(*queries, device=device)
    key_place = torch.arange(*keys, device=device)
    query_rows = torch.minimum(begins + query_place, ends - 1)
    key_rows = torch.minimum(key_begins + key_place, key_ends - 1)
    real_queries = (begins + query_place < ends).flatten().nonzero()[:, 0]
    real_keys = (key_begins + key_place < key_ends).flatten().nonzero()[:, 0]
    return Tile(
        query_place,
        key_place,
        query_rows,
        key_rows,
        real_queries,
        real_keys,
        query_rows.flatten()[real_queries],
        key_rows.flatten()[real_keys],
    )
