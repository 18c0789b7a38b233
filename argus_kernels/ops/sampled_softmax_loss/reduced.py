"""The loss as one number, whose gradients the forward pass computes.

The forward pass knows the gradient of a sum of losses up to one factor, the gradient of the sum. So the scores are not
recomputed: three matrix products instead of four. The backward pass multiplies by the factor.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from argus_kernels.core import Backend
from argus_kernels.ops.sampled_softmax_loss.arguments import Arguments

DIFFERENTIABLE = ("query", "positive", "candidates", "scale")

Both = Callable[[Tensor, Arguments], tuple[Tensor, ...]]
"""(loss [N], lse [N], d_query, d_positive, d_candidates, d_scale) from the gradient of the loss rows [N]."""


def with_reduced(backend: Backend, both: Both | None = None) -> Backend:
    """A backend of rows, whose forward pass returns (loss, lse, statistics), as one that serves `reduced` calls, too.

    Their outputs are (loss, lse, statistics, d_query, d_positive, d_candidates, d_scale); backend "eager" has the first
    three. both: forward and backward pass in one; without it they run one after the other.
    """

    def forward(given: Arguments) -> tuple[Tensor, ...]:
        # Backend "eager" runs this with gradients enabled: autograd computes them.
        if not given.reduced or torch.is_grad_enabled():
            loss, lse, statistics = backend.forward(given)
            return total(loss) if given.reduced else loss, lse, statistics
        ones = given.query.new_ones(given.query.shape[0], dtype=given.log_q.dtype)
        loss, lse, *found = (both or one_after_the_other)(ones, given)
        return (total(loss), lse, lse.new_empty(0), *found)

    def one_after_the_other(d_loss: Tensor, given: Arguments) -> tuple[Tensor, ...]:
        assert backend.backward is not None
        loss, lse, _ = outputs = backend.forward(given)
        needs = dict.fromkeys(DIFFERENTIABLE, True)
        return (loss, lse, *backend.backward([d_loss, torch.zeros_like(d_loss)], outputs, needs, given))

    def backward(
        gradients: Sequence[Tensor], outputs: Sequence[Tensor], needs: dict[str, bool], given: Arguments
    ) -> Sequence[Tensor | None]:
        if not given.reduced:
            assert backend.backward is not None
            return backend.backward(gradients, outputs, needs, given)
        found = zip(DIFFERENTIABLE, outputs[3:], strict=True)
        return [_times(found_one, gradients[0]) if needs[name] else None for name, found_one in found]

    return dataclasses.replace(backend, forward=forward, backward=backward)


def as_registered(given: Arguments, outputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The seven outputs of the schema: without `reduced` the gradients are empty."""
    return outputs if given.reduced else (*outputs, *(outputs[0].new_empty(0) for _ in DIFFERENTIABLE))


def _times(found: Tensor, factor: Tensor) -> Tensor:
    """The product with a factor of no dimension, rounded once: float16 cannot hold the 65,536 of a gradient scaler."""
    if found.dtype == factor.dtype:
        return found * factor
    return torch.mul(found, factor.reshape(1), out=torch.empty_like(found))


def total(loss: Tensor) -> Tensor:
    """The sum over the rows, taken in float64."""
    return loss.double().sum().to(loss.dtype)
