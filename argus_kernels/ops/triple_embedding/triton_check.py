"""The check of ids on a GPU in one launch: an assertion on the device that the host does not wait for."""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from argus_kernels.core.triton_support import ceil_div, launch

_EVENTS = 1024


# With debug Triton keeps device_assert; it would also check 32-bit sums for overflow, so positions are 64-bit.
@triton.jit(debug=True, do_not_specialize=["events", "ids_stride"])
def check_kernel(
    ids, events, ids_stride, ids_event_stride, HEIGHTS: tl.constexpr, SENTENCES: tl.constexpr, EVENTS: tl.constexpr
):
    event = tl.program_id(0).to(tl.int64) * EVENTS + tl.arange(0, EVENTS)
    for k in tl.static_range(len(HEIGHTS)):
        if tl.program_id(1) == k:
            row = tl.load(
                ids + tl.cast(k, tl.int64) * ids_stride + event * ids_event_stride, mask=event < events, other=-1
            )
            tl.device_assert((row >= -1) & (row < HEIGHTS[k]), SENTENCES[k])


def check_ids(ids: Tensor, heights: Sequence[int]) -> None:
    """Asserts on the device that ids [K, T] int64 lie in [−1, heights[k]), in one launch."""
    arguments = {
        "ids": ids,
        "events": ids.shape[1],
        "ids_stride": ids.stride(0),
        "ids_event_stride": ids.stride(1),
        "HEIGHTS": tuple(heights),
        "SENTENCES": tuple(sentence(k, height) for k, height in enumerate(heights)),
        "EVENTS": _EVENTS,
    }
    launch(check_kernel, (ceil_div(ids.shape[1], _EVENTS), len(heights)), arguments, stages=1)


def sentence(column: int, height: int) -> str:
    """The message of a column's assertion."""
    return f"triple_embedding: an id of column {column} is outside its table of {height} rows"
