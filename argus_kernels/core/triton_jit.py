"""`kernel`: the decorator of every Triton kernel here. It says which arguments a kernel is not compiled for.

Triton compiles a kernel again when an integer becomes 1, or becomes or stops being a multiple of 16. For sizes that a
model fixes (head width, strides of its rows, table widths) this is useful, because it allows vector loads. For sizes
that change with every batch it costs 0.3 s in the middle of training. Those are `BATCH_SIZES`, by their names in the
kernels.
Everything else specialises: dtypes, the alignment of pointers, strides, widths, arguments that are None, constexprs.
A tensor that starts in the middle of another (a row of [K, T], say) changes its alignment with T: a launcher passes the
whole tensor and the row's number.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import triton

BATCH_SIZES = frozenset(
    {
        "base",
        "block_table_stride",
        "block_table_width",
        "capacity",
        "chunk",
        "chunks",
        "count",
        "depth",
        "drawn",
        "events",
        "first",
        "first_row",
        "ids_stride",
        "pages",
        "reader",
        "rows",
        "slab_rows",
        "split_candidates",
        "split_events",
        "split_rows",
        "steps",
        "user_count",
        "users",
        "window",
    }
)
"""Integer arguments whose value changes with the batch, or that no address is computed from, in every kernel.

A width that a model fixes has another name, because vector loads come of knowing it.
"""


def kernel(function: Callable[..., Any]) -> Any:
    """`triton.jit`, compiled once for all values of the arguments in `BATCH_SIZES`."""
    sizes = [name for name in inspect.signature(function).parameters if name in BATCH_SIZES]
    return triton.jit(do_not_specialize=sizes)(function)
