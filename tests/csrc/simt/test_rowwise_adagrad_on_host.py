"""The CUDA kernel of rowwise_adagrad_, held to the error rule and to its promises on the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from argus_kernels import rowwise_adagrad_
from argus_kernels.ops.rowwise_adagrad import OP
from argus_kernels.ops.rowwise_adagrad.arguments import Arguments
from argus_kernels.testing import require_close
from tests.csrc.simt import rowwise_adagrad_on_host

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
NAME = rowwise_adagrad_on_host.BACKEND.name


@pytest.fixture(autouse=True)
def _with_backend(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    reason = rowwise_adagrad_on_host.BACKEND.available()
    if reason is not None:
        pytest.skip(reason)
    assert NAME not in [backend.name for backend in OP.backends]
    monkeypatch.setattr(OP, "backends", (*OP.backends, rowwise_adagrad_on_host.BACKEND))
    yield


def arguments(count: int = 60, width: int = 37, dtype: torch.dtype = torch.float32, **options: Any) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(count)
    return {
        "table": torch.randn(20, width, generator=generator).to(dtype),
        "state": torch.rand(20, generator=generator),
        "rows": torch.randint(-1, 20, (count,), generator=generator),
        "row_gradients": torch.randn(count, width, generator=generator).to(dtype),
        "lr": 0.1,
        **options,
    }


def updated(given: dict[str, Any], backend: str) -> tuple[Tensor, Tensor]:
    table, state = given["table"].clone(), given["state"].clone()
    rowwise_adagrad_(**{**given, "table": table, "state": state}, backend=backend)
    return table, state


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_same_bits_in_every_order_of_the_threads(dtype: torch.dtype) -> None:
    given = arguments(dtype=dtype, weight_decay=0.1)
    first = updated(given, NAME)
    for _ in range(5):
        again = updated(given, NAME)
        assert torch.equal(again[0], first[0]) and torch.equal(again[1], first[1])


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_float32_gradients_of_a_narrow_table(dtype: torch.dtype) -> None:
    given = arguments(dtype=dtype)
    given["row_gradients"] = given["row_gradients"].float()
    for ours, reference in zip(updated(given, NAME), updated(given, "reference"), strict=True):
        torch.testing.assert_close(ours, reference)


def test_a_table_of_wide_rows_and_one_of_many_gradients() -> None:
    for given in (arguments(4, 300), arguments(700, 3)):
        for ours, reference in zip(updated(given, NAME), updated(given, "reference"), strict=True):
            torch.testing.assert_close(ours, reference, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("repeats", [127, 128, 129, 255, 256, 257, 3000])
def test_a_popular_row_is_summed_in_pieces_whose_order_the_rest_of_the_batch_does_not_change(repeats: int) -> None:
    generator = torch.Generator().manual_seed(repeats)
    popular = torch.randn(repeats, 3, generator=generator)
    results = []
    for before, after in ((0, 0), (5, 0), (130, 400)):
        rows = torch.cat([torch.randint(0, 9, (before,)), torch.full((repeats,), 9), torch.randint(10, 20, (after,))])
        given = arguments(len(rows), 3, rows=rows)
        given |= {"table": arguments(1, 3)["table"], "state": arguments(1, 3)["state"]}
        given["row_gradients"][rows == 9] = popular
        table, state = updated(given, NAME)
        results.append((table[9], state[9]))
        exact = {name: value.double() if name in ("table", "state", "row_gradients") else value
                 for name, value in given.items()}  # fmt: skip
        truth, plain = updated(exact, "reference"), updated(given, "reference")
        require_close("table", [table], [truth[0]], [plain[0]])
        require_close("state", [state], [truth[1]], [plain[1]])
    for table, state in results[1:]:
        assert torch.equal(table, results[0][0]) and torch.equal(state, results[0][1])


def test_a_row_repeated_50_000_times() -> None:
    rows = torch.full((50_000,), 7)
    given = arguments(50_000, 1, rows=rows)
    truth, _ = updated({**given, "table": given["table"].double(), "row_gradients": given["row_gradients"].double()}
                       | {"state": given["state"].double()}, "reference")  # fmt: skip
    table, _ = updated(given, NAME)
    torch.testing.assert_close(table.double(), truth, rtol=1e-5, atol=1e-6)


def test_a_weight_decay_of_zero_leaves_the_table_out_of_the_sum() -> None:
    given = arguments()
    given["table"][3, 5] = float("inf")
    table, state = updated(given, NAME)
    assert state.isfinite().all() and table[3, 5] == float("inf")
    assert table.isfinite().sum() == table.numel() - 1


def test_a_table_within_a_wider_matrix() -> None:
    given = arguments()
    whole = torch.full((20, 50), float("nan"))
    whole[:, 5:42] = given["table"]
    dense, _ = updated(given, NAME)
    rowwise_adagrad_(**{**given, "table": whole[:, 5:42], "state": given["state"].clone()}, backend=NAME)
    assert torch.equal(whole[:, 5:42], dense)
    assert whole[:, :5].isnan().all() and whole[:, 42:].isnan().all()


def test_rows_outside_the_table_are_left_out() -> None:
    given = arguments(weight_decay=0.1)
    table, state = updated(given, NAME)
    given["rows"][given["rows"] < 0] = 20
    for outside in (20, 2**40, -7):
        given["rows"][given["rows"] > 19] = outside
        again, again_state = given["table"].clone(), given["state"].clone()
        rowwise_adagrad_on_host.rowwise_adagrad(
            Arguments(again, again_state, given["rows"], given["row_gradients"], 0.1, 1e-8, 0.1)
        )
        assert torch.equal(again, table) and torch.equal(again_state, state)
        given["rows"][given["rows"] < 0] = 20


def test_inputs_that_cuda_refuses_are_refused() -> None:
    given = arguments()
    given = {**given, "table": given["table"].double(), "row_gradients": given["row_gradients"].double()}
    with pytest.raises(ValueError, match=r"rowwise_adagrad_\[cuda_on_host\]: table is float64"):
        rowwise_adagrad_(**given, backend=NAME)
