"""triple_embedding in plain PyTorch: the definition, and the gradients written out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from argus_kernels.ops.triple_embedding.arguments import Arguments


def forward(given: Arguments) -> Tensor:
    """Ids [K, T], tables [V_j, d_j], weight [Σ d, D], bias [D] → [T, D]."""
    if not given.check_ids and given.ids.device.type == "cpu" and not torch.compiler.is_compiling():
        check_ids_on_cpu(given.ids, given.tables, given.columns)
    return F.linear(_gather(given, given.sparse), given.weight.T, given.bias)


def backward(
    gradients: Sequence[Tensor], outputs: Sequence[Tensor], needs: dict[str, bool], given: Arguments
) -> list[list[Tensor | None] | Tensor | None]:
    """Gradients of the tables (dense, or row numbers and rows where `sparse`), weight and bias."""
    ids, tables, columns, weight, sparse = given.ids, given.tables, given.columns, given.weight, given.sparse
    dtype = torch.promote_types(weight.dtype, torch.float32)
    gradient = gradients[0].to(dtype)
    d_tables: list[Tensor | None] = [None] * (2 * len(tables) if sparse else len(tables))
    if needs["tables"]:
        d_tables = []
        d_gathered = (gradient @ weight.to(dtype).T).split([tables[column].shape[1] for column in columns], dim=1)
        for index, table in enumerate(tables):
            readers = [k for k, column in enumerate(columns) if column == index]
            rows, values = _sum_by_row([ids[k] for k in readers], [d_gathered[k] for k in readers], table)
            d_tables += [rows, values] if sparse else [torch.zeros_like(table).index_copy_(0, rows, values)]
    d_weight = d_bias = None
    if needs["weight"]:
        d_weight = (_gather(given, False).to(dtype).T @ gradient).to(weight.dtype)
    if needs["bias"] and given.bias is not None:
        d_bias = gradient.sum(0).to(weight.dtype)
    return [d_tables, d_weight, d_bias]


def check_ids_on_cpu(ids: Tensor, tables: Sequence[Tensor], columns: Sequence[int]) -> None:
    """Raises ValueError with column, position and value of an id [K, T] that is neither −1 nor a row of its table."""
    if not ids.numel():
        return
    bounds = ids.aminmax(dim=1)
    for k, (lowest, highest) in enumerate(zip(bounds.min.tolist(), bounds.max.tolist(), strict=True)):
        rows = tables[columns[k]].shape[0]
        if lowest < -1 or highest >= rows:
            position = int(((ids[k] < -1) | (ids[k] >= rows)).nonzero()[0])
            raise ValueError(
                f"triple_embedding: ids[{k}, {position}] is {int(ids[k, position])}, expected −1 (missing) or a row of "
                f"tables[{columns[k]}], 0 to {rows - 1}"
            )


def _gather(given: Arguments, sparse: bool) -> Tensor:
    """The rows of all columns side by side, [T, Σ d], in weight's dtype; zero where an id is −1."""
    ids, weight = given.ids, given.weight
    parts = [weight.new_zeros(ids.shape[1], 0)]
    for k, column in enumerate(given.columns):
        table, missing = given.tables[column], (ids[k] < 0)[:, None]
        if table.shape[0] == 0:
            parts.append(weight.new_zeros(ids.shape[1], table.shape[1]))
        else:
            rows = F.embedding(ids[k].clamp_min(0), table, sparse=sparse)
            parts.append(torch.where(missing, 0, rows).to(weight.dtype))
    return torch.cat(parts, dim=1)


def _sum_by_row(ids: list[Tensor], gradients: list[Tensor], table: Tensor) -> tuple[Tensor, Tensor]:
    """The rows of `table` that were read, ascending, and the sum of each one's gradients, rounded once to its dtype.

    The sum runs over columns in their order and over events in theirs, whatever the number of threads.
    """
    if not ids:
        return torch.empty(0, dtype=torch.int64, device=table.device), torch.empty_like(table[:0])
    flat = torch.cat(ids)
    present = flat >= 0
    rows, place = flat[present].unique(return_inverse=True)
    # Unlike index_add_ it adds in a fixed order on every device.
    sums = torch.ops.aten.embedding_dense_backward(torch.cat(gradients)[present], place, rows.shape[0], -1, False)
    return rows, sums.to(table.dtype)
