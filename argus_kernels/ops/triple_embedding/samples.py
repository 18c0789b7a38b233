"""The inputs on which triple_embedding is tested and timed, and what computing them costs at least."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from argus_kernels.core.sample import Cut, Sample, block, tensor_bytes

GRAD = ("tables", "weight", "bias")

# Two hashes of the item, the artist, four small features, one of them looked up twice.
PRODUCTION_TABLES = ((1_000_000, 64), (100_000, 64), (24, 16), (168, 16), (50, 16), (900, 16))
PRODUCTION_COLUMNS = (0, 0, 1, 2, 3, 4, 5, 5)


def _pieces(arguments: dict[str, Any], count: int = 4, events: int = 256, rows: int = 2048) -> Iterator[dict[str, Any]]:
    tables = [table[:rows] for table in arguments["tables"]]
    sizes = arguments["ids"].new_tensor([tables[column].shape[0] for column in arguments["columns"]])[:, None]
    for index in range(count):
        ids = arguments["ids"][:, block(index, events, arguments["ids"].shape[1])]
        yield {**arguments, "tables": tables, "ids": torch.where(ids < 0, -1, ids % sizes)}


_CUT = Cut("4 × 256 events of the case, tables cut to 2,048 rows", _pieces)


def samples() -> list[Sample]:
    """Small hostile cases, then 16,384 events of eight columns over six tables with dense and sparse gradients."""
    shared = ((5, 3), (4, 2), (1, 1))
    return [
        _case("shared_table", 6, shared, (0, 1, 0, 2), 4),
        _case("no_bias", 6, shared[:2], (1, 0), 3, bias=False),
        _case("all_missing", 4, ((3, 2),), (0,), 2, missing=1.0),
        _case("one_row_table", 9, ((1, 2),), (0, 0), 3),
        # Tables of few rows against the events, which a backend may project whole, beside one of many.
        _case("small_and_large_tables", 70, ((5, 16), (300, 12), (3, 20)), (0, 1, 0, 2), 72),
        _case("no_event", 0, ((3, 2),), (0,), 2),
        _case("no_column", 3, (), (), 2),
        _case("events_16384", 16_384, PRODUCTION_TABLES, PRODUCTION_COLUMNS, 256, missing=0.0, production=True),
        _case(
            "events_16384_sparse",
            16_384,
            PRODUCTION_TABLES,
            PRODUCTION_COLUMNS,
            256,
            missing=0.0,
            sparse=True,
            production=True,
        ),
        *(
            _case(
                "events_131072" + ("_sparse" if sparse else ""),
                131_072,
                PRODUCTION_TABLES,
                PRODUCTION_COLUMNS,
                1_024,
                missing=0.0,
                sparse=sparse,
                production=True,
                gpu=True,
            )
            for sparse in (False, True)
        ),
    ]


def tiles(scale: int = 1) -> list[Sample]:
    """Several tiles of events and outputs, rows of whole chunks and of odd widths; `scale` multiplies the events.

    Tables are the model's, not the batch's: their heights are compiled in.
    """
    tables = ((40, 24), (3, 5), (2_000, 8), (24, 20))
    # torch adds no sparse gradients of float16 on a CPU, so that a table of sparse gradients is read once.
    kinds: tuple[tuple[str, tuple[int, ...], dict[str, Any]], ...] = (
        ("", (0, 1, 0, 2, 3), {}),
        ("_sparse_no_bias", (3, 2, 1, 0), {"sparse": True, "bias": False}),
    )
    return [
        _case(f"tiles_{width}{end}", 150 * scale, tables, columns, width, **given)
        for width in (64, 128, 136, 256)
        for end, columns, given in kinds
    ]


def drawn(lengths: Sequence[int], padding: int, variant: int) -> Sample:
    """A case of as many rows as the users have events; `variant` picks the optional arguments."""
    tables = ((7, 3), (4, 2), (1, 1))
    columns = ((0, 1, 0, 2), (2,), (1, 1, 0))[variant % 3]
    missing = (0.0, 0.3)[variant // 6 % 2]
    return _case("drawn", sum(lengths) + padding, tables, columns, 4, bias=variant % 2 == 0, missing=missing)


def _case(
    name: str,
    events: int,
    tables: tuple[tuple[int, int], ...],
    columns: tuple[int, ...],
    width: int,
    *,
    bias: bool = True,
    missing: float = 0.2,
    sparse: bool = False,
    production: bool = False,
    gpu: bool = False,
) -> Sample:
    def make(generator: torch.Generator, dtype: torch.dtype) -> dict[str, Any]:
        def normal(*shape: int) -> Tensor:
            drawn = torch.float32 if production else torch.float64
            return torch.randn(*shape, generator=generator, dtype=drawn).to(dtype)

        arguments: dict[str, Any] = {
            "ids": _ids(events, [tables[column][0] for column in columns], missing, generator),
            "tables": [normal(rows, row_width) for rows, row_width in tables],
            "columns": list(columns),
            "weight": normal(sum(tables[column][1] for column in columns), width),
            "bias": normal(width) if bias else None,
        }
        return {**arguments, "sparse": True} if sparse else arguments

    return Sample(
        name,
        make,
        grad=GRAD if bias else GRAD[:2],
        production=production,
        gpu=gpu,
        flops=_flops,
        bytes=_bytes,
        backward_flops=lambda arguments: 2 * _flops(arguments),
        backward_bytes=_backward_bytes,
        cut=_CUT,
    )


def _ids(events: int, table_rows: list[int], missing: float, generator: torch.Generator) -> Tensor:
    """[K, T], skewed towards low row numbers as real catalogues are towards popular items."""
    uniform = torch.rand(len(table_rows), events, generator=generator)
    rows = torch.tensor(table_rows, dtype=torch.int64)[:, None]
    ids = (uniform.square() * rows).long().minimum(rows - 1)
    absent = torch.rand(len(table_rows), events, generator=generator) < missing
    return torch.where(absent, -1, ids)


def _flops(arguments: dict[str, Any]) -> int:
    """The projection; the backward pass has two products of the same size."""
    return 2 * arguments["ids"].shape[1] * arguments["weight"].numel()


def _read_rows(arguments: dict[str, Any]) -> list[int]:
    """How many different rows of each table are read."""
    counts = []
    for index in range(len(arguments["tables"])):
        readers = [k for k, column in enumerate(arguments["columns"]) if column == index]
        ids = arguments["ids"][readers]
        counts.append(int(ids[ids >= 0].unique().numel()))
    return counts


def _row_bytes(arguments: dict[str, Any]) -> int:
    tables = arguments["tables"]
    return sum(
        count * table.shape[1] * table.element_size()
        for count, table in zip(_read_rows(arguments), tables, strict=True)
    )


def _output_bytes(arguments: dict[str, Any]) -> int:
    weight = arguments["weight"]
    return arguments["ids"].shape[1] * weight.shape[1] * weight.element_size()


def _bytes(arguments: dict[str, Any]) -> int:
    read = tensor_bytes(arguments["ids"], arguments["weight"], arguments["bias"])
    return read + _row_bytes(arguments) + _output_bytes(arguments)


def _backward_bytes(arguments: dict[str, Any]) -> int:
    """What the forward pass reads and the output's gradient read; all gradients written, dense tables whole."""
    written = tensor_bytes(arguments["weight"], arguments["bias"])
    if arguments.get("sparse"):
        written += _row_bytes(arguments) + 8 * sum(_read_rows(arguments))
    else:
        written += tensor_bytes(*arguments["tables"])
    return _bytes(arguments) + written
