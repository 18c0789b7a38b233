"""Batches of user histories on which the attention ops are tested and timed, and what attention over them costs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from argus_kernels.attention.relative_bias import visible_pairs
from argus_kernels.core.sample import Cut, Sample, tensor_bytes


@dataclass(frozen=True)
class HistoryCase:
    """A batch of histories: the users' lengths, rows of padding behind them, and which optional arguments it has."""

    name: str
    lengths: tuple[int, ...]
    heads: int = 2
    width: int = 4
    padding: int = 0
    mask: str = "causal"
    """"causal", "lagged" (visible[i] is drawn from 0 … i) or "candidates" (the last third sees the first two)."""
    position_buckets: int = 0
    time_buckets: int = 0
    window: int | None = None
    production: bool = False
    gpu: bool = False
    extra: tuple[tuple[str, Any], ...] = ()
    """Further arguments, which one op has and the others have not."""

    def make(self, generator: torch.Generator, dtype: torch.dtype) -> dict[str, Any]:
        """Draws the arguments."""
        total = sum(self.lengths) + self.padding
        shape = (total, self.heads, self.width)
        arguments: dict[str, Any] = {
            name: torch.randn(shape, generator=generator).to(dtype) for name in ("q", "k", "v")
        }
        arguments["offsets"] = _offsets(self.lengths)
        arguments["max_length"] = max(self.lengths, default=0)
        if self.mask != "causal":
            arguments["visible"] = self._visible(generator)
        if self.position_buckets:
            table = torch.randn(self.heads, self.position_buckets, generator=generator)
            arguments["position_bias"] = table.to(dtype)
        if self.time_buckets:
            arguments["time_bias"] = torch.randn(self.heads, self.time_buckets, generator=generator).to(dtype)
            arguments["query_time"], arguments["key_time"] = self._times(generator)
        if self.window is not None:
            arguments["window"] = self.window
        arguments.update(self.extra)
        return arguments

    def scaled(self, scale: int) -> HistoryCase:
        """The same users with `scale` times as many events."""
        lengths = tuple(scale * length for length in self.lengths)
        return replace(self, lengths=lengths, window=None if self.window is None else scale * self.window)

    def grad(self) -> tuple[str, ...]:
        """The arguments that get gradients."""
        tables = (("position_bias", self.position_buckets), ("time_bias", self.time_buckets))
        return ("q", "k", "v", *(name for name, buckets in tables if buckets))

    def _visible(self, generator: torch.Generator) -> Tensor:
        parts = [torch.zeros(0, dtype=torch.int32)]
        for length in self.lengths:
            place = torch.arange(length, dtype=torch.int32)
            if self.mask == "candidates":
                parts.append(place.clamp(max=length - length // 3))
            else:
                share = torch.rand(length, generator=generator, dtype=torch.float64)
                parts.append((share * (place + 1)).floor().int().clamp(max=place))
        parts.append(torch.full((self.padding,), -7, dtype=torch.int32))
        return torch.cat(parts)

    def _times(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Events seconds to days apart; a query's time is that of the event after it."""
        total = sum(self.lengths) + self.padding
        gaps = torch.rand(total + 1, generator=generator, dtype=torch.float64).mul(12).exp().long()
        times = 1_700_000_000 + gaps.cumsum(0)
        return times[1:].clone(), times[:-1].clone()


def history_samples(
    cases: Sequence[HistoryCase], *, forward_products: int, backward_products: int, outputs: Callable[[Tensor], int]
) -> list[Sample]:
    """One sample for each case.

    The products are the numbers of matrix products of size [pairs, Dh] that a pass needs, 2 · Dh FLOPs for every
    visible pair and head each; `outputs` gives the bytes of what the forward pass writes, from q.
    """
    return [_sample(case, forward_products, backward_products, outputs) for case in cases]


def _history_pieces(arguments: dict[str, Any], longest: int = 640) -> Iterator[dict[str, Any]]:
    """One piece: every user's first events."""
    offsets = arguments["offsets"].tolist()
    spans = [(begin, min(end, begin + longest)) for begin, end in pairwise(offsets)]
    device = arguments["q"].device
    rows = torch.cat([torch.arange(begin, end) for begin, end in spans]).to(device)
    total = arguments["q"].shape[0]
    piece = {
        name: value[rows] if isinstance(value, Tensor) and value.dim() and value.shape[0] == total else value
        for name, value in arguments.items()
        if name != "offsets"
    }
    lengths = torch.tensor([0] + [end - begin for begin, end in spans])
    piece["offsets"] = lengths.cumsum(0).int().to(device)
    piece["max_length"] = max(end - begin for begin, end in spans)
    yield piece


FIRST_EVENTS = Cut("every user's first 640 events of the case", _history_pieces)


def _sample(
    case: HistoryCase, forward_products: int, backward_products: int, outputs: Callable[[Tensor], int]
) -> Sample:
    def product_flops(arguments: dict[str, Any]) -> int:
        q = arguments["q"]
        pairs = visible_pairs(arguments["offsets"], q.shape[0], arguments.get("visible"), arguments.get("window"))
        return 2 * pairs * q.shape[1] * q.shape[2]

    def read(arguments: dict[str, Any]) -> int:
        return tensor_bytes(*(value for value in arguments.values() if isinstance(value, Tensor)))

    def backward_bytes(arguments: dict[str, Any]) -> int:
        gradients = tensor_bytes(*(arguments[name] for name in case.grad()))
        return read(arguments) + 2 * outputs(arguments["q"]) + gradients

    return Sample(
        case.name,
        case.make,
        case.grad(),
        case.production,
        gpu=case.gpu,
        flops=lambda arguments: forward_products * product_flops(arguments),
        bytes=lambda arguments: read(arguments) + outputs(arguments["q"]),
        backward_flops=lambda arguments: backward_products * product_flops(arguments),
        backward_bytes=backward_bytes,
        cut=FIRST_EVENTS,
    )


SMALL_CASES = (
    HistoryCase(
        "everything", (0, 5, 1), width=3, padding=2, mask="lagged", position_buckets=3, time_buckets=50, window=3
    ),
    HistoryCase("no_users", (), width=8),
    HistoryCase("no_users_padding", (), width=8, padding=3, position_buckets=4, time_buckets=2),
    HistoryCase("all_empty", (0, 0, 0), width=8, padding=2),
    HistoryCase("one_event", (1,)),
    HistoryCase("jagged_padded", (0, 3, 1, 0, 2, 0), width=3, padding=2),
    HistoryCase("biases", (3, 0, 2), width=2, padding=1, position_buckets=2, time_buckets=20),
    HistoryCase("lagged", (4, 1, 2), width=3, padding=1, mask="lagged", time_buckets=30),
    HistoryCase("candidates", (6, 1), width=2, mask="candidates", position_buckets=8),
    HistoryCase("window", (5, 2), width=3, window=2, padding=1),
    # A head width that the CUDA kernels take.
    HistoryCase(
        "width_8", (0, 5, 1), heads=1, width=8, padding=1, mask="lagged", position_buckets=3, time_buckets=50, window=3
    ),
)
"""For tests: every differentiable input has few elements, because gradcheck runs over each of them."""


def tile_cases(scale: int = 1) -> tuple[HistoryCase, ...]:
    """Histories that end inside a tile, on its edge and beyond it; widths that fill their tile and widths that do not.

    `scale` multiplies lengths and windows. A kernel has tiles of 128 queries or keys at most.
    """
    cases = (
        HistoryCase("tiles_16", (0, 37, 1, 0, 130, 64), width=16, heads=1, padding=3),
        HistoryCase("tiles_64", (130, 0, 2), width=64, heads=1, padding=1),
        HistoryCase(
            "tiles_64_lagged", (5, 150, 33), width=64, padding=70, mask="lagged", position_buckets=9, time_buckets=50
        ),
        HistoryCase("tiles_40_far", (170, 3), width=40, heads=1, mask="lagged", position_buckets=90, window=100),
        HistoryCase("tiles_24_candidates", (70, 150), width=24, padding=1, mask="candidates", time_buckets=200),
        HistoryCase(
            "tiles_32_candidates_window", (200,), width=32, heads=1, mask="candidates", position_buckets=1, window=20
        ),
        HistoryCase("tiles_104", (140, 2), width=104, heads=1, position_buckets=60, time_buckets=60, window=70),
        HistoryCase("tiles_128", (70, 129), width=128, heads=1, mask="lagged"),
        HistoryCase(
            "tiles_128_biases", (70, 66), width=128, heads=1, mask="candidates", position_buckets=40, time_buckets=50
        ),
        HistoryCase("tiles_256", (70, 65), width=256, heads=1),
        HistoryCase(
            "tiles_256_lagged", (70, 3), width=256, heads=1, mask="lagged", time_buckets=70, position_buckets=20
        ),
        HistoryCase("tiles_136", (33,), width=136, heads=1),
    )
    return tuple(case.scaled(scale) for case in cases)


MASKS = ("causal", "lagged", "candidates")


def drawn_case(lengths: Sequence[int], padding: int, variant: int) -> HistoryCase:
    """A small case for any lengths; `variant` picks mask, biases and window in turn."""
    return HistoryCase(
        "drawn",
        tuple(lengths),
        width=3 + variant % 2,
        padding=padding,
        mask=MASKS[variant % 3],
        position_buckets=(0, 5)[variant // 3 % 2],
        time_buckets=(0, 30)[variant // 6 % 2],
        window=(None, 1, 4)[variant // 12 % 3],
    )


# 16 quantiles of a log-normal distribution with mean 700 whose longest is 4,096 (sigma 1.394).
LOGNORMAL_LENGTHS = (23, 49, 75, 103, 136, 174, 219, 274, 341, 425, 535, 684, 901, 1248, 1917, 4096)


GPU_EVENTS = 32_768


def production_cases() -> tuple[HistoryCase, ...]:
    """Histories of real length, heads 4 × 64, without and with both bias tables; then those that fill a GPU.

    The latter are the shapes that attention kernels publish (32,768 events in users of equal length, model width 2,048
    in heads of 64 and of 128), and a jagged batch of 64 users.
    """
    shapes = (("lognormal_16", LOGNORMAL_LENGTHS), ("single_8192", (8192,)))
    biased = (("", 0), ("_biases", 128))
    uniform = [(length, width) for width in (64, 128) for length in (2048, 4096, 8192)]
    return (
        *(_production(name + end, users, 4, 64, buckets) for name, users in shapes for end, buckets in biased),
        *(_uniform(length, width) for length, width in uniform),
        *(
            _production("lognormal_64" + end, 4 * LOGNORMAL_LENGTHS, 16, 64, buckets, gpu=True)
            for end, buckets in biased
        ),
    )


def _uniform(length: int, width: int) -> HistoryCase:
    users = (length,) * (GPU_EVENTS // length)
    return _production(f"uniform_{length}_head_{width}", users, 2048 // width, width, gpu=True)


def _production(
    name: str, lengths: tuple[int, ...], heads: int, width: int, buckets: int = 0, *, gpu: bool = False
) -> HistoryCase:
    return HistoryCase(
        name,
        lengths,
        heads=heads,
        width=width,
        position_buckets=buckets,
        time_buckets=buckets,
        production=True,
        gpu=gpu,
    )


def _offsets(lengths: Sequence[int]) -> Tensor:
    return torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)


HISTORY_SIZES, FEW_HISTORY_SIZES = (512, 1024, 2048, 4096, 8192), (32, 64, 128)
"""Events of a user over which attention grows in benchmarks."""


def grown_case(events: int) -> HistoryCase:
    """One user of so many events, with both bias tables."""
    return HistoryCase("one_user", (events,), heads=4, width=64, position_buckets=128, time_buckets=128)


def held_by_history(events: int, element: int) -> int:
    """Bytes of `grown_case`: q, k, v and their gradients, and two times of every event."""
    return events * (6 * 4 * 64 * element + 16)
