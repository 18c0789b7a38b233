"""The forward product of triple_embedding on sm_90's product loop (TMA, wgmma), held to the error rule on the CPU."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from argus_kernels import triple_embedding
from argus_kernels.ops.triple_embedding import OP, native
from argus_kernels.testing import captured_arguments, require_close
from tests.csrc.simt import host_executor
from tests.csrc.simt import triple_embedding_on_host as on_host

NAME = on_host.BACKEND.name
HALF = [torch.bfloat16, torch.float16]
Tables = tuple[tuple[int, int], ...]
RAGGED: Tables = ((40, 24), (3, 5), (200, 8), (9, 17))
"""Rows of whole chunks and of odd widths, an odd number of chunks."""


class Case(NamedTuple):
    """What is drawn. The tables are rows and widths; every column reads the table of its number, the last the first."""

    events: int
    width: int
    tables: Tables = RAGGED
    blocks: int = 4


CASES = {
    "several tiles, two of columns": Case(200, 264),
    "128 columns of output": Case(140, 128),
    "one product deep": Case(130, 72, ((7, 3),), 2),
    "as deep as 256 columns allow": Case(70, 256, ((5, 152), (4, 16)), 1),
    "the ring goes round": Case(330, 200, ((5, 150), (4, 30)), 1),
    "as deep as 128 columns allow": Case(140, 136, ((6, 304), (5, 32)), 2),
}


@pytest.fixture(autouse=True)
def _with_backend(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    reason = on_host.BACKEND.available()
    if reason is not None:
        pytest.skip(reason)
    monkeypatch.setattr(OP, "backends", (*OP.backends, on_host.BACKEND))
    yield


def draw(case: Case, dtype: torch.dtype, table_dtype: torch.dtype | None = None) -> dict[str, Any]:
    """Arguments with a bias and a sixth of the ids missing."""
    generator = torch.Generator().manual_seed(case.events + case.width)
    columns = [*range(len(case.tables)), 0]
    height = sum(case.tables[column][1] for column in columns)

    def normal(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    highest = torch.tensor([case.tables[column][0] for column in columns])[:, None]
    ids = (torch.rand(len(columns), case.events, generator=generator) * highest).long()
    missing = torch.rand(ids.shape, generator=generator) < 1 / 6
    return {
        "ids": torch.where(missing, -1, ids),
        "tables": [normal(*shape, dtype=table_dtype or dtype) for shape in case.tables],
        "columns": columns,
        "weight": normal(height, case.width) / height**0.5,
        "bias": normal(case.width),
    }


def on_loop(given: dict[str, Any], blocks: int = 3) -> Tensor:
    """The output on the product loop; an error where it does not take these arguments."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(on_host, "LOOP_BLOCKS", blocks)
        assert fits(given)
        return triple_embedding(**given, backend=NAME)


def fits(given: dict[str, Any]) -> bool:
    """What the library decides, which `explain` says as well."""
    library = host_executor.load(on_host.LIBRARY, on_host.SOURCES)
    problem = on_host.problem_of(given["ids"], given["tables"], given["columns"], given["weight"])
    found = bool(library.triple_embedding_fits_loop(ctypes.byref(on_host.Forward(problem=problem))))
    assert found == (not native.why_not_loop(captured_arguments(OP, given)))
    return found


def on_tiles(given: dict[str, Any]) -> Tensor:
    return triple_embedding(**given, backend=NAME)


def exact(value: Any) -> Any:
    if isinstance(value, list):
        return [exact(one) for one in value]
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def require_right(given: dict[str, Any], blocks: int) -> None:
    theirs = triple_embedding(**given, backend="eager")
    truth = triple_embedding(**{name: exact(value) for name, value in given.items()}, backend="eager")
    require_close("output", on_loop(given, blocks), truth, theirs)


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_error_rule(name: str, dtype: torch.dtype) -> None:
    require_right(draw(CASES[name], dtype), CASES[name].blocks)


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize(
    "name", ["several tiles, two of columns", pytest.param("as deep as 128 columns allow", marks=pytest.mark.slow)]
)
def test_error_rule_where_tensor_cores_err_as_far_as_they_may(name: str, dtype: torch.dtype) -> None:
    with host_executor.pessimistic(host_executor.load(on_host.LIBRARY, on_host.SOURCES)):
        require_right(draw(CASES[name], dtype), CASES[name].blocks)


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_float32_tables_under_a_narrow_weight(dtype: torch.dtype) -> None:
    given = draw(CASES["several tiles, two of columns"], dtype, torch.float32)
    rounded = {**given, "tables": [table.to(dtype) for table in given["tables"]]}
    assert torch.equal(on_loop(given), on_loop(rounded))


