"""Shared by the attention peers: packed users as padded batches, and the biases as dense matrices."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from argus_kernels.attention.relative_bias import position_buckets, time_buckets
from benchmarks.harness.cases import Case

MAX_DENSE_BYTES = 1 << 29
"""A dense bias of this size is not built: with its gradient and the scores it would take several times as much."""


def spans(case: Case) -> list[tuple[int, int]]:
    """(first row, past-the-last row) of every user that has events."""
    offsets = case.arguments["offsets"].tolist()
    return [(begin, end) for begin, end in pairwise(offsets) if end > begin]


def has_bias(case: Case) -> bool:
    """Whether the case has bias tables."""
    return any(case.arguments.get(name) is not None for name in ("position_bias", "time_bias"))


def only_causal(case: Case) -> str | None:
    """Refuses other masks and rules: the peers have only the causal one, for all events or one new one a user."""
    names = ["key_offsets", "visible", "position", "own_begin", "window", "prefix", "dropout"]
    names += ["offsets", "rule"] if case.op.name == "decode_attention" else []
    given = [name for name in names if case.arguments.get(name) is not None]
    if getattr(case.arguments.get("cache"), "key_scales", None) is not None:
        given.append("an int8 cache")
    return f"has no counterpart of {' and '.join(given)}" if given else None


def dense_bias_bytes(case: Case, lengths: Sequence[int], users: int) -> int:
    """Bytes of one dense bias [users, H, longest, longest]."""
    q = case.arguments["q"]
    longest = max(lengths, default=0)
    return users * q.shape[1] * longest * longest * q.element_size()


def too_large(needed: int) -> str | None:
    """The reason if a dense bias exceeds the limit."""
    if needed < MAX_DENSE_BYTES:
        return None
    return f"its dense bias would take {needed / 2**30:.1f} GiB, expected below {MAX_DENSE_BYTES / 2**30:.1f} GiB"


def dense_bias(arguments: dict[str, Any], rows: Tensor, place: Tensor) -> Tensor:
    """Biases of users' rows int64 [..., L], −inf above the diagonal: [..., H, L, L], differentiable in the tables."""
    q = arguments["q"]
    later = place[:, None] < place
    total = torch.zeros((), dtype=q.dtype, device=q.device).masked_fill(later, -torch.inf)
    if arguments.get("position_bias") is not None:
        table = arguments["position_bias"]
        total = total + table[:, position_buckets(place, place, table.shape[1])]
    if arguments.get("time_bias") is not None:
        table = arguments["time_bias"]
        difference = arguments["query_time"][rows][..., :, None] - arguments["key_time"][rows][..., None, :]
        total = total + table[:, time_buckets(difference, table.shape[1])].movedim(0, -3)
    return total


class Padding:
    """Index maps between packed rows [T] and padded [B, L]; padding repeats a user's last row."""

    def __init__(self, case: Case) -> None:
        users = spans(case)
        lengths = [end - begin for begin, end in users]
        device = case.arguments["q"].device
        self.longest = max(lengths)
        self.place = torch.arange(self.longest, device=device)
        begins = torch.tensor([begin for begin, _ in users], device=device)[:, None]
        counts = torch.tensor(lengths, device=device)[:, None]
        self.rows = begins + torch.minimum(self.place, counts - 1)
        self.real = (self.place < counts).flatten().nonzero()[:, 0]
        self.total = case.arguments["q"].shape[0]

    def pad(self, packed: Tensor) -> Tensor:
        """[T, H, Dh] → [B, H, L, Dh]."""
        padded = packed.index_select(0, self.rows.flatten()).view(*self.rows.shape, *packed.shape[1:])
        return padded.transpose(1, 2)

    def unpad(self, padded: Tensor) -> Tensor:
        """[B, H, L, Dh] → [T, H, Dh]."""
        return padded.transpose(1, 2).flatten(0, 1).index_select(0, self.real)
