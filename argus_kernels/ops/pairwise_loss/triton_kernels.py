"""pairwise_loss in Triton.

A program owns 32 neighbouring rows and loops over the rows that may be their partners, 32 at a time, as a tile of
margins with a mask: same user, within the window, different grade. Nothing is sorted. A first kernel stores the
earliest and the latest time of every block of 32 rows; a program starts at the first block of its users that overlaps
its window and ends at the last. If a user's rows are in the order of time, those blocks are the window; otherwise they
are at most all rows of the user. An event's sums stay in its row of the tile: no atomics, and one order of additions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from argus_kernels.core.triton_jit import kernel
from argus_kernels.core.triton_support import CompileCase, ceil_div, launch
from argus_kernels.ops.pairwise_loss.arguments import Arguments

_EVENTS, _OTHERS = 32, 32
"""A tile. With 64 others a thread needs 244 registers instead of 124 on sm_90, and the masks drop more of the tile."""
_BLOCKS, _SCANNED, _ADDED = 16, 128, 1024
"""Blocks a program of `span_kernel`, blocks looked at in one step, and sums added in one step."""
_LEAST, _MOST = tl.constexpr(-(2**63)), tl.constexpr(2**63 - 1)


@triton.jit
def _graded(grades, times, row, count):
    """Grade (−1 if a row takes part in no pair) and time of some rows, int64; `grades`, `times`: with strides."""
    real = row < count
    grade = tl.load(grades[0] + row * grades[1], mask=real, other=-1).to(tl.int64)
    return tl.where(real, grade, -1), tl.load(times[0] + row * times[1], mask=real, other=0)


@kernel
def span_kernel(
    grades, times, earliest_of, latest_of, count, BLOCKS: tl.constexpr, BLOCK_OTHERS: tl.constexpr
):  # fmt: skip
    block = tl.program_id(0).to(tl.int64) * BLOCKS + tl.arange(0, BLOCKS)
    row = block[:, None] * BLOCK_OTHERS + tl.arange(0, BLOCK_OTHERS)[None, :]
    grade, time = _graded(grades, times, row, count)
    written = block * BLOCK_OTHERS < count
    tl.store(earliest_of + block, tl.min(tl.where(grade >= 0, time, _MOST), axis=1), mask=written)
    tl.store(latest_of + block, tl.max(tl.where(grade >= 0, time, _LEAST), axis=1), mask=written)


@triton.jit
def _user_rows(offsets, row, user_count, steps):
    """The begin and end of each row's user; both are 0 for padding."""
    low = tl.zeros_like(row).to(tl.int32)
    high = low + user_count
    for _ in range(steps):
        between = low < high
        middle = (low + high) // 2
        before = tl.load(offsets[0] + (middle + 1) * offsets[1], mask=between, other=0) <= row
        low = tl.where(between & before, middle + 1, low)
        high = tl.where(between & ~before, middle, high)
    owned = low < user_count
    begin = tl.load(offsets[0] + low * offsets[1], mask=owned, other=0)
    return begin, tl.load(offsets[0] + (low + 1) * offsets[1], mask=owned, other=0)


@triton.jit
def _reach(earliest_of, latest_of, first, end, earliest, latest, SCANNED: tl.constexpr):
    """The first and past the last of the blocks first … end − 1 that have an event from `earliest` to `latest`."""
    low = end
    high = first
    for start in range(first, end, SCANNED):
        block = start + tl.arange(0, SCANNED)
        there = block < end
        near = there & (tl.load(earliest_of + block, mask=there, other=0) <= latest)
        near = near & (tl.load(latest_of + block, mask=there, other=0) >= earliest)
        low = tl.minimum(low, tl.min(tl.where(near, block, end)))
        high = tl.maximum(high, tl.max(tl.where(near, block + 1, first)))
    return low, high


@triton.jit
def _own(
    scores, grades, offsets, times, earliest_of, latest_of, count, user_count, steps, window,
    BLOCK_EVENTS: tl.constexpr, BLOCK_OTHERS: tl.constexpr, SCANNED: tl.constexpr,
):  # fmt: skip
    """A program's rows: row, score, grade, time, the begin and end of its user; and the blocks of their partners."""
    row = tl.program_id(0).to(tl.int64) * BLOCK_EVENTS + tl.arange(0, BLOCK_EVENTS)
    score = tl.load(scores[0] + row * scores[1], mask=row < count, other=0.0).to(tl.float32)
    grade, time = _graded(grades, times, row, count)
    begin, end = _user_rows(offsets, row, user_count, steps)
    paired = (grade >= 0) & (begin < end)
    begin, end = tl.where(paired, begin, count), tl.where(paired, end, 0)
    # The ends of a window may exceed 64 bits.
    distance = tl.cast(window, tl.int64)
    earliest = tl.where(time < _LEAST + distance, _LEAST, time - distance)
    latest = tl.where(time > _MOST - distance, _MOST, time + distance)
    low, high = _reach(
        earliest_of, latest_of, tl.min(begin) // BLOCK_OTHERS, tl.cdiv(tl.max(end), BLOCK_OTHERS),
        tl.min(tl.where(paired, earliest, _MOST)), tl.max(tl.where(paired, latest, _LEAST)), SCANNED,
    )  # fmt: skip
    return row, score, grade, time, begin, end, low, high


