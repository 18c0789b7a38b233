"""One tile of (query, key) pairs in the Triton attention kernels: positions, biases, weights and derivatives.

A tile may have its queries along either axis: positions and times have shapes that broadcast to it, [Q, 1] and
[1, K] or [1, Q] and [K, 1].
"""

from __future__ import annotations

import triton
import triton.language as tl

from argus_kernels.attention.relative_bias import LOG_STEP
from argus_kernels.attention.triton.boxes import LAST_ROW

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)
LARGEST_DISTANCE = tl.constexpr(2**63 - 2)
LARGEST_TIME = tl.constexpr(2**62)
BUCKETS_PER_LOG = tl.constexpr(1 / float(LOG_STEP))
ESTIMATE_MARGIN = tl.constexpr(1e-3)


@triton.jit
def load_rows(rows, place, length, SHAPE: tl.constexpr):
    """Rows of one user and head, [positions, block_width]; zero past the user's end and past the head's width."""
    column = tl.arange(0, SHAPE.block_width)
    pointers = rows.data + place.to(tl.int64)[:, None] * rows.row + column[None, :] * rows.column
    real = (place < length)[:, None]
    if SHAPE.block_width != SHAPE.width:
        real = real & (column < SHAPE.width)[None, :]
    return tl.load(pointers, mask=real, other=0.0)


@triton.jit
def load_block(rows, box, start, head, first, place, length, SHAPE: tl.constexpr):
    """`load_rows` of the places from `first` on, of the user whose rows begin at `start`, and of a head.

    box: None, or the batch's descriptor as `boxes.user_box` makes it: TMA then loads the block, and the hardware has
    the user's end as a bound.
    """
    if box is not None:
        end = (start + length).to(tl.int32)
        block = box.load([LAST_ROW, end, head, LAST_ROW - length + first, 0])
        loaded = tl.reshape(block, [place.shape[0], SHAPE.block_width])
    else:
        loaded = load_rows(rows, place, length, SHAPE)
    return loaded


@triton.jit
def time_bucket(difference, upper_edges, BUCKETS: tl.constexpr):
    """The bucket of a difference in seconds: a float32 estimate is exact or one too low; the integer edge decides."""
    distance = tl.minimum(tl.maximum(tl.abs(difference), 1), LARGEST_DISTANCE)
    estimate = (tl.log(distance.to(tl.float32)) * BUCKETS_PER_LOG - ESTIMATE_MARGIN).to(tl.int32)
    estimate = tl.minimum(tl.maximum(estimate, 0), BUCKETS - 1)
    return estimate + (distance >= tl.load(upper_edges + estimate)).to(tl.int32)


@triton.jit
def position_bucket(place, key_place, POSITIONS: tl.constexpr):
    """min(max(position − j, 0), POSITIONS − 1)."""
    return tl.minimum(tl.maximum(place - key_place, 0), POSITIONS - 1)


@triton.jit
def add_biases(scores, place, key_place, time, key_time, tile, biases, SHAPE: tl.constexpr):
    """Scores plus the biases in their units, and the buckets of both tables; a table that is None adds nothing."""
    factor: tl.constexpr = LOG2_E if SHAPE.softmax else 1.0
    positions = 0
    times = 0
    if biases.position is not None:
        positions = position_bucket(place, key_place, SHAPE.positions)
    if biases.time is not None:
        times = time_bucket(time - key_time, biases.upper_edges, SHAPE.buckets)
    if biases.position is not None:
        scores += tl.load(biases.position + tile.head * biases.position_row + positions).to(tl.float32) * factor
    if biases.time is not None:
        scores += tl.load(biases.time + tile.head * biases.time_row + times).to(tl.float32) * factor
    return scores, positions, times


