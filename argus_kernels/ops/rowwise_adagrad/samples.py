"""The inputs on which rowwise_adagrad_ is tested and timed, and what computing them costs at least."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from argus_kernels.core.sample import Cut, Sample, tensor_bytes


def _pieces(arguments: dict[str, Any], given: int = 4096, rows: int = 8192) -> Iterator[dict[str, Any]]:
    table = arguments["table"][:rows]
    cut = {"rows": arguments["rows"][:given], "row_gradients": arguments["row_gradients"][:given]}
    folded = torch.where(cut["rows"] < 0, -1, cut["rows"] % table.shape[0])
    yield {**arguments, **cut, "rows": folded, "table": table, "state": arguments["state"][:rows]}


_CUT = Cut("4,096 gradients of the case, tables cut to 8,192 rows", _pieces)


def samples() -> list[Sample]:
    """Small hostile cases, then the touched rows of 16,384 events in tables of a million and of a hundred thousand."""
    return [
        _case("repeated_rows", 9, 4, 14, weight_decay=0.1),
        _case("skipped_rows", 6, 3, 8, skipped=True),
        _case("one_row_table", 1, 5, 6),
        _case("no_row", 4, 3, 0),
        _case("rows_32768_of_1m", 1_000_000, 64, 32_768, production=True),
        _case("rows_16384_of_100k", 100_000, 64, 16_384, production=True),
        _case("rows_262144_of_4m", 4_000_000, 64, 262_144, production=True, gpu=True),
    ]


def tiles(scale: int = 1) -> list[Sample]:
    """Rows wider than a warp, runs over several pieces; `scale` multiplies the gradient rows."""
    return [
        *(_case(f"tiles_{width}", 40, width, 150 * scale, weight_decay=0.1, skipped=True) for width in (64, 128, 256)),
        _case("tiles_hot_rows", 3, 64, 1_000 * scale**2),
    ]


def drawn(lengths: Sequence[int], padding: int, variant: int) -> Sample:
    """A case of as many gradient rows as the users have events; `variant` picks table and settings."""
    size = 1 + variant % 11
    return _case(
        "drawn", size, 1 + variant % 5, sum(lengths), weight_decay=(0.0, 0.1)[variant % 2], skipped=padding > 0
    )


def _case(
    name: str,
    size: int,
    width: int,
    count: int,
    *,
    weight_decay: float = 0.0,
    skipped: bool = False,
    production: bool = False,
    gpu: bool = False,
) -> Sample:
    def make(generator: torch.Generator, dtype: torch.dtype) -> dict[str, Any]:
        drawn = torch.float32 if production else torch.float64
        wide = torch.promote_types(dtype, torch.float32)
        rows = torch.randint(0, size, (count,), generator=generator)
        if skipped:
            rows[::3] = -1
        return {
            "table": torch.randn(size, width, generator=generator, dtype=drawn).to(dtype),
            "state": torch.rand(size, generator=generator).to(wide),
            "rows": rows,
            "row_gradients": torch.randn(count, width, generator=generator, dtype=drawn).to(dtype),
            "lr": 0.125,
            "eps": 1e-6,
            "weight_decay": weight_decay,
        }

    return Sample(name, make, production=production, gpu=gpu, flops=_flops, bytes=_bytes, cut=_CUT)


def _flops(arguments: dict[str, Any]) -> int:
    """The sum of repeated rows, the square and its sum, the scaling and the difference."""
    return 5 * int(arguments["row_gradients"].numel())


def _bytes(arguments: dict[str, Any]) -> int:
    """Gradients and rows read once; each touched row and its state read and written once."""
    rows, table, state = arguments["rows"], arguments["table"], arguments["state"]
    touched = int(rows[rows >= 0].unique().numel())
    row_bytes = table.shape[1] * table.element_size() + state.element_size()
    return tensor_bytes(rows, arguments["row_gradients"]) + 2 * touched * row_bytes
