"""hstu_attention in plain PyTorch: the formula of README.md, tile by tile, in any floating dtype.

Everything is computed in float32, in float64 for float64 inputs. Memory is linear in the history: one tile of scores
at a time (autograd through `forward`, which is backend "eager", keeps them all).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import silu

from argus_kernels.attention.arguments import History
from argus_kernels.attention.query_tiles import heads_first, rows_first, tiles
from argus_kernels.attention.reference_tiles import Gradients, Pairs
from argus_kernels.core.masked_products import all_finite, over_seen


def forward(given: History, pairs_of: Callable[[History], Pairs] = Pairs) -> Tensor:
    """Computes out [T, H, Dh] in q's dtype."""
    q, k, v, divisor = given.q, given.k, given.v, given.divisor
    assert divisor is not None
    wide = torch.promote_types(q.dtype, torch.float32)
    pairs = pairs_of(given)
    finite = all_finite(v)
    rows, outs = [], []
    for tile in tiles(given):
        query = heads_first(q, tile.query_rows, wide, q.shape[1])
        key = heads_first(k, tile.key_rows, wide, q.shape[1])
        value = heads_first(v, tile.key_rows, wide, q.shape[1])

        seen = pairs.seen(tile)
        scores = pairs.scores(torch.matmul(query * given.scale, key.transpose(-1, -2)), tile, pairs.buckets(tile))
        weights = pairs.dropped(tile, silu(scores.masked_fill(~seen, 0.0)) / divisor)

        rows.append(tile.target_queries)
        outs.append(rows_first(over_seen(weights, value, seen, finite), tile.real_queries, q.shape[1]))
    out = q.new_zeros(q.shape, dtype=wide)
    return (out.index_copy(0, torch.cat(rows), torch.cat(outs)) if rows else out).to(q.dtype)


def backward(
    gradients: list[Tensor],
    outputs: list[Tensor],
    needs: dict[str, bool],
    given: History,
    pairs_of: Callable[[History], Pairs] = Pairs,
) -> list[Tensor | None]:
    """Gradients of q, k, v, position_bias and time_bias, with the scores computed again."""
    q, k, v, divisor = given.q, given.k, given.v, given.divisor
    assert divisor is not None
    wide = torch.promote_types(q.dtype, torch.float32)
    pairs = pairs_of(given)
    found = Gradients.zeros(given, needs, wide, all_finite(q, k, v, gradients[0]))
    for tile in tiles(given):
        query = heads_first(q, tile.query_rows, wide, q.shape[1]) * given.scale
        key = heads_first(k, tile.key_rows, wide, q.shape[1])
        value = heads_first(v, tile.key_rows, wide, q.shape[1])
        d_out = heads_first(gradients[0], tile.query_rows, wide, q.shape[1])
        # The rows that pad the tile see nothing here, and so have no gradient.
        seen = pairs.seen(tile) & tile.query_is_real()[..., None]

        buckets = pairs.buckets(tile)
        scores = pairs.scores(torch.matmul(query, key.transpose(-1, -2)), tile, buckets)
        sigmoid = torch.sigmoid(scores)
        weights = (scores * sigmoid).masked_fill(~seen, 0.0) / divisor
        found.add_value(tile, pairs.dropped(tile, weights), d_out, seen)

        slope = sigmoid * (1 + scores * (1 - sigmoid))
        d_weights = pairs.dropped(tile, torch.matmul(d_out, value.transpose(-1, -2))) / divisor
        d_scores = (d_weights * slope).masked_fill(~seen, 0.0)
        found.add_scores(tile, buckets, d_scores, query, key * given.scale, seen)
    return found.cast(given)
