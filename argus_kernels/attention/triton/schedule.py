"""The tiles (user, block) of a batch of packed histories, the most expensive first, made on the device in one launch.

The cost of a tile of queries is the number of key blocks up to its own; the cost of a tile of keys is the number of
query blocks from its own on. A user has one tile of each cost from 1 to their number of blocks, so the position of a
tile follows from the block counts alone: before it come the more expensive tiles of all users, then the tiles of equal
cost of earlier users. Nothing is sorted.

The schedules of a tensor of offsets are recomputed for each pass of each layer, in one launch of a few microseconds,
because a change of its values cannot be detected: writes through `.data`, a collective, a replayed CUDA graph or a
buffer that torch.compile reuses change neither the tensor object, its address nor its version. An `Offsets` has memory
of its own that nothing writes; its schedules are made once for all layers and both passes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import triton
import triton.language as tl
from torch import Tensor

from argus_kernels.core.triton_jit import kernel
from argus_kernels.core.triton_support import ceil_div, launch
from argus_kernels.core.varlen import validated

_TILES, _USERS = 64, 128


@triton.jit
def _blocks_of(offsets, user, users, BLOCK: tl.constexpr):
    """The number of blocks of each of these users; 0 past the last user."""
    there = user < users
    begin = tl.load(offsets + user, mask=there, other=0)
    end = tl.load(offsets + user + 1, mask=there, other=0)
    return (tl.maximum(end - begin, 0) + BLOCK - 1) // BLOCK


@triton.jit
def _schedule(
    offsets, tiles, users, rows, BLOCK: tl.constexpr, OF_KEYS: tl.constexpr, TILES: tl.constexpr, USERS: tl.constexpr
):
    """Writes TILES entries of a schedule."""
    index = tl.program_id(0) * TILES + tl.arange(0, TILES)
    own_user = tl.zeros([TILES], tl.int32)
    before_own = tl.zeros([TILES], tl.int32)
    count = tl.zeros([], tl.int32)
    for first in range(0, users, USERS):
        user = first + tl.arange(0, USERS)
        blocks = _blocks_of(offsets, user, users, BLOCK)
        passed = (count + tl.cumsum(blocks, 0))[None, :] <= index[:, None]
        passed = passed & (user < users)[None, :]
        own_user += tl.sum(passed.to(tl.int32), axis=1)
        before_own += tl.sum(tl.where(passed, blocks[None, :], 0), axis=1)
        count += tl.sum(blocks, axis=0)
    there = index < count
    number = index - before_own
    start = tl.load(offsets + own_user, mask=there, other=0)
    length = tl.load(offsets + own_user + 1, mask=there, other=0) - start
    cost = number + 1
    if OF_KEYS:
        cost = (length + BLOCK - 1) // BLOCK - number
    place = tl.zeros([TILES], tl.int32)
    for first in range(0, users, USERS):
        user = first + tl.arange(0, USERS)
        blocks = _blocks_of(offsets, user, users, BLOCK)[None, :]
        costlier = tl.maximum(blocks - cost[:, None], 0)
        beside = (blocks >= cost[:, None]) & (user[None, :] < own_user[:, None])
        place += tl.sum(costlier + beside.to(tl.int32), axis=1)
    # Entries past the last tile follow the tiles, in their own order.
    place = tl.where(there, place, index)
    entries = rows // BLOCK + users
    real = (index < entries) & (place < entries)
    tl.store(tiles + place * 4, start, mask=real)
    tl.store(tiles + place * 4 + 1, length, mask=real)
    tl.store(tiles + place * 4 + 2, tl.where(there, number, 0), mask=real)
    tl.store(tiles + place * 4 + 3, tl.where(there, own_user, 0), mask=real)


@kernel
def schedule_kernel(
    offsets, tiles, users, rows, BLOCKS: tl.constexpr, OF_KEYS: tl.constexpr, TILES: tl.constexpr, USERS: tl.constexpr
):
    for one in tl.static_range(len(BLOCKS)):
        if tl.program_id(1) == one:
            _schedule(offsets, tiles[one], users, rows, BLOCKS[one], OF_KEYS[one], TILES, USERS)


def tile_schedules(
    offsets: Tensor,
    total: int,
    wanted: Sequence[tuple[int, bool]],
    later: Callable[[], Sequence[tuple[int, bool]]] = tuple,
) -> list[Tensor]:
    """One schedule for each (block, of_keys): int32 [total // block + B, 4], first row, length, block number, user.

    offsets: int32 [B + 1] with B ≥ 1. total: the number of rows, with the padding. The entries are ordered by cost, the
    most expensive first, then by user; those past the last tile have length 0. later: what the other pass will want,
    made in the same launch where it can be kept.
    """
    known = validated(offsets)
    if known is None:
        return _made(offsets, total, wanted)
    keys = {one: ("schedule", total, *one) for one in (*wanted, *later())}
    missing = [one for one, key in keys.items() if key not in known.kept]
    if missing:
        made = zip(missing, _made(offsets, total, missing), strict=True)
        known.kept.update({keys[one]: schedule for one, schedule in made})
    return [known.kept[keys[one]] for one in wanted]


def _made(offsets: Tensor, total: int, wanted: Sequence[tuple[int, bool]]) -> list[Tensor]:
    offsets = offsets.contiguous()
    users = offsets.shape[0] - 1
    tiles = tuple(offsets.new_empty(total // block + users, 4) for block, _ in wanted)
    longest = max(schedule.shape[0] for schedule in tiles)
    arguments = {
        "offsets": offsets,
        "tiles": tiles,
        "users": users,
        "rows": total,
        "BLOCKS": tuple(block for block, _ in wanted),
        "OF_KEYS": tuple(of_keys for _, of_keys in wanted),
        "TILES": _TILES,
        "USERS": _USERS,
    }
    launch(schedule_kernel, (ceil_div(longest, _TILES), len(wanted)), arguments, warps=4, stages=1)
    return list(tiles)
