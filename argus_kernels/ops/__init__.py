"""The one list of ops. A new op adds its room, its line here and its line in `argus_kernels/__init__.py`."""

from __future__ import annotations

from argus_kernels.core import Op
from argus_kernels.ops import feedback_loss, triple_embedding

OPS: tuple[Op, ...] = (
    feedback_loss.OP,
    triple_embedding.OP,
)
