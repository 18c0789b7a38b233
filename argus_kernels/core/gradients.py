"""The gradients that go into a backend's backward pass and those that come out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class Filled(Sequence[Tensor]):
    """The gradients of the outputs: zeros, made when asked for, where autograd has none.

    Of a loss of seven outputs one has a gradient and a backend reads two.
    """

    def __init__(self, gradients: Sequence[Tensor | None], outputs: Sequence[Tensor]) -> None:
        self._gradients = list(gradients)
        self._outputs = outputs

    def __len__(self) -> int:
        return len(self._outputs)

    def given(self, index: int) -> Tensor | None:
        """One of them, None where autograd has none."""
        return self._gradients[index]

    def __getitem__(self, index: Any) -> Any:
        """One of them; an output of no elements is its own."""
        gradient, output = self._gradients[index], self._outputs[index]
        if gradient is None:
            gradient = torch.zeros_like(output) if output.numel() else output.detach()
            self._gradients[index] = gradient
        return gradient


def filled(gradients: Sequence[Tensor | None], outputs: Sequence[Tensor]) -> Sequence[Tensor]:
    """The gradients of the outputs as a backend takes them: themselves where autograd has them all."""
    for gradient in gradients:
        if gradient is None:
            return Filled(gradients, outputs)
    return gradients  # type: ignore[return-value]


def or_none(gradients: Sequence[Tensor], index: int) -> Tensor | None:
    """A gradient for a backend that makes its own zeros: None where autograd has none."""
    return gradients.given(index) if isinstance(gradients, Filled) else gradients[index]


def any_needed(needed: Any) -> bool:
    """Whether an argument, or one tensor of a list, needs a gradient."""
    return any(needed) if isinstance(needed, (list, tuple)) else bool(needed)


def empty_gradients(value: Any, needed: bool) -> Any:
    """Memory for the gradient of an argument, a list for a list of tensors; None where it is not needed."""
    if isinstance(value, (list, tuple)):
        return [torch.empty_like(table) if needed else None for table in value]
    if value is None or not needed:
        return None
    return torch.empty_like(value, memory_format=torch.contiguous_format)


def flatten(gradients: Sequence[Any], like: Tensor) -> list[Tensor]:
    """A flat list of tensors; None, which a schema cannot return, becomes an empty tensor."""
    flat: list[Tensor] = []
    for gradient in gradients:
        for tensor in gradient if isinstance(gradient, (list, tuple)) else (gradient,):
            flat.append(like.new_empty(0) if tensor is None else tensor)
    return flat
