"""The curves of the scaling benchmark: inputs as a function of one size, and the calls that are timed on them.

An op's own case and its sizes are in its room (`Op.grows`); this module has the case that takes two ops.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import argus_kernels
from argus_kernels import OPS
from argus_kernels.core import Op
from argus_kernels.core.sample import Growth
from argus_kernels.testing.harness import public_function

TABLE_WIDTH, OUT_WIDTH = 64, 256

Arguments = dict[str, Any]
Call = Callable[[], Any]


@dataclass(frozen=True)
class Curve:
    """One op as a function of one size.

    sizes: those of the full run. make(size, dtype, device): the arguments. passes: the timed passes by name; each takes
    the arguments and a backend's name and returns the call. bytes_of(size, element): bytes of the arguments.
    """

    op: str
    axis: str
    sizes: tuple[int, ...]
    make: Callable[[int, torch.dtype, str], Arguments]
    passes: dict[str, Callable[[Arguments, str], Call]]
    bytes_of: Callable[[int, int], int]


def curves(device: str, *, tiny: bool = False) -> list[Curve]:
    """The curves of a device; `tiny` has sizes that only check that everything runs."""
    machine = "tiny" if tiny else device
    found = [_of_room(op, op.grows(machine), tiny) for op in OPS if op.grows is not None]
    return [*found, _tables({"tiny": 32, "cpu": 4096, "cuda": 16_384}[machine], tiny)]


def _of_room(op: Op, growth: Growth, tiny: bool) -> Curve:
    """The curve of an op's own case: forward, and forward with backward if the case has gradients."""
    sizes = growth.few if tiny else growth.sizes
    grad = growth.sample(sizes[0]).grad

    def make(size: int, dtype: torch.dtype, device: str) -> Arguments:
        drawn = growth.sample(size).draw(dtype, 0, device)
        return {name: value.requires_grad_() if name in grad else value for name, value in drawn.items()}

    passes = _passes(public_function(op), grad)
    return Curve(op.name, growth.axis, sizes, make, passes, growth.held)


def _tables(events: int, tiny: bool) -> Curve:
    """The embedding of a batch from one table, and the optimiser's step on the rows that it read."""

    def make(size: int, dtype: torch.dtype, device: str) -> Arguments:
        draw = torch.Generator(device).manual_seed(0)
        return {
            "ids": torch.randint(0, size, (2, events), generator=draw, device=device),
            "table": torch.empty(size, TABLE_WIDTH, dtype=dtype, device=device)
            .uniform_(-0.1, 0.1, generator=draw)
            .requires_grad_(),
            "weight": torch.randn(2 * TABLE_WIDTH, OUT_WIDTH, generator=draw, device=device).to(dtype).requires_grad_(),
            "state": torch.zeros(size, device=device),
            "gradient": torch.randn(events, OUT_WIDTH, generator=draw, device=device).to(dtype),
        }

    def step(given: Arguments, backend: str) -> Call:
        def run() -> None:
            table = given["table"]
            out = argus_kernels.triple_embedding(
                given["ids"], [table], [0, 0], given["weight"], sparse=True, backend=backend
            )
            gradient, _ = torch.autograd.grad(out, (table, given["weight"]), given["gradient"])
            gradient = gradient.coalesce()
            with torch.no_grad():
                argus_kernels.rowwise_adagrad_(
                    table, given["state"], gradient.indices()[0], gradient.values(), lr=0.01, backend=backend
                )

        return run

    return Curve(
        "triple_embedding",
        "table rows",
        (100, 1_000, 10_000) if tiny else (10_000, 100_000, 1_000_000, 10_000_000, 100_000_000),
        make,
        {"step": step},
        lambda size, element: size * (TABLE_WIDTH * element + 4) + (2 * TABLE_WIDTH + events) * OUT_WIDTH * element,
    )


def _passes(function: Callable[..., Any], grad: Sequence[str]) -> dict[str, Callable[[Arguments, str], Call]]:
    def forward(given: Arguments, backend: str) -> Call:
        def run() -> Any:
            with torch.no_grad():
                return function(**given, backend=backend)

        return run

    def forward_backward(given: Arguments, backend: str) -> Call:
        def run() -> Any:
            returned = function(**given, backend=backend)
            out: Tensor = returned[0] if isinstance(returned, tuple) else returned
            return torch.autograd.grad(out, [given[name] for name in grad], torch.ones_like(out))

        return run

    passes: dict[str, Callable[[Arguments, str], Call]] = {"forward": forward}
    if grad:
        passes["forward_backward"] = forward_backward
    return passes
