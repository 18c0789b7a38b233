"""The CUDA kernels of every op as backends "cuda_on_host"."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from argus_kernels.core import Backend, Op
from argus_kernels.ops.causal_attention import OP as CAUSAL
from argus_kernels.ops.decode_attention import OP as DECODE
from argus_kernels.ops.feedback_loss import OP as FEEDBACK
from argus_kernels.ops.hstu_attention import OP as HSTU
from argus_kernels.ops.pairwise_loss import OP as PAIRWISE
from argus_kernels.ops.rowwise_adagrad import OP as ADAGRAD
from argus_kernels.ops.sampled_softmax_loss import OP as SOFTMAX
from argus_kernels.ops.triple_embedding import OP as EMBEDDING
from tests.csrc.simt import (
    attention_on_host,
    decode_attention_on_host,
    feedback_loss_on_host,
    pairwise_loss_on_host,
    rowwise_adagrad_on_host,
    sampled_softmax_loss_on_host,
    triple_embedding_on_host,
)

BACKENDS: dict[Op, Backend] = {
    CAUSAL: attention_on_host.CAUSAL_ATTENTION,
    HSTU: attention_on_host.HSTU_ATTENTION,
    DECODE: decode_attention_on_host.DECODE_ATTENTION,
    FEEDBACK: feedback_loss_on_host.FEEDBACK_LOSS,
    PAIRWISE: pairwise_loss_on_host.PAIRWISE_LOSS,
    ADAGRAD: rowwise_adagrad_on_host.BACKEND,
    SOFTMAX: sampled_softmax_loss_on_host.BACKEND,
    EMBEDDING: triple_embedding_on_host.BACKEND,
}


@contextmanager
def on_host(*ops: Op) -> Iterator[None]:
    """Adds the backends of these ops, of all of them without a name, inside the block; skips where none can run."""
    with pytest.MonkeyPatch.context() as patch:
        for op in ops or BACKENDS:
            reason = BACKENDS[op].available()
            if reason is not None:
                pytest.skip(reason)
            patch.setattr(op, "backends", (*op.backends, BACKENDS[op]))
        yield
