"""The records of the Triton attention kernels: a tensor with its strides, biases, the mask rule, a tile, its queries.

A launch passes these records as tuples, and Triton specialises every entry as a separate argument. In a kernel the
tensors are pointers to the whole batch. A jitted function cannot return None, so optional entries are passed on
unchanged.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from argus_kernels.attention.triton.dropout import dropout_of


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


class Rule(NamedTuple):
    """The mask rule's arguments, int32, and those of dropout, each None where not given.

    query_offsets, key_offsets: [B + 1], both None where the keys are those of the queries' own rows. visible, position,
    own_begin, own_end: [Tq]. prefix: [B]. seed: int64 [B]. threshold: the number that `threshold_of` makes of a rate.
    kept_factor: what weights that stay are multiplied by.
    """

    query_offsets: Any
    key_offsets: Any
    visible: Any
    position: Any
    own_begin: Any
    own_end: Any
    prefix: Any
    seed: Any
    threshold: Any
    kept_factor: Any


class Statistics(NamedTuple):
    """Softmax's statistics, float32 [H, T]: log_sum_exp, delta and, in float32, 1 / the sum of the weights; or None."""

    log_sum_exp: Any
    delta: Any
    norm: Any


class Shape(NamedTuple):
    """The constants of a kernel besides its tiles. positions, buckets: widths of the tables, 0 without a table.

    shares: a tile looks up once what all its pairs share. Not in float32, whose tiles would spill 176 to 544 bytes.
    general: the mask rule has more arguments than `visible` and the window. group: query heads of a key head.
    drops: there is dropout.
    """

    softmax: bool
    windowed: bool
    positions: int
    buckets: int
    width: int
    block_width: int
    shares: bool
    general: bool = False
    group: int = 1
    drops: bool = False


class Tile(NamedTuple):
    """A program's work: the user's first rows and numbers of queries and keys, the block's first position, the heads.

    first: of queries or of keys, whichever the tile is of. dropout: the user's and head's, a number without dropout.
    """

    start: Any
    length: Any
    key_start: Any
    key_length: Any
    first: Any
    head: Any
    key_head: Any
    prefix: Any
    user: Any
    dropout: Any


class Queries(NamedTuple):
    """What the mask rule knows of queries of a user, and their times. place: their numbers in the user's queries.

    limit: of `visible`. Under the causal rule and with `visible` alone position is place, and own is not used.
    """

    place: Any
    position: Any
    limit: Any
    own_begin: Any
    own_end: Any
    time: Any


@triton.jit
def own_tile(schedule, heads, rule, BLOCK: tl.constexpr, SHAPE: tl.constexpr, OF_KEYS: tl.constexpr):
    """The tile of this program; the heads of a tile are neighbours. A tile of no user has length 0.

    heads: those of the keys for a tile of keys, whose first query head the tile then has.
    """
    entry = schedule + tl.program_id(0) // heads * 4
    head = tl.program_id(0) % heads
    start = tl.load(entry).to(tl.int64)
    length = tl.load(entry + 1)
    first = tl.load(entry + 2) * BLOCK
    user = tl.load(entry + 3)
    key_start, key_length = start, length
    if rule.key_offsets is not None:
        if OF_KEYS:
            start, length = _rows_of(rule.query_offsets, user)
        else:
            key_start, key_length = _rows_of(rule.key_offsets, user)
    prefix = length * 0
    if rule.prefix is not None:
        prefix = tl.load(rule.prefix + user)
    key_head = head if OF_KEYS else head // SHAPE.group
    if OF_KEYS:
        head = head * SHAPE.group
    dropout = dropout_of(rule, user, head, SHAPE)
    return Tile(start, length, key_start, key_length, first, head, key_head, prefix, user, dropout)


@triton.jit
def _rows_of(offsets, user):
    """A user's first row and how many they have."""
    start = tl.load(offsets + user)
    return start.to(tl.int64), tl.load(offsets + user + 1) - start


