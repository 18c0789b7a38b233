"""The inputs on which sampled_softmax_loss is tested and timed, and what computing them costs at least."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from argus_kernels.core.sample import Cut, Growth, Sample, block, tensor_bytes

GRAD = ("query", "positive", "candidates", "scale")


def _pieces(arguments: dict[str, Any], count: int = 64, rows: int = 32, drawn: int = 512) -> Iterator[dict[str, Any]]:
    """Different rows against different candidates in every piece; ids folded so that accidental hits happen."""
    for index in range(count):
        row = block(index, rows, arguments["query"].shape[0])
        column = block(index, drawn, arguments["candidates"].shape[0])
        piece = dict(arguments)
        for name in ("query", "positive", "positive_ids", "positive_log_q", "row_weight", "query_owner"):
            if arguments.get(name) is not None:
                piece[name] = arguments[name][row]
        for name in ("candidates", "candidate_ids", "log_q", "candidate_owner"):
            if arguments.get(name) is not None:
                piece[name] = arguments[name][column]
        yield {**piece, "positive_ids": piece["positive_ids"] % drawn, "candidate_ids": piece["candidate_ids"] % drawn}


_CUT = Cut("64 pieces of the case: 32 rows against 512 candidates", _pieces)


def samples() -> list[Sample]:
    """Small hostile cases, then 8,192 events against 16,384 negatives and against a whole catalogue of that size."""
    return [
        _case("standard", 5, 6, 3),
        _case("every_argument", 5, 7, 3, positive_log_q=True, row_weight=True, owners=True),
        _case("refined", 5, 6, 3, positive_log_q=True, form="refined"),
        _case("refined_every_argument", 4, 6, 3, positive_log_q=True, row_weight=True, owners=True, form="refined"),
        _case("every_candidate_a_hit", 3, 4, 2, catalogue=1),
        _case("ignored_rows_hold_nan", 5, 4, 3, row_weight=True, garbage=True),
        _case("one_row", 1, 6, 3),
        _case("no_candidate", 3, 0, 2),
        _case("no_row", 0, 4, 2),
        _case("sum", 5, 7, 3, positive_log_q=True, row_weight=True, owners=True, reduction="sum"),
        _case("mean_refined", 4, 6, 3, positive_log_q=True, row_weight=True, form="refined", reduction="mean"),
        _case("sum_without_candidate", 3, 0, 2, reduction="sum"),
        _case("mean_without_row", 0, 4, 2, row_weight=True, reduction="mean"),
        _case("rows_8192_candidates_16384", 8_192, 16_384, 256, catalogue=1_000_000, production=True),
        _case("full_softmax_8192_of_16384", 8_192, 16_384, 256, full=True, production=True),
        _case("mean_8192_of_16384", 8_192, 16_384, 256, catalogue=1_000_000, reduction="mean", production=True),
        _case("full_softmax_mean_8192_of_16384", 8_192, 16_384, 256, full=True, reduction="mean", production=True),
        _case("rows_65536_candidates_16384", 65_536, 16_384, 1_024, catalogue=1_000_000, production=True, gpu=True),
    ]


def tiles(scale: int = 1) -> list[Sample]:
    """Rows, candidates and columns past a tile, several splits; `scale` multiplies rows and candidates."""
    every: dict[str, Any] = {"positive_log_q": True, "row_weight": True, "owners": True}
    sizes = ((150, 140, 37), (5, 300, 8), (130, 270, 64), (130, 140, 128), (20, 140, 136), (66, 140, 256))
    return [
        _case(f"tiles_{width}{end}", rows * scale, drawn * scale, width, catalogue=40, **given)
        for rows, drawn, width in sizes
        for end, given in (
            ("", {}),
            ("_everything", {**every, "garbage": True}),
            ("_refined", {**every, "form": "refined"}),
            *([("_sum", {**every, "reduction": "sum"})] if width == 64 else []),
        )
    ]


def drawn(lengths: Sequence[int], padding: int, variant: int) -> Sample:
    """A case of as many rows as the users have events; `variant` picks the optional arguments."""
    refined = variant // 4 % 2 == 1
    return _case(
        "drawn",
        sum(lengths),
        2 * padding + variant % 7,
        1 + variant % 4,
        positive_log_q=refined or variant % 3 == 0,
        row_weight=variant % 2 == 1,
        owners=variant // 8 % 2 == 1,
        form="refined" if refined else "standard",
    )


def grows(machine: str) -> Growth:
    """Rows of a batch against so many candidates."""
    rows, width = {"tiny": (16, 8), "cpu": (512, 128), "cuda": (8192, 256)}[machine]
    return Growth(
        "candidates",
        (1_000, 4_000, 16_000, 64_000, 250_000, 1_000_000),
        (64, 256, 1024),
        lambda size: _case("candidates", rows, size, width, catalogue=10 * size),
        lambda size, element: 2 * (size + 2 * rows) * width * element + 12 * size,
    )


@dataclass(frozen=True)
class _Case:
    """The sizes of a case and which optional arguments it has."""

    rows: int
    drawn: int
    width: int
    catalogue: int = 9
    positive_log_q: bool = False
    row_weight: bool = False
    owners: bool = False
    form: str = "standard"
    reduction: str = "none"
    garbage: bool = False
    """Rows of weight 0 hold NaN and infinity."""
    full: bool = False
    """The candidates are the whole catalogue, the positives among them."""

    def make(self, generator: torch.Generator, dtype: torch.dtype) -> dict[str, Any]:
        """The arguments of the public function."""
        rows, drawn, width = self.rows, self.drawn, self.width

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

        def integers(high: int, count: int) -> Tensor:
            return torch.randint(0, high, (count,), generator=generator)

        arguments: dict[str, Any] = {
            "query": normal(rows, width),
            "positive": normal(rows, width),
            "candidates": normal(drawn, width),
            "positive_ids": integers(drawn if self.full else self.catalogue, rows),
            "candidate_ids": torch.arange(drawn) if self.full else integers(self.catalogue, drawn),
            "log_q": torch.zeros(drawn) if self.full else torch.rand(drawn, generator=generator) - 3.0,
            "scale": torch.tensor(1 / math.sqrt(width), dtype=torch.promote_types(dtype, torch.float32)),
            "form": self.form,
            "reduction": self.reduction,
        }
        if self.full:
            arguments["positive"] = arguments["candidates"][arguments["positive_ids"]]
        if self.positive_log_q:
            arguments["positive_log_q"] = torch.rand(rows, generator=generator) - 3.0
        if self.row_weight:
            arguments["row_weight"] = torch.rand(rows, generator=generator) + 0.5
            arguments["row_weight"][::3] = 0
        if self.owners:
            arguments["query_owner"] = integers(3, rows)
            arguments["candidate_owner"] = integers(4, drawn) - 1
        if self.garbage:
            arguments["query"][::3] = torch.nan
            arguments["positive"][::3] = torch.inf
        return arguments


def _case(
    name: str, rows: int, drawn: int, width: int, *, production: bool = False, gpu: bool = False, **options: Any
) -> Sample:
    """options: those of `_Case`."""
    case = _Case(rows, drawn, width, **options)
    return Sample(
        name,
        case.make,
        grad=GRAD,
        gradcheck=case.form == "standard",
        production=production,
        gpu=gpu,
        flops=_flops,
        bytes=_bytes,
        backward_flops=_backward_flops,
        backward_bytes=_backward_bytes,
        training_flops=lambda arguments: 3 * _flops(arguments),
        training_bytes=lambda arguments: _bytes(arguments) + _rows_backward_bytes(arguments),
        cut=_CUT,
    )


def _flops(arguments: dict[str, Any]) -> int:
    """The scores; the two passes together have three products of this size at least."""
    rows, width = arguments["query"].shape
    return 2 * rows * width * (arguments["candidates"].shape[0] + 1)


def _backward_flops(arguments: dict[str, Any]) -> int:
    """Two products of the size of the scores; one multiplication an element where the forward pass kept gradients."""
    if _forward_keeps_gradients(arguments):
        return sum(arguments[name].numel() for name in GRAD)
    return 2 * _flops(arguments)


def _forward_keeps_gradients(arguments: dict[str, Any]) -> bool:
    return arguments["reduction"] != "none" and arguments["query"].dtype != torch.float16


def _inputs(arguments: dict[str, Any]) -> int:
    return tensor_bytes(*(value for value in arguments.values() if isinstance(value, Tensor)))


def _bytes(arguments: dict[str, Any]) -> int:
    return _inputs(arguments) + 8 * arguments["query"].shape[0]


def _backward_bytes(arguments: dict[str, Any]) -> int:
    """What the products read and write; where the forward pass kept the gradients, they are read and written."""
    if _forward_keeps_gradients(arguments):
        return 2 * tensor_bytes(*(arguments[name] for name in GRAD))
    return _rows_backward_bytes(arguments)


def _rows_backward_bytes(arguments: dict[str, Any]) -> int:
    """The inputs, both outputs and their gradients read; the gradients written."""
    return _inputs(arguments) + 16 * arguments["query"].shape[0] + tensor_bytes(*(arguments[name] for name in GRAD))
