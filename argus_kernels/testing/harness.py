"""Runs an op on a sample as a user would, and collects all results: outputs, tensors written in place, gradients.

The tests and the benchmarks' verification both use it, so that a new backend of a room is judged by the same rule
everywhere without a line of its own.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import argus_kernels
from argus_kernels.core import Op, Sample
from argus_kernels.core.registry import capture
from argus_kernels.testing.compare import Comparison, compare

Transform = Callable[[str, Tensor], Tensor]
TORCH_DRAWS = 32
"""Draws of PyTorch's own error, at most, behind the bounds of a result of few elements."""


@dataclass
class Run:
    """What one call gave, by name: "output 0", "table" (written in place), "d_query", "d_tables[2]" …"""

    results: dict[str, Tensor] = field(default_factory=dict)


def public_function(op: Op) -> Callable[..., Any]:
    """The function of the package's front door that calls `op`; it has the op's name."""
    function: Callable[..., Any] = getattr(argus_kernels, op.name)
    return function


def small_samples(op: Op) -> list[Sample]:
    """The samples that tests run; benchmarks take the others."""
    return [sample for sample in op.samples() if not sample.production]


def draw(sample: Sample, dtype: torch.dtype, seed: int, device: str = "cpu", exact: bool = False) -> dict[str, Any]:
    """A sample's arguments in `dtype`; `exact` gives the very same values held in float64."""
    arguments = sample.draw(dtype, seed, device)
    if not exact:
        return arguments
    template = sample.draw(torch.float64, seed, device)
    return {name: _cast_like(value, template[name]) for name, value in arguments.items()}


def _cast_like(value: Any, template: Any) -> Any:
    if isinstance(value, Tensor):
        return value.to(template.dtype) if value.is_floating_point() else value
    if isinstance(value, list) and value and isinstance(value[0], Tensor):
        return [_cast_like(one, other) for one, other in zip(value, template, strict=True)]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in dataclasses.fields(value)]
        return dataclasses.replace(value, **{n: _cast_like(getattr(value, n), getattr(template, n)) for n in names})
    return value


def captured_arguments(op: Op, arguments: dict[str, Any]) -> Any:
    """The op's record, as the public function hands it over."""
    _, captured = capture(public_function(op), **arguments)
    return captured


def run_op(
    op: Op,
    sample: Sample,
    arguments: dict[str, Any],
    backend: str,
    *,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    call: Callable[..., Any] | None = None,
    transform: Transform | None = None,
) -> Run:
    """Calls the public function on copies of `arguments` and, where the sample has gradients, runs backward.

    `call` replaces the public function (a compiled one, say); `transform(name, tensor)` changes a leaf on its way in
    (a non-contiguous view of it, say), gradients still being those of the leaf. The outputs' gradients are standard
    normal, drawn from `seed` and rounded to `dtype`, so that a float64 run of the same case gets the same numbers.
    """
    leaves, inputs = _prepare(sample, arguments, transform)
    mutated = _mutated(op, inputs)
    returned = (call or public_function(op))(**inputs, backend=backend)
    outputs = list(returned) if isinstance(returned, (tuple, list)) else [returned]
    run = Run({f"output {index}": value for index, value in enumerate(outputs) if isinstance(value, Tensor)})
    run.results.update(mutated)
    if leaves:
        _backward(run, leaves, outputs, dtype, seed)
    run.results = {name: value.detach().clone() for name, value in run.results.items()}
    return run


