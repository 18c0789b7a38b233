"""Vectors at a half and a quarter of float32's size: bfloat16 as its 16 bits, int8 with one scale per row; errors.

int8, symmetric: scale = max |x| / 127 over the row, q = round(x / scale), so |x − scale · q| ≤ scale / 2.
bfloat16, round to nearest even: |x − x̂| ≤ 2⁻⁸ · |x|.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch


def to_bfloat16(vectors: np.ndarray) -> np.ndarray:
    """uint16, the bits of bfloat16, of float32 vectors: numpy and Parquet have no type for it."""
    rounded = torch.from_numpy(np.ascontiguousarray(vectors, np.float32)).to(torch.bfloat16)
    return rounded.view(torch.int16).numpy().view(np.uint16)


def from_bfloat16(bits: np.ndarray) -> np.ndarray:
    """float32 vectors of such bits."""
    return (np.asarray(bits, np.uint16).astype(np.uint32) << 16).view(np.float32)


def to_int8(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """int8 [n, D] and scale float32 [n] of float32 [n, D]; a row of zeros has scale 0."""
    scale = np.abs(vectors).max(axis=1, initial=0.0).astype(np.float32) / np.float32(127)
    divisor = np.where(scale > 0, scale, 1).astype(np.float32)
    return np.clip(np.rint(vectors / divisor[:, None]), -127, 127).astype(np.int8), scale


def from_int8(values: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """float32 [n, D] of int8 [n, D] and scale [n]."""
    return values.astype(np.float32) * scale[:, None]


@dataclass
class ErrorMeter:
    """How far approximate vectors are from exact ones, over all that were added."""

    largest: float = 0.0
    squares: float = 0.0
    magnitude: float = 0.0
    least_cosine: float = 1.0

    def add(self, exact: np.ndarray, approximate: np.ndarray) -> None:
        """Counts some rows [n, D] of both."""
        if exact.size == 0:
            return
        one, other = exact.astype(np.float64), approximate.astype(np.float64)
        error = one - other
        self.largest = max(self.largest, float(np.abs(error).max()))
        self.squares += float((error**2).sum())
        self.magnitude += float((one**2).sum())
        norms = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
        cosine = np.divide((one * other).sum(1), norms, out=np.ones(len(one)), where=norms > 0)
        self.least_cosine = min(self.least_cosine, float(cosine.min()))

    def summary(self) -> dict[str, float]:
        """largest: of any component; relative_rms: error's norm over the vectors'; least_cosine: of any vector."""
        relative = (self.squares / self.magnitude) ** 0.5 if self.magnitude > 0 else 0.0
        return {"largest": self.largest, "relative_rms": relative, "least_cosine": self.least_cosine}
