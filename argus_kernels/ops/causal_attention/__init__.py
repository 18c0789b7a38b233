"""causal_attention: softmax attention over packed user histories, with one mask rule and biases from timestamps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from argus_kernels.attention.arguments import DIFFERENTIABLE, History, check_history, like_query, packed_history
from argus_kernels.attention.native import available_cpp, available_cuda, checks_values_cpp, why_not_cpp, why_not_cuda
from argus_kernels.attention.triton.limits import why_not as why_not_triton
from argus_kernels.core import Backend, Op, Problems
from argus_kernels.core.offsets import Offsets, opened
from argus_kernels.core.torch_op import plain_number
from argus_kernels.core.triton_support import triton_backend
from argus_kernels.core.varlen import narrow
from argus_kernels.ops.causal_attention import native, reference
from argus_kernels.ops.causal_attention.samples import drawn, grows, samples, tiles

BACKENDS = (
    Backend("cuda", native.forward, native.backward, why_not_cuda, available_cuda),
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
    visible: Tensor | None = None,
    position_bias: Tensor | None = None,
    time_bias: Tensor | None = None,
    query_time: Tensor | None = None,
    key_time: Tensor | None = None,
    scale: float | Tensor | None = None,
    window: int | None = None,
    return_log_sum_exp: bool = False,
    backend: str | None = None,
) -> Any:
    """Softmax attention of every event over the events of its own user that it may see.

    Row t of the packed batch is event i = t − offsets[b] of user b. It sees event j of the same user where j = i or
    j < visible[t], and, with a window w, only where i − j < w; an event always sees itself.

        score_ij = scale · q_i · k_j + position_bias[h, min(i − j, P − 1)]
                   + time_bias[h, bucket(query_time_i − key_time_j)]
        out_i = Σ_j softmax_j(score_ij) · v_j,    log_sum_exp_i = log Σ_j exp(score_ij)
        bucket(x) = min(floor(ln(max(|x|, 1)) / 0.301), N − 1), by exact integer thresholds

    visible = None is plain causal attention (visible = i). A smaller value hides young events from i (a server whose
    states lag behind); the length of the history for candidates appended to it lets each candidate see the history
    and itself, not the others.

    Args:
        q: [T, H, Dh], float32, bfloat16, float16 or float64. Statistics and sums are float32 (float64 for float64).
            Or torch's jagged NestedTensor, [B, j, H, Dh] or its transpose [B, H, j, Dh]; so are k and v then, and the
            result has q's layout. `offsets` is left out then, and the other arguments over events may be packed or
            jagged.
        k: like q.
        v: like q.
        offsets: int32 or int64 [B + 1], rising from 0: user b owns rows offsets[b] … offsets[b + 1] − 1. Rows from
            offsets[B] on are padding: their outputs and gradients are 0, whatever they hold. Or an
            `argus_kernels.Offsets` of T rows, which is validated once for all calls and carries `max_length`.
        max_length: an upper bound of the users' lengths, T where not given.
        visible: int32 or int64 [T] with 0 ≤ visible[t] ≤ i, or None. Values in padding rows are not looked at.
        position_bias: [H, P] in any floating dtype, or None. Pairs at least P − 1 apart share its last column.
        time_bias: [H, N] in any floating dtype, or None; needs both times.
        query_time: int64 [T], seconds; times may run backwards, only |query_time − key_time| counts, which must fit
            int64. Both times count only with time_bias.
        key_time: int64 [T], seconds.
        scale: factor of q · k, finite; 1/√Dh where not given. Like every number here also a floating-point tensor of no
            dimension, without a gradient, whose value is read at each call.
        window: how many events back a query looks, itself included; at least 1, or None for no limit.
        return_log_sum_exp: also return log_sum_exp.
        backend: a backend's name, "eager" or "auto"; None takes the default.

    Returns:
        out, a Tensor like q; or the pair (out, log_sum_exp), log_sum_exp [H, T] in float32 (float64 for float64),
        0 on padding rows. Both are differentiable in q, k, v and the two tables.

    Raises:
        ValueError: arguments that disagree in shape, dtype, layout or device, or numbers that are none (all reasons at
            once); offsets that do not start at 0, fall or pass T; a user longer than max_length; visible outside
            [0, i].
        RuntimeError: forward-mode derivatives, and gradients of its gradients, which backend "eager" has.

    The tiling and the backward pass from log_sum_exp follow FlashAttention (arXiv 2205.14135, 2307.08691); the
    candidate mask is HSTU's M-FALCON, and the time buckets are HSTU's (arXiv 2402.17152).
    """
    biases = (position_bias, time_bias, query_time, key_time)
    numbers = (plain_number(scale), None)
    packed = (q, k, v, *opened(OP.name, offsets, max_length, q))
    given = History._make((*packed, narrow(visible), *biases, *numbers, window))
    out, log_sum_exp = OP(given, backend=backend, prepare=_prepare, also=(return_log_sum_exp,))
    out = like_query(out, q)
    return (out, log_sum_exp) if return_log_sum_exp else out


def _prepare(given: History, return_log_sum_exp: Any) -> History:
    problems = Problems(OP.name)
    if given.scale is not None:
        given = given._replace(scale=problems.number("scale", given.scale, or_tensor=True))
    problems.flag("return_log_sum_exp", return_log_sum_exp)
    return packed_history(problems, given)