@triton.jit
def of_member(tile, rule, member, SHAPE: tl.constexpr):
    """A tile of keys for query head number `member` of its group."""
    head = tile.head + member
    dropout = dropout_of(rule, tile.user, head, SHAPE)
    return Tile(
        tile.start, tile.length, tile.key_start, tile.key_length, tile.first, head, tile.key_head, tile.prefix,
        tile.user, dropout,
    )  # fmt: skip


@triton.jit
def query_rows(rows, tile):
    """The rows of q or d_out of the tile's user and head."""
    data = rows.data + tile.start * rows.row + tile.head.to(tl.int64) * rows.head
    return Rows(data, rows.row, rows.head, rows.column)


@triton.jit
def key_rows(rows, tile):
    """The rows of k or v of the tile's user and head."""
    data = rows.data + tile.key_start * rows.row + tile.key_head.to(tl.int64) * rows.head
    return Rows(data, rows.row, rows.head, rows.column)


@triton.jit
def own_times(times, start, length, place):
    """Times of a user's events, past their end the time of the last; the positions if there are no times."""
    found = place
    if times is not None:
        found = tl.load(times + start + tl.minimum(place, length - 1))
    return found


@triton.jit
def own_queries(rule, biases, tile, place, SHAPE: tl.constexpr):
    """What is known of queries of the tile's user; those past its end see nothing."""
    real = place < tile.length
    at = tile.start + place
    position = place
    limit = place
    own_begin = place
    own_end = place
    if SHAPE.general:
        position = place + (tile.key_length - tile.length)
        limit = position
        own_begin = position
        own_end = position + 1
    if rule.visible is not None:
        limit = tl.load(rule.visible + at, mask=real, other=0)
    if rule.position is not None:
        position = tl.load(rule.position + at, mask=real, other=0)
    if rule.own_begin is not None:
        own_begin = tl.load(rule.own_begin + at, mask=real, other=0)
        own_end = tl.load(rule.own_end + at, mask=real, other=0)
    if SHAPE.general:
        limit = tl.where(real, tl.minimum(limit, tile.key_length), 0)
        own_begin = tl.maximum(own_begin, 0)
        own_end = tl.where(real, tl.minimum(own_end, tile.key_length), 0)
    time = own_times(biases.query_time, tile.start, tile.length, place)
    return Queries(place, position, limit, own_begin, own_end, time)


@triton.jit
def as_column(queries):
    """Queries along the first axis of a tile, [Q, 1]."""
    return Queries(
        queries.place[:, None], queries.position[:, None], queries.limit[:, None], queries.own_begin[:, None],
        queries.own_end[:, None], queries.time[:, None],
    )  # fmt: skip


@triton.jit
def as_row(queries):
    """Queries along the second axis of a tile, [1, Q]."""
    return Queries(
        queries.place[None, :], queries.position[None, :], queries.limit[None, :], queries.own_begin[None, :],
        queries.own_end[None, :], queries.time[None, :],
    )  # fmt: skip


@triton.jit
def one_query(queries, first, number, BLOCK: tl.constexpr, SHAPE: tl.constexpr):
    """Query `number` of a block that begins at `first`."""
    place = first + number
    limit, time = entry(queries.limit, number, BLOCK), entry(queries.time, number, BLOCK)
    position = place
    own_begin = place
    own_end = place
    if SHAPE.general:
        position = entry(queries.position, number, BLOCK)
        own_begin, own_end = entry(queries.own_begin, number, BLOCK), entry(queries.own_end, number, BLOCK)
    return Queries(place, position, limit, own_begin, own_end, time)


@triton.jit
def entry(values, number, BLOCK: tl.constexpr):
    """values[number] of values [BLOCK]."""
    return tl.sum(tl.where(tl.arange(0, BLOCK) == number, values, 0), axis=0)
