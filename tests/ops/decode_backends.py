"""Which backends of decode_attention serve a cache of a dtype on the CPU here."""

from __future__ import annotations

import torch

from argus_kernels import PagedCache
from argus_kernels.ops.decode_attention import OP
from argus_kernels.testing import captured_arguments


def serving(dtype: torch.dtype = torch.float32) -> list[str]:
    """The backends that serve a cache of this dtype, and q of it; beside int8 of float32."""
    cache = PagedCache.allocate(1, 1, 1, 4, dtype=dtype)
    q = torch.zeros(1, 1, 4, dtype=torch.float32 if dtype == torch.int8 else dtype)
    lengths = torch.ones(1, dtype=torch.int32)
    inputs = captured_arguments(OP, {"q": q, "cache": cache, "lengths": lengths})
    return [backend.name for backend in OP.backends if not backend.reasons(inputs)]
