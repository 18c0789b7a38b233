"""Kernels for transformers over long user histories, as torch ops.

Importing this touches no GPU and needs no native library: every op runs at least on its `reference` backend.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

from argus_kernels.core import Verdict as Verdict
from argus_kernels.core import default_backend as default_backend
from argus_kernels.core import explain as explain
from argus_kernels.core import use_backend as use_backend
from argus_kernels.core.offsets import Offsets as Offsets
from argus_kernels.core.torch_op import registered
from argus_kernels.core.varlen import set_device_checks as set_device_checks
from argus_kernels.ops.causal_attention import causal_attention as causal_attention
from argus_kernels.ops.decode_attention import DirectDecoder as DirectDecoder
from argus_kernels.ops.decode_attention import PagedCache as PagedCache
from argus_kernels.ops.decode_attention import decode_attention as decode_attention
from argus_kernels.ops.decode_linear import DirectLinear as DirectLinear
from argus_kernels.ops.decode_linear import decode_linear as decode_linear
from argus_kernels.ops.feedback_loss import feedback_loss as feedback_loss
from argus_kernels.ops.hstu_attention import hstu_attention as hstu_attention
from argus_kernels.ops.pairwise_loss import pairwise_loss as pairwise_loss
from argus_kernels.ops.rowwise_adagrad import rowwise_adagrad_ as rowwise_adagrad_
from argus_kernels.ops.sampled_softmax_loss import sampled_softmax_loss as sampled_softmax_loss
from argus_kernels.ops.triple_embedding import triple_embedding as triple_embedding

if TYPE_CHECKING:
    from argus_kernels import nn as nn

__version__ = "0.1.0"

OPS = registered()
"""Every op of the package: a room registers its op as it is imported above. A new op adds its line there."""


def __getattr__(name: str) -> ModuleType:
    """`argus_kernels.nn` is imported where it is first asked for."""
    if name == "nn":
        return import_module("argus_kernels.nn")
    raise AttributeError(f"module 'argus_kernels' has no attribute {name!r}")
