"""The inputs on which pairwise_loss is tested and timed, and what computing them costs at least."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from argus_kernels.core.sample import Cut, Sample, tensor_bytes
from argus_kernels.ops.pairwise_loss import reference
from argus_kernels.ops.pairwise_loss.arguments import Arguments

SECONDS_BETWEEN_EVENTS = 10


def _pieces(arguments: dict[str, Any], count: int = 64, longest: int = 128) -> Iterator[dict[str, Any]]:
    """One user in every piece."""
    offsets = arguments["offsets"].tolist()
    spans = [span for span in pairwise(offsets) if span[1] > span[0]]
    for begin, end in spans[:count]:
        row = slice(begin, min(end, begin + longest))
        cut = {name: arguments[name][row] for name in ("scores", "grades", "times")}
        yield {**arguments, **cut, "offsets": arguments["offsets"].new_tensor([0, row.stop - row.start])}


_CUT = Cut("the first 128 events of 64 users of the case, one by one", _pieces)


def samples() -> list[Sample]:
    """Small hostile cases, then 65,536 events of 64 users with windows of about 50 events."""
    return [
        _case("jagged", [4, 0, 1, 7], 25),
        _case("padded_tail", [3, 5], 40, padding=3),
        _case("times_out_of_order", [6, 2], 25, shuffled=True),
        _case("window_of_zero", [6], 0, step=0.3),
        _case("all_grades_equal", [5], 100, grades=1),
        _case("scores_in_the_thousands", [6], 100, spread=3e3),
        _case("empty_users", [0, 0], 10),
        _case("no_user", [], 10),
        _case("events_65536", [], 25 * SECONDS_BETWEEN_EVENTS, production=True),
        _case("events_1048576", [], 25 * SECONDS_BETWEEN_EVENTS, users=1_024, production=True, gpu=True),
    ]


def tiles(scale: int = 1) -> list[Sample]:
    """Windows over several blocks of events; `scale` multiplies the users' lengths."""
    lengths = [length * scale for length in (180, 0, 65, 4)]
    return [
        _case("tiles", lengths, 250, padding=3),
        _case("tiles_out_of_order", lengths, 250, padding=3, shuffled=True),
        _case("tiles_in_one_window", lengths, 10**9),
    ]


def drawn(lengths: Sequence[int], padding: int, variant: int) -> Sample:
    """A case for any users; `variant` picks window, grades and the order of times."""
    window = (0, 25, 200)[variant % 3]
    return _case(
        "drawn", list(lengths), window, padding=padding, shuffled=variant // 3 % 2 == 1, grades=1 + variant % 5
    )


def _case(
    name: str,
    lengths: list[int],
    window: int,
    *,
    padding: int = 0,
    shuffled: bool = False,
    step: float = float(SECONDS_BETWEEN_EVENTS),
    grades: int = 4,
    spread: float = 1.0,
    users: int = 64,
    production: bool = False,
    gpu: bool = False,
) -> Sample:
    def make(generator: torch.Generator, dtype: torch.dtype) -> dict[str, Any]:
        counts = _production_lengths(users, generator) if production else torch.tensor(lengths, dtype=torch.int64)
        total = int(counts.sum()) + padding
        gaps = torch.rand(total, generator=generator, dtype=torch.float64) * 2 * step
        times = gaps.cumsum(0).long() + 1_600_000_000
        if shuffled:
            times = times[torch.randperm(total, generator=generator)]
        return {
            "scores": (torch.randn(total, generator=generator, dtype=torch.float64) * spread).to(dtype),
            "grades": torch.randint(0 if grades == 1 else -1, grades, (total,), generator=generator),
            "offsets": torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)]).int(),
            "times": times,
            "window": window,
        }

    return Sample(
        name,
        make,
        grad=("scores",),
        production=production,
        gpu=gpu,
        flops=_flops,
        bytes=_bytes,
        backward_flops=_flops,
        backward_bytes=_backward_bytes,
        cut=_CUT,
    )


def _production_lengths(users: int, generator: torch.Generator) -> Tensor:
    """Lengths log-normal around 1,024, 1,024 a user together."""
    total = 1_024 * users
    weight = torch.randn(users, generator=generator).mul(0.6).exp()
    lengths = (weight / weight.sum() * total).long().clamp_min(1)
    lengths[lengths.argmax()] += total - int(lengths.sum())
    return lengths


def _flops(arguments: dict[str, Any]) -> int:
    """A difference, an exponential, a logarithm or a quotient, and a sum for each pair."""
    given = Arguments(*(arguments[name] for name in Arguments._fields))
    return 4 * int(reference.forward(given)[1])


def _inputs(arguments: dict[str, Any]) -> int:
    return tensor_bytes(*(value for value in arguments.values() if isinstance(value, Tensor)))


def _bytes(arguments: dict[str, Any]) -> int:
    return _inputs(arguments) + 20


def _backward_bytes(arguments: dict[str, Any]) -> int:
    return _inputs(arguments) + tensor_bytes(arguments["scores"]) + 4
