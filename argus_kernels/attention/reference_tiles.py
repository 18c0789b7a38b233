"""What the reference backends of the attention ops share: a tile's biases and mask, and gradients summed over tiles."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from argus_kernels.attention.arguments import DIFFERENTIABLE, History
from argus_kernels.attention.dropout import kept
from argus_kernels.attention.mask_rule import Queries, causal_queries, packed_queries, seen_keys
from argus_kernels.attention.query_tiles import Tile, rows_first
from argus_kernels.attention.relative_bias import position_buckets, time_buckets
from argus_kernels.core.masked_products import over_seen
from argus_kernels.core.varlen import user_of_row


class Pairs:
    """What is known of a history's (query, key) pairs besides the two vectors: mask, biases and dropout."""

    def __init__(self, given: History) -> None:
        self.given = given
        self._queries = None if given.causal else _packed_queries(given)
        self._user = user_of_row(given.offsets, given.q.shape[0]) if given.dropout_seed is not None else None

    def queries(self, tile: Tile) -> Queries:
        """The numbers of the rule: [Lq], the same for all users, under the causal rule, else [G, Lq]."""
        if self._queries is None:
            return causal_queries(tile.query_place)
        return Queries(*(None if number is None else number[tile.query_rows] for number in self._queries))  # type: ignore[arg-type]

    def seen(self, tile: Tile) -> Tensor:
        """Which keys the rule shows: bool [Lq, Lk] under the causal rule, else [G, Lq, Lk]."""
        return seen_keys(self.queries(tile), tile.key_place, self.given.window)

    def buckets(self, tile: Tile) -> Buckets:
        """The entries of the two tables that every pair of the tile reads."""
        given, position, time = self.given, None, None
        if given.position_bias is not None:
            places = self.queries(tile).position
            position = position_buckets(places, tile.key_place, given.position_bias.shape[1])
        if given.time_bias is not None and given.query_time is not None and given.key_time is not None:
            difference = given.query_time[tile.query_rows][:, :, None] - given.key_time[tile.key_rows][:, None, :]
            time = time_buckets(difference, given.time_bias.shape[1])
        return Buckets(position, time)

    def dropped(self, tile: Tile, weights: Tensor) -> Tensor:
        """The weights [H, G, Lq, Lk] after dropout, or what reaches them backward."""
        if self.given.dropout_seed is None or self._user is None:
            return weights
        seed = self.given.dropout_seed[self._user[tile.query_rows[:, 0]]]
        position = self.queries(tile).position.expand(tile.query_rows.shape)
        stays = kept(seed, weights.shape[0], position, tile.key_place, self.given.dropout)
        return weights * (stays.to(weights.dtype) / (1 - self.given.dropout))

    def bias(self, buckets: Buckets, dtype: torch.dtype) -> Tensor | None:
        """The sum of both biases, [H, G, Lq, Lk], or [H, 1, Lq, Lk] without times; None without tables."""
        total = None
        if self.given.position_bias is not None and buckets.position is not None:
            total = _look_up(self.given.position_bias.to(dtype), buckets.position)
            total = total if buckets.position.dim() == 3 else total[:, None]
        if self.given.time_bias is not None and buckets.time is not None:
            by_time = _look_up(self.given.time_bias.to(dtype), buckets.time)
            total = by_time if total is None else total + by_time
        return total

    def scores(self, products: Tensor, tile: Tile, buckets: Buckets) -> Tensor:
        """The products of queries and keys [H, G, Lq, Lk] plus both biases."""
        bias = self.bias(buckets, products.dtype)
        return products if bias is None else products + bias


@dataclass(frozen=True)
class Buckets:
    """Position buckets, int64 [Lq, Lk] where all users share them, and time buckets [G, Lq, Lk] of one tile."""

    position: Tensor | None
    time: Tensor | None


@dataclass(frozen=True)
class Gradients:
    """The gradients under way, summed over the tiles; None where not wanted. finite: as `over_seen` takes it.

    The gradients of q, k and v are in the wide dtype. Those of the tables are float64, because a bucket may sum a
    million scores one after the other, where float32 loses four digits.
    """

    q: Tensor | None
    k: Tensor | None
    v: Tensor | None
    position_bias: Tensor | None
    time_bias: Tensor | None
    finite: bool

    @classmethod
    def zeros(cls, given: History, needs: dict[str, bool], wide: torch.dtype, finite: bool) -> Gradients:
        """All zeros: what padding rows keep."""
        zeros: dict[str, Tensor | None] = {}
        for name in DIFFERENTIABLE:
            tensor = getattr(given, name)
            dtype = torch.float64 if name.endswith("_bias") else wide
            zeros[name] = None if tensor is None or not needs[name] else tensor.new_zeros(tensor.shape, dtype=dtype)
        return cls(**zeros, finite=finite)

    def add_value(self, tile: Tile, weights: Tensor, d_out: Tensor, seen: Tensor) -> None:
        """Adds one tile's share of the gradient of v: weights [H, G, Lq, Lk], d_out [H, G, Lq, Dh]."""
        if self.v is not None:
            d_value = over_seen(weights.transpose(-1, -2), d_out, seen.transpose(-1, -2), self.finite)
            self.v[tile.target_keys] += rows_first(d_value, tile.real_keys, self.v.shape[1])

    def add_scores(
        self, tile: Tile, buckets: Buckets, d_scores: Tensor, query: Tensor, key: Tensor, seen: Tensor
    ) -> None:
        """Adds what reaches q, k and the tables through scores = query · key + bias, d_scores [H, G, Lq, Lk].

        `query` and `key` [H, G, L, Dh] both carry the factor in front of q · k.
        """
        if self.q is not None:
            d_query = over_seen(d_scores, key, seen, self.finite)
            self.q[tile.target_queries] = rows_first(d_query, tile.real_queries, self.q.shape[1])
        if self.k is not None:
            d_key = over_seen(d_scores.transpose(-1, -2), query, seen.transpose(-1, -2), self.finite)
            self.k[tile.target_keys] += rows_first(d_key, tile.real_keys, self.k.shape[1])
        if self.position_bias is not None and buckets.position is not None:
            shared = buckets.position.dim() == 2
            _add_at(self.position_bias, buckets.position, d_scores.sum(1) if shared else d_scores)
        if self.time_bias is not None and buckets.time is not None:
            _add_at(self.time_bias, buckets.time, d_scores)

    def cast(self, given: History) -> list[Tensor | None]:
        """The gradients of q, k, v and the two tables, in the dtypes of those."""
        return [
            None if getattr(self, name) is None else getattr(self, name).to(getattr(given, name).dtype)
            for name in DIFFERENTIABLE
        ]


def _packed_queries(given: History) -> Queries:
    return packed_queries(
        given.offsets,
        given.q.shape[0],
        key_offsets=given.key_offsets,
        visible=given.visible,
        position=given.position,
        own_begin=given.own_begin,
        own_end=given.own_end,
        prefix=given.prefix,
    )


def _look_up(table: Tensor, index: Tensor) -> Tensor:
    """table[h, index] for every head: [H, ...] for index [...]."""
    flat = index.flatten().expand(table.shape[0], -1)
    return table.gather(1, flat).view(table.shape[0], *index.shape)


def _add_at(table: Tensor, index: Tensor, values: Tensor) -> None:
    """table[h, index] += values[h, ...], in place: the reverse of `_look_up`."""
    heads = table.shape[0]
    table.scatter_add_(1, index.flatten().expand(heads, -1), values.reshape(heads, -1).to(table.dtype))
