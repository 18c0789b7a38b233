"""Linear layers whose gradients are as exact compiled as they are not.

The gradient of a bias is a sum over all events. torch sums in a tree; the code that torch.compile generates for a CPU
adds one event after the other where their number is not fixed: over 8,192 events of random numbers its error is nine
times torch's. So that sum stays torch's own, as an op that the compiler does not look into.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear


@torch.library.custom_op("argus_model::sum_rows", mutates_args=())
def sum_rows(x: Tensor) -> Tensor:
    """The sum of the rows of x [T, d]: [d]."""
    return x.sum(0)


@sum_rows.register_fake
def _(x: Tensor) -> Tensor:
    return x.new_empty(x.shape[1:])


class _Add(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor) -> Tensor:
        return x + bias

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        return gradient, sum_rows(gradient)


def affine(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Events x [T, d] times weight [e, d], transposed, plus bias [e]: [T, e]."""
    if not torch.compiler.is_compiling():
        return linear(x, weight, bias)
    product = linear(x, weight)
    return _Add.apply(product, bias.to(product.dtype))


def project(layer: nn.Linear, x: Tensor) -> Tensor:
    """`layer(x)`, a call of the module, so that a profile shows it; compiled, `affine`."""
    return affine(x, layer.weight, layer.bias) if torch.compiler.is_compiling() else layer(x)
