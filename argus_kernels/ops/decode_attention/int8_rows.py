"""Rows of an int8 cache: a head's columns as codes with one scale."""

from __future__ import annotations

import torch
from torch import Tensor

LARGEST = 127


def quantize(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Codes int8 [..., Dh] and scales float32 [...] of rows [..., Dh] in any floating dtype.

    Symmetric: a head's largest magnitude in float32 over 127 is its scale, and codes round to the nearest, ties to
    even; a row reads as code · scale. Where the scale is 0 or not finite the codes are 0: a row that holds NaN or an
    infinity reads as NaN. Every backend writes the same codes and scales.
    """
    wide = rows.to(torch.float32)
    scales = wide.abs().amax(-1) / LARGEST
    usable = (scales > 0) & scales.isfinite()
    codes = (wide / torch.where(usable, scales, 1.0)[..., None]).round().clamp(-LARGEST, LARGEST)
    return torch.where(usable[..., None], codes, 0.0).to(torch.int8), scales


def widened(codes: Tensor, scales: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Cached rows [..., Dh] in a floating dtype; scales [...] beside int8 codes, else None."""
    wide = codes.to(dtype)
    return wide if scales is None else wide * scales.to(dtype)[..., None]
