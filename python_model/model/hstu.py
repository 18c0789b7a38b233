"""The HSTU encoder (arXiv 2402.17152) as its published research code has it, on the op `hstu_attention`.

    U, V, Q, K = split(SiLU(LayerNorm(X) W))
    A          = SiLU(Q Kᵀ + rab) / n,  causal,  rab_ij = position_weight[i − j] + time_weight[bucket(Δt_ij)]
    Y          = Linear(dropout(U ⊙ LayerNorm(A V))) + X

No 1/√d and no feed-forward network; both LayerNorms without parameters, eps 1e-6; n the maximum length, here
`max_events`, so that a user's result does not depend on the other users of the batch; one pair of bias tables per layer
for all heads. Δt runs from the key to the event *after* the query. This is no leak: state h_t is read to predict event
t + 1, whose time is part of its context. For states read with a lag it would be a leak, so Δt runs to the query.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import layer_norm, linear, silu

from argus_kernels import hstu_attention
from python_model.config import ModelConfig
from python_model.model.layers import Encoder, Halves, Layout
from python_model.model.linear import project

EPS = 1e-6
BIAS_STD = 0.02


class HstuBlock(nn.Module):
    """One layer: 5·d² + d parameters, the bias tables not counted."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.width
        self.heads, self.head_width = config.heads, width // config.heads
        tokens = 3 if config.form == "full" else 1
        self.longest = tokens * config.max_events
        self.gate_value_query_key = nn.Linear(width, 4 * width, bias=False)
        self.output = nn.Linear(width, width)
        self.dropout = nn.Dropout(config.dropout)
        self.attention_dropout = config.attention_dropout
        self.halves = Halves(HstuBlock.before, HstuBlock.after)
        nn.init.normal_(self.gate_value_query_key.weight, std=width**-0.5)
        nn.init.xavier_uniform_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def forward(self, x: Tensor, layout: Layout, position_weight: Tensor, time_weight: Tensor) -> Tensor:
        """One layer on x [T, d] → [T, d], or [R, d] of `layout.rows`; position_weight [1, P], time_weight [1, N]."""
        index = None if layout.rows is None else layout.rows.index
        gate, q, *own = self.halves.before(self, x, index)
        k, v = layout.keys_and_values(*own)
        attended = hstu_attention(
            q, k, v, divisor=self.longest, position_bias=position_weight.expand(self.heads, -1),
            time_bias=time_weight.expand(self.heads, -1),
            dropout=0.0 if layout.dropout_seed is None else self.attention_dropout, **layout.attention(),
        )  # fmt: skip
        return self.halves.after(self, x, index, attended, gate)

    def before(self, x: Tensor, index: Tensor | None) -> tuple[Tensor, ...]:
        """The gate [T or R, d], queries [T or R, H, Dh], keys and values [T, H, Dh]; index [R]: rows of queries."""
        normed = layer_norm(x, x.shape[-1:], eps=EPS)
        if index is None:
            gate, v, q, k = silu(self.gate_value_query_key(normed)).chunk(4, dim=-1)
        else:
            weights = self.gate_value_query_key.weight.chunk(4)
            own = normed.index_select(0, index)
            gate, v, q, k = (
                silu(linear(rows, weight)) for rows, weight in zip((own, normed, own, normed), weights, strict=True)
            )
        return gate, *(part.reshape(-1, self.heads, self.head_width) for part in (q, k, v))

    def after(self, x: Tensor, index: Tensor | None, attended: Tensor, gate: Tensor) -> Tensor:
        """The layer's output [T or R, d] from its input, from what attention gave, [T or R, H, Dh], and the gate."""
        gated = gate * layer_norm(attended.reshape(gate.shape), gate.shape[-1:], eps=EPS)
        if index is not None:
            x = x.index_select(0, index)
        return x + project(self.output, self.dropout(gated))


class HstuEncoder(Encoder):
    """A stack of HSTU blocks in place of the transformer's.

    The final norm is our addition: ARGUS' heads are perceptrons over states of unit scale. norm=False omits it, for
    outputs that are scaled to unit length as in the research code.
    """

    def __init__(self, config: ModelConfig, *, norm: bool = True) -> None:
        super().__init__(config, HstuBlock, bias_heads=1)
        nn.init.normal_(self.position_bias, std=BIAS_STD)
        nn.init.normal_(self.time_bias, std=BIAS_STD if config.time_bias else 0.0)
        if not norm:
            self.norm = nn.Identity()  # type: ignore[assignment]