@triton.jit
def shared_time_bucket(time, key_time, biases, SHAPE: tl.constexpr):
    """The bucket of all pairs of a tile, or −1 where they have several. Times may run backwards."""
    earliest, latest = _extremes(time)
    key_earliest, key_latest = _extremes(key_time)
    lowest, highest = earliest - key_latest, latest - key_earliest
    nearest = tl.maximum(tl.maximum(lowest, -highest), 0)
    bucket = time_bucket(nearest, biases.upper_edges, SHAPE.buckets)
    shared = bucket == time_bucket(tl.maximum(highest, -lowest), biases.upper_edges, SHAPE.buckets)
    # Beyond these times the differences may wrap around.
    small = (tl.minimum(earliest, key_earliest) > -LARGEST_TIME) & (tl.maximum(latest, key_latest) < LARGEST_TIME)
    return tl.where(shared & small, bucket, -1)


@triton.jit
def _extremes(times):
    """The smallest and the largest of times [N, 1] or [1, N]."""
    axis: tl.constexpr = 0 if times.shape[1] == 1 else 1
    return tl.min(times, axis=axis).item(), tl.max(times, axis=axis).item()


@triton.jit
def add_tile_biases(scores, place, key_place, nearest, time, key_time, tile, biases, SHAPE: tl.constexpr):
    """`add_biases` of a tile [Q, K] or [K, Q]: one number where all its pairs share an entry of a table.

    nearest: the smallest of its position − j. Far from the diagonal sharing is the rule: all pairs lie in the last
    position bucket, and time buckets grow with the logarithm of the difference.
    """
    factor: tl.constexpr = LOG2_E if SHAPE.softmax else 1.0
    if not SHAPE.shares:
        scores, _, _ = add_biases(scores, place, key_place, time, key_time, tile, biases, SHAPE)
    if SHAPE.shares and biases.position is not None:
        table = biases.position + tile.head * biases.position_row
        if nearest >= SHAPE.positions - 1:
            scores += tl.load(table + SHAPE.positions - 1).to(tl.float32) * factor
        else:
            scores += tl.load(table + position_bucket(place, key_place, SHAPE.positions)).to(tl.float32) * factor
    if SHAPE.shares and biases.time is not None:
        table = biases.time + tile.head * biases.time_row
        bucket = shared_time_bucket(time, key_time, biases, SHAPE)
        if bucket >= 0:
            scores += tl.load(table + bucket).to(tl.float32) * factor
        else:
            buckets = time_bucket(time - key_time, biases.upper_edges, SHAPE.buckets)
            scores += tl.load(table + buckets).to(tl.float32) * factor
    return scores


@triton.jit
def silu_slope(scores):
    """The derivative of x / (1 + e^−x)."""
    share = tl.sigmoid(scores)
    return share * (1.0 + scores * (1.0 - share))


@triton.jit
def slopes(scores, d_weights, seen, statistic, delta, norm, MASKED: tl.constexpr, SHAPE: tl.constexpr):
    """The weights and the gradients of the scores. norm: None, or the factor of softmax's weights.

    Weights of hidden pairs are 0, and so are gradients of their scores, or NaN if the value or d_out is not finite.
    """
    if SHAPE.softmax:
        weights = tl.exp2(scores - statistic)
        if norm is not None:
            weights *= norm
        if MASKED:
            weights = tl.where(seen, weights, 0.0)
        d_scores = weights * (d_weights - delta)
    else:
        weights = scores * tl.sigmoid(scores)
        d_scores = d_weights * silu_slope(scores)
        if MASKED:
            weights = tl.where(seen, weights, 0.0)
            d_scores = tl.where(seen, d_scores, 0.0)
    return weights, d_scores


@triton.jit
def add_to_histogram(histogram, bucket, values, lowest, highest, BLOCK: tl.constexpr):
    """Adds every value to its bucket, one bucket after the other, in a fixed order and without atomics.

    A tile far from the diagonal has one or two buckets, because they grow with the logarithm of the distance.
    """
    place = tl.arange(0, BLOCK)
    for one in range(lowest, highest + 1):
        total = tl.sum(tl.sum(tl.where(bucket == one, values, 0.0), axis=1), axis=0)
        histogram += tl.where(place == one, total, 0.0)
    return histogram
