"""The (context, item, feedback) triple as one vector: lookup in several tables and projection, as one op."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from argus_kernels.core import Backend, Op, Problems, autocast
from argus_kernels.core.problems import FLOATING
from argus_kernels.core.triton_support import triton_backend
from argus_kernels.core.varlen import require_values
from argus_kernels.ops.triple_embedding import fused, native, reference, triton_limits
from argus_kernels.ops.triple_embedding.arguments import Arguments
from argus_kernels.ops.triple_embedding.samples import drawn, samples, tiles


def triple_embedding(
    ids: Tensor,
    tables: Sequence[Tensor],
    columns: Sequence[int],
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    sparse: bool = False,
    check_ids: bool = True,
    backend: str | None = None,
) -> Tensor:
    """One vector per event from K categorical columns: each looked up, side by side, and projected.

        out[t] = bias + Σ_k tables[columns[k]][ids[k, t]] · weight[o_k : o_k + d_k],   o_k = Σ_{j<k} d_j

    with d_k the width of column k's table. Several columns may read one table, as multi-hash embeddings do.

    Args:
        ids: [K, T] int64, row numbers; −1 means missing and reads as a row of zeros.
        tables: [V_j, d_j] each, all of one floating dtype.
        columns: K indices into `tables`.
        weight: [Σ_k d_{columns[k]}, D], dtype like the tables, or bfloat16 or float16 with float32 tables: the rows
            that were looked up are then rounded to it.
        bias: [D], dtype like weight, or None.
        sparse: table gradients are row-sparse: coalesced `torch.sparse_coo` tensors with the rows that were read,
            ascending, each once, for `argus_kernels.optim.RowwiseAdagrad`. Memory of a table's size is then never
            touched. torch.compile leaves such a call to eager execution, and refuses it under fullgraph=True.
        check_ids: check that ids lie in [−1, V). Where False leaves it out, a GPU reads ids outside as missing; `cpp`
            and the reference refuse them all the same.
        backend: which backend computes; None for the default.

    Returns:
        [T, D] in weight's dtype, differentiable in tables, weight and bias. Gradients are summed in float32 (float64
        for float64) and rounded once; a table row's gradients are added in the order of columns, then events, so
        that results repeat bit for bit.

    Raises:
        ValueError: a shape, dtype, layout or device does not fit, or a column names no table; on the CPU also an id
            outside its table, with column, position and value. On a GPU that is a device-side assertion, see
            `argus_kernels.set_device_checks`.

    Under autocast weight and bias are cast to its dtype, tables are not: their rows are cast as they are read. One
    vector for the whole triple is ARGUS's production form (arXiv 2507.15994); fusing it by concatenation and
    projection is this package's choice.
    """
    given = Arguments._make((ids, tables, columns, weight, bias, sparse, check_ids))
    if torch.compiler.is_compiling() and sparse:
        torch._dynamo.graph_break(msg="triple_embedding(sparse=True): torch.compile has no row-sparse gradients")
        # Not a decorator at the module's level: torch.compiler.disable imports torch's compiler, two seconds of it.
        return torch.compiler.disable(OP)(given, backend=backend, prepare=_prepare)
    if not torch.compiler.is_compiling() and fused.serves(given, backend):
        return fused.look_up(OP, _prepare(given), backend)
    return OP(given, backend=backend, prepare=_prepare)


def _prepare(given: Arguments) -> Arguments:
    weight, bias = autocast(given.weight, given.bias)
    problems = Problems("triple_embedding")
    sparse, check_ids = problems.flag("sparse", given.sparse), problems.flag("check_ids", given.check_ids)
    tables, columns = _check_arguments(problems, given._replace(weight=weight, bias=bias))
    return Arguments(given.ids, tables, columns, weight, bias, sparse, check_ids)


def _check_arguments(problems: Problems, given: Arguments) -> tuple[list[Tensor], list[int]]:
    """Tables and columns as lists; raises ValueError with all that is wrong."""
    ids, tables, weight, bias = given.ids, given.tables, given.weight, given.bias
    listed = problems.sequence("tables", tables, "tensors") & problems.sequence("columns", given.columns, "integers")
    if not problems.tensor("weight", weight, shape=(None, None), dtype=FLOATING) or not listed:
        problems.raise_if_any()
    device = weight.device
    columns = [problems.integer(f"columns[{k}]", column, least=0) for k, column in enumerate(given.columns)]
    problems.tensor("ids", ids, shape=(len(columns), None), dtype=torch.int64, device=device, like="columns")
    known = True
    for index, table in enumerate(tables):
        known &= problems.tensor(
            f"tables[{index}]", table, shape=(None, None), dtype=_table_dtypes(weight), device=device
        )
    for k, column in enumerate(columns):
        if not 0 <= column < len(tables):
            known = False
            problems.found.append(f"columns[{k}] is {column}, expected an index into the {len(tables)} tables")
    if known and any(table.dtype != tables[0].dtype for table in tables):
        dtypes = ", ".join(str(table.dtype) for table in tables)
        problems.found.append(f"tables have the dtypes {dtypes}, expected one dtype for all")
    if known:
        height = sum(tables[column].shape[1] for column in columns)
        if weight.shape[0] != height:
            problems.found.append(
                f"weight has {weight.shape[0]} rows, expected {height}, the widths of the columns' tables together"
            )
    if bias is not None:
        problems.tensor("bias", bias, shape=(weight.shape[1],), dtype=weight.dtype, device=device, like="weight")
    problems.raise_if_any()
    return list(tables), columns


def _table_dtypes(weight: Tensor) -> tuple[torch.dtype, ...]:
    if weight.dtype in (torch.bfloat16, torch.float16):
        return (weight.dtype, torch.float32)
    return (weight.dtype,)


def _check_values(given: Arguments) -> None:
    if not given.check_ids:
        return
    ids, heights = given.ids, [given.tables[column].shape[0] for column in given.columns]
    if ids.device.type != "cpu" and triton_limits.checks_ids(given):
        triton_limits.check_ids(ids, heights)
    elif ids.device.type != "cpu":
        for k, rows in enumerate(heights):
            inside = (ids[k] >= -1) & (ids[k] < rows)
            require_values(inside, f"triple_embedding: an id of column {k} is outside its table of {rows} rows")
    else:
        reference.check_ids_on_cpu(ids, given.tables, given.columns)


def _fake(given: Arguments) -> Tensor:
    return given.weight.new_empty(given.ids.shape[1], given.weight.shape[1])


def _fake_backward(
    gradients: list[Tensor],
    needs: dict[str, bool],
    given: Arguments,
) -> list[Tensor]:
    weight = given.weight
    nothing = gradients[0].new_empty(0)
    found: list[Tensor] = []
    for table in given.tables:
        if not needs["tables"]:
            found += [nothing, nothing] if given.sparse else [nothing]
        elif given.sparse:
            rows = torch.library.get_ctx().new_dynamic_size()
            found += [given.ids.new_empty(rows), table.new_empty(rows, table.shape[1])]
        else:
            found.append(torch.empty_like(table))
    found.append(torch.empty_like(weight, memory_format=torch.contiguous_format) if needs["weight"] else nothing)
    found.append(weight.new_empty(weight.shape[1]) if needs["bias"] and given.bias is not None else nothing)
    return found


def _assemble(given: Arguments, needs: dict[str, bool], flat: list[Tensor]) -> list[Any]:
    """One gradient per differentiable argument; a table's (rows, values) become its row-sparse gradient."""
    *table_parts, d_weight, d_bias = flat
    d_tables: list[Tensor | None] = [None] * len(given.tables)
    if needs["tables"] and given.sparse:
        parts = zip(given.tables, table_parts[::2], table_parts[1::2], strict=True)
        d_tables = [
            torch.sparse_coo_tensor(rows[None], values, table.shape, is_coalesced=True, check_invariants=False)
            for table, rows, values in parts
        ]
    elif needs["tables"]:
        d_tables = list(table_parts)
    return [
        d_tables,
        d_weight if needs["weight"] else None,
        d_bias if needs["bias"] and given.bias is not None else None,
    ]


BACKENDS = (
    Backend(
        "cuda",
        native.forward,
        native.backward,
        why_not=native.why_not_cuda,
        available=native.available_cuda,
        kernels=native.kernels_cuda,
    ),
    triton_backend("argus_kernels.ops.triple_embedding.triton_kernels", triton_limits.why_not),
    Backend(
        "cpp",
        native.forward,
        native.backward,
        why_not=native.why_not_cpp,
        available=native.available_cpp,
        checks_values=lambda given: True,
    ),
    Backend("reference", reference.forward, reference.backward),
)

OP = Op(
    "triple_embedding",
    arguments=Arguments,
    returns="Tensor",
    fake=_fake,
    fake_backward=_fake_backward,
    assemble=_assemble,
    assembles=lambda given: given.sparse,
    backends=BACKENDS,
    differentiable=("tables", "weight", "bias"),
    check=_check_values,
    samples=samples,
    tiles=tiles,
    drawn=drawn,
)