@triton.jit
def _tile(scores, grades, times, block, count, score, grade, time, begin, end, window, BLOCK_OTHERS: tl.constexpr):
    """The rows of a block, their scores minus the program's own, their grades, and which are pairs."""
    other = tl.cast(block, tl.int64) * BLOCK_OTHERS + tl.arange(0, BLOCK_OTHERS)
    other_score = tl.load(scores[0] + other * scores[1], mask=other < count, other=0.0).to(tl.float32)
    other_grade, other_time = _graded(grades, times, other, count)
    # Two times of one user are less than 2⁶³ apart; of two users the difference means nothing.
    near = tl.abs(other_time[None, :] - time[:, None]) <= window
    pair = near & (other[None, :] >= begin[:, None]) & (other[None, :] < end[:, None])
    pair = pair & (other_grade >= 0)[None, :] & (other_grade[None, :] != grade[:, None])
    return other, other_score[None, :] - score[:, None], other_grade, pair


@triton.jit
def _decay(x):
    return tl.exp(-tl.abs(x))


@triton.jit
def _log1p(u):
    """ln(1 + u) for u in [0, 1], to full relative accuracy: a factor corrects the rounding of 1 + u."""
    whole = 1.0 + u
    lost = tl.where(whole == 1.0, 1.0, whole - 1.0)
    return tl.where(whole == 1.0, u, tl.log(whole) * (u / lost))


