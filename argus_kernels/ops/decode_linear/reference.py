"""decode_linear in plain PyTorch, in any floating dtype and for any number of rows."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from argus_kernels.ops.decode_linear.arguments import Arguments


def forward(given: Arguments) -> Tensor:
    """[n, O] in x's dtype: residual + act(LayerNorm(x) Wᵀ + b), rounded to it once."""
    wide = torch.promote_types(given.x.dtype, torch.float32)
    h, w, b, scale, shift, added = (None if one is None else one.to(wide) for one in given[:6])
    assert h is not None and w is not None
    if scale is not None:
        h = F.layer_norm(h, h.shape[-1:], scale, shift, given.eps)
    out = F.linear(h, w, b)
    if given.activation == "gelu":
        # torch's vectorised gelu makes +∞ NaN in float32; it is +∞, as in float64.
        out = torch.where(out == torch.inf, out, F.gelu(out))
    if added is not None:
        out = added + out
    return out.to(given.x.dtype)
