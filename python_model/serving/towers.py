"""The score that a model is served with, and the user vectors whose dot products with item vectors are that score."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from python_model.data.batches import JaggedBatch
from python_model.model.argus import Argus
from python_model.model.layers import Head

KINDS = ("pair", "next_item")


def kind_of(model: Argus, kind: str | None = None) -> str:
    """The score to serve: the one asked for, else "pair" of a fine-tuned model and "next_item" of any other."""
    if kind is None:
        return "pair" if model.stage == "finetune" else "next_item"
    if kind not in KINDS:
        raise ValueError(f"score: expected one of {', '.join(KINDS)}, found {kind!r}")
    if kind == "pair" and model.stage != "finetune":
        raise ValueError("score pair needs a fine-tuned run; this one is pre-trained only")
    return kind


def lag_of(model: Argus) -> int:
    """A score may use events at least so many seconds older than its time; at least 1."""
    return max(model.config.lag, 1)


def delay_of(model: Argus, kind: str) -> int:
    """Seconds from a user's newest event to the time of their vector: the ranker may use an event after its lag."""
    return model.config.lag if kind == "pair" else 0


def head_of(model: Argus, kind: str) -> Head:
    """The head that makes user vectors of a kind."""
    return model.user_head if kind == "pair" else model.query_head


def vectors_of(model: Argus, readings: Tensor, kind: str, head: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    """User vectors float32 [n, D] of the heads' inputs [n, ·]; "next_item" vectors have the temperature as length.

    head: replaces the head of `head_of`, with the same result; None: that head.
    """
    found = (head or head_of(model, kind))(readings).float()
    return found if kind == "pair" else model.temperature * normalize(found, dim=-1)


def first_without_length(vectors: np.ndarray) -> int | None:
    """The first row of float32 [n, D] whose squared length is not finite: it has NaN, infinity or values near 10¹⁹.

    If all squared lengths are finite, no dot product of two rows overflows (Cauchy-Schwarz), so every score is finite.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        fits = np.isfinite(np.einsum("nd,nd->n", vectors, vectors))
    return None if fits.all() else int(np.argmin(fits))


def require_finite(vectors: np.ndarray, what: str) -> np.ndarray:
    """The vectors [n, D]; ValueError where one of them is not of finite length."""
    row = first_without_length(vectors)
    if row is not None:
        raise ValueError(f"the model gives {what} that are not finite, first in row {row}: its training has diverged")
    return vectors


def vectors_of_targets(model: Argus, batch: JaggedBatch, kind: str) -> Tensor:
    """User vectors float32 [n, D] right before every target event of a batch, as a session has them."""
    if kind == "pair":
        return model.user_vectors(batch)[batch.is_target]
    return model.temperature * model.target_queries(batch, as_served=True)


def fingerprint(model: Argus) -> str:
    """SHA-256 of the settings and all weights: models with equal fingerprints give equal results."""
    digest = hashlib.sha256((model.stage + model.config.to_json() + model.features.identity()).encode())
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def vocabulary_fingerprint(model: Argus) -> str:
    """SHA-256 of the meaning of dense numbers: the vocabulary and the columns of every item."""
    digest = hashlib.sha256(model.features.identity().encode())
    digest.update(model.item_columns.cpu().numpy().tobytes())
    return digest.hexdigest()
