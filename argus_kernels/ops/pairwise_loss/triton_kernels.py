"""pairwise_loss in Triton.

torch's stable sorts bring the events into the order (user, time), where the partners of an event are a range; a binary
search finds its ends. A program then owns 32 neighbouring events and walks over the range that holds the partners of
them all, 64 at a time, as a tile of margins with a mask. An event's sums stay in its row of the tile: no atomics, and
one order of adding.
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
from argus_kernels.ops.pairwise_loss.time_order import time_order

_SEARCHED = 128
_EVENTS, _OTHERS = 32, 64


@triton.jit
def _search(users, times, count, user, time, steps, AFTER: tl.constexpr):
    """The first event that is not before (user, time), with AFTER the first that comes after it."""
    low = tl.zeros_like(user).to(tl.int64)
    high = low + count
    for _ in range(steps):
        open_range = low < high
        middle = (low + high) // 2
        its_user = tl.load(users + middle, mask=open_range, other=0)
        its_time = tl.load(times + middle, mask=open_range, other=0)
        earlier = its_time <= time if AFTER else its_time < time
        before = (its_user < user) | ((its_user == user) & earlier)
        low = tl.where(open_range & before, middle + 1, low)
        high = tl.where(open_range & ~before, middle, high)
    return low


@kernel
def order_kernel(
    scores,
    grades,
    order,
    users,
    times,
    sorted_scores,
    sorted_grades,
    begins,
    ends,
    count,
    user_count,
    window,
    steps,
    scores_stride,
    grades_stride,
    BLOCK: tl.constexpr,
):
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    real = place < count
    row = tl.load(order + place, mask=real, other=0)
    score = tl.load(scores + row * scores_stride, mask=real, other=0.0).to(tl.float32)
    grade = tl.load(grades + row * grades_stride, mask=real, other=-1).to(tl.int64)
    user = tl.load(users + place, mask=real, other=0)
    time = tl.load(times + place, mask=real, other=0)
    least = -9223372036854775807 - 1
    most = 9223372036854775807
    earliest = tl.where(time < least + window, least, time - window)
    latest = tl.where(time > most - window, most, time + window)
    in_pairs = real & (user < user_count)
    begin = tl.where(in_pairs, _search(users, times, count, user, earliest, steps, False), 0)
    end = tl.where(in_pairs, _search(users, times, count, user, latest, steps, True), 0)
    tl.store(sorted_scores + place, score, mask=real)
    tl.store(sorted_grades + place, grade, mask=real)
    tl.store(begins + place, begin, mask=real)
    tl.store(ends + place, end, mask=real)


@triton.jit
def _decay(x):
    return tl.exp(-tl.abs(x))


@triton.jit
def _log1p(u):
    """ln(1 + u) for u in [0, 1], to full relative accuracy: what rounding 1 + u loses is put back as a factor."""
    whole = 1.0 + u
    lost = tl.where(whole == 1.0, 1.0, whole - 1.0)
    return tl.where(whole == 1.0, u, tl.log(whole) * (u / lost))


@kernel
def forward_kernel(
    scores,
    grades,
    ends,
    losses,
    pairs,
    concordants,
    count,
    BLOCK_EVENTS: tl.constexpr,
    BLOCK_OTHERS: tl.constexpr,
):
    start = tl.program_id(0).to(tl.int64) * BLOCK_EVENTS
    place = start + tl.arange(0, BLOCK_EVENTS)
    real = place < count
    score = tl.load(scores + place, mask=real, other=0.0)
    grade = tl.load(grades + place, mask=real, other=-1)
    end = tl.load(ends + place, mask=real, other=0)
    loss = tl.zeros([BLOCK_EVENTS], tl.float64)
    found = tl.zeros([BLOCK_EVENTS], tl.int64)
    right = tl.zeros([BLOCK_EVENTS], tl.int64)
    for first in range(start + 1, tl.max(end), BLOCK_OTHERS):
        other = first + tl.arange(0, BLOCK_OTHERS)
        other_score = tl.load(scores + other, mask=other < count, other=0.0)
        other_grade = tl.load(grades + other, mask=other < count, other=-1)
        pair = (other[None, :] > place[:, None]) & (other[None, :] < end[:, None])
        pair = pair & (other_grade[None, :] != grade[:, None])
        difference = other_score[None, :] - score[:, None]
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
def backward_kernel(
    scores,
    grades,
    begins,
    ends,
    order,
    d_loss,
    d_scores,
    count,
    BLOCK_EVENTS: tl.constexpr,
    BLOCK_OTHERS: tl.constexpr,
):
    place = tl.program_id(0).to(tl.int64) * BLOCK_EVENTS + tl.arange(0, BLOCK_EVENTS)
    real = place < count
    score = tl.load(scores + place, mask=real, other=0.0)
    grade = tl.load(grades + place, mask=real, other=-1)
    begin = tl.load(begins + place, mask=real, other=0)
    end = tl.load(ends + place, mask=real, other=0)
    total = tl.zeros([BLOCK_EVENTS], tl.float64)
    for first in range(tl.min(tl.where(begin < end, begin, count)), tl.max(end), BLOCK_OTHERS):
        other = first + tl.arange(0, BLOCK_OTHERS)
        other_score = tl.load(scores + other, mask=other < count, other=0.0)
        other_grade = tl.load(grades + other, mask=other < count, other=-1)
        pair = (other[None, :] >= begin[:, None]) & (other[None, :] < end[:, None])
        pair = pair & (other_grade[None, :] != grade[:, None])
        better = grade[:, None] > other_grade[None, :]
        difference = other_score[None, :] - score[:, None]
        x = tl.where(better, difference, -difference)
        decay = _decay(x)
        share = tl.where(x > 0, 1.0, decay) / (1.0 + decay)
        total += tl.sum(tl.where(pair, tl.where(better, -share, share), 0.0), 1).to(tl.float64)
    gradient = total.to(tl.float32) * tl.load(d_loss)
    row = tl.load(order + place, mask=real, other=0)
    tl.store(d_scores + row, gradient.to(d_scores.dtype.element_ty), mask=real)


def _ordered(given: Arguments) -> dict[str, Tensor]:
    """Scores and grades in the order of time, the order itself, and where each event's partners begin and end."""
    ordered = time_order(given.grades, given.offsets, given.times)
    count = given.scores.shape[0]
    found = {
        "sorted_scores": given.scores.new_empty(count, dtype=torch.float32),
        "sorted_grades": given.times.new_empty(count),
        "begins": given.times.new_empty(count),
        "ends": given.times.new_empty(count),
    }
    arguments: dict[str, Any] = {
        "scores": given.scores,
        "grades": given.grades,
        "order": ordered.order,
        "users": ordered.users,
        "times": ordered.times,
        **found,
        "count": count,
        "user_count": given.offsets.shape[0] - 1,
        "window": given.window,
        "steps": count.bit_length(),
        "scores_stride": given.scores.stride(0),
        "grades_stride": given.grades.stride(0),
        "BLOCK": _SEARCHED,
    }
    launch(order_kernel, (ceil_div(count, _SEARCHED),), arguments, stages=1)
    return {**found, "order": ordered.order}


