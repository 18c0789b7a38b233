"""hstu_attention: HSTU's pointwise attention (SiLU in place of softmax) over packed user histories."""

from __future__ import annotations

from torch import Tensor

from argus_kernels.attention.arguments import DIFFERENTIABLE, History, check_history, like_query, packed_history
from argus_kernels.attention.native import available_cpp, available_cuda, checks_values_cpp, why_not_cpp, why_not_cuda
from argus_kernels.attention.triton.limits import why_not as why_not_triton
from argus_kernels.core import Backend, Op, Problems
from argus_kernels.core.offsets import Offsets, opened
from argus_kernels.core.torch_op import plain_number
from argus_kernels.core.triton_support import triton_backend
from argus_kernels.core.varlen import narrow
from argus_kernels.ops.hstu_attention import native, reference
from argus_kernels.ops.hstu_attention.samples import drawn, grows, samples, tiles

BACKENDS = (
    Backend("cuda", native.forward, native.backward, why_not_cuda, available_cuda),
    Backend("cpp", native.forward, native.backward, why_not_cpp, available_cpp, checks_values=checks_values_cpp),
    triton_backend("argus_kernels.ops.hstu_attention.triton_kernels", why_not_triton),
    Backend("reference", reference.forward, reference.backward),
)


def _fake(given: History) -> Tensor:
    return given.q.new_empty(given.q.shape)


def _check(given: History) -> None:
    check_history("hstu_attention", given)


OP = Op(
    "hstu_attention",
    arguments=History,
    returns="Tensor",
    fake=_fake,
    backends=BACKENDS,
    differentiable=DIFFERENTIABLE,
    numbers={"scale": ("alpha", {}), "divisor": ("divisor", {"above": 0})},
    check=_check,
    samples=samples,
    tiles=tiles,
    drawn=drawn,
    grows=grows,
)


def hstu_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor | Offsets | None = None,
    max_length: int | None = None,
    *,
    alpha: float | Tensor = 1.0,
    divisor: float | Tensor | None = None,
    visible: Tensor | None = None,
    position_bias: Tensor | None = None,
    time_bias: Tensor | None = None,
    query_time: Tensor | None = None,
    key_time: Tensor | None = None,
    window: int | None = None,
    backend: str | None = None,
) -> Tensor:
    """HSTU's attention of every event over the events of its own user that it may see.

        score_ij = alpha · q_i · k_j + position_bias[h, min(i − j, P − 1)]
                   + time_bias[h, bucket(query_time_i − key_time_j)]
        out_i = Σ_j SiLU(score_ij) / divisor · v_j,    SiLU(x) = x / (1 + e^−x)

    The sum runs over the keys that the mask shows, the same as causal_attention's: j = i or j < visible[i], and
    i − j < window. Nothing is normalised over j.

    Args:
        q: [T, H, Dh], float32, bfloat16, float16 or float64; sums are float32 (float64 for float64). Or torch's
            jagged NestedTensor, [B, j, H, Dh] or its transpose [B, H, j, Dh]; so are k and v then, and the result has
            q's layout. `offsets` is left out then.
        k: like q.
        v: like q.
        offsets: int32 or int64 [B + 1], rising from 0: user b owns rows offsets[b] … offsets[b + 1] − 1. Rows from
            offsets[B] on are padding: their outputs and gradients are 0, whatever they hold. Or an
            `argus_kernels.Offsets` of T rows, which is validated once for all calls and carries `max_length`.
        max_length: an upper bound of the users' lengths, T where not given.
        alpha: factor of q · k. HSTU's published code leaves the scores unscaled (1); later versions use 1/√Dh. Like
            divisor also a floating-point tensor of no dimension, without a gradient, whose value is read at each call.
        divisor: what the weights are divided by, finite and above 0; max_length where not given. HSTU divides by the
            padded length, the same for all batches: give one of the two, or numbers depend on the size of the batch.
        visible: int32 or int64 [T] with 0 ≤ visible[t] ≤ i, or None. Values in padding rows are not looked at.
        position_bias: [H, P] in any floating dtype, or None. Pairs at least P − 1 apart share its last column. HSTU
            shares one table among the heads: expand it to H rows.
        time_bias: [H, N] in any floating dtype, or None; needs both times.
        query_time: int64 [T], seconds; only |query_time − key_time| counts, which must fit int64. HSTU gives the time
            of the event after the query.
        key_time: int64 [T], seconds.
        window: how many events back a query looks, itself included; at least 1, or None for no limit.
        backend: a backend's name, "eager" or "auto"; None takes the default.

    Returns:
        out, like q; differentiable in q, k, v and the two tables.

    Raises:
        ValueError: arguments that disagree in shape, dtype, layout or device, or numbers that are none (all reasons at
            once); offsets that do not start at 0, fall or pass T; a user longer than max_length; visible outside
            [0, i]; a divisor of 0 or less.
        RuntimeError: forward-mode derivatives, and gradients of its gradients, which backend "eager" has.

    Source: Zhai et al., "Actions Speak Louder than Words" (arXiv 2402.17152), and its published research code.
    """
    biases = (position_bias, time_bias, query_time, key_time)
    numbers = (plain_number(alpha), plain_number(divisor))
    packed = (q, k, v, *opened(OP.name, offsets, max_length, q))
    given = History._make((*packed, narrow(visible), *biases, *numbers, window))
    return like_query(OP(given, backend=backend, prepare=_prepare), q)


def _prepare(given: History) -> History:
    problems = Problems(OP.name)
    given = given._replace(scale=problems.number("alpha", given.scale, or_tensor=True))
    if given.divisor is not None:
        divisor = problems.number("divisor", given.divisor, above=0, or_tensor=True)
        return packed_history(problems, given._replace(divisor=divisor))
    given = packed_history(problems, given)
    return given._replace(divisor=float(max(given.max_length, 1)))
