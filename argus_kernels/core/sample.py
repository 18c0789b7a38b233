"""Samples: the inputs on which an op is tested and timed. Each op's room lists its own in `samples.py`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sample:
    """One case of an op: a way to draw its arguments, and what computing them costs at least.

    `make(generator, dtype)` draws the keyword arguments of the public function on the CPU (the caller moves them to
    a device). `grad` names the tensor arguments that get gradients. `flops()` and `bytes(dtype)` count the useful
    arithmetic and the unavoidable memory traffic (each input read once, each output written once) of the forward
    pass; `backward_flops` and `backward_bytes` those of the backward pass.
    """

    name: str
    make: Callable[[torch.Generator, torch.dtype], dict[str, Any]]
    grad: tuple[str, ...] = ()
    production: bool = False
    """True for the shapes of real use, which benchmarks time; False for the small ones of tests."""
    gpu: bool = False
    """True for a production shape that is sized to fill a large GPU: benchmarks take it there, the others on a CPU."""
    gradcheck: bool = True
    """False where the gradient is by definition not the derivative of the output: a stop-gradient in the formula."""
    flops: Callable[[dict[str, Any]], int] = field(default=lambda arguments: 0)
    bytes: Callable[[dict[str, Any]], int] = field(default=lambda arguments: 0)
    backward_flops: Callable[[dict[str, Any]], int] = field(default=lambda arguments: 0)
    backward_bytes: Callable[[dict[str, Any]], int] = field(default=lambda arguments: 0)

    def draw(self, dtype: torch.dtype, seed: int = 0, device: str | torch.device = "cpu") -> dict[str, Any]:
        """The arguments of this sample, drawn from `seed`, on `device`."""
        generator = torch.Generator().manual_seed(seed)
        return {name: _to(value, device) for name, value in self.make(generator, dtype).items()}


def _to(value: Any, device: str | torch.device) -> Any:
    if isinstance(value, list) and value and isinstance(value[0], Tensor):
        return [tensor.to(device) for tensor in value]
    return value.to(device) if hasattr(value, "to") else value


def tensor_bytes(*tensors: Tensor | None) -> int:
    """Bytes that the given tensors hold together."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors if tensor is not None)
