"""rowwise_adagrad_ in Triton.

torch's stable sort brings the repetitions of a row together in the order given. One program looks at each sorted
position: the one at the first position of a run sums the run's gradients in order, kept in registers, and updates the
row; the others leave.
"""

from __future__ import annotations

import torch
import triton.language as tl
from torch import Tensor

from argus_kernels.core.triton_jit import kernel
from argus_kernels.core.triton_support import CompileCase, launch, next_power_of_two


@kernel
def update_kernel(
    table,
    state,
    sorted_rows,
    order,
    row_gradients,
    lr,
    eps,
    weight_decay,
    count,
    table_rows,
    width,
    table_stride,
    table_column_stride,
    state_stride,
    gradient_stride,
    gradient_column_stride,
    BLOCK: tl.constexpr,
):
    position = tl.program_id(0).to(tl.int64)
    row = tl.load(sorted_rows + position)
    before = tl.load(sorted_rows + position - 1, mask=position > 0, other=-1)
    if (row != before) & (row >= 0) & (row < table_rows):
        column = tl.arange(0, BLOCK).to(tl.int64)
        inside = column < width
        gradient = tl.zeros([BLOCK], tl.float32)
        end = position
        same = True
        while same:
            given = row_gradients + tl.load(order + end) * gradient_stride
            gradient += tl.load(given + column * gradient_column_stride, mask=inside, other=0.0).to(tl.float32)
            end += 1
            same = tl.load(sorted_rows + end, mask=end < count, other=-1) == row
        place = table + row * table_stride + column * table_column_stride
        value = tl.load(place, mask=inside, other=0.0).to(tl.float32)
        gradient += weight_decay * value
        second_moment = tl.load(state + row * state_stride) + tl.sum(gradient * gradient) / width
        step = lr * gradient / (tl.sqrt_rn(second_moment) + eps)
        tl.store(place, (value - step).to(table.dtype.element_ty), mask=inside)
        tl.store(state + row * state_stride, second_moment)


def forward(
    table: Tensor,
    state: Tensor,
    rows: Tensor,
    row_gradients: Tensor,
    lr: float,
    eps: float,
    weight_decay: float,
) -> None:
    """Updates table [V, d] and state [V] in place at rows [R], by row_gradients [R, d]."""
    sorted_rows, order = torch.sort(rows, stable=True)
    width = table.shape[1]
    block = next_power_of_two(width)
    arguments = {
        "table": table,
        "state": state,
        "sorted_rows": sorted_rows,
        "order": order,
        "row_gradients": row_gradients,
        "lr": lr,
        "eps": eps,
        "weight_decay": weight_decay,
        "count": rows.shape[0],
        "table_rows": table.shape[0],
        "width": max(width, 1),
        "table_stride": table.stride(0),
        "table_column_stride": table.stride(1),
        "state_stride": state.stride(0),
        "gradient_stride": row_gradients.stride(0),
        "gradient_column_stride": row_gradients.stride(1),
        "BLOCK": block,
    }
    # A row of 128 columns is 4 elements a thread of one warp: no block-wide barrier, many rows in flight.
    launch(update_kernel, (rows.shape[0],), arguments, warps=max(1, min(block // 256, 8)), stages=1)


def compile_cases() -> list[CompileCase]:
    """Every dtype of table and gradients at the widths of use."""

    def case(table: torch.dtype, gradient: torch.dtype, width: int) -> CompileCase:
        def call() -> None:
            with torch.device("meta"):
                values = torch.empty(1_000_000, width, dtype=table), torch.empty(1_000_000)
                given = torch.empty(32_768, dtype=torch.int64), torch.empty(32_768, width, dtype=gradient)
            forward(*values, *given, 0.1, 1e-8, 0.0)

        return CompileCase(f"{table}-{gradient}-{width}".replace("torch.", ""), call)

    half = (torch.bfloat16, torch.float16)
    pairs = [(torch.float32, torch.float32), *((one, other) for one in half for other in (one, torch.float32))]
    return [case(*pair, 64) for pair in pairs] + [case(torch.float32, torch.float32, 1024)]
