"""Exact search for the best items, in blocks: the reference for an index, and the fallback where it finds too few.

Items [V, D] and queries [n, D] are float32; the score is the dot product.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

BLOCK_SCORES = 1 << 24


def best_items(
    queries: np.ndarray, items: np.ndarray, k: int, excluded: Sequence[np.ndarray] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """(items int64 [n, k], scores float32 [n, k]), best first; −1 and −inf where fewer than k items are left.

    excluded: dense item numbers that must not appear, one array a query.
    """
    found = np.full((len(queries), k), -1, np.int64)
    scores = np.full((len(queries), k), -np.inf, np.float32)
    catalogue = torch.from_numpy(np.asarray(items))
    width = min(k, len(items))
    block = max(1, BLOCK_SCORES // max(1, len(items)))
    for start in range(0, len(queries), block):
        rows = slice(start, start + block)
        part = torch.from_numpy(np.ascontiguousarray(queries[rows])) @ catalogue.T
        for row, left_out in enumerate(excluded[rows] if excluded is not None else ()):
            part[row, torch.from_numpy(np.asarray(left_out, np.int64))] = -torch.inf
        values, places = part.topk(width, dim=1)
        scores[rows, :width] = values.numpy()
        found[rows, :width] = np.where(values.numpy() > -np.inf, places.numpy(), -1)
    return found, scores
