"""The Triton kernels of triple_embedding: sums of rows that cross chunks, row-sparse gradients, refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from argus_kernels import explain, triple_embedding
from argus_kernels.core.triton_support import available

pytestmark = pytest.mark.skipif(available() is not None, reason=str(available()))
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def gradients(backend: str, ids: Tensor, tables: list[Tensor], columns: list[int], **options: Any) -> list[Tensor]:
    """Output and the gradients of tables, weight and bias."""
    generator = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(DEVICE).requires_grad_()

    height = sum(tables[column].shape[1] for column in columns)
    weight, bias = normal(height, 5), normal(5)
    leaves = [*(table.detach().clone().requires_grad_() for table in tables), weight, bias]
    read = leaves[: len(tables)]
    out = triple_embedding(ids.to(DEVICE), read, columns, weight, bias, backend=backend, **options)
    found = torch.autograd.grad(out, leaves, normal(*out.shape).detach())
    return [out.detach(), *found]


def tables_of(*shapes: tuple[int, int]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(*shape, generator=generator).to(DEVICE) for shape in shapes]


@pytest.mark.parametrize("events", [1, 32, 33, 90])
def test_runs_of_one_row_across_chunks(events: int) -> None:
    """A row that every event reads, one that a third reads, and rows read once or never, by two columns each."""
    ids = torch.stack([torch.zeros(events).long(), torch.arange(events) % 3 - 1, torch.arange(events) % 150]).long()
    tables, columns = tables_of((2, 3), (150, 2)), [0, 0, 1]
    ours = gradients("triton", ids, tables, columns)
    for found, expected in zip(ours, gradients("reference", ids, tables, columns), strict=True):
        torch.testing.assert_close(found, expected, atol=2e-5, rtol=2e-5)
    for found, again in zip(ours, gradients("triton", ids, tables, columns), strict=True):
        assert torch.equal(found, again)


def test_a_long_run_of_whole_chunks() -> None:
    """More pieces than one step of the second kernel takes, and events for two splits of the weight's gradient."""
    ids = torch.full((1, 1100), 1)
    ids[0, ::13] = 0
    ours = gradients("triton", ids, tables_of((3, 2)), [0])
    for found, expected in zip(ours, gradients("reference", ids, tables_of((3, 2)), [0]), strict=True):
        torch.testing.assert_close(found, expected, atol=5e-5, rtol=2e-5)


def test_row_sparse_gradients() -> None:
    ids = torch.tensor([[4, -1, 0, 4, 4], [0, 0, -1, 2, 4]])
    tables = tables_of((6, 3), (2, 2))
    ours = gradients("triton", ids, tables, [0, 0], sparse=True)
    expected = gradients("reference", ids, tables, [0, 0], sparse=True)
    assert ours[1].is_sparse and ours[1].is_coalesced()
    assert ours[1].indices().tolist() == [[0, 2, 4]]
    assert ours[2]._nnz() == 0
    torch.testing.assert_close(ours[1].to_dense(), expected[1].to_dense())


def test_ids_outside_their_table_read_nothing_where_they_are_not_checked() -> None:
    ids = torch.tensor([[1, 7, -5, 2**40]])
    ours = gradients("triton", ids, tables_of((2, 3)), [0], check_ids=False)
    alone = gradients("triton", torch.tensor([[1, -1, -1, -1]]), tables_of((2, 3)), [0])
    for found, expected in zip(ours, alone, strict=True):
        assert torch.equal(found, expected)


def test_wide_rows_take_several_parts() -> None:
    """150 columns of a table: three parts of 64 in the product, and rows of more than one block in the sums."""
    ids = torch.tensor([[0, 3, 3, -1, 2]])
    ours = gradients("triton", ids, tables_of((4, 300)), [0])
    for found, expected in zip(ours, gradients("reference", ids, tables_of((4, 300)), [0]), strict=True):
        torch.testing.assert_close(found, expected, atol=2e-5, rtol=2e-5)


def test_refusals() -> None:
    tables = [torch.zeros(2, 1, dtype=torch.float64)]
    ids = torch.zeros(65, 3, dtype=torch.int64)
    verdicts = explain(triple_embedding, ids, tables, [0] * 65, torch.zeros(65, 2, dtype=torch.float64))
    (found,) = [one for one in verdicts if one.backend == "triton"]
    assert "columns are 65, expected at most 64" in found.reasons
    assert "tables[0] is float64, expected one of float32, bfloat16, float16" in found.reasons
