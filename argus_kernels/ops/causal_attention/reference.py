"""causal_attention in plain PyTorch: the formula of README.md, tile by tile, in any floating dtype.

Everything is computed in float32, in float64 for float64 inputs. Memory is linear in the history: one tile of scores
at a time (autograd through `forward`, which is backend "eager", keeps them all).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from argus_kernels.attention.arguments import History
from argus_kernels.attention.query_tiles import heads_first, rows_first, tiles
from argus_kernels.attention.reference_tiles import Gradients, Pairs
from argus_kernels.core.masked_products import all_finite, over_seen


def forward(given: History, pairs_of: Callable[[History], Pairs] = Pairs) -> tuple[Tensor, Tensor]:
    """Computes out [T, H, Dh] in q's dtype and log_sum_exp [H, T]."""
    q, k, v = given.q, given.k, given.v
    wide = torch.promote_types(q.dtype, torch.float32)
    pairs = pairs_of(given)
    finite = all_finite(v)
    rows, outs, statistics = [], [], []
    for tile in tiles(given):
        query = heads_first(q, tile.query_rows, wide, q.shape[1])
        key = heads_first(k, tile.key_rows, wide, q.shape[1])
        value = heads_first(v, tile.key_rows, wide, q.shape[1])

        seen = pairs.seen(tile)
        scores = pairs.scores(torch.matmul(query * given.scale, key.transpose(-1, -2)), tile, pairs.buckets(tile))
        scores = scores.masked_fill(~seen, -torch.inf)
        # Any number may be taken off a row's scores; the largest keeps exp in range for scores of any size.
        nothing = ~seen.any(-1, keepdim=True)
        largest = scores.detach().amax(-1, keepdim=True).masked_fill(nothing, 0.0)
        exponentials = torch.exp(scores - largest)
        total = exponentials.sum(-1, keepdim=True).masked_fill(nothing, 1.0)
        log_sum_exp = (largest + total.log()).masked_fill(nothing, -torch.inf)[..., 0]
        weighed = over_seen(pairs.dropped(tile, exponentials), value, seen, finite)

        rows.append(tile.target_queries)
        outs.append(rows_first(weighed / total, tile.real_queries, q.shape[1]))
        statistics.append(log_sum_exp.flatten(1)[:, tile.real_queries])

    out, log_sum_exp = q.new_zeros(q.shape, dtype=wide), unseen_statistics(given, wide)
    if rows:
        out = out.index_copy(0, torch.cat(rows), torch.cat(outs))
        log_sum_exp = log_sum_exp.index_copy(1, torch.cat(rows), torch.cat(statistics, 1))
    return out.to(q.dtype), log_sum_exp


def unseen_statistics(given: History, dtype: torch.dtype) -> Tensor:
    """log_sum_exp [H, T] of queries that see nothing: −∞, and 0 in rows of padding."""
    heads, rows = given.q.shape[1], given.q.shape[0]
    real = torch.arange(rows, device=given.q.device) < given.offsets[-1]
    return given.q.new_zeros(heads, rows, dtype=dtype).masked_fill(real, -torch.inf)


def backward(
    gradients: list[Tensor],
    outputs: list[Tensor],
    needs: dict[str, bool],
    given: History,
    pairs_of: Callable[[History], Pairs] = Pairs,
) -> list[Tensor | None]:
    """Gradients of q, k, v, position_bias and time_bias, with the weights computed again."""
    q, k, v = given.q, given.k, given.v
    wide = torch.promote_types(q.dtype, torch.float32)
    pairs = pairs_of(given)
    found = Gradients.zeros(given, needs, wide, all_finite(q, k, v, gradients[0]))
    for tile in tiles(given):
        query = heads_first(q, tile.query_rows, wide, q.shape[1]) * given.scale
        key = heads_first(k, tile.key_rows, wide, q.shape[1])
        value = heads_first(v, tile.key_rows, wide, q.shape[1])
        d_out = heads_first(gradients[0], tile.query_rows, wide, q.shape[1])
        d_log_sum_exp = gradients[1][:, tile.query_rows]

        buckets = pairs.buckets(tile)
        seen = pairs.seen(tile)
        scores = pairs.scores(torch.matmul(query, key.transpose(-1, -2)), tile, buckets).masked_fill(~seen, -torch.inf)
        # The rows that pad the tile give no gradient.
        seen = seen & tile.query_is_real()[..., None]
        # Not exp(scores − log_sum_exp): the statistic's own rounding would be an error of every weight in the row.
        weights = torch.softmax(scores, -1).masked_fill(~seen, 0.0)
        found.add_value(tile, pairs.dropped(tile, weights), d_out, seen)

        d_weights = pairs.dropped(tile, torch.matmul(d_out, value.transpose(-1, -2))).masked_fill(~seen, 0.0)
        delta = (weights * d_weights).sum(-1) - d_log_sum_exp
        d_scores = (weights * (d_weights - delta[..., None])).masked_fill(~seen, 0.0)
        found.add_scores(tile, buckets, d_scores, query, key * given.scale, seen)
    return found.cast(given)
