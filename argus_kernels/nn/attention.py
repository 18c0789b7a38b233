"""CausalAttention and HstuAttention: the attention ops with their relative biases as parameters.

They take q, k and v, not the block's input: SASRec, ARGUS and HSTU differ in how they project (separate or fused, with
or without an activation, with a gate), and agree in what comes between the projections.
"""

from __future__ import annotations

from typing import Any, Literal, overload

import torch
from torch import Tensor, nn

from argus_kernels.core import Problems
from argus_kernels.core.offsets import Offsets
from argus_kernels.ops.causal_attention import causal_attention
from argus_kernels.ops.hstu_attention import hstu_attention


class _BiasedAttention(nn.Module):
    """The bias tables [H, P] and [H, N], or [1, ·] shared by the heads, and what both modules check."""

    position_bias: nn.Parameter | None
    time_bias: nn.Parameter | None
    window: int | None

    def __init__(
        self,
        heads: int,
        position_buckets: int | None,
        time_buckets: int | None,
        window: int | None,
        shared_biases: bool,
        dropout: float,
        std: float,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        problems = Problems(type(self).__name__)
        self.heads: int = problems.integer("heads", heads, least=1)
        for name, count in (("position_buckets", position_buckets), ("time_buckets", time_buckets), ("window", window)):
            if count is not None:
                problems.integer(name, count, least=1, or_none=True)
        self.shared_biases = problems.flag("shared_biases", shared_biases)
        self.dropout: float = problems.number("dropout", dropout, least=0, below=1)
        problems.raise_if_any()
        self.window, self._std = window, std
        rows = 1 if shared_biases else heads
        for name, count in (("position_bias", position_buckets), ("time_bias", time_buckets)):
            made = None if count is None else nn.Parameter(torch.empty(rows, count, device=device, dtype=dtype))
            self.register_parameter(name, made)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Sets the bias tables to their initial values."""
        for table in (self.position_bias, self.time_bias):
            if table is not None and self._std == 0:
                nn.init.zeros_(table)
            elif table is not None:
                nn.init.normal_(table, std=self._std)

    def _shared(
        self,
        q: Tensor,
        offsets: Tensor | Offsets | None,
        times: Tensor | None,
        query_times: Tensor | None,
        dropout_seed: Tensor | None,
    ) -> dict[str, Any]:
        """The arguments that both ops take; ValueError where the heads or the times do not fit the module."""
        problems = Problems(type(self).__name__)
        if isinstance(q, Tensor) and q.dim() in (3, 4):
            jagged: Any = q
            axis = 3 - jagged._ragged_idx if q.is_nested else 1
            problems.require(q.shape[axis] == self.heads, lambda: f"q has {q.shape[axis]} heads, expected {self.heads}")
        if self.time_bias is not None:
            problems.require(times is not None, "times is not given, expected int64 seconds with time_buckets")
        problems.raise_if_any()
        drops = self.training and self.dropout > 0
        return {
            "position_bias": self._of_heads(self.position_bias),
            "time_bias": self._of_heads(self.time_bias),
            "query_time": times if query_times is None else query_times,
            "key_time": times,
            "window": self.window,
            "dropout": self.dropout if drops else 0.0,
            "dropout_seed": _seeds(q, offsets) if drops and dropout_seed is None else dropout_seed,
        }

    def _of_heads(self, table: nn.Parameter | None) -> Tensor | None:
        return table.expand(self.heads, -1) if table is not None and self.shared_biases else table

    def extra_repr(self) -> str:
        buckets = [None if table is None else table.shape[1] for table in (self.position_bias, self.time_bias)]
        return (
            f"heads={self.heads}, position_buckets={buckets[0]}, time_buckets={buckets[1]}, window={self.window}, "
            f"shared_biases={self.shared_biases}, dropout={self.dropout}"
        )


def _seeds(q: Tensor, offsets: Tensor | Offsets | None) -> Tensor | None:
    """A new seed of every user from torch's generator; None where the op will refuse the offsets."""
    if isinstance(offsets, Offsets):
        return torch.randint(2**62, (offsets.users,), device=offsets.device)
    nested: Any = q
    bounds: Any = nested.offsets() if offsets is None and isinstance(q, Tensor) and q.is_nested else offsets
    if not isinstance(bounds, Tensor) or bounds.dim() != 1 or not len(bounds):
        return None
    return torch.randint(2**62, (len(bounds) - 1,), device=bounds.device)


class CausalAttention(_BiasedAttention):
    """Softmax attention of every event over its user's past, between a block's projections.

    Takes q, k, v and holds only the biases: parameters `position_bias` [H, P] and `time_bias` [H, N], both 0 at first.

    Args:
        heads: H.
        position_buckets: P; pairs at least P − 1 events apart share a bias. None: no position bias.
        time_buckets: N logarithmic buckets of |Δt|. None: no time bias, and no times are needed.
        window: how many events back a query looks, itself included; None for all.
        scale: factor of q · k; None for 1/√Dh.
        shared_biases: one table for all heads, [1, P] and [1, N].
        dropout: share of the attention weights that training drops, at least 0 and below 1.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        ValueError: a size below 1, or a setting of another kind.

    Examples:
        >>> import torch
        >>> from argus_kernels.nn import CausalAttention
        >>> attention = CausalAttention(2, position_buckets=64, time_buckets=32)
        >>> q, k, v = torch.randn(3, 5, 2, 16)                    # 5 events of two users
        >>> attention(q, k, v, torch.tensor([0, 3, 5]), 3, times=torch.tensor([0, 9, 60, 5, 7])).shape
        torch.Size([5, 2, 16])
    """

    def __init__(
        self,
        heads: int,
        *,
        position_buckets: int | None = None,
        time_buckets: int | None = None,
        window: int | None = None,
        scale: float | None = None,
        shared_biases: bool = False,
        dropout: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(heads, position_buckets, time_buckets, window, shared_biases, dropout, 0.0, device, dtype)
        self.scale = scale

    @overload
    def forward(
        self, q: Tensor, k: Tensor, v: Tensor,
        offsets: Tensor | Offsets | None = None, max_length: int | None = None, *,
        times: Tensor | None = None, query_times: Tensor | None = None, dropout_seed: Tensor | None = None,
        return_log_sum_exp: Literal[False] = False, **rule: Any,
    ) -> Tensor: ...  # fmt: skip

    @overload
    def forward(
        self, q: Tensor, k: Tensor, v: Tensor,
        offsets: Tensor | Offsets | None = None, max_length: int | None = None, *,
        times: Tensor | None = None, query_times: Tensor | None = None, dropout_seed: Tensor | None = None,
        return_log_sum_exp: Literal[True], **rule: Any,
    ) -> tuple[Tensor, Tensor]: ...  # fmt: skip

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        offsets: Tensor | Offsets | None = None,
        max_length: int | None = None,
        *,
        times: Tensor | None = None,
        query_times: Tensor | None = None,
        dropout_seed: Tensor | None = None,
        return_log_sum_exp: bool = False,
        **rule: Any,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Attended values like q, packed [T, H, Dh] with `offsets` or jagged; see `argus_kernels.causal_attention`.

        times: int64 [Tk] seconds of the keys, with time_buckets. query_times: when each query is read, None for the
        times of the keys. dropout_seed: int64 [B] in training with dropout, None for new ones from torch's generator.
        rule: the op's numbers of the mask rule: visible, position, own_begin, own_end, prefix, key_offsets and
        key_max_length.
        """
        shared = self._shared(q, offsets, times, query_times, dropout_seed)
        return causal_attention(
            q, k, v, offsets, max_length, scale=self.scale, return_log_sum_exp=return_log_sum_exp, **shared, **rule
        )

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, scale={self.scale}"


class HstuAttention(_BiasedAttention):
    """HSTU's attention of every event over its user's past: SiLU(score) / divisor in place of the softmax.

    Takes q, k, v and holds only the biases, as HSTU does one table for all heads: parameters `position_bias` [1, P] and
    `time_bias` [1, N], N(0, 0.02²) at first. HSTU's gate and norms stay in the block.

    Args:
        heads: H.
        divisor: what the weights are divided by, above 0: the longest history of the model, so that a user's numbers
            do not depend on the batch.
        position_buckets: P, or None for no position bias.
        time_buckets: N, or None for no time bias.
        window: how many events back a query looks, itself included; None for all.
        alpha: factor of q · k; 1 as in HSTU's published code.
        shared_biases: False gives each head tables of its own.
        dropout: share of the attention weights that training drops, at least 0 and below 1.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        ValueError: a size below 1, a divisor that is not above 0, or a setting of another kind.

    Examples:
        >>> import torch
        >>> from argus_kernels.nn import HstuAttention
        >>> attention = HstuAttention(2, divisor=200, position_buckets=200)
        >>> q, k, v = torch.randn(3, 5, 2, 16)
        >>> attention(q, k, v, torch.tensor([0, 3, 5]), 3).shape
        torch.Size([5, 2, 16])
    """

    def __init__(
        self,
        heads: int,
        divisor: float,
        *,
        position_buckets: int | None = None,
        time_buckets: int | None = None,
        window: int | None = None,
        alpha: float = 1.0,
        shared_biases: bool = True,
        dropout: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(heads, position_buckets, time_buckets, window, shared_biases, dropout, 0.02, device, dtype)
        problems = Problems("HstuAttention")
        self.divisor: float = problems.number("divisor", divisor, above=0)
        self.alpha: float = problems.number("alpha", alpha)
        problems.raise_if_any()

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        offsets: Tensor | Offsets | None = None,
        max_length: int | None = None,
        *,
        times: Tensor | None = None,
        query_times: Tensor | None = None,
        dropout_seed: Tensor | None = None,
        **rule: Any,
    ) -> Tensor:
        """Attended values like q, packed [T, H, Dh] with `offsets` or jagged; see `argus_kernels.hstu_attention`.

        times: int64 [Tk] seconds of the keys, with time_buckets. query_times: when each query is read, None for the
        times of the keys; HSTU gives the time of the next event. dropout_seed and rule: as of `CausalAttention`.
        """
        shared = self._shared(q, offsets, times, query_times, dropout_seed)
        return hstu_attention(q, k, v, offsets, max_length, alpha=self.alpha, divisor=self.divisor, **shared, **rule)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, divisor={self.divisor}, alpha={self.alpha}"
