"""Kernels for transformers over long user histories, as torch ops.

Importing this touches no GPU and needs no native library: every op runs at least on its `reference` backend.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

from argus_kernels.core import Verdict, default_backend, explain, use_backend
from argus_kernels.core.varlen import set_device_checks
from argus_kernels.ops.causal_attention import causal_attention
from argus_kernels.ops.decode_attention import DirectDecoder, PagedCache, decode_attention
from argus_kernels.ops.decode_linear import DirectLinear, decode_linear
from argus_kernels.ops.feedback_loss import feedback_loss
from argus_kernels.ops.hstu_attention import hstu_attention
from argus_kernels.ops.pairwise_loss import pairwise_loss
from argus_kernels.ops.rowwise_adagrad import rowwise_adagrad_
from argus_kernels.ops.sampled_softmax_loss import sampled_softmax_loss
from argus_kernels.ops.triple_embedding import triple_embedding

if TYPE_CHECKING:
    from argus_kernels import nn as nn

__version__ = "0.1.0"

__all__ = [
    "causal_attention",
    "decode_attention",
    "decode_linear",
    "default_backend",
    "DirectDecoder",
    "DirectLinear",
    "explain",
    "feedback_loss",
    "hstu_attention",
    "PagedCache",
    "pairwise_loss",
    "rowwise_adagrad_",
    "sampled_softmax_loss",
    "set_device_checks",
    "triple_embedding",
    "use_backend",
    "Verdict",
]


def __getattr__(name: str) -> ModuleType:
    """`argus_kernels.nn` is imported where it is first asked for."""
    if name == "nn":
        return import_module("argus_kernels.nn")
    raise AttributeError(f"module 'argus_kernels' has no attribute {name!r}")
