"""Which events read which table row, in the order in which gradients are added: by row, then column, then event.

For tables of SMALL_ROWS rows and more, one stable sort orders all 32-bit keys (the table's base plus the row). Smaller
tables need no sort: the reads of each row are counted in every block of events, a running sum of the counts gives the
position of a block's first read of a row, and a read's rank is counted within the block. Both give the same order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from argus_kernels.core.triton_jit import kernel
from argus_kernels.core.triton_support import ceil_div, launch

SMALL_ROWS = 1000
_BINS = 1024
_EVENTS, _COMPARED = 256, 32
_INT32 = torch.iinfo(torch.int32).max


@dataclass(frozen=True)
class Places:
    """The reads of one table: entries first … first + count − 1 of `keys` and `order`, which tables share.

    keys: base and the row that was read, ascending; base and the table's height if an id is missing or outside. order:
    int64, which of the table's reads it is (its i-th reader's event t is first + i · T + t).
    """

    keys: Tensor
    order: Tensor
    base: int
    first: int
    count: int


@triton.jit
def _row(ids, event, events, reader: tl.constexpr, ids_stride, ids_event_stride, HEIGHT: tl.constexpr):
    """The row that each event reads, int64: HEIGHT if it reads none, −1 past the last event."""
    real = event < events
    given = tl.load(ids + tl.cast(reader, tl.int64) * ids_stride + event * ids_event_stride, mask=real, other=-1)
    row = tl.where((given >= 0) & (given < HEIGHT), given, HEIGHT)
    return tl.where(real, row, -1)


@kernel
def keys_kernel(
    ids, keys, events, ids_stride, ids_event_stride,
    READERS: tl.constexpr, HEIGHTS: tl.constexpr, BASES: tl.constexpr, EVENTS: tl.constexpr,
):  # fmt: skip
    event = tl.program_id(0).to(tl.int64) * EVENTS + tl.arange(0, EVENTS)
    for one in tl.static_range(len(READERS)):
        if tl.program_id(1) == one:
            row = _row(ids, event, events, READERS[one], ids_stride, ids_event_stride, HEIGHTS[one])
            key = (row + BASES[one]).to(keys.dtype.element_ty)
            tl.store(keys + tl.cast(events, tl.int64) * one + event, key, mask=event < events)


@kernel
def count_kernel(
    ids, counts, events, chunks, ids_stride, ids_event_stride,
    READERS: tl.constexpr, HEIGHTS: tl.constexpr, BEFORE: tl.constexpr, STEPS: tl.constexpr,
    EVENTS: tl.constexpr, BINS: tl.constexpr,
):  # fmt: skip
    event = tl.program_id(0).to(tl.int64) * EVENTS + tl.arange(0, EVENTS)
    row = tl.arange(0, BINS)
    for one in tl.static_range(len(READERS)):
        if tl.program_id(1) == one:
            read = _row(ids, event, events, READERS[one], ids_stride, ids_event_stride, HEIGHTS[one])
            # The last bin is for events that read no row.
            found = tl.histogram(tl.where(read < 0, BINS - 1, read).to(tl.int32), BINS)
            line = (BEFORE[one] + row * STEPS[one]).to(tl.int64)
            tl.store(counts + line * chunks + tl.program_id(0), found, mask=row <= HEIGHTS[one])


@kernel
def place_kernel(
    ids, sums, keys, order, events, chunks, ids_stride, ids_event_stride,
    READERS: tl.constexpr, HEIGHTS: tl.constexpr, BEFORE: tl.constexpr, STEPS: tl.constexpr,
    EVENTS: tl.constexpr, COMPARED: tl.constexpr,
):  # fmt: skip
    inside = tl.arange(0, EVENTS)
    begin = tl.program_id(0).to(tl.int64) * EVENTS
    event = begin + inside
    for one in tl.static_range(len(READERS)):
        if tl.program_id(1) == one:
            read = _row(ids, event, events, READERS[one], ids_stride, ids_event_stride, HEIGHTS[one]).to(tl.int32)
            earlier = tl.zeros([EVENTS], tl.int32)
            for start in range(0, EVENTS, COMPARED):
                other = start + tl.arange(0, COMPARED)
                others = _row(ids, begin + other, events, READERS[one], ids_stride, ids_event_stride, HEIGHTS[one])
                others = others.to(tl.int32)
                same = (others[None, :] == read[:, None]) & (other[None, :] < inside[:, None])
                earlier += tl.sum(same.to(tl.int32), axis=1)
            real = event < events
            index = (BEFORE[one] + read * STEPS[one]).to(tl.int64) * chunks + tl.program_id(0)
            place = tl.load(sums + index - 1, mask=real & (index > 0), other=0) + earlier
            tl.store(keys + place, read, mask=real)
            tl.store(order + place, tl.cast(events, tl.int64) * one + event, mask=real)


def order_places(ids: Tensor, heights: Sequence[int], columns: Sequence[int]) -> list[Places]:
    """The reads of each table, `heights` giving its rows; ids [K, T] int64, columns: the table of each row of ids."""
    readers = {table: [k for k, column in enumerate(columns) if column == table] for table in range(len(heights))}
    found: dict[int, Places] = {}
    small = [table for table in readers if readers[table] and heights[table] < SMALL_ROWS]
    large = [table for table in readers if readers[table] and heights[table] >= SMALL_ROWS]
    if ids.shape[1]:
        for tables, ordered in ((small, _counted), (large, _sorted)):
            if tables:
                found.update(ordered(ids, {table: readers[table] for table in tables}, heights))
    nothing = Places(ids.new_empty(0, dtype=torch.int32), ids.new_empty(0), 0, 0, 0)
    return [found.get(table, nothing) for table in readers]


def _sorted(ids: Tensor, readers: dict[int, list[int]], heights: Sequence[int]) -> dict[int, Places]:
    """Of large tables: one sort for all."""
    bases, total = {}, 0
    for table in readers:
        bases[table] = total
        total += heights[table] + 1
    lines = [(table, reader) for table, own in readers.items() for reader in own]
    keys = ids.new_empty(len(lines) * ids.shape[1], dtype=torch.int32 if total <= _INT32 else torch.int64)
    own = {"keys": keys, "BASES": tuple(bases[table] for table, _ in lines)}
    arguments = {**_arguments(ids, lines, heights), **own}
    launch(keys_kernel, (ceil_div(ids.shape[1], _EVENTS), len(lines)), arguments, stages=1)
    ordered, order = torch.sort(keys, stable=True)
    return _places(ids, readers, ordered, order, bases)


def _counted(ids: Tensor, readers: dict[int, list[int]], heights: Sequence[int]) -> dict[int, Places]:
    """Of small tables: the order without a sort."""
    lines = [(table, reader) for table, own in readers.items() for reader in own]
    chunks = ceil_div(ids.shape[1], _EVENTS)
    # Counts are ordered by table, row, reader and block of events, like the reads.
    before, total = {}, 0
    for table, own in readers.items():
        before[table] = total
        total += (heights[table] + 1) * len(own)
    counts = ids.new_empty(total * chunks, dtype=torch.int32)
    shared: dict[str, Any] = {
        **_arguments(ids, lines, heights),
        "chunks": chunks,
        "BEFORE": tuple(before[table] + readers[table].index(reader) for table, reader in lines),
        "STEPS": tuple(len(readers[table]) for table, _ in lines),
    }
    grid = (chunks, len(lines))
    launch(count_kernel, grid, shared | {"counts": counts, "BINS": _BINS}, stages=1)
    sums = counts.cumsum(0, dtype=torch.int32)
    keys, order = (ids.new_empty(len(lines) * ids.shape[1], dtype=dtype) for dtype in (torch.int32, torch.int64))
    results = {"sums": sums, "keys": keys, "order": order, "COMPARED": _COMPARED}
    launch(place_kernel, grid, shared | results, warps=8, stages=1)
    return _places(ids, readers, keys, order, dict.fromkeys(readers, 0))


def _arguments(ids: Tensor, lines: Sequence[tuple[int, int]], heights: Sequence[int]) -> dict[str, Any]:
    return {
        "ids": ids,
        "events": ids.shape[1],
        "ids_stride": ids.stride(0),
        "ids_event_stride": ids.stride(1),
        "READERS": tuple(reader for _, reader in lines),
        "HEIGHTS": tuple(heights[table] for table, _ in lines),
        "EVENTS": _EVENTS,
    }


def _places(
    ids: Tensor, readers: dict[int, list[int]], keys: Tensor, order: Tensor, bases: dict[int, int]
) -> dict[int, Places]:
    found, first = {}, 0
    for table, own in readers.items():
        count = len(own) * ids.shape[1]
        found[table] = Places(keys, order, bases[table], first, count)
        first += count
    return found
