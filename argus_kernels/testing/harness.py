"""Runs an op on a sample the way a user would, and collects everything it says: outputs, in-place results, gradients.

The tests and the benchmarks' verification both stand on it, so that a backend added to a room is held to the same
rule everywhere without a line of its own.
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
FEW_FACTOR = 8.0
"""How many times the bounds hold for a result of too few elements to tell chance from error."""


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
    decides; an empty result needs no more draws. Where `most` draws do not give so many, errors may be `FEW_FACTOR`
    times as large: several tiles cost too much to draw them often, and a tile left out errs more than that.
    """
    ours: dict[str, list[Tensor]] = {}
    truth: dict[str, list[Tensor]] = {}
    theirs: dict[str, list[Tensor]] = {}
    for seed in range(most):
        if seed >= least and min(_elements(found) or enough for found in ours.values()) >= enough:
            break
        given, exact = draw(sample, dtype, seed, device), draw(sample, dtype, seed, device, exact=True)
        for found, values, name in ((ours, given, backend), (truth, exact, "eager"), (theirs, given, "eager")):
            for result, value in run_op(op, sample, values, name, dtype=dtype, seed=seed).results.items():
                found.setdefault(result, []).append(value)
    if not ours.keys() == truth.keys() == theirs.keys():
        raise AssertionError(f"results are {sorted(ours)}, expected {sorted(truth)} (PyTorch: {sorted(theirs)})")
    slack = {name: 1.0 if (_elements(one) or enough) >= enough else FEW_FACTOR for name, one in ours.items()}
    return {name: compare(name, ours[name], truth[name], theirs[name], slack=slack[name]) for name in ours}


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
    return {name: getattr(captured, name) for name in op.mutates}


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
