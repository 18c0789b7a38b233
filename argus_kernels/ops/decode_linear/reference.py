"""decode_linear in plain PyTorch, in any floating dtype and for any number of rows."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    residual: Tensor | None,
    eps: float,
    activation: str,
) -> Tensor:
    """[n, O] in x's dtype: residual + act(LayerNorm(x) Wᵀ + b), rounded to it once."""
    wide = torch.promote_types(x.dtype, torch.float32)
    given = (x, weight, bias, norm_weight, norm_bias, residual)
    h, w, b, scale, shift, added = (None if one is None else one.to(wide) for one in given)
    assert h is not None and w is not None
    if scale is not None:
        h = F.layer_norm(h, h.shape[-1:], scale, shift, eps)
    out = F.linear(h, w, b)
    if activation == "gelu":
        # torch's vectorised gelu makes +∞ NaN in float32; it is +∞, as in float64.
        out = torch.where(out == torch.inf, out, F.gelu(out))
    if added is not None:
        out = added + out
    return out.to(x.dtype)
