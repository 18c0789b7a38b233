"""Batches of user histories on which the attention ops are tested and timed, and what attention over them costs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from argus_kernels.attention.mask_rule import Queries, packed_queries, visible_pairs
from argus_kernels.core.sample import Cut, Sample, tensor_bytes


@dataclass(frozen=True)
class HistoryCase:
    """A batch of histories: the users' lengths, rows of padding behind them, and which optional arguments it has."""

    name: str
    lengths: tuple[int, ...]
    heads: int = 2
    width: int = 4
    padding: int = 0
    key_lengths: tuple[int, ...] | None = None
    """The users' numbers of keys; None where the keys are the queries' own rows."""
    key_heads: int | None = None
    key_padding: int = 0
    mask: str = "causal"
    """A name of MASKS, or "last_1000"."""
    prefix: int = 0
    dropout: float = 0.0
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
        keys = total if self.key_lengths is None else sum(self.key_lengths) + self.key_padding
        key_heads = self.heads if self.key_heads is None else self.key_heads
        shapes = {"q": (total, self.heads), "k": (keys, key_heads), "v": (keys, key_heads)}
        arguments: dict[str, Any] = {
            name: torch.randn(*shape, self.width, generator=generator).to(dtype) for name, shape in shapes.items()
        }
        arguments["offsets"] = _offsets(self.lengths)
        arguments["max_length"] = max(self.lengths, default=0)
        if self.key_lengths is not None:
            arguments["key_offsets"] = _offsets(self.key_lengths)
            arguments["key_max_length"] = max(self.key_lengths, default=0)
        arguments.update(self._numbers(generator))
        for name, buckets in (("position_bias", self.position_buckets), ("time_bias", self.time_buckets)):
            if buckets:
                arguments[name] = torch.randn(self.heads, buckets, generator=generator).to(dtype)
        if self.time_buckets:
            arguments["query_time"], arguments["key_time"] = self._times(total, keys, generator)
        if self.window is not None:
            arguments["window"] = self.window
        if self.prefix:
            arguments["prefix"] = self.prefix
        if self.dropout:
            seeds = torch.randint(-(2**62), 2**62, (len(self.lengths),), generator=generator)
            arguments |= {"dropout": self.dropout, "dropout_seed": seeds}
        arguments.update(self.extra)
        return arguments

    def scaled(self, scale: int) -> HistoryCase:
        """The same users with `scale` times as many events."""
        lengths = tuple(scale * length for length in self.lengths)
        keys = None if self.key_lengths is None else tuple(scale * length for length in self.key_lengths)
        window = None if self.window is None else scale * self.window
        return replace(self, lengths=lengths, key_lengths=keys, window=window, prefix=scale * self.prefix)

    def grad(self) -> tuple[str, ...]:
        """The arguments that get gradients."""
        tables = (("position_bias", self.position_buckets), ("time_bias", self.time_buckets))
        return ("q", "k", "v", *(name for name, buckets in tables if buckets))

    def _numbers(self, generator: torch.Generator) -> dict[str, Tensor]:
        """The numbers of the mask rule, int32 [rows]; rows of padding hold what no row of a user may."""
        if self.mask == "causal":
            return {}
        keys = self.lengths if self.key_lengths is None else self.key_lengths
        mask = _last_1000 if self.mask == "last_1000" else MASKS[self.mask]
        found: dict[str, list[Tensor]] = {}
        for length, key_length in zip(self.lengths, keys, strict=True):
            for name, numbers in mask(length, key_length, generator).items():
                found.setdefault(name, []).append(numbers.int())
        if not found:
            found = {name: [] for name in mask(1, 1, generator)}
        padding = torch.full((self.padding,), -7, dtype=torch.int32)
        return {name: torch.cat([*numbers, padding]) for name, numbers in found.items()}

    @staticmethod
    def _times(total: int, keys: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Events seconds to days apart; a query's time is that of the event after it."""
        gaps = torch.rand(max(total, keys) + 1, generator=generator, dtype=torch.float64).mul(12).exp().long()
        times = 1_700_000_000 + gaps.cumsum(0)
        return times[1 : total + 1].clone(), times[:keys].clone()


def _lagged(length: int, keys: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Each query sees the events before one drawn from 0 … a."""
    place = keys - length + torch.arange(length)
    share = torch.rand(length, generator=generator, dtype=torch.float64)
    return {"visible": (share * (place + 1)).floor().long().minimum(place).clamp(min=0)}


def _candidates(length: int, keys: int, generator: torch.Generator) -> dict[str, Tensor]:
    """The last third are candidates, which see what is before them all and themselves."""
    place = keys - length + torch.arange(length)
    return {"visible": place.clamp(0, max(keys - length // 3, 0))}


def _placed_candidates(length: int, keys: int, generator: torch.Generator) -> dict[str, Tensor]:
    """The same, all standing at the end of the history."""
    visible = _candidates(length, keys, generator)["visible"]
    return {"visible": visible, "position": visible}


def _last_1000(length: int, keys: int, generator: torch.Generator) -> dict[str, Tensor]:
    """The last 1,000 keys are candidates, all standing at the end of the history."""
    visible = (keys - length + torch.arange(length)).clamp(0, max(keys - 1000, 0))
    return {"visible": visible, "position": visible}


def _groups(length: int, keys: int, generator: torch.Generator) -> dict[str, Tensor]:
    """The last two thirds are candidates in groups of three, each of which sees its group."""
    place = keys - length + torch.arange(length)
    history = max(keys - 2 * length // 3, 0)
    first = history + (place - history) // 3 * 3
    candidate = place >= history
    return {
        "visible": place.clamp(0, history),
        "position": place.clamp(max=history),
        "own_begin": torch.where(candidate, first, place).clamp(0, keys),
        "own_end": torch.where(candidate, first + 3, place + 1).clamp(0, keys),
    }


def _context(length: int, keys: int, generator: torch.Generator) -> dict[str, Tensor]:
    """The first quarter of the keys are a context, whose rows see one another."""
    place = keys - length + torch.arange(length)
    return {"visible": place.clamp(min=keys // 4, max=keys)}


def _cross(length: int, keys: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Every query sees every key."""
    nothing = torch.zeros(length, dtype=torch.long)
    return {"visible": nothing + keys, "own_begin": nothing, "own_end": nothing}


def _any(length: int, keys: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Four numbers drawn one by one."""

    def drawn(least: int, most: int) -> Tensor:
        return torch.randint(least, most + 1, (length,), generator=generator)

    one, other = drawn(0, keys), drawn(0, keys)
    return {
        "visible": drawn(0, keys),
        "position": drawn(-3, keys + 3),
        "own_begin": one.minimum(other),
        "own_end": one.maximum(other),
    }


MASKS: dict[str, Callable[[int, int, torch.Generator], dict[str, Tensor]]] = {
    "causal": lambda length, keys, generator: {},
    "lagged": _lagged,
    "candidates": _candidates,
    "placed_candidates": _placed_candidates,
    "groups": _groups,
    "context": _context,
    "cross": _cross,
    "any": _any,
}
"""The numbers of one user's queries, by the mask that they give."""


def history_samples(
    cases: Sequence[HistoryCase], *, forward_products: int, backward_products: int, outputs: Callable[[Tensor], int]
) -> list[Sample]:
    """One sample for each case.

    The products are the numbers of matrix products of size [pairs, Dh] that a pass needs, 2 · Dh FLOPs for every
    visible pair and head each; `outputs` gives the bytes of what the forward pass writes, from q.
    """
    return [_sample(case, forward_products, backward_products, outputs) for case in cases]


def _history_pieces(arguments: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """One piece: every user's first events; its first queries and all its keys where these have rows of their own."""
    offsets = arguments["offsets"].tolist()
    longest = 64 if "key_offsets" in arguments else 640
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


FIRST_EVENTS = Cut("every user's first 640 events of the case, or first 64 queries of its keys", _history_pieces)


def _queries(arguments: dict[str, Any]) -> Queries:
    """What the mask rule knows of a case's queries."""
    names = ("key_offsets", "visible", "position", "own_begin", "own_end")
    given = {name: arguments.get(name) for name in names}
    prefix, offsets = arguments.get("prefix"), arguments["offsets"]
    if isinstance(prefix, int):
        prefix = torch.full((offsets.shape[0] - 1,), prefix, device=offsets.device)
    return packed_queries(offsets, arguments["q"].shape[0], prefix=prefix, **given)


def _sample(
    case: HistoryCase, forward_products: int, backward_products: int, outputs: Callable[[Tensor], int]
) -> Sample:
    def product_flops(arguments: dict[str, Any]) -> int:
        q = arguments["q"]
        pairs = visible_pairs(_queries(arguments), arguments.get("window"))
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
    HistoryCase("context", (5, 2), width=2, mask="context", padding=1),
    HistoryCase("last_rows", (2, 0, 1), width=3, key_lengths=(5, 2, 1), key_padding=2, padding=1, time_buckets=9),
    HistoryCase(
        "any_rule", (3, 1, 2, 2), width=2, key_lengths=(4, 3, 0, 1), mask="any", window=2, prefix=1, position_buckets=4
    ),
    HistoryCase("grouped", (4, 2), heads=4, key_heads=2, width=2, mask="groups", padding=1),
    HistoryCase("dropout", (5, 3), width=2, dropout=0.4, mask="placed_candidates", position_buckets=3),
    # A head width that the CUDA kernels take.
    HistoryCase(
        "width_8_rule",
        (4, 0, 2),
        heads=2,
        key_heads=1,
        width=8,
        key_lengths=(6, 1, 1),
        mask="any",
        prefix=2,
        window=2,
        padding=1,
        time_buckets=20,
        dropout=0.3,
    ),
    HistoryCase(
        "width_8", (0, 5, 1), heads=1, width=8, padding=1, mask="lagged", position_buckets=3, time_buckets=50, window=3
    ),
)
"""For tests: every differentiable input has few elements, because gradcheck runs over each of them."""


def tile_cases(scale: int = 1) -> tuple[HistoryCase, ...]:
    """Histories that end inside a tile, on its edge and beyond it; widths that fill their tile and widths that do not.

    `scale` multiplies lengths and windows. A kernel has tiles of 128 queries or keys at most. Past a scale of 1, which
    only a GPU has the time for, RULE_CASES follow.
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
    return tuple(case.scaled(scale) for case in (*cases, *(RULE_CASES if scale > 1 else ())))


RULE_CASES = (
    HistoryCase("tiles_128_tables", (200, 3), width=128, padding=2, position_buckets=300, time_buckets=146),
    HistoryCase("tiles_64_groups", (190, 40), heads=4, key_heads=2, width=64, mask="groups", padding=3),
    HistoryCase(
        "tiles_64_placed", (160, 9), width=64, key_heads=1, mask="placed_candidates", dropout=0.3, position_buckets=90
    ),
    HistoryCase(
        "tiles_128_rule",
        (70, 5),
        heads=4,
        key_heads=1,
        width=128,
        key_lengths=(200, 60),
        mask="any",
        prefix=9,
        window=90,
    ),
    HistoryCase("tiles_128_context", (140, 66), width=128, mask="context", dropout=0.2, padding=1, time_buckets=50),
)
"""The whole mask rule, shared key heads, dropout and tables over several blocks of keys, in heads of 64 and 128."""


def drawn_case(lengths: Sequence[int], padding: int, variant: int) -> HistoryCase:
    """A small case for any lengths; `variant` picks mask, biases and window in turn."""
    return HistoryCase(
        "drawn",
        tuple(lengths),
        width=3 + variant % 2,
        padding=padding,
        mask=tuple(MASKS)[variant % len(MASKS)],
        position_buckets=(0, 5)[variant // 3 % 2],
        time_buckets=(0, 30)[variant // 6 % 2],
        window=(None, 1, 4)[variant // 12 % 3],
        prefix=(0, 2)[variant // 5 % 2],
        dropout=(0.0, 0.3)[variant // 7 % 2],
    )


# 16 quantiles of a log-normal distribution with mean 700 whose longest is 4,096 (sigma 1.394).
LOGNORMAL_LENGTHS = (23, 49, 75, 103, 136, 174, 219, 274, 341, 425, 535, 684, 901, 1248, 1917, 4096)


GPU_EVENTS = 32_768


LAST_ROWS = tuple(-(-length // 10) for length in LOGNORMAL_LENGTHS)


def production_cases() -> tuple[HistoryCase, ...]:
    """Histories of real length, heads 4 × 64, without and with both bias tables; then those that fill a GPU.

    Between them: the last tenth of every history's rows; 1,000 candidates against 8,192 stored events and, as
    `candidates_8192_anew`, attention over all 9,192 in their place; a jagged batch of the public MLPerf workload's
    shape, histories up to 4,086 in heads of 128.

    Those that fill a GPU are the shapes that attention kernels publish (32,768 events in users of equal length, model
    width 2,048 in heads of 64 and of 128), and a jagged batch of 64 users.
    """
    shapes = (("lognormal_16", LOGNORMAL_LENGTHS), ("single_8192", (8192,)))
    biased = (("", 0), ("_biases", 128))
    uniform = [(length, width) for width in (64, 128) for length in (2048, 4096, 8192)]
    last_rows = _production("last_rows", LAST_ROWS, 4, 64, 128)
    anew = _production("candidates_8192_anew", (9192,), 4, 64)
    return (
        *(_production(name + end, users, 4, 64, buckets) for name, users in shapes for end, buckets in biased),
        replace(last_rows, key_lengths=LOGNORMAL_LENGTHS),
        replace(anew, name="candidates_8192", lengths=(1000,), key_lengths=(9192,), mask="last_1000"),
        replace(anew, mask="last_1000"),
        _production("dlrm_v4", (*LOGNORMAL_LENGTHS[1:-1:2], 4086), 4, 128),
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
