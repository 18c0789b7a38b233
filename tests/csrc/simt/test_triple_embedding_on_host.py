"""The CUDA kernels of triple_embedding, held to the error rule and to their promises on the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from argus_kernels import triple_embedding
from argus_kernels.ops.triple_embedding import OP
from tests.csrc.simt import triple_embedding_on_host

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
NAME = triple_embedding_on_host.BACKEND.name


@pytest.fixture(autouse=True)
def _with_backend(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    reason = triple_embedding_on_host.BACKEND.available()
    if reason is not None:
        pytest.skip(reason)
    assert NAME not in [backend.name for backend in OP.backends]
    monkeypatch.setattr(OP, "backends", (*OP.backends, triple_embedding_on_host.BACKEND))
    yield


def arguments(
    events: int = 150, width: int = 136, dtype: torch.dtype = torch.float32, **options: Any
) -> dict[str, Any]:
    """Rows of whole chunks and of odd widths, more events and outputs than a tile has, a table read twice."""
    generator = torch.Generator().manual_seed(events)
    tables, columns = ((40, 24), (3, 5), (200, 8)), (0, 1, 2, 0)

    def leaf(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(dtype).requires_grad_()

    highest = torch.tensor([tables[column][0] for column in columns])[:, None]
    return {
        "ids": (torch.rand(len(columns), events, generator=generator) * (highest + 1)).long() - 1,
        "tables": [leaf(*shape) for shape in tables],
        "columns": list(columns),
        "weight": leaf(sum(tables[column][1] for column in columns), width),
        "bias": leaf(width),
        **options,
    }


def results(given: dict[str, Any], backend: str) -> list[Tensor]:
    """The output, then every gradient."""
    output = triple_embedding(**given, backend=backend)
    leaves = [*given["tables"], given["weight"], given["bias"]]
    gradient = torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).to(output.dtype)
    found = torch.autograd.grad(output, leaves, gradient)
    return [output.detach(), *(one.to_dense() if one.is_sparse else one for one in found)]


def assert_near_reference(given: dict[str, Any]) -> None:
    tolerance = 2e-5 if given["weight"].dtype == torch.float32 else 2e-2
    for ours, reference in zip(results(given, NAME), results(given, "reference"), strict=True):
        scale = float(reference.detach().abs().max()) if reference.numel() else 0.0
        torch.testing.assert_close(ours, reference, rtol=0.0, atol=tolerance * max(scale, 1.0))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_several_tiles(dtype: torch.dtype) -> None:
    assert_near_reference(arguments(dtype=dtype))


def test_several_parts_of_the_events() -> None:
    """More events than a part of the weight's and of the bias's gradient has, and rows with runs over many windows."""
    given = arguments(1_100, 8)
    given["ids"][1] = 0
    assert_near_reference(given)


def test_float32_tables_under_a_narrow_weight() -> None:
    given = arguments()
    given["weight"] = given["weight"].detach().bfloat16().requires_grad_()
    given["bias"] = given["bias"].detach().bfloat16().requires_grad_()
    assert_near_reference(given)


@pytest.mark.parametrize("events", [1, 31, 1_024, 2_500])
def test_counting_orders_as_a_stable_sort(events: int) -> None:
    """Rows that are popular, unread and missing; the last chunk of events full and not; tables read out of order."""
    generator = torch.Generator().manual_seed(events)
    heights, columns = (1, 999, 1_000, 40), (3, 1, 0, 2, 1, 3)
    highest = torch.tensor([heights[column] for column in columns])[:, None]
    ids = (torch.rand(len(columns), events, generator=generator).square() * (highest + 2)).long() - 1
    tables = [torch.empty(rows, 1) for rows in heights]
    counted = triple_embedding_on_host.ordered_entries(ids, tables, columns)
    for index, ours in enumerate(counted):
        readers = [k for k, column in enumerate(columns) if column == index]
        rows = ids[readers].flatten()
        rows = torch.where((rows >= 0) & (rows < heights[index]), rows, -1)
        expected, order = rows.sort(stable=True)
        assert torch.equal(ours.keys - ours.first_key - 1, expected.int())
        assert torch.equal(ours.positions - ours.first_position, order)


@pytest.mark.parametrize("sparse", [False, True])
def test_same_bits_in_every_order_of_the_threads(sparse: bool) -> None:
    given = arguments(140, 40, torch.bfloat16, sparse=sparse)
    first = results(given, NAME)
    again = results(given, NAME)
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))


def test_row_sparse_gradients_are_the_dense_ones() -> None:
    given = arguments(140, 24)
    dense, sparse = results(given, NAME), results({**given, "sparse": True}, NAME)
    assert all(torch.equal(one, other) for one, other in zip(dense, sparse, strict=True))
    output = triple_embedding(**given, sparse=True, backend=NAME)
    found = torch.autograd.grad(output.sum(), given["tables"])
    for index, readers in enumerate(([0, 3], [1], [2])):
        ids = given["ids"][readers]
        assert torch.equal(found[index].indices()[0], ids[ids >= 0].unique())


def test_tables_and_weight_of_any_stride() -> None:
    given = arguments(20, 24)
    expected = results(given, NAME)
    strided = {
        **given,
        "tables": [table.detach().t().contiguous().t().requires_grad_() for table in given["tables"]],
        "weight": given["weight"].detach().t().contiguous().t().requires_grad_(),
        "ids": given["ids"].t().contiguous().t(),
    }
    assert all(torch.equal(one, other) for one, other in zip(expected, results(strided, NAME), strict=True))


def test_ids_outside_their_table_read_as_missing() -> None:
    """As on a GPU whose caller has switched the check off: no memory outside the table is touched."""
    given = arguments(20, 24, check_ids=False)
    clean = results(given, NAME)
    for outside in (300, 2**40, -7):
        given["ids"] = torch.where(given["ids"] < 0, outside, given["ids"])
        assert all(torch.equal(one, other) for one, other in zip(clean, results(given, NAME), strict=True))
        given["ids"] = torch.where((given["ids"] < 0) | (given["ids"] >= 300), -1, given["ids"])


def test_inputs_that_cuda_refuses_are_refused() -> None:
    given = arguments(4, 8)
    with pytest.raises(ValueError, match=r"triple_embedding\[cuda_on_host\]: weight is float64"):
        triple_embedding(
            given["ids"],
            [table.double() for table in given["tables"]],
            given["columns"],
            given["weight"].double(),
            given["bias"].double(),
            backend=NAME,
        )
    many = torch.zeros(33, 2, dtype=torch.int64)
    with pytest.raises(ValueError, match="ids has 33 columns, expected at most 32"):
        triple_embedding(many, [torch.zeros(1, 1)], [0] * 33, torch.zeros(33, 4), backend=NAME)
