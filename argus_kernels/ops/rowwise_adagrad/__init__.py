"""Row-wise Adagrad on the rows of an embedding table that a step has touched, in place, as one op."""

from __future__ import annotations

import torch
from torch import Tensor

from argus_kernels.core import Backend, Op, Problems
from argus_kernels.core.problems import FLOATING
from argus_kernels.core.torch_op import plain_number
from argus_kernels.core.triton_support import triton_backend
from argus_kernels.core.varlen import require_values
from argus_kernels.ops.rowwise_adagrad import native, reference, triton_limits
from argus_kernels.ops.rowwise_adagrad.arguments import Arguments
from argus_kernels.ops.rowwise_adagrad.samples import drawn, samples, tiles


def rowwise_adagrad_(
    table: Tensor,
    state: Tensor,
    rows: Tensor,
    row_gradients: Tensor,
    *,
    lr: float | Tensor,
    eps: float | Tensor = 1e-8,
    weight_decay: float | Tensor = 0.0,
    backend: str | None = None,
) -> None:
    """One step of row-wise Adagrad, in place, on the given rows only; memory of the table's size is never touched.

    With g_r the sum of the gradients given for row r, in the order given:

        g_r ← g_r + weight_decay · table[r]
        state[r] ← state[r] + mean(g_r²)
        table[r] ← table[r] − lr · g_r / (√state[r] + eps)

    Args:
        table: [V, d], float32, bfloat16, float16 or float64; written in place. Call it under `torch.no_grad()` where
            it is a parameter.
        state: [V] float32 (float64 also allowed for a float64 table), zero at the start; written in place.
        rows: [R] int64 in [−1, V), in any order, repetitions allowed; entries of −1 are skipped, so that a list of
            rows can be padded.
        row_gradients: [R, d], dtype like table or float32; no gradient reaches it.
        lr: learning rate, at least 0. Like eps and weight_decay also a floating-point tensor of no dimension, without a
            gradient, whose value is read at each call.
        eps: added to the root of the state, at least 0.
        weight_decay: L2 penalty, at least 0, on touched rows.
        backend: which backend computes; None for the default.

    Raises:
        ValueError: a shape, dtype, layout or device does not fit, a setting is negative or not finite, table or state
            is expanded or would need a gradient; on the CPU also a row outside the table, with its position. On a GPU
            that is a device-side assertion.

    Sums and the step are computed in float32 (float64 for a float64 table) and rounded to the table's dtype once; the
    state is rounded to its own before its root is taken. With eps = 0 a row whose gradients were all 0 so far becomes
    NaN, which is 0 / 0. Table and state may have any strides on the CPU, such as a transposed table's. The formula is
    that of FBGEMM's EXACT_ROWWISE_ADAGRAD with L2 weight decay.
    """
    given = Arguments(table, state, rows, row_gradients, *map(plain_number, (lr, eps, weight_decay)))
    OP(given, backend=backend, prepare=_prepare)


_NUMBERS = ("lr", "eps", "weight_decay")


def _prepare(given: Arguments) -> Arguments:
    problems = Problems("rowwise_adagrad_")
    table, state, rows = given.table, given.state, given.rows
    if not problems.tensor("table", table, shape=(None, None), dtype=FLOATING):
        problems.raise_if_any()
    size, width = table.shape
    device = table.device
    wide = (torch.float32, torch.float64) if table.dtype == torch.float64 else (torch.float32,)
    problems.tensor("state", state, shape=(size,), dtype=wide, device=device)
    if problems.tensor("rows", rows, shape=(None,), dtype=torch.int64, device=device):
        problems.tensor(
            "row_gradients",
            given.row_gradients,
            shape=(rows.shape[0], width),
            dtype=tuple(dict.fromkeys((table.dtype, torch.float32))),
            device=device,
        )
    numbers = {name: problems.number(name, getattr(given, name), least=0, or_tensor=True) for name in _NUMBERS}
    problems.writable("table", table)
    problems.writable("state", state)
    problems.raise_if_any()
    return given._replace(**numbers)


def _check_values(given: Arguments) -> None:
    table, rows = given.table, given.rows
    native.require_apart(given)
    if rows.device.type != "cpu":
        require_values((rows >= -1) & (rows < table.shape[0]), "rowwise_adagrad_: a row is outside the table")
    elif rows.numel():
        lowest, highest = (int(bound) for bound in rows.aminmax())
        if lowest < -1 or highest >= table.shape[0]:
            position = int(((rows < -1) | (rows >= table.shape[0])).nonzero()[0])
            raise ValueError(
                f"rowwise_adagrad_: rows[{position}] is {int(rows[position])}, expected −1 (skipped) or 0 to "
                f"{table.shape[0] - 1}"
            )


def _fake(given: Arguments) -> None:
    return None


BACKENDS = (
    Backend("cuda", native.forward_cuda, why_not=native.why_not_cuda, available=native.available_cuda),
    triton_backend("argus_kernels.ops.rowwise_adagrad.triton_kernels", triton_limits.why_not, differentiable=False),
    Backend(
        "cpp",
        native.forward_cpp,
        why_not=native.why_not_cpp,
        available=native.available_cpp,
        checks_values=native.checks_values_cpp,
    ),
    Backend("reference", reference.forward),
)

OP = Op(
    "rowwise_adagrad_",
    arguments=Arguments,
    returns="()",
    fake=_fake,
    backends=BACKENDS,
    mutates=("table", "state"),
    numbers={name: (name, {"least": 0}) for name in _NUMBERS},
    check=_check_values,
    samples=samples,
    tiles=tiles,
    drawn=drawn,
)