@kernel
def forward_kernel(
    scores, grades, offsets, times, earliest_of, latest_of, losses, pairs, concordants,
    count, user_count, steps, window,
    BLOCK_EVENTS: tl.constexpr, BLOCK_OTHERS: tl.constexpr, SCANNED: tl.constexpr,
):  # fmt: skip
    row, score, grade, time, begin, end, low, high = _own(
        scores, grades, offsets, times, earliest_of, latest_of, count, user_count, steps, window,
        BLOCK_EVENTS, BLOCK_OTHERS, SCANNED,
    )  # fmt: skip
    loss = tl.zeros([BLOCK_EVENTS], tl.float64)
    found = tl.zeros([BLOCK_EVENTS], tl.int64)
    right = tl.zeros([BLOCK_EVENTS], tl.int64)
    # Each pair is counted once, at the earlier of its rows.
    for block in range(tl.maximum(low, tl.program_id(0) * BLOCK_EVENTS // BLOCK_OTHERS), high):
        other, difference, other_grade, pair = _tile(
            scores, grades, times, block, count, score, grade, time, begin, end, window, BLOCK_OTHERS
        )
        pair = pair & (other[None, :] > row[:, None])
        margin = tl.where(other_grade[None, :] > grade[:, None], difference, -difference)
        ordered = margin > 0
        softplus = tl.where(ordered, 0.0, -margin) + _log1p(_decay(margin))
        loss += tl.sum(tl.where(pair, softplus, 0.0), 1).to(tl.float64)
        found += tl.sum(pair.to(tl.int32), 1)
        right += tl.sum((pair & ordered).to(tl.int32), 1)
    tl.store(losses + tl.program_id(0), tl.sum(loss))
    tl.store(pairs + tl.program_id(0), tl.sum(found))
    tl.store(concordants + tl.program_id(0), tl.sum(right))


@kernel
def sum_kernel(losses, pairs, concordants, loss_out, pairs_out, concordant_out, chunks, ADDED: tl.constexpr):
    loss = tl.zeros([ADDED], tl.float64)
    found = tl.zeros([ADDED], tl.int64)
    right = tl.zeros([ADDED], tl.int64)
    for start in range(0, chunks, ADDED):
        part = start + tl.arange(0, ADDED)
        loss += tl.load(losses + part, mask=part < chunks, other=0.0)
        found += tl.load(pairs + part, mask=part < chunks, other=0)
        right += tl.load(concordants + part, mask=part < chunks, other=0)
    tl.store(loss_out, tl.sum(loss).to(tl.float32))
    tl.store(pairs_out, tl.sum(found))
    tl.store(concordant_out, tl.sum(right))


@kernel
def backward_kernel(
    scores, grades, offsets, times, earliest_of, latest_of, d_loss, d_scores, count, user_count, steps, window,
    BLOCK_EVENTS: tl.constexpr, BLOCK_OTHERS: tl.constexpr, SCANNED: tl.constexpr,
):  # fmt: skip
    row, score, grade, time, begin, end, low, high = _own(
        scores, grades, offsets, times, earliest_of, latest_of, count, user_count, steps, window,
        BLOCK_EVENTS, BLOCK_OTHERS, SCANNED,
    )  # fmt: skip
    total = tl.zeros([BLOCK_EVENTS], tl.float64)
    for block in range(low, high):
        _, difference, other_grade, pair = _tile(
            scores, grades, times, block, count, score, grade, time, begin, end, window, BLOCK_OTHERS
        )
        better = grade[:, None] > other_grade[None, :]
        x = tl.where(better, difference, -difference)
        decay = _decay(x)
        share = tl.where(x > 0, 1.0, decay) / (1.0 + decay)
        total += tl.sum(tl.where(pair, tl.where(better, -share, share), 0.0), 1).to(tl.float64)
    gradient = total.to(tl.float32) * tl.load(d_loss)
    tl.store(d_scores + row, gradient.to(d_scores.dtype.element_ty), mask=row < count)


def _reaches(given: Arguments) -> dict[str, Any]:
    """The arguments of both passes: the events, and the earliest and the latest time of every block of events."""
    count = given.scores.shape[0]
    blocks = ceil_div(count, _OTHERS)
    arguments: dict[str, Any] = {
        "grades": (given.grades, given.grades.stride(0)),
        "times": (given.times, given.times.stride(0)),
        "earliest_of": given.times.new_empty(blocks),
        "latest_of": given.times.new_empty(blocks),
        "count": count,
        "BLOCK_OTHERS": _OTHERS,
    }
    launch(span_kernel, (ceil_div(blocks, _BLOCKS),), arguments | {"BLOCKS": _BLOCKS}, stages=1)
    users = given.offsets.shape[0] - 1
    return arguments | {
        "scores": (given.scores, given.scores.stride(0)),
        "offsets": (given.offsets, given.offsets.stride(0)),
        "user_count": users,
        "steps": users.bit_length(),
        "window": given.window,
        "BLOCK_EVENTS": _EVENTS,
        "SCANNED": _SCANNED,
    }


def forward(given: Arguments) -> tuple[Tensor, Tensor, Tensor]:
    """(loss, pairs, concordant) of scores, grades, times [T] and offsets [B + 1]."""
    programs = ceil_div(given.scores.shape[0], _EVENTS)
    # Separate allocations: in a shared one the alignment of the second half would change with the batch.
    parts = {
        "losses": given.scores.new_empty(programs, dtype=torch.float64),
        "pairs": given.times.new_empty(programs),
        "concordants": given.times.new_empty(programs),
    }
    launch(forward_kernel, (programs,), _reaches(given) | parts, stages=1)
    loss = given.scores.new_empty((), dtype=torch.float32)
    pairs, concordant = given.times.new_empty(()), given.times.new_empty(())
    sums = {"loss_out": loss, "pairs_out": pairs, "concordant_out": concordant, "chunks": programs, "ADDED": _ADDED}
    launch(sum_kernel, (1,), parts | sums, stages=1)
    return loss, pairs, concordant


def backward(
    gradients: Sequence[Tensor], outputs: Sequence[Tensor], needs: dict[str, bool], given: Arguments
) -> list[Tensor | None]:
    """Gradient of the scores from that of the loss; the counts have no gradient."""
    if not needs["scores"]:
        return [None]
    d_scores = given.scores.new_empty(given.scores.shape[0])
    results = {"d_loss": gradients[0], "d_scores": d_scores}
    arguments = _reaches(given) | results
    launch(backward_kernel, (ceil_div(given.scores.shape[0], _EVENTS),), arguments, stages=1)
    return [d_scores]


def compile_cases() -> list[CompileCase]:
    """Every dtype of the scores."""

    def case(dtype: torch.dtype) -> CompileCase:
        def call() -> None:
            with torch.device("meta"):
                scores, times = torch.empty(65_536, dtype=dtype), torch.empty(65_536, dtype=torch.int64)
                grades, offsets = torch.empty_like(times), torch.empty(65, dtype=torch.int32)
            given = Arguments(scores, grades, offsets, times, 250)
            outputs = forward(given)
            backward([outputs[0]], outputs, {"scores": True}, given)

        return CompileCase(str(dtype).removeprefix("torch."), call)

    return [case(dtype) for dtype in (torch.float32, torch.bfloat16, torch.float16)]
