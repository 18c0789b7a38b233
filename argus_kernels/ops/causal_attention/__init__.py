"""causal_attention: softmax attention over packed user histories, with one mask rule and biases from timestamps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from argus_kernels.attention.arguments import (
    DIFFERENTIABLE,
    History,
    as_given,
    check_history,
    like_query,
    packed_history,
)
from argus_kernels.attention.native import (
    available_cpp,
    available_cuda,
    checks_values_cpp,
    kernels_cuda,
    why_not_cpp,
    why_not_cuda,
)
from argus_kernels.attention.triton.limits import why_not as why_not_triton
from argus_kernels.core import Backend, Op, Problems
from argus_kernels.core.offsets import Offsets
from argus_kernels.core.torch_op import plain_number
from argus_kernels.core.triton_support import triton_backend
from argus_kernels.ops.causal_attention import native, reference
from argus_kernels.ops.causal_attention.samples import drawn, grows, samples, tiles

BACKENDS = (
    Backend("cuda", native.forward, native.backward, why_not_cuda, available_cuda, kernels=kernels_cuda),
    Backend("cpp", native.forward, native.backward, why_not_cpp, available_cpp, checks_values=checks_values_cpp),
    triton_backend("argus_kernels.ops.causal_attention.triton_kernels", why_not_triton),
    Backend("reference", reference.forward, reference.backward),
)


def _fake(given: History) -> tuple[Tensor, Tensor]:
    q = given.q
    statistics = q.new_empty(q.shape[1], q.shape[0], dtype=torch.promote_types(q.dtype, torch.float32))
    return q.new_empty(q.shape), statistics


def _check(given: History) -> None:
    check_history("causal_attention", given)


OP = Op(
    "causal_attention",
    arguments=History,
    returns="(Tensor, Tensor)",
    fake=_fake,
    backends=BACKENDS,
    differentiable=DIFFERENTIABLE,
    numbers={"dropout": ("dropout", {"least": 0, "below": 1})},
    check=_check,
    samples=samples,
    tiles=tiles,
    drawn=drawn,
    grows=grows,
)


def causal_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor | Offsets | None = None,
    max_length: int | None = None,
    *,
    key_offsets: Tensor | Offsets | None = None,
    key_max_length: int | None = None,
    visible: Tensor | None = None,
    position: Tensor | None = None,
    own_begin: Tensor | None = None,
    own_end: Tensor | None = None,
    prefix: Tensor | int | None = None,
    position_bias: Tensor | None = None,
    time_bias: Tensor | None = None,
    query_time: Tensor | None = None,
    key_time: Tensor | None = None,
    scale: float | Tensor | None = None,
    window: int | None = None,
    dropout: float = 0.0,
    dropout_seed: Tensor | None = None,
    return_log_sum_exp: bool = False,
    backend: str | None = None,
) -> Any:
    """Softmax attention of every event over the events of its own user that it may see.

    Query row t of the packed batch is query i = t − offsets[b] of user b; by default it sees itself and the events
    before it. In general queries and keys may be different rows, and, with a = key_length − query_length + i (i itself
    without key_offsets), query i sees key j of its own user where

        (j < visible[t]  and  (position[t] − j < window  or  j < prefix[b]))   or   own_begin[t] ≤ j < own_end[t]

        score_ij = scale · q_i · k_j + position_bias[h, min(max(position[t] − j, 0), P − 1)]
                   + time_bias[h, bucket(query_time_i − key_time_j)]
        out_i = Σ_j softmax_j(score_ij) · v_j,    log_sum_exp_i = log Σ_j exp(score_ij)
        bucket(x) = min(floor(ln(max(|x|, 1)) / 0.301), N − 1), by exact integer thresholds

    visible and position are a where they are not given, own_begin and own_end are a and a + 1 (the event itself).
    README.md has a table of the masks that these numbers give: lagged, candidates, groups, contexts, semi-local, the
    last rows, cross-attention. A query that sees nothing has out 0 and log_sum_exp −∞, and gives no gradient.

    Args:
        q: [T, H, Dh], float32, bfloat16, float16 or float64. Statistics and sums are float32 (float64 for float64).
            Or torch's jagged NestedTensor, [B, j, H, Dh] or its transpose [B, H, j, Dh]; so are k and v then, and the
            result has q's layout. `offsets` is left out then, and the other arguments over events may be packed or
            jagged.
        k: [Tk, Hk, Dh], or jagged like q; H is a multiple of Hk, and head h reads head h // (H / Hk) of k and v
            (grouped queries). Tk = T without key_offsets.
        v: like k.
        offsets: int32 or int64 [B + 1], rising from 0: user b owns rows offsets[b] … offsets[b + 1] − 1. Rows from
            offsets[B] on are padding: their outputs and gradients are 0, whatever they hold. Or an
            `argus_kernels.Offsets` of T rows, which is validated once for all calls and carries `max_length`.
        max_length: an upper bound of the users' lengths, T where not given.
        key_offsets: like offsets, of the rows of k and v, for keys that are not the queries' own rows; the same
            number of users. Jagged k and v carry it.
        key_max_length: an upper bound of the users' numbers of keys, Tk where not given.
        visible: int32 or int64 [T], how many of its user's oldest keys a query may see, 0 to all of them, or None. Like
            all numbers of queries it may hold anything in rows of padding.
        position: int32 or int64 [T], −2^30 to 2^30, where a query stands for the window and the position bias, or None.
        own_begin: int32 or int64 [T] with 0 ≤ own_begin ≤ own_end ≤ the number of keys: a query's own group of keys,
            which it sees in any case, or None, with own_end.
        own_end: like own_begin.
        prefix: int32 or int64 [B] or one number: oldest keys that the window never hides.
        position_bias: [H, P] in any floating dtype, or None. Pairs at least P − 1 apart share its last column.
        time_bias: [H, N] in any floating dtype, or None; needs both times.
        query_time: int64 [T], seconds; times may run backwards, only |query_time − key_time| counts, which must fit
            int64. Both times count only with time_bias.
        key_time: int64 [Tk], seconds.
        scale: factor of q · k, finite; 1/√Dh where not given. Like every number here also a floating-point tensor of no
            dimension, without a gradient, whose value is read at each call.
        window: how many events back a query looks, itself included; at least 1, or None for no limit.
        dropout: share of the weights that are dropped, at least 0 and below 1; the others are divided by 1 − dropout.
        dropout_seed: int64 [B], with dropout. What drops depends on a user's seed, the head, `position` and the key's
            place alone (Philox2x32-10, `argus_kernels.attention.dropout`), so that it is the same on every backend, in
            every batch and when activations are recomputed. Draw new seeds for every step and layer.
        return_log_sum_exp: also return log_sum_exp.
        backend: a backend's name, "eager" or "auto"; None takes the default.

    Returns:
        out, a Tensor like q; or the pair (out, log_sum_exp), log_sum_exp [H, T] in float32 (float64 for float64),
        0 on padding rows. Both are differentiable in q, k, v and the two tables.

    Raises:
        ValueError: arguments that disagree in shape, dtype, layout or device, or numbers that are none (all reasons at
            once); offsets that do not start at 0, fall or pass T; a user longer than max_length; numbers of
            queries past their user's keys.
        RuntimeError: forward-mode derivatives, and gradients of its gradients, which backend "eager" has.

    The tiling and the backward pass from log_sum_exp follow FlashAttention (arXiv 2205.14135, 2307.08691); the
    candidate mask is HSTU's M-FALCON, and the time buckets are HSTU's (arXiv 2402.17152).
    """
    given = as_given(
        OP.name, q, k, v, offsets, max_length, plain_number(scale), None, window, dropout,
        position_bias, time_bias, query_time, key_time, visible, position, own_begin, own_end, prefix,
        key_offsets, key_max_length, dropout_seed,
    )  # fmt: skip
    out, log_sum_exp = OP(given, backend=backend, prepare=_prepare, also=(return_log_sum_exp,))
    out = like_query(out, q)
    return (out, log_sum_exp) if return_log_sum_exp else out


def _prepare(given: History, return_log_sum_exp: Any) -> History:
    problems = Problems(OP.name)
    given = given._replace(dropout=problems.number("dropout", given.dropout, least=0, below=1))
    if given.scale is not None:
        given = given._replace(scale=problems.number("scale", given.scale, or_tensor=True))
    problems.flag("return_log_sum_exp", return_log_sum_exp)
    return packed_history(problems, given)