def judged(
    op: Op,
    sample: Sample,
    backend: str,
    dtype: torch.dtype,
    *,
    device: str = "cpu",
    enough: int = 64,
    least: int = 3,
    most: int = 64,
) -> dict[str, Comparison]:
    """The error rule's verdict on every result of a sample, by its name.

    Draws are pooled, `least` to `most` of them, until each result has `enough` elements, so that no lucky scalar
    decides; an empty result needs no more draws. Several tiles cost the backend too much to draw them often: where
    `most` draws do not give a result so many elements, PyTorch's error alone is drawn on, up to `TORCH_DRAWS` draws.
    """
    ours: dict[str, list[Tensor]] = {}
    torchs = _Yardstick(op, sample, dtype, device)
    for seed in range(most):
        if seed >= least and min(_elements(found) or enough for found in ours.values()) >= enough:
            break
        given = draw(sample, dtype, seed, device)
        for result, value in run_op(op, sample, given, backend, dtype=dtype, seed=seed).results.items():
            ours.setdefault(result, []).append(value)
        torchs.add(seed)
    if not ours.keys() == torchs.truth.keys() == torchs.results.keys():
        raise AssertionError(
            f"results are {sorted(ours)}, expected {sorted(torchs.truth)} (PyTorch: {sorted(torchs.results)})"
        )
    drawn = len(next(iter(ours.values()), []))
    for seed in range(drawn, TORCH_DRAWS):
        if all((_elements(found) or enough) >= enough for found in torchs.truth.values()):
            break
        torchs.add(seed)
    return {name: torchs.compare(name, ours[name], enough) for name in ours}


class _Yardstick:
    """Draws of float64 truth and of PyTorch's results in a sample's own dtype, by the result's name."""

    def __init__(self, op: Op, sample: Sample, dtype: torch.dtype, device: str) -> None:
        self.op, self.sample, self.dtype, self.device = op, sample, dtype, device
        self.truth: dict[str, list[Tensor]] = {}
        self.results: dict[str, list[Tensor]] = {}

    def add(self, seed: int) -> None:
        for found, exact in ((self.truth, True), (self.results, False)):
            given = draw(self.sample, self.dtype, seed, self.device, exact)
            run = run_op(self.op, self.sample, given, "eager", dtype=self.dtype, seed=seed)
            for result, value in run.results.items():
                # Written in place and float32 whatever the other dtypes are, as the scales of an int8 cache.
                kept = exact and result in self.op.mutates and value.dtype == torch.float32
                found.setdefault(result, []).append(value.double() if kept else value)

    def compare(self, name: str, ours: list[Tensor], enough: int) -> Comparison:
        truth, results, drawn = self.truth[name], self.results[name], len(ours)
        further = [] if _elements(ours) >= enough else list(zip(truth[drawn:], results[drawn:], strict=True))
        return compare(name, ours, truth[:drawn], results[:drawn], further=further)


def _elements(draws: list[Tensor]) -> int:
    return sum(map(Tensor.numel, draws))


def _prepare(
    sample: Sample, arguments: dict[str, Any], transform: Transform | None
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    leaves: dict[str, Tensor] = {}

    def leaf(name: str, tensor: Tensor, wanted: bool) -> Tensor:
        tensor = tensor.detach().clone().requires_grad_(wanted)
        if wanted:
            leaves[name] = tensor
        return transform(name, tensor) if transform else tensor

    inputs: dict[str, Any] = {}
    for name, value in arguments.items():
        wanted = name in sample.grad
        if isinstance(value, Tensor):
            inputs[name] = leaf(name, value, wanted)
        elif isinstance(value, list) and value and isinstance(value[0], Tensor):
            inputs[name] = [leaf(f"{name}[{index}]", one, wanted) for index, one in enumerate(value)]
        else:
            inputs[name] = copy.deepcopy(value)
    return leaves, inputs


def _mutated(op: Op, inputs: dict[str, Any]) -> dict[str, Tensor]:
    if not op.mutates:
        return {}
    captured = captured_arguments(op, inputs)
    found = {name: getattr(captured, name) for name in op.mutates}
    return {name: tensor for name, tensor in found.items() if tensor is not None}


def _backward(run: Run, leaves: dict[str, Tensor], outputs: list[Any], dtype: torch.dtype, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed + 1)
    roots, gradients = [], []
    for output in outputs:
        if isinstance(output, Tensor) and output.requires_grad:
            drawn = torch.randn(output.shape, generator=generator).to(dtype)
            roots.append(output)
            gradients.append(drawn.to(output.device, output.dtype))
    found = torch.autograd.grad(roots, list(leaves.values()), gradients, allow_unused=True)
    for (name, value), gradient in zip(leaves.items(), found, strict=True):
        dense = torch.zeros_like(value) if gradient is None else gradient
        run.results[f"d_{name}"] = dense.to_dense() if dense.is_sparse else dense