def test_same_bits_in_every_order_and_on_any_number_of_blocks() -> None:
    """Each call has a seed of its own."""
    given = draw(CASES["several tiles, two of columns"], torch.bfloat16)
    first = on_loop(given, 1)
    assert all(torch.equal(first, on_loop(given, blocks)) for blocks in (2, 3, 5, 8, 8, 8))


@pytest.mark.parametrize("events", [1, 63, 64, 65, 127, 129])
def test_events_around_a_tile(events: int) -> None:
    """The same bits as the tiles of mma.sync: the executor adds both in the same order, 16 elements at once."""
    given = draw(Case(events, 8), torch.float16)
    assert torch.equal(on_loop(given, 1), on_tiles(given))


@pytest.mark.parametrize("width", [120, 128, 136, 248, 256, 264])
def test_widths_around_a_tile(width: int) -> None:
    given = draw(Case(3, width), torch.bfloat16)
    assert torch.equal(on_loop(given), on_tiles(given))


def test_no_event_and_no_bias() -> None:
    assert on_loop(draw(Case(0, 16), torch.bfloat16)).shape == (0, 16)
    given = {**draw(Case(20, 16), torch.bfloat16), "bias": None}
    given["ids"][:, 3] = -1
    found = on_loop(given)
    assert torch.equal(found, on_tiles(given)) and not found[3].count_nonzero()


def test_32_columns() -> None:
    given = draw(Case(70, 16, tuple((3, 1 + k % 9) for k in range(31))), torch.bfloat16)
    assert torch.equal(on_loop(given), on_tiles(given))


def test_rows_that_nobody_names_may_hold_nan() -> None:
    given = draw(CASES["128 columns of output"], torch.bfloat16)
    given["ids"] = torch.where(given["ids"] == 1, -1, given["ids"])
    clean = on_loop(given)
    for table in given["tables"]:
        table[1] = torch.nan
    assert bool(clean.isfinite().all()) and torch.equal(on_loop(given), clean)


def test_weights_that_are_not_finite_stay_with_their_column() -> None:
    """The last chunk of an odd column is multiplied by zeros, not by the next column's weights."""
    given = draw(Case(20, 16, ((40, 24), (3, 5), (200, 8))), torch.bfloat16)
    given["weight"][29, 3] = torch.inf
    given["ids"] = given["ids"].clamp(min=0)
    found = on_loop(given)
    assert bool(found[:, 3].isinf().all()) and torch.equal(found, on_tiles(given))


def test_ids_outside_their_table_read_as_missing() -> None:
    given = {**draw(CASES["one product deep"], torch.bfloat16), "check_ids": False}
    clean = on_loop(given)
    for outside in (300, 2**40, -7):
        assert torch.equal(clean, on_loop({**given, "ids": torch.where(given["ids"] < 0, outside, given["ids"])}))


@pytest.mark.parametrize("table_dtype", [torch.bfloat16, torch.float32], ids=str)
def test_tables_of_any_stride(table_dtype: torch.dtype) -> None:
    given = draw(Case(70, 24), torch.bfloat16, table_dtype)
    expected = on_loop(given)
    transposed = [table.t().contiguous().t() for table in given["tables"]]
    shifted = [torch.cat([table.new_zeros(table.shape[0], 1), table], 1)[:, 1:] for table in given["tables"]]
    for tables in (transposed, shifted):
        assert torch.equal(on_loop({**given, "tables": tables}), expected)


def deep(widths: Sequence[int]) -> Case:
    return Case(5, 16, tuple((2, width) for width in widths))


@pytest.mark.parametrize(
    ("case", "dtype"),
    [
        (Case(5, 12), torch.bfloat16),
        (Case(5, 16), torch.float32),
        (deep([216, 216, 8]), torch.float16),
        (Case(5, 0), torch.bfloat16),
        (deep([0]), torch.bfloat16),
    ],
    ids=["a row of the weight of 24 bytes", "float32", "a depth of 656", "no output", "no depth"],
)
def test_what_the_loop_does_not_take_runs_on_tiles(
    case: Case, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = draw(case, dtype)
    assert not fits(given)
    monkeypatch.setattr(on_host, "LOOP_BLOCKS", 3)
    asked = triple_embedding(**given, backend=NAME)
    monkeypatch.setattr(on_host, "LOOP_BLOCKS", 0)
    assert torch.equal(asked, on_tiles(given))
