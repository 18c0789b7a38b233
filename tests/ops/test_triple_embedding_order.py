"""The order in which a table's gradients are added: by row, column and event, with a sort or without.

And the check of ids.
"""

from __future__ import annotations

import os
import random

import pytest
import torch
from torch import Tensor

from argus_kernels.core.triton_support import available, interpreted

pytestmark = pytest.mark.skipif(available() is not None, reason=str(available()))
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DRAWS = 6 * int(os.environ.get("ARGUS_FUZZ_SCALE", "1"))
FAR = 2**40


def reads(ids: Tensor, heights: list[int], columns: list[int]) -> list[list[tuple[int, int]]]:
    """(row, read) of each table as the kernels order them."""
    from argus_kernels.ops.triple_embedding.triton_order import order_places

    found = []
    for places in order_places(ids.to(DEVICE), heights, columns):
        part = slice(places.first, places.first + places.count)
        rows = (places.keys[part].long() - places.base).tolist()
        found.append(list(zip(rows, (places.order[part] - places.first).tolist(), strict=True)))
    return found


def expected(ids: Tensor, heights: list[int], columns: list[int]) -> list[list[tuple[int, int]]]:
    """The same by its definition: a stable sort of the rows, those that are none last."""
    found = []
    for table, height in enumerate(heights):
        own = [
            row if 0 <= row < height else height for k, c in enumerate(columns) if c == table for row in ids[k].tolist()
        ]
        found.append(sorted(((row, read) for read, row in enumerate(own)), key=lambda one: one[0]))
    return found


@pytest.mark.parametrize("events", [1, 255, 256, 257, 700])
def test_small_and_large_tables(events: int) -> None:
    """Blocks of events that end inside and at an edge; 999 rows are counted, 1,000 are sorted."""
    heights, columns = [1, 999, 1000, 5, 1_000_000], [0, 1, 2, 1, 4, 2]
    generator = torch.Generator().manual_seed(events)
    ids = torch.stack([torch.randint(-1, min(heights[c], 60), (events,), generator=generator) for c in columns])
    ids[1, ::3] = 998
    ids[2, ::5], ids[4, -1], ids[3, 0], ids[0, -1] = FAR, 999_999, -FAR, 1
    assert reads(ids, heights, columns) == expected(ids, heights, columns)


def test_drawn_tables() -> None:
    draw = random.Random(0)
    for _ in range(DRAWS):
        heights = [draw.choice([1, 2, 7, 999, 1000, 3000]) for _ in range(draw.randrange(1, 5))]
        columns = [draw.randrange(len(heights)) for _ in range(draw.randrange(1, 5))]
        events = draw.choice([1, 3, 256, draw.randrange(600)])
        ids = torch.tensor(
            [[draw.choice([-1, 0, draw.randrange(-2, heights[c] + 2)]) for _ in range(events)] for c in columns]
        ).reshape(len(columns), events)
        own = reads(ids, heights, columns)
        assert own == (expected(ids, heights, columns) if events else [[] for _ in heights])


def test_keys_of_more_rows_than_32_bits_hold() -> None:
    heights, columns = [2**31, 2**31 - 1], [0, 1, 1]
    ids = torch.tensor([[2**31 - 1, 0, -1], [2**31 - 2, 0, 5], [5, 2**31 - 1, 2**31]])
    assert reads(ids, heights, columns) == expected(ids, heights, columns)


@pytest.mark.parametrize(("column", "value"), [(0, 4), (1, -2), (1, 2), (0, FAR)])
def test_an_id_outside_its_table_fails_the_assertion(column: int, value: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if not interpreted():
        pytest.skip("an assertion that fails on a GPU ends the process")
    from triton.runtime import interpreter

    from argus_kernels.ops.triple_embedding.triton_check import check_ids

    monkeypatch.setattr(interpreter.interpreter_builder, "options", interpreter.InterpreterOptions(debug=True))
    ids = torch.tensor([[-1, 0, 3] * 400, [1, -1, 0] * 400])
    check_ids(ids, [4, 2])
    ids[column, -1] = value
    with pytest.raises(
        interpreter.InterpreterError, match=f"an id of column {column} is outside its table of {[4, 2][column]} rows"
    ):
        check_ids(ids, [4, 2])
