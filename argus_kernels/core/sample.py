"""Samples: the inputs on which an op is tested and timed. Each op's room lists its own in `samples.py`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Cut:
    """How a case is cut into pieces small enough for float64: a sentence for records, and the arguments of each."""

    sentence: str
    pieces: Callable[[dict[str, Any]], Iterator[dict[str, Any]]]


@dataclass(frozen=True)
class Sample:
    """One case of an op: a way to draw its arguments, and what computing them costs at least.

    `make(generator, dtype)` draws the keyword arguments of the public function on the generator's device, which the
    caller has made torch's default. `grad` names the tensor arguments that get gradients. `flops()` and `bytes(dtype)`
    count the useful arithmetic and the unavoidable memory traffic (each input read once, each output written once) of
    the forward pass without gradients; `backward_flops` and `backward_bytes` those of the backward pass alone;
    `training_flops` and `training_bytes` those of both passes, None where they are the sum.
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
    training_flops: Callable[[dict[str, Any]], int] | None = None
    training_bytes: Callable[[dict[str, Any]], int] | None = None
    cut: Cut | None = None
    """How benchmarks judge it, whose shapes are too large for the truth; None: by the small samples of the room."""

    def draw(self, dtype: torch.dtype, seed: int = 0, device: str | torch.device = "cpu") -> dict[str, Any]:
        """The arguments of this sample, drawn from `seed` on `device` itself: a CPU takes seconds to fill a GPU."""
        with torch.device(device):
            return self.make(torch.Generator(device).manual_seed(seed), dtype)


@dataclass(frozen=True)
class Growth:
    """How a case grows with one size, for benchmarks of cost against size.

    axis: what the size is. sizes: those of a full run; few: small ones, that only show that everything runs.
    sample(size): the case. held(size, element): bytes that its arguments take, floating-point ones of `element` each.
    """

    axis: str
    sizes: tuple[int, ...]
    few: tuple[int, ...]
    sample: Callable[[int], Sample]
    held: Callable[[int, int], int]


def block(index: int, size: int, total: int) -> slice:
    """The index-th block of `size` rows of `total`, starting over at the end."""
    blocks = max(total // size, 1)
    first = index % blocks * size
    return slice(first, min(first + size, total))


def tensor_bytes(*tensors: Tensor | None) -> int:
    """Bytes that the given tensors hold together."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors if tensor is not None)
