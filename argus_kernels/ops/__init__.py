"""The one list of ops. A new op adds its room, its line here and its line in `argus_kernels/__init__.py`."""

from __future__ import annotations

from argus_kernels.core import Op
from argus_kernels.ops import (
    causal_attention,
    decode_attention,
    decode_linear,
    feedback_loss,
    hstu_attention,
    pairwise_loss,
    rowwise_adagrad,
    sampled_softmax_loss,
    triple_embedding,
)

OPS: tuple[Op, ...] = (
    rowwise_adagrad.OP,
    pairwise_loss.OP,
    sampled_softmax_loss.OP,
    causal_attention.OP,
    decode_attention.OP,
    decode_linear.OP,
    feedback_loss.OP,
    hstu_attention.OP,
    triple_embedding.OP,
)
