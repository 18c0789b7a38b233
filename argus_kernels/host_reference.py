"""What the functions of `argus_kernels.host` compute, in numpy: the definition the compiled module is held to, bit
for bit, and what runs where that module was not built.

The functions have the names and arguments of `argus_kernels._host`; `argus_kernels.host` has checked what the
definitions do not check themselves.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Int64Array = npt.NDArray[np.int64]
UInt64Array = npt.NDArray[np.uint64]
Float64Array = npt.NDArray[np.float64]

MISSING = -1


def mix(x: UInt64Array) -> UInt64Array:
    """The finaliser of splitmix64, a bijection of the 64-bit integers in which every input bit moves every output bit.

    x ← (x ⊕ x≫30) · 0xbf58476d1ce4e5b9;  x ← (x ⊕ x≫27) · 0x94d049bb133111eb;  x ⊕ x≫31, modulo 2⁶⁴.
    """
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def hash_keys(seed: int, count: int) -> UInt64Array:
    """The keys of `count` hash functions: outputs 1 … count of the splitmix64 generator started at `seed`."""
    steps = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    return mix(np.full(count, seed, dtype=np.int64).view(np.uint64) + steps)


def hash_ids(ids: Int64Array, keys: UInt64Array, slots: int) -> Int64Array:
    """Slot k of an id, [len(keys), n]: ⌊mix(id + keys[k] mod 2⁶⁴) · slots / 2⁶⁴⌋, slots < 2³²; −1 for a negative id."""
    out = np.empty((len(keys), len(ids)), dtype=np.int64)
    for k, key in enumerate(keys):
        hashed = mix(ids.view(np.uint64) + key)
        # The product has up to 96 bits: its high half, then the carry of its low half.
        high = (hashed >> np.uint64(32)) * np.uint64(slots)
        low = (hashed & np.uint64(0xFFFFFFFF)) * np.uint64(slots) >> np.uint64(32)
        out[k] = np.where(ids < 0, MISSING, ((high + low) >> np.uint64(32)).view(np.int64))
    return out


def sketch_update(
    table: Float64Array, keys: UInt64Array, ids: Int64Array, weights: Float64Array | None, total: float
) -> float:
    """Counts ids one after the other into `table` [depth, width], in place, with conservative update.

    For each id in order: e = minₖ table[k, slotₖ]; table[k, slotₖ] = max(table[k, slotₖ], e + weight) for every k.
    A negative id is passed over. Returns `total` plus the weights counted, added one by one.
    """
    depth, width = table.shape
    rows = np.arange(depth)
    for index, slots in enumerate(hash_ids(ids, keys, width).T):
        if ids[index] < 0:
            continue
        weight = 1.0 if weights is None else float(weights[index])
        counters = table[rows, slots]
        table[rows, slots] = np.maximum(counters, counters.min() + weight)
        total += weight
    return total


def sketch_estimate(table: Float64Array, keys: UInt64Array, ids: Int64Array) -> Float64Array:
    """The smallest counter of each id; 0 for a negative id."""
    depth, width = table.shape
    slots = hash_ids(ids, keys, width)
    counters = table[np.arange(depth)[:, None], slots]
    return np.where(ids < 0, 0.0, counters.min(axis=0))


def windows_of(length: int, window: int, stride: int, last_only: bool) -> list[tuple[int, int]]:
    """The windows [start, end) of a history of `length` events, oldest first.

    Windows end at the last event and every `stride` events before it, until one begins at the first event.
    """
    windows = []
    end = length
    while True:
        start = max(0, end - window)
        windows.append((start, end))
        if start == 0 or last_only:
            return windows[::-1]
        end -= stride


def plan_batches(
    offsets: Int64Array,
    order: Int64Array,
    token_budget: int,
    window: int,
    stride: int,
    max_users: int,
    min_events: int,
    last_only: bool,
) -> tuple[Int64Array, Int64Array, Int64Array, Int64Array, Int64Array]:
    """Batches of windows: (batch_offsets, users, starts, ends, contexts), as `argus_kernels.host.Plan` has them.

    Users in the order given, the windows of each from the oldest to the newest; a batch is closed when the next
    window would pass `token_budget` events or `max_users` entries.
    """
    batch_offsets = [0]
    entries: list[tuple[int, int, int, int]] = []
    tokens = 0
    for user in order.tolist():
        first, length = int(offsets[user]), int(offsets[user + 1] - offsets[user])
        if length < max(1, min_events):
            continue
        previous_end = 0
        for start, end in windows_of(length, window, stride, last_only):
            if tokens + (end - start) > token_budget or len(entries) - batch_offsets[-1] == max_users:
                batch_offsets.append(len(entries))
                tokens = 0
            tokens += end - start
            entries.append((user, first + start, first + end, max(0, previous_end - start)))
            previous_end = end
    if batch_offsets[-1] != len(entries):
        batch_offsets.append(len(entries))
    users, starts, ends, contexts = np.array(entries, dtype=np.int64).reshape(-1, 4).T.copy()
    return np.array(batch_offsets, dtype=np.int64), users, starts, ends, contexts


def gather_rows(column: npt.NDArray, starts: Int64Array, ends: Int64Array) -> npt.NDArray:
    """Rows starts[e] … ends[e] − 1 of `column` for every entry e, one entry after the other.

    Raises:
        ValueError: an entry that does not lie in the column (named with its position).
    """
    outside = (ends < 0) | (ends > len(column)) | (starts < 0) | (starts > ends)
    if outside.any():
        at = int(outside.argmax())
        if not 0 <= ends[at] <= len(column):
            raise ValueError(f"gather_rows: ends[{at}] is {ends[at]}, expected 0 to {len(column)}")
        raise ValueError(f"gather_rows: starts[{at}] is {starts[at]}, expected 0 to ends[{at}] = {ends[at]}")
    pieces = [column[start:end] for start, end in zip(starts.tolist(), ends.tolist(), strict=True)]
    return np.concatenate(pieces) if pieces else column[:0].copy()
