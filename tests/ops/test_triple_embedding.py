"""triple_embedding against torch's lookup, concatenation and projection; its sparse gradients; every bad input."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from argus_kernels import triple_embedding
from argus_kernels.ops.triple_embedding import OP, native
from argus_kernels.testing import captured_arguments, require_close
from tests.drawn_examples import examples

BACKENDS = [backend.name for backend in OP.backends]


def draw(
    events: int,
    tables: list[tuple[int, int]],
    columns: list[int],
    width: int = 5,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)

    def leaf(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

    highest = torch.tensor([tables[column][0] for column in columns], dtype=torch.int64)[:, None]
    ids = (torch.rand(len(columns), events, generator=generator) * (highest + 1)).long() - 1
    return {
        "ids": ids,
        "tables": [leaf(*shape) for shape in tables],
        "columns": columns,
        "weight": leaf(sum(tables[column][1] for column in columns), width),
        "bias": leaf(width),
    }


def leaves(arguments: dict[str, Any]) -> list[Tensor]:
    return [*arguments["tables"], arguments["weight"], arguments["bias"]]


def serve(backend: str, arguments: dict[str, Any]) -> Tensor:
    reasons = OP.backend(backend).reasons(captured_arguments(OP, arguments))
    if reasons:
        pytest.skip("; ".join(reasons))
    return triple_embedding(**arguments, backend=backend)


def by_padding_row(arguments: dict[str, Any]) -> Tensor:
    """Each table with a row of zeros put in front, so that id −1 reads it; then cat and linear."""
    parts = [arguments["weight"].new_zeros(arguments["ids"].shape[1], 0)]
    for ids, column in zip(arguments["ids"], arguments["columns"], strict=True):
        table = arguments["tables"][column]
        parts.append(F.embedding(ids + 1, torch.cat([table.new_zeros(1, table.shape[1]), table])))
    return F.linear(torch.cat(parts, 1), arguments["weight"].T, arguments["bias"])


def assert_equals_torch(backend: str, arguments: dict[str, Any]) -> None:
    found, expected = serve(backend, arguments), by_padding_row(arguments)
    torch.testing.assert_close(found, expected)
    gradient = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1), dtype=expected.dtype)
    ours = torch.autograd.grad(found, leaves(arguments), gradient)
    theirs = torch.autograd.grad(expected, leaves(arguments), gradient, allow_unused=True)
    for leaf, one, other in zip(leaves(arguments), ours, theirs, strict=True):
        torch.testing.assert_close(one, torch.zeros_like(leaf) if other is None else other)


@pytest.mark.parametrize("backend", BACKENDS)
def test_equals_lookup_concatenation_and_projection(backend: str) -> None:
    assert_equals_torch(backend, draw(40, [(30, 4), (7, 3), (1, 2)], [0, 1, 0, 2, 1]))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_table_that_no_column_reads_and_one_without_rows(backend: str) -> None:
    assert_equals_torch(backend, draw(6, [(5, 2), (0, 3), (4, 2)], [1, 0]))


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_column_gives_the_bias(backend: str) -> None:
    arguments = draw(4, [(3, 2)], [])
    assert torch.equal(serve(backend, arguments), arguments["bias"].expand(4, 5))
    without = serve(backend, {**arguments, "bias": None, "tables": []})
    assert torch.equal(without, torch.zeros(4, 5, dtype=torch.float64))


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=examples(25), deadline=None)
@given(
    events=st.integers(0, 12),
    tables=st.lists(st.tuples(st.integers(1, 5), st.integers(1, 3)), min_size=1, max_size=3),
    seed=st.integers(0, 2**31 - 1),
    data=st.data(),
)
def test_any_columns(backend: str, events: int, tables: list[tuple[int, int]], seed: int, data: st.DataObject) -> None:
    columns = data.draw(st.lists(st.integers(0, len(tables) - 1), min_size=1, max_size=4))
    assert_equals_torch(backend, draw(events, tables, columns, seed=seed))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sparse_gradients(backend: str, dtype: torch.dtype) -> None:
    """Exactly the rows that were read, ascending, each once, and the very sums of the dense gradients."""
    arguments = draw(60, [(40, 4), (9, 3), (6, 2)], [0, 0, 1], dtype=dtype)
    gradient = torch.randn(60, 5).to(dtype)
    dense = torch.autograd.grad(serve(backend, arguments), leaves(arguments), gradient)
    sparse = torch.autograd.grad(serve(backend, {**arguments, "sparse": True}), leaves(arguments), gradient)
    readers = {0: [0, 1], 1: [2], 2: []}
    for index, columns in readers.items():
        ids = arguments["ids"][columns]
        assert sparse[index].is_sparse
        assert sparse[index].is_coalesced()
        assert torch.equal(sparse[index].indices()[0], ids[ids >= 0].unique())
        assert torch.equal(sparse[index].to_dense(), dense[index])
    assert all(torch.equal(one, other) for one, other in zip(sparse[3:], dense[3:], strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("sparse", [False, True])
def test_rows_are_summed_in_one_order_on_any_number_of_threads(backend: str, sparse: bool) -> None:
    """With the identity as projection the products are exact, so that only the order of the sums could show."""
    # Triton's interpreter takes seconds for a hundred events; its kernels cut a row's into pieces of 32.
    events, rows, counts = (130, 1, (1, 2)) if backend == "triton" else (4_000, 3, (1, 2, 3, 2))
    arguments = draw(events, [(50, 16), (rows, 8)], [0, 0, 1], width=40, dtype=torch.float32)
    arguments["weight"] = torch.eye(40, requires_grad=True)
    gradient = torch.randn(events, 40)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in counts:
            torch.set_num_threads(threads)
            output = serve(backend, {**arguments, "sparse": sparse})
            found = torch.autograd.grad(output, arguments["tables"], gradient)
            results.append([one.to_dense() if one.is_sparse else one for one in found])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(one, two) for one, two in zip(results[0], other, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cpp_gives_the_same_bits_on_any_number_of_threads(dtype: torch.dtype) -> None:
    """Output and every gradient, of tables that are projected, gathered, and gathered with repeated rows."""
    arguments = draw(5_000, [(2_000, 24), (9, 16), (50, 3)], [0, 1, 0, 2, 1], width=72, dtype=dtype)
    gradient = torch.randn(5_000, 72).to(dtype)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3, 5):
            torch.set_num_threads(threads)
            output = serve("cpp", arguments)
            results.append([output, *torch.autograd.grad(output, leaves(arguments), gradient)])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(one, two) for one, two in zip(results[0], other, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_that_no_event_reads_may_hold_anything(backend: str) -> None:
    """NaN in them reaches neither the output nor a gradient, though a table may be projected whole."""
    arguments = draw(200, [(12, 16), (400, 8)], [0, 1, 0], width=40, dtype=torch.float32)
    arguments["ids"].clamp_(max=300)
    arguments["ids"][0].clamp_(max=7)
    arguments["ids"][2].clamp_(max=5)
    gradient = torch.randn(200, 40)
    clean = torch.autograd.grad(serve(backend, arguments), leaves(arguments), gradient)
    with torch.no_grad():
        arguments["tables"][0][8:] = float("nan")
        arguments["tables"][1][301:] = float("nan")
    dirty_output = serve(backend, arguments)
    assert dirty_output.isfinite().all()
    dirty = torch.autograd.grad(dirty_output, leaves(arguments), gradient)
    assert all(torch.equal(one, other) for one, other in zip(clean, dirty, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_of_the_projection_alone(backend: str) -> None:
    """Of frozen tables with repeated rows: the others' gradients are the same."""
    arguments = draw(60, [(40, 4), (9, 3), (6, 2)], [0, 0, 1], dtype=torch.float32)
    gradient = torch.randn(60, 5)
    every = torch.autograd.grad(serve(backend, arguments), leaves(arguments), gradient)
    for table in arguments["tables"]:
        table.requires_grad_(False)
    found = torch.autograd.grad(serve(backend, arguments), leaves(arguments)[3:], gradient)
    assert all(torch.equal(one, other) for one, other in zip(found, every[3:], strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_dense_gradients_of_a_large_table(dtype: torch.dtype) -> None:
    """Zeros but for the rows that were read, in memory of its own that torch may write and add to."""
    arguments = draw(30, [(40_000, 16)], [0, 0], dtype=dtype)
    table = arguments["tables"][0]
    gradient = torch.randn(30, 5).to(dtype)
    serve("cpp", arguments).backward(gradient, inputs=[table])
    first = table.grad
    assert first is not None and first.is_contiguous()
    (sparse,) = torch.autograd.grad(serve("cpp", {**arguments, "sparse": True}), [table], gradient)
    assert torch.equal(first, sparse.to_dense())
    once = first.clone()
    serve("cpp", arguments).backward(gradient, inputs=[table])
    assert torch.equal(table.grad, 2 * once)
    table.grad.zero_().add_(1)
    assert bool((table.grad == 1).all())


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_ids_are_checked_even_unasked(backend: str) -> None:
    arguments = draw(3, [(3, 2), (4, 3)], [0, 1], dtype=torch.float32)
    arguments["ids"] = torch.tensor([[0, 1, 2], [0, 4, 1]])
    with pytest.raises(ValueError, match=r"triple_embedding: ids\[1, 1\] is 4, expected .1 .* tables\[1\], 0 to 3"):
        serve(backend, {**arguments, "check_ids": False})


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_row_hit_by_every_event_is_summed_in_float32(backend: str) -> None:
    """8,192 gradients of 1 in bfloat16: a sum kept in bfloat16 would stop at 256."""
    events = 8_192
    table = torch.zeros(1, 2, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.eye(2, dtype=torch.bfloat16, requires_grad=True)
    bias = torch.zeros(2, dtype=torch.bfloat16, requires_grad=True)
    ids = torch.zeros(1, events, dtype=torch.int64)
    output = serve(backend, {"ids": ids, "tables": [table], "columns": [0], "weight": weight, "bias": bias})
    output.backward(torch.ones_like(output))
    assert table.grad is not None and bias.grad is not None
    assert table.grad.float().tolist() == [[events, events]]
    assert bias.grad.float().tolist() == [events, events]


@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "triton"])
def test_sums_over_many_events_keep_the_error_rule(backend: str) -> None:
    """The gradients of weight and bias: what a long plain sum in float32 would lose shows here."""
    arguments = draw(1_200, [(400, 8), (30, 4)], [0, 1], width=80, dtype=torch.float32)
    gradient = torch.randn(1_200, 80)
    serve(backend, arguments).backward(gradient)
    rows = [by_id(table.detach(), arguments["ids"][k]) for k, table in enumerate(arguments["tables"])]
    together = torch.cat(rows, dim=1)
    d_weight = together.double().T @ gradient.double()
    require_close("d_weight", arguments["weight"].grad, d_weight, together.T @ gradient)
    require_close("d_bias", arguments["bias"].grad, gradient.double().sum(0), gradient.sum(0))


def by_id(table: Tensor, ids: Tensor) -> Tensor:
    return torch.where((ids < 0)[:, None], 0.0, table[ids.clamp_min(0)])


@pytest.mark.parametrize("backend", BACKENDS)
def test_ids_that_float32_cannot_hold(backend: str) -> None:
    """2²⁴ + 1 reads its own row, and row · d past 2³¹ is no obstacle (the table is a view, it takes no memory)."""
    size = 2**31 // 4 + 10
    table = torch.arange(8.0).reshape(2, 4)[:1].expand(size, 4)
    small = torch.zeros(2**24 + 2, 1)
    small[2**24 + 1] = 5.0
    arguments = {
        "ids": torch.tensor([[size - 1, 0], [2**24, 2**24 + 1]]),
        "tables": [table, small],
        "columns": [0, 1],
        "weight": torch.eye(5),
        "bias": None,
    }
    found = serve(backend, arguments)
    assert found.tolist() == [[0, 1, 2, 3, 0], [0, 1, 2, 3, 5]]


@pytest.mark.parametrize("backend", BACKENDS)
def test_float32_tables_with_16_bit_weight(backend: str) -> None:
    """Rows are rounded as they are read; the tables' gradients stay float32, and autocast gives just that."""
    arguments = draw(200, [(9, 16), (500, 3)], [0, 1], dtype=torch.float32)
    half = {**arguments, "weight": arguments["weight"].bfloat16(), "bias": arguments["bias"].bfloat16()}
    mixed = serve(backend, half)
    assert mixed.dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        cast = serve(backend, arguments)
    assert torch.equal(mixed, cast)
    gradient = torch.randn(cast.shape).bfloat16()
    found = torch.autograd.grad(cast, leaves(arguments), gradient)
    assert {one.dtype for one in found} == {torch.float32}
    rounded = {**arguments, "tables": [table.bfloat16().float() for table in arguments["tables"]]}
    rounded["weight"] = rounded["weight"].bfloat16().float()
    expected = torch.autograd.grad(by_padding_row(rounded), leaves(rounded), gradient.float())
    for one, other in zip(found[:2], expected[:2], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_sparse_gradients_and_torch_compile() -> None:
    """fullgraph refuses in a sentence; without it the call runs eagerly and is right."""
    arguments = draw(6, [(5, 2)], [0], dtype=torch.float32)
    expected = torch.autograd.grad(triple_embedding(**arguments).sum(), arguments["tables"])[0]
    torch._dynamo.reset()
    refused = torch.compile(lambda: triple_embedding(**arguments, sparse=True), fullgraph=True, backend="eager")
    with pytest.raises(torch._dynamo.exc.Unsupported, match=r"torch\.compile has no row-sparse gradients"):
        refused()
    torch._dynamo.reset()
    broken = torch.compile(lambda: triple_embedding(**arguments, sparse=True).sum(), backend="eager")
    found = torch.autograd.grad(broken(), arguments["tables"])[0]
    assert found.is_sparse
    assert torch.equal(found.to_dense(), expected)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"ids": torch.tensor([[0, 1, 2], [0, 4, 1]])}, r"ids\[1, 1\] is 4, expected −1 .* tables\[1\], 0 to 3"),
        ({"ids": torch.tensor([[0, 1, -2], [0, 3, 1]])}, r"ids\[0, 2\] is -2"),
        ({"ids": torch.tensor([[0, 1, 2**40], [0, 3, 1]])}, rf"ids\[0, 2\] is {2**40}"),
        ({"ids": torch.zeros(2, 3, dtype=torch.int32)}, r"ids is torch.int32, expected torch.int64"),
        ({"ids": torch.zeros(3, 3, dtype=torch.int64)}, r"ids has shape \[3, 3\], expected \[2, any\]"),
        ({"columns": [0, 2]}, r"columns\[1\] is 2, expected an index into the 2 tables"),
        ({"columns": [0, -1]}, r"columns\[1\] is -1"),
        ({"columns": [0, 0]}, r"weight has 5 rows, expected 4"),
        ({"tables": [torch.zeros(3, 2), torch.zeros(4, 3).double()]}, r"tables\[1\] is torch.float64"),
        (
            {"weight": torch.zeros(5, 5).bfloat16(), "tables": [torch.zeros(3, 2), torch.zeros(4, 3).bfloat16()]},
            r"tables have the dtypes torch.float32, torch.bfloat16, expected one dtype for all",
        ),
        ({"tables": [torch.zeros(3, 2), torch.zeros(4, 3, device="meta")]}, r"tables\[1\] is on meta, expected cpu"),
        ({"bias": torch.zeros(4)}, r"bias has shape \[4\], expected \[5\]"),
        ({"weight": torch.zeros(5)}, r"weight has shape \[5\], expected \[any, any\]"),
    ],
)
def test_bad_input(change: dict[str, Any], sentence: str) -> None:
    arguments = draw(3, [(3, 2), (4, 3)], [0, 1], dtype=torch.float32)
    with pytest.raises(ValueError, match="triple_embedding.*" + sentence):
        triple_embedding(**{"bias": None, **{**arguments, "bias": None}, **change})


@pytest.mark.parametrize("least", [0, 200, 1 << 20], ids=["all tables", "the large one", "none"])
def test_dense_gradients_in_pages_that_come_on_demand(monkeypatch: pytest.MonkeyPatch, least: int) -> None:
    """Only the memory of large ones is made in Python: the bits are the same whoever makes it."""
    arguments = draw(20, [(30, 3), (4, 2)], [0, 1, 0], dtype=torch.float32)
    out = serve("cpp", arguments)
    above = torch.ones_like(out)
    monkeypatch.setattr(native, "_ON_DEMAND_BYTES", 1 << 40)
    expected = torch.autograd.grad(out, leaves(arguments), above, retain_graph=True)
    monkeypatch.setattr(native, "_ON_DEMAND_BYTES", least)
    for found, one in zip(torch.autograd.grad(out, leaves(arguments), above), expected, strict=True):
        assert found.is_contiguous() and torch.equal(found, one)
