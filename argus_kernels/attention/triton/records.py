"""The records of the Triton attention kernels: a tensor with its strides, the biases, a tile, its queries.

A launch passes these records as tuples, and Triton specialises every entry as a separate argument. In a kernel the
tensors are pointers to the whole batch. A jitted function cannot return None, so optional entries are passed on
unchanged.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl


class Rows(NamedTuple):
    """q, k, v or d_out, [T, H, Dh], and its strides."""

    data: Any
    row: Any
    head: Any
    column: Any


class Biases(NamedTuple):
    """Tables [H, P] and [H, B] with the strides of their rows, times int64 [T], `upper_edges` int64 [B]; or None."""

    position: Any
    position_row: Any
    time: Any
    time_row: Any
    query_time: Any
    key_time: Any
    upper_edges: Any


class Statistics(NamedTuple):
    """Softmax's statistics, float32 [H, T]: log_sum_exp, delta and, in float32, 1 / the sum of the weights; or None."""

    log_sum_exp: Any
    delta: Any
    norm: Any


class Shape(NamedTuple):
    """The constants of a kernel besides its tiles. positions, buckets: widths of the tables, 0 without a table.

    shares: a tile looks up once what all its pairs share. Not in float32, whose tiles would spill 176 to 544 bytes.
    """

    softmax: bool
    windowed: bool
    positions: int
    buckets: int
    width: int
    block_width: int
    shares: bool


class Tile(NamedTuple):
    """A program's work: the user's first row and length, the block's first position in the history, and the head."""

    start: Any
    length: Any
    first: Any
    head: Any


class Queries(NamedTuple):
    """Positions of queries in their user's history, the limits of `visible`, and their times."""

    place: Any
    limit: Any
    time: Any


@triton.jit
def own_tile(schedule, heads, BLOCK: tl.constexpr):
    """The tile of this program; the heads of a tile are neighbours. Length 0: no tile."""
    entry = schedule + tl.program_id(0) // heads * 3
    head = tl.program_id(0) % heads
    return Tile(tl.load(entry).to(tl.int64), tl.load(entry + 1), tl.load(entry + 2) * BLOCK, head)


@triton.jit
def own_rows(rows, tile):
    """The rows of the tile's user and head."""
    data = rows.data + tile.start * rows.row + tile.head.to(tl.int64) * rows.head
    return Rows(data, rows.row, rows.head, rows.column)


@triton.jit
def own_times(times, tile, place):
    """Times of the tile's user, past its end the time of its last event; the positions if there are no times."""
    found = place
    if times is not None:
        found = tl.load(times + tile.start + tl.minimum(place, tile.length - 1))
    return found


@triton.jit
def own_queries(visible, biases, tile, place):
    """The positions, limits and times of queries of the tile's user."""
    limit = place
    if visible is not None:
        limit = tl.load(visible + tile.start + place, mask=place < tile.length, other=0)
    return Queries(place, limit, own_times(biases.query_time, tile, place))
