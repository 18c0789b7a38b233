"""The schedule of tiles that the Triton attention kernels walk: every tile once, the costliest first, in one launch."""

from __future__ import annotations

import os
import random

import pytest
import torch

from argus_kernels.core.triton_support import available

pytestmark = pytest.mark.skipif(available() is not None, reason=str(available()))
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DRAWS = 12 * int(os.environ.get("ARGUS_FUZZ_SCALE", "1"))


def expected(lengths: list[int], rows: int, block: int, of_keys: bool) -> list[list[int]]:
    """The schedule by its definition: all tiles, sorted by falling cost, those of equal cost by user."""
    tiles, start = [], 0
    for user, length in enumerate(lengths):
        blocks = -(-length // block)
        tiles += [(blocks - n if of_keys else n + 1, [start, length, n, user]) for n in range(blocks)]
        start += length
    ordered = [tile for _, tile in sorted(tiles, key=lambda one: -one[0])]
    return ordered + [[0, 0, 0, 0]] * (rows // block + len(lengths) - len(ordered))


def check(lengths: list[int], padding: int, wanted: list[tuple[int, bool]]) -> None:
    from argus_kernels.attention.triton.schedule import tile_schedules

    offsets = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32).to(DEVICE)
    rows = sum(lengths) + padding
    found = tile_schedules(offsets, rows, wanted)
    for schedule, (block, of_keys) in zip(found, wanted, strict=True):
        assert schedule.tolist() == expected(lengths, rows, block, of_keys), (lengths, block, of_keys)


@pytest.mark.parametrize(
    "lengths", [[0], [0, 0, 0], [1], [16], [17, 0, 16], [70, 3, 70, 32], [1] * 150, [400, *[1] * 9]]
)
def test_every_tile_once_the_costliest_first(lengths: list[int]) -> None:
    """Also more users than one step of the kernel takes, and more tiles than one program."""
    check(lengths, 5, [(16, False), (32, True), (16, True)])


def test_drawn_lengths() -> None:
    drawn = random.Random(0)
    for _ in range(DRAWS):
        lengths = [drawn.choice([0, 1, 15, 16, 17, drawn.randrange(200)]) for _ in range(drawn.randrange(1, 9))]
        check(lengths, drawn.randrange(40), [(drawn.choice([16, 32, 64]), drawn.random() < 0.5)])


def test_offsets_changed_in_place_are_read_again() -> None:
    from argus_kernels.attention.triton.schedule import tile_schedules

    offsets = torch.tensor([0, 20, 20], dtype=torch.int32, device=DEVICE)
    before = tile_schedules(offsets, 20, [(16, False)])[0].tolist()
    # A write that leaves no trace in the tensor's version, as a collective's or a replayed graph's.
    offsets.data.copy_(torch.tensor([0, 3, 20], dtype=torch.int32))
    assert before == expected([20, 0], 20, 16, False)
    assert tile_schedules(offsets, 20, [(16, False)])[0].tolist() == expected([3, 17], 20, 16, False)
