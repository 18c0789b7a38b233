"""The inputs on which feedback_loss is tested and timed, and what computing them costs at least."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from argus_kernels.core.sample import Cut, Sample, block, tensor_bytes

GRAD = ("hidden", "weight", "bias")


def _pieces(arguments: dict[str, Any], count: int = 32, rows: int = 512) -> Iterator[dict[str, Any]]:
    for index in range(count):
        row = block(index, rows, arguments["hidden"].shape[0])
        yield {**arguments, "hidden": arguments["hidden"][row], "targets": arguments["targets"][row]}


_CUT = Cut("32 pieces of 512 rows of the case", _pieces)


def samples() -> list[Sample]:
    """Small hostile cases, then the shape of eight users of 8,192 events."""
    return [
        _case("three_tasks", 7, 4, (1, 3, 2)),
        _case("weighted", 7, 4, (1, 3), weights=True),
        _case("unobserved_task", 5, 3, (2, 1), unobserved=1),
        _case("ignored_rows_hold_nan", 6, 3, (1, 2), weights=True, garbage=True),
        _case("one_row", 1, 2, (1,)),
        _case("no_row", 0, 3, (1, 2)),
        _case("rows_65536", 65_536, 256, (1, 1, 1, 8), production=True),
        _case("rows_262144", 262_144, 1_024, (1, 1, 1, 8), production=True, gpu=True),
    ]


def tiles(scale: int = 1) -> list[Sample]:
    """Several tiles of rows at each width, and one of many classes; `scale` multiplies the rows."""
    shapes = ((45, (1, 20, 5)), (64, (1, 1, 1, 8)), (128, (12,)), (256, (1, 1, 1, 8)))
    return [
        _case(f"tiles_{width}", 150 * scale, width, classes, weights=True, garbage=True) for width, classes in shapes
    ]


def drawn(lengths: Sequence[int], padding: int, variant: int) -> Sample:
    """A case of as many rows as the users have events; `variant` picks the optional arguments."""
    classes = ((1,), (3, 1), (1, 2, 4))[variant % 3]
    return _case("drawn", sum(lengths) + padding, 1 + variant % 5, classes, weights=variant % 2 == 1)


def _case(
    name: str,
    rows: int,
    width: int,
    classes: tuple[int, ...],
    *,
    weights: bool = False,
    unobserved: int | None = None,
    garbage: bool = False,
    production: bool = False,
    gpu: bool = False,
) -> Sample:
    def make(generator: torch.Generator, dtype: torch.dtype) -> dict[str, Any]:
        hidden = torch.randn(rows, width, generator=generator, dtype=torch.float64)
        arguments: dict[str, Any] = {
            "hidden": hidden.to(dtype),
            "weight": torch.randn(width, sum(classes), generator=generator, dtype=torch.float64).to(dtype),
            "bias": torch.randn(sum(classes), generator=generator, dtype=torch.float64).to(dtype),
            "targets": _targets(rows, classes, generator, unobserved),
            "classes": list(classes),
        }
        if weights:
            arguments["task_weight"] = torch.rand(len(classes), generator=generator) + 0.5
            arguments["row_weight"] = torch.rand(rows, generator=generator) + 0.5
            arguments["row_weight"][::3] = 0
        if garbage:
            arguments["hidden"][::3] = torch.nan
        return arguments

    return Sample(
        name,
        make,
        grad=GRAD,
        production=production,
        gpu=gpu,
        flops=_flops,
        bytes=_bytes,
        backward_flops=lambda arguments: 2 * _flops(arguments),
        backward_bytes=_backward_bytes,
        cut=_CUT,
    )


def _targets(rows: int, classes: tuple[int, ...], generator: torch.Generator, unobserved: int | None) -> Tensor:
    columns = []
    for task, count in enumerate(classes):
        column = torch.randint(0, max(count, 2), (rows,), generator=generator)
        missing = torch.rand(rows, generator=generator) < (1.0 if task == unobserved else 0.25)
        columns.append(torch.where(missing, -1, column))
    return torch.stack(columns, 1)


def _flops(arguments: dict[str, Any]) -> int:
    """The projection; the backward pass has two products of the same size."""
    rows, width = arguments["hidden"].shape
    return 2 * rows * width * arguments["weight"].shape[1]


def _inputs(arguments: dict[str, Any]) -> int:
    names = ("hidden", "weight", "bias", "targets", "task_weight", "row_weight")
    return tensor_bytes(*(arguments.get(name) for name in names))


def _bytes(arguments: dict[str, Any]) -> int:
    return _inputs(arguments) + 4 * len(arguments["classes"])


def _backward_bytes(arguments: dict[str, Any]) -> int:
    written = tensor_bytes(*(arguments[name] for name in GRAD))
    return _inputs(arguments) + written + 4 * len(arguments["classes"])