def forward(given: Arguments) -> tuple[Tensor, Tensor, Tensor]:
    """(loss, pairs, concordant) of scores, grades, times [T] and offsets [B + 1]."""
    events = _ordered(given)
    count = given.scores.shape[0]
    programs = ceil_div(count, _EVENTS)
    losses = given.scores.new_empty(programs, dtype=torch.float64)
    # Two allocations: where the second half of one begins, its alignment would change with the batch.
    pairs, concordants = given.times.new_empty(programs), given.times.new_empty(programs)
    arguments = {
        "scores": events["sorted_scores"],
        "grades": events["sorted_grades"],
        "ends": events["ends"],
        "losses": losses,
        "pairs": pairs,
        "concordants": concordants,
        "count": count,
        "BLOCK_EVENTS": _EVENTS,
        "BLOCK_OTHERS": _OTHERS,
    }
    launch(forward_kernel, (programs,), arguments, stages=1)
    return losses.sum().to(torch.float32), pairs.sum(), concordants.sum()


def backward(
    gradients: Sequence[Tensor],
    outputs: Sequence[Tensor],
    needs: dict[str, bool],
    given: Arguments,
) -> list[Tensor | None]:
    """Gradient of scores from that of the loss; the counts have none."""
    if not needs["scores"]:
        return [None]
    events = _ordered(given)
    count = given.scores.shape[0]
    d_scores = given.scores.new_empty(count)
    arguments = {
        "scores": events["sorted_scores"],
        "grades": events["sorted_grades"],
        "begins": events["begins"],
        "ends": events["ends"],
        "order": events["order"],
        "d_loss": gradients[0],
        "d_scores": d_scores,
        "count": count,
        "BLOCK_EVENTS": _EVENTS,
        "BLOCK_OTHERS": _OTHERS,
    }
    launch(backward_kernel, (ceil_div(count, _EVENTS),), arguments, stages=1)
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
