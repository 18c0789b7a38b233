"""rowwise_adagrad_ against its formula row by row; what it must not touch; every bad input."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from argus_kernels import rowwise_adagrad_
from argus_kernels.ops.rowwise_adagrad import OP
from argus_kernels.testing import captured_arguments
from tests.drawn_examples import examples

BACKENDS = [backend.name for backend in OP.backends]


def draw(
    size: int, width: int, count: int, seed: int = 0, dtype: torch.dtype = torch.float64, **options: Any
) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    wide = torch.promote_types(dtype, torch.float32)
    return {
        "table": torch.randn(size, width, generator=generator).to(dtype),
        "state": torch.rand(size, generator=generator).to(wide),
        "rows": torch.randint(-1, size, (count,), generator=generator),
        "row_gradients": torch.randn(count, width, generator=generator).to(dtype),
        "lr": 0.1,
        **options,
    }


def serve(backend: str, arguments: dict[str, Any]) -> None:
    reasons = OP.backend(backend).reasons(captured_arguments(OP, arguments))
    if reasons:
        pytest.skip("; ".join(reasons))
    rowwise_adagrad_(**arguments, backend=backend)


def row_by_row(arguments: dict[str, Any]) -> tuple[list[list[float]], list[float]]:
    """The table and the state after the step, in plain Python."""
    table, state, rows, gradients = (arguments[name].tolist() for name in ("table", "state", "rows", "row_gradients"))
    width, decay, eps = len(gradients[0]) if gradients else 0, arguments.get("weight_decay", 0.0), arguments.get("eps")
    for row in {row for row in rows if row >= 0}:
        gradient = [decay * value for value in table[row]]
        for index in [index for index, other in enumerate(rows) if other == row]:
            gradient = [a + b for a, b in zip(gradient, gradients[index], strict=True)]
        state[row] += sum(value * value for value in gradient) / width
        step = arguments["lr"] / (math.sqrt(state[row]) + (1e-8 if eps is None else eps))
        table[row] = [a - step * b for a, b in zip(table[row], gradient, strict=True)]
    return table, state


def assert_equals_row_by_row(backend: str, arguments: dict[str, Any]) -> None:
    table, state = row_by_row(arguments)
    serve(backend, arguments)
    torch.testing.assert_close(arguments["table"], torch.tensor(table, dtype=torch.float64).view_as(arguments["table"]))
    torch.testing.assert_close(arguments["state"], torch.tensor(state, dtype=torch.float64))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("options", [{}, {"weight_decay": 0.3}, {"eps": 0.5}])
def test_equals_the_formula(backend: str, options: dict[str, Any]) -> None:
    assert_equals_row_by_row(backend, draw(12, 5, 30, **options))


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=examples(40), deadline=None)
@given(size=st.integers(1, 9), width=st.integers(1, 20), count=st.integers(0, 20), seed=st.integers(0, 2**31 - 1))
def test_any_rows(backend: str, size: int, width: int, count: int, seed: int) -> None:
    assert_equals_row_by_row(backend, draw(size, width, count, seed, weight_decay=0.1))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_other_rows_are_not_touched(backend: str, dtype: torch.dtype) -> None:
    """Bit for bit, NaN included; and the rows given are changed."""
    arguments = draw(50, 8, 20, dtype=dtype, weight_decay=0.5)
    given_rows = torch.zeros(50, dtype=torch.bool)
    given_rows[arguments["rows"][arguments["rows"] >= 0]] = True
    arguments["table"][~given_rows] = torch.nan
    table, state = arguments["table"].clone(), arguments["state"].clone()
    serve(backend, arguments)
    assert arguments["table"][~given_rows].isnan().all()
    assert torch.equal(arguments["state"][~given_rows], state[~given_rows])
    assert (arguments["table"][given_rows] != table[given_rows]).any(1).all()
    assert (arguments["state"][given_rows] > state[given_rows]).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_repeats_bit_for_bit_on_any_number_of_threads(backend: str) -> None:
    # Triton's interpreter takes a second for a thousand gradients; its kernels cut a row's into pieces of 32.
    rows, count, thread_counts = (4, 600, (1, 2)) if backend == "triton" else (40, 5_000, (1, 2, 3, 2))
    before = torch.get_num_threads()
    results = []
    try:
        for threads in thread_counts:
            torch.set_num_threads(threads)
            arguments = draw(rows, 16, count, dtype=torch.float32, weight_decay=0.1)
            serve(backend, arguments)
            results.append((arguments["table"], arguments["state"]))
    finally:
        torch.set_num_threads(before)
    for table, state in results[1:]:
        assert torch.equal(table, results[0][0])
        assert torch.equal(state, results[0][1])


@pytest.mark.parametrize("backend", BACKENDS)
def test_repeated_rows_are_summed_in_float32(backend: str) -> None:
    """1,024 gradients of 1 in bfloat16: a sum kept in bfloat16 would stop at 256."""
    table, state = torch.zeros(1, 4, dtype=torch.bfloat16), torch.zeros(1)
    rows, gradients = torch.zeros(1_024, dtype=torch.int64), torch.ones(1_024, 4, dtype=torch.bfloat16)
    arguments = {"table": table, "state": state, "rows": rows, "row_gradients": gradients, "lr": 1.0}
    serve(backend, arguments)
    assert state.tolist() == [1_024.0**2]
    assert table.tolist() == [[-1.0] * 4]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_first_step_has_the_length_of_the_learning_rate(backend: str) -> None:
    """From an empty state, √mean(step²) = lr whatever the gradient's size."""
    for size in (1e-3, 1.0, 1e3):
        table, state = torch.zeros(1, 6), torch.zeros(1)
        gradient = torch.randn(1, 6, generator=torch.Generator().manual_seed(0)) * size
        arguments = {"table": table, "state": state, "rows": torch.zeros(1, dtype=torch.int64), "lr": 0.25}
        serve(backend, {**arguments, "row_gradients": gradient})
        assert float(table.square().mean().sqrt()) == pytest.approx(0.25, rel=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_float32_gradients_of_a_bfloat16_table(backend: str) -> None:
    arguments = draw(9, 4, 12, dtype=torch.bfloat16)
    arguments["row_gradients"] = arguments["row_gradients"].float()
    expected = {name: value.clone() for name, value in arguments.items() if name in ("table", "state")}
    rowwise_adagrad_(**{**arguments, **expected}, backend="reference")
    serve(backend, arguments)
    torch.testing.assert_close(arguments["table"], expected["table"])
    torch.testing.assert_close(arguments["state"], expected["state"])


def test_a_parameter_that_requires_grad() -> None:
    table = torch.nn.Parameter(torch.ones(3, 2))
    with torch.no_grad():
        rowwise_adagrad_(table, torch.zeros(3), torch.tensor([1]), torch.ones(1, 2), lr=0.5)
    assert table.tolist() == [[1, 1], [0.5, 0.5], [1, 1]]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tables_and_states_of_any_strides(backend: str, dtype: torch.dtype) -> None:
    """Bit for bit what dense ones give; what lies between their elements stays as it is."""
    arguments = draw(9, 4, 14, dtype=dtype)
    if backend == "cuda":
        pytest.skip("the CUDA kernels say that they take dense rows")
    transposed = torch.zeros(4, 9, dtype=dtype).T
    every_other, spread = torch.full((9, 8), 7.0, dtype=dtype), torch.full((27,), 7.0, dtype=arguments["state"].dtype)
    for table, state in ((transposed, spread[::3]), (every_other[:, ::2], spread[:9])):
        dense = {name: value.clone() if isinstance(value, Tensor) else value for name, value in arguments.items()}
        table.copy_(dense["table"]), state.copy_(dense["state"])
        serve(backend, {**dense, "table": table, "state": state})
        serve(backend, dense)
        assert torch.equal(table, dense["table"]) and torch.equal(state, dense["state"])
        assert bool((every_other[:, 1::2] == 7).all())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("state_dtype", [torch.float32, torch.float64])
def test_a_learning_rate_of_zero_changes_no_table(backend: str, state_dtype: torch.dtype) -> None:
    arguments = draw(9, 4, 14, dtype=torch.float64, lr=0.0, weight_decay=0.3)
    arguments["state"] = arguments["state"].to(state_dtype)
    table, state = arguments["table"].clone(), arguments["state"].clone()
    serve(backend, arguments)
    assert torch.equal(arguments["table"], table)
    assert not torch.equal(arguments["state"], state)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_that_lie_in_the_table(backend: str) -> None:
    """A row is read before it is written, whatever the order of the rows."""
    arguments = draw(6, 3, 6, rows=torch.tensor([3, 0, 5, 3, 1, 2]))
    apart = {**arguments, "table": arguments["table"].clone(), "state": arguments["state"].clone()}
    serve(backend, {**apart, "row_gradients": arguments["table"].clone()})
    serve(backend, {**arguments, "row_gradients": arguments["table"]})
    assert torch.equal(arguments["table"], apart["table"])


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_state_that_lies_in_the_table_is_refused(backend: str) -> None:
    arguments = draw(6, 3, 6, rows=torch.tensor([3, 0, 5, 3, 1, 2]), dtype=torch.float32)
    before = arguments["table"].clone()
    for state in (arguments["table"][:, 0], arguments["table"].view(-1)[6:12]):
        with pytest.raises(ValueError, match="state shares memory with table, expected its own"):
            serve(backend, {**arguments, "state": state})
    assert torch.equal(arguments["table"], before)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_state_that_lies_beside_the_table(backend: str) -> None:
    """In one storage, a column of it or behind it."""
    apart = draw(6, 3, 6, rows=torch.tensor([3, 0, 5, 3, 1, 2]), dtype=torch.float32)
    columns = torch.cat([apart["table"], apart["state"][:, None]], dim=1)
    in_a_row = torch.cat([apart["table"].view(-1), apart["state"]])
    together = [
        {**apart, "table": columns[:, :3], "state": columns[:, 3]},
        {**apart, "table": in_a_row[:18].view(6, 3), "state": in_a_row[18:]},
    ]
    for arguments in (apart, *together):
        serve(backend, arguments)
    for arguments in together:
        assert torch.equal(arguments["table"], apart["table"]) and torch.equal(arguments["state"], apart["state"])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"table": torch.zeros(1, 2).expand(5, 2)}, "table is expanded or overlaps itself"),
        ({"table": torch.zeros(9).as_strided((5, 2), (1, 1))}, "table is expanded or overlaps itself"),
        ({"state": torch.zeros(1).expand(5)}, "state is expanded or overlaps itself"),
        ({"table": torch.zeros(5, 2, requires_grad=True)}, r"table requires a gradient, expected .*no_grad\(\)"),
        ({"rows": torch.tensor([0, 5, 1])}, r"rows\[1\] is 5, expected −1 \(skipped\) or 0 to 4"),
        ({"rows": torch.tensor([0, 1, -2])}, r"rows\[2\] is -2"),
        ({"rows": torch.tensor([0, 1, 2**40])}, rf"rows\[2\] is {2**40}"),
        ({"rows": torch.zeros(3, dtype=torch.int32)}, r"rows is torch\.int32, expected torch\.int64"),
        ({"row_gradients": torch.zeros(2, 2)}, r"row_gradients has shape \[2, 2\], expected \[3, 2\]"),
        ({"row_gradients": torch.zeros(3, 2).double()}, r"row_gradients is torch\.float64"),
        ({"state": torch.zeros(4)}, r"state has shape \[4\], expected \[5\]"),
        ({"state": torch.zeros(5).half()}, r"state is torch\.float16, expected torch\.float32"),
        ({"lr": -0.1}, r"lr is -0\.1, expected a finite number of at least 0"),
        ({"eps": math.nan}, r"eps is nan"),
        ({"weight_decay": math.inf}, r"weight_decay is inf"),
        ({"table": torch.zeros(5)}, r"table has shape \[5\], expected \[any, any\]"),
    ],
)
def test_bad_input_changes_nothing(backend: str, change: dict[str, Any], sentence: str) -> None:
    if OP.backend(backend).available():
        pytest.skip(str(OP.backend(backend).available()))
    arguments = {**draw(5, 2, 3, dtype=torch.float32), **change}
    table, state = arguments["table"].clone(), arguments["state"].clone()
    with pytest.raises(ValueError, match="rowwise_adagrad_.*" + sentence):
        rowwise_adagrad_(**arguments, backend=backend)
    assert torch.equal(arguments["table"], table)
    assert torch.equal(arguments["state"], state)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled_tables_of_any_strides_and_heights() -> None:
    step = torch.compile(
        lambda table, state, rows, gradients: rowwise_adagrad_(table, state, rows, gradients, lr=0.1, backend="cpp"),
        fullgraph=True,
        backend="aot_eager",
    )
    rows, gradients = torch.tensor([0, 2]), torch.ones(2, 2)
    for height in (4, 5, 7):
        for table in (torch.zeros(2, height).T, torch.zeros(height, 4)[:, ::2], torch.zeros(height, 2)):
            step(table, torch.zeros(height), rows, gradients)
            assert table[:3].tolist() == [pytest.approx([-0.1] * 2), [0.0] * 2, pytest.approx([-0.1] * 2)]
