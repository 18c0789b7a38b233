"""Host-side helpers of a training pipeline, numpy in and numpy out; the GIL is released while they run.

    FrequencySketch   item frequencies of a stream, for the logQ correction of sampled softmax
    pack_events       an event log sorted by user → jagged batches under a token budget
    hash_ids          several hashes of one id, for tables smaller than their id space

Everything is deterministic. Where the compiled module `argus_kernels._host` was not built, the definitions in
`argus_kernels.host_reference` run instead, with the same results bit for bit; `backend()` says which. An id is a
non-negative int64; −1 means missing.
"""

from __future__ import annotations

import importlib
import math
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from argus_kernels import host_checks as checks
from argus_kernels import host_reference
from argus_kernels.core import native
from argus_kernels.host_reference import MISSING, Float64Array, Int64Array

__all__ = [
    "MISSING",
    "Batch",
    "FrequencySketch",
    "Plan",
    "backend",
    "hash_ids",
    "pack_events",
    "user_offsets",
]

Array = npt.NDArray[Any]
Int32Array = npt.NDArray[np.int32]
Float32Array = npt.NDArray[np.float32]

MAX_SLOTS = 2**32 - 1
MAX_HASHES = 32
ROUNDING = 1e-6


def backend() -> Literal["compiled", "numpy"]:
    """What runs here: the compiled module or, where it was not built, the numpy definitions."""
    return "compiled" if native.load("host") else "numpy"


def _implementation() -> ModuleType:
    return importlib.import_module("argus_kernels._host") if native.load("host") else host_reference


def hash_ids(ids: Int64Array, num_hashes: int, table_size: int, seed: int = 0) -> Int64Array:
    """Slots of each id under several independent hash functions.

    Slot k of an id is ⌊mix(id + keyₖ mod 2⁶⁴) · table_size / 2⁶⁴⌋, with mix the finaliser of splitmix64 (written out
    in `host_reference.mix`) and keyₖ output k + 1 of the splitmix64 generator started at `seed`. Adding hashes leaves
    the slots of the earlier ones as they were.

    Args:
        ids: int64 [n], each −1 (missing) or more.
        num_hashes: number of hash functions, 1 to 32.
        table_size: number of slots, 1 to 2³² − 1.
        seed: chooses the hash functions; any signed 64-bit integer.

    Returns:
        int64 [num_hashes, n], each in [0, table_size); −1 where the id is missing.

    Raises:
        ValueError: an argument out of range or of another dtype, or an id below −1 (named with its position).
    """
    ids = checks.vector("hash_ids", "ids", ids, np.int64)
    checks.check_range("hash_ids", "num_hashes", num_hashes, 1, MAX_HASHES)
    checks.check_range("hash_ids", "table_size", table_size, 1, MAX_SLOTS)
    checks.check_range("hash_ids", "seed", seed, -(2**63), 2**63 - 1)
    if ids.size and ids.min() < MISSING:
        position = int((ids < MISSING).argmax())
        raise ValueError(f"hash_ids: ids[{position}] is {ids[position]}, expected -1 (missing) or more")
    slots: Int64Array = _implementation().hash_ids(ids, host_reference.hash_keys(seed, num_hashes), table_size)
    return slots


class FrequencySketch:
    """How often each id was seen in a stream, in fixed memory: a count-min sketch with conservative update.

    `depth` rows of `width` float64 counters. An id of weight w raises, of its `depth` counters, only those below the
    smallest of them plus w. Ids of one `update` are counted one after the other in the order given, so the counters
    depend on that order alone. An estimate is never below the true count; it exceeds it by more than e · total / width
    with probability at most exp(−depth) (Cormode and Muthukrishnan 2005; conservative update only lowers it).

    Methods lock the sketch: a loader thread may update it while the training loop reads. It pickles and copies as what
    `state_dict` says.

    Args:
        width: counters in a row, 1 to 2³² − 1; memory is 8 · width · depth bytes.
        depth: rows, 1 to 32.
        seed: chooses the hash functions. Sketches merge only with equal width, depth and seed.

    Raises:
        ValueError: an argument out of range, or more counters than half of memory holds.
    """

    def __init__(self, width: int, depth: int = 4, seed: int = 0) -> None:
        checks.check_range("FrequencySketch", "width", width, 1, MAX_SLOTS)
        checks.check_range("FrequencySketch", "depth", depth, 1, MAX_HASHES)
        checks.check_range("FrequencySketch", "seed", seed, -(2**63), 2**63 - 1)
        checks.require_memory("FrequencySketch", f"{depth} × {width} counters", 8 * depth * width)
        self.width, self.depth, self.seed = int(width), int(depth), int(seed)
        self._keys = host_reference.hash_keys(seed, depth)
        self._table: Float64Array = np.zeros((depth, width), dtype=np.float64)
        self._total = 0.0
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self).from_state_dict, (self.state_dict(),)

    @property
    def total(self) -> float:
        """The weight of everything counted, less what decayed."""
        return self._total

    def update(self, ids: Int64Array, weights: Float64Array | None = None) -> None:
        """Counts ids int64 [n], each by its weight (float64 [n], ≥ 0; default 1). Negative ids are passed over.

        Raises:
            ValueError: another dtype or shape, a weight that is negative or not finite (named with its position), or
                weights whose sum is beyond float64. Nothing is counted then.
        """
        ids = checks.vector("FrequencySketch.update", "ids", ids, np.int64)
        if weights is not None:
            weights = checks.vector("FrequencySketch.update", "weights", weights, np.float64)
            if len(weights) != len(ids):
                raise ValueError(
                    f"FrequencySketch.update: weights has {len(weights)} values, expected {len(ids)} as ids"
                )
            wrong = ~(np.isfinite(weights) & (weights >= 0))
            if wrong.any():
                at = int(wrong.argmax())
                raise ValueError(
                    f"FrequencySketch.update: weights[{at}] is {weights[at]}, expected a finite number ≥ 0"
                )
            with np.errstate(over="ignore"):
                sum_of_weights = float(weights.sum())
            if not math.isfinite(self._total + sum_of_weights):
                raise ValueError("FrequencySketch.update: weights add up to infinity, expected a finite total")
        with self._lock:
            self._total = _implementation().sketch_update(self._table, self._keys, ids, weights, self._total)

    def estimate(self, ids: Int64Array) -> Float64Array:
        """The estimated count of each id, float64 [n]; 0 for a negative id."""
        ids = checks.vector("FrequencySketch.estimate", "ids", ids, np.int64)
        with self._lock:
            estimates: Float64Array = _implementation().sketch_estimate(self._table, self._keys, ids)
        return estimates

    def log_q(self, ids: Int64Array) -> Float32Array:
        """log(max(estimate, 1) / total) of each id, float32 [n]: the log-probability to be drawn from the stream.

        Raises:
            ValueError: nothing was counted yet.
        """
        estimates = self.estimate(ids)
        if self._total <= 0:
            raise ValueError("FrequencySketch.log_q: nothing was counted yet, expected an update before")
        return (np.log(np.maximum(estimates, 1.0)) - np.log(self._total)).astype(np.float32)

    def merge(self, other: FrequencySketch) -> None:
        """Adds what `other` counted, as from another worker; an estimate stays at or above the true count.

        Raises:
            ValueError: the sketches differ in width, depth or seed, or their totals add up to infinity. Nothing is
                added then.
        """
        if not isinstance(other, FrequencySketch):
            raise ValueError(f"FrequencySketch.merge: other is {type(other).__name__}, expected a FrequencySketch")
        for name in ("width", "depth", "seed"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                raise ValueError(f"FrequencySketch.merge: {name} of the other sketch is {theirs}, expected {mine}")
        # The other's state is copied under its own lock first: holding both could deadlock two merging threads.
        state = other.state_dict()
        with self._lock:
            total = self._total + state["total"]
            if not math.isfinite(total):
                raise ValueError("FrequencySketch.merge: the totals add up to infinity, expected a finite total")
            self._table += state["table"]
            self._total = total

    def decay(self, factor: float) -> None:
        """Multiplies every count and the total by `factor` in [0, 1], so that old events weigh less than new ones.

        Raises:
            ValueError: factor outside [0, 1], or no number.
        """
        if isinstance(factor, bool) or not isinstance(factor, (int, float, np.floating, np.integer)):
            raise ValueError(f"FrequencySketch.decay: factor is {factor!r}, expected a number from 0 to 1")
        if not 0.0 <= factor <= 1.0:
            raise ValueError(f"FrequencySketch.decay: factor is {factor}, expected 0 to 1")
        with self._lock:
            self._table *= factor
            self._total *= factor

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on later: width, depth, seed, total and a copy of the counters ("table")."""
        with self._lock:
            return {
                "width": self.width,
                "depth": self.depth,
                "seed": self.seed,
                "total": self._total,
                "table": self._table.copy(),
            }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over what `state_dict` returned from a sketch of the same width, depth and seed.

        Raises:
            ValueError: a missing entry, another width, depth or seed, a table of another shape or dtype, a count or a
                total that is negative or not finite, or a count above the total. Nothing is changed then.
        """
        where = "FrequencySketch.load_state_dict"
        checks.require_entries(where, state, ("width", "depth", "seed", "total", "table"))
        for name in ("width", "depth", "seed"):
            if checks.integer(where, name, state[name]) != getattr(self, name):
                raise ValueError(f"{where}: {name} is {state[name]}, expected {getattr(self, name)}")
        table = np.asarray(state["table"])
        if table.shape != self._table.shape or table.dtype != np.float64:
            raise ValueError(
                f"{where}: table is {table.dtype} {list(table.shape)}, expected float64 {list(self._table.shape)}"
            )
        total = checks.count(where, "total", state["total"])
        lowest, highest = float(table.min()), float(table.max())
        if not (lowest >= 0 and math.isfinite(highest)):
            wrong = ~(np.isfinite(table) & (table >= 0))
            row, column = np.unravel_index(int(wrong.argmax()), table.shape)
            raise ValueError(f"{where}: table[{row}, {column}] is {table[row, column]}, expected a finite number ≥ 0")
        # Counts and total are sums in different orders, of up to 2^53 terms each.
        if highest > total * (1 + ROUNDING):
            raise ValueError(f"{where}: table holds a count of {highest}, expected at most the total {total}")
        with self._lock:
            self._table[...] = table
            self._total = total

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> FrequencySketch:
        """The sketch that `state_dict` described; ValueError as `load_state_dict`."""
        where = "FrequencySketch.from_state_dict"
        checks.require_entries(where, state, ("width", "depth", "seed"))
        sketch = cls(*(checks.integer(where, name, state[name]) for name in ("width", "depth", "seed")))
        sketch.load_state_dict(state)
        return sketch


def user_offsets(users: Array, num_users: int | None = None) -> Int64Array:
    """Row offsets of each user in a column of dense user numbers sorted in ascending order.

    Args:
        users: integer [N], 0 ≤ users[i] ≤ users[i + 1].
        num_users: U, default the last user plus 1; users without events have an empty range.

    Returns:
        int64 [U + 1]; user u owns rows offsets[u] … offsets[u + 1] − 1.

    Raises:
        ValueError: not integers, negative, not sorted (named with its position), a user at or past num_users, or more
            users than half of memory holds offsets of.
    """
    if num_users is not None:
        checks.check_range("user_offsets", "num_users", num_users, 0, 2**63 - 2)
    users = np.asarray(users)
    if users.ndim != 1 or users.dtype.kind not in "iu":
        raise ValueError(f"user_offsets: users is {users.dtype} {list(users.shape)}, expected integers [N]")
    falls = users[1:] < users[:-1]
    if falls.any():
        at = int(falls.argmax()) + 1
        raise ValueError(
            f"user_offsets: users[{at}] is {users[at]} after {users[at - 1]}, expected an ascending column"
        )
    if len(users) and users[0] < 0:
        raise ValueError(f"user_offsets: users[0] is {users[0]}, expected 0 or more")
    count = (int(users[-1]) + 1 if len(users) else 0) if num_users is None else num_users
    if len(users) and int(users[-1]) >= count:
        raise ValueError(
            f"user_offsets: users[{len(users) - 1}] is {users[-1]}, expected less than num_users = {count}"
        )
    checks.require_memory("user_offsets", f"{count} users", 3 * 8 * (count + 1))
    return np.searchsorted(users.astype(np.int64), np.arange(count + 1)).astype(np.int64)


@dataclass(frozen=True)
class Batch:
    """One jagged batch: B windows of T events together.

    users: int64 [B], the user of each window (a user's windows may share a batch).
    starts, ends: int64 [B], rows of the event log: window b is starts[b] … ends[b] − 1.
    contexts: int64 [B], how many events at a window's beginning an older window of the user holds too.
    offsets: int32 [B + 1] into the batch's T events, what the ops take.

    Raises:
        ValueError: an array of another dtype or length, a user below 0, a window that begins before row 0 or after its
            end, a context below 0 or longer than its window (each named with its position), or offsets that are not
            the running sum of the windows' lengths.
    """

    users: Int64Array
    starts: Int64Array
    ends: Int64Array
    contexts: Int64Array
    offsets: Int32Array

    def __post_init__(self) -> None:
        checks.check_windows("Batch", self.users, self.starts, self.ends, self.contexts)
        offsets = checks.vector("Batch", "offsets", self.offsets, np.int32)
        expected = np.concatenate([[0], np.cumsum(self.ends - self.starts)])
        if not np.array_equal(offsets, expected):
            raise ValueError("Batch: offsets are not 0 and the running sum of the windows' lengths, ends - starts")

    @property
    def rows(self) -> Int64Array:
        """int64 [T]: the row of the event log that each event of the batch comes from."""
        lengths = self.ends - self.starts
        return np.arange(int(self.offsets[-1])) + np.repeat(self.starts - self.offsets[:-1], lengths)

    def gather(self, column: Array) -> Array:
        """The batch's events out of one column of the log: [N, …] → [T, …], of the same dtype.

        Raises:
            ValueError: the column has fewer rows than the batch reaches, or holds Python objects.
        """
        column = np.asarray(column)
        reached = int(self.ends.max()) if len(self.ends) else 0
        if column.ndim == 0 or column.shape[0] < reached:
            raise ValueError(f"Batch.gather: column has shape {list(column.shape)}, expected at least {reached} rows")
        if column.dtype.hasobject:
            raise ValueError(f"Batch.gather: column is {column.dtype}, expected plain numbers")
        dense = column if column.flags.c_contiguous else np.ascontiguousarray(column)
        starts, ends = np.ascontiguousarray(self.starts), np.ascontiguousarray(self.ends)
        gathered: Array = _implementation().gather_rows(dense, starts, ends)
        return gathered

    def gather_columns(self, columns: Mapping[str, Array]) -> dict[str, Array]:
        """`gather` for every column, by name."""
        return {name: self.gather(column) for name, column in columns.items()}


@dataclass(frozen=True)
class Plan:
    """How an event log is cut into batches: `len(plan)` batches, `plan[n]` the n-th.

    batch_offsets: int64 [batches + 1] into the E windows below.
    users, starts, ends, contexts: int64 [E], as in `Batch`.

    Raises:
        ValueError: as for `Batch`, or batch_offsets that do not rise from 0 to E.
    """

    batch_offsets: Int64Array
    users: Int64Array
    starts: Int64Array
    ends: Int64Array
    contexts: Int64Array
    token_budget: int = field(repr=False)

    def __post_init__(self) -> None:
        checks.check_windows("Plan", self.users, self.starts, self.ends, self.contexts)
        bounds = checks.vector("Plan", "batch_offsets", self.batch_offsets, np.int64)
        if len(bounds) < 1 or bounds[0] != 0 or bounds[-1] != len(self.users) or (bounds[1:] <= bounds[:-1]).any():
            raise ValueError(f"Plan: batch_offsets do not rise from 0 to the number of windows, {len(self.users)}")
        checks.check_range("Plan", "token_budget", self.token_budget, 1, 2**31 - 1)

    def __len__(self) -> int:
        return len(self.batch_offsets) - 1

    def __getitem__(self, index: int) -> Batch:
        if not -len(self) <= index < len(self):
            raise IndexError(f"batch {index} of a plan of {len(self)} batches")
        index %= len(self)
        entries = slice(int(self.batch_offsets[index]), int(self.batch_offsets[index + 1]))
        starts, ends = self.starts[entries], self.ends[entries]
        offsets = np.zeros(len(starts) + 1, dtype=np.int32)
        np.cumsum(ends - starts, out=offsets[1:])
        return Batch(self.users[entries], starts, ends, self.contexts[entries], offsets)

    def __iter__(self) -> Iterator[Batch]:
        return (self[index] for index in range(len(self)))

    @property
    def tokens(self) -> Int64Array:
        """int64 [batches]: events in each batch."""
        before = np.concatenate([[0], np.cumsum(self.ends - self.starts)])
        return np.diff(before[self.batch_offsets])

    @property
    def fill(self) -> float:
        """Share of the token budget that the batches use, 0 to 1."""
        return float(self.tokens.sum()) / (self.token_budget * len(self)) if len(self) else 0.0


def pack_events(
    offsets: Int64Array,
    token_budget: int,
    window: int,
    *,
    stride: int | None = None,
    mode: Literal["all", "last"] = "all",
    order: Int64Array | None = None,
    max_users: int | None = None,
    min_events: int = 1,
) -> Plan:
    """Cuts histories into windows and packs the windows into batches of at most `token_budget` events.

    Windows of a user end at the last event and every `stride` events before it, until one begins at the first event;
    so every window but the oldest is full, and mode "last" keeps the newest only. Users come in the order given, the
    windows of one from the oldest to the newest; a batch is closed when the next window does not fit.

    Args:
        offsets: int64 [U + 1], the rows of each user in a log sorted by user (`user_offsets` makes them).
        token_budget: most events in a batch, at least `window`.
        window: most events of one user in one window.
        stride: events between the ends of a user's windows, 1 to `window`; default `window`, no overlap. With an
            overlap, `contexts` says how many events of a window an older one has already trained on.
        mode: "all" windows of a user, or only the "last".
        order: int64 [P], distinct users to take, in this order; default all, ascending.
        max_users: most windows in a batch; default no limit.
        min_events: users with fewer events are left out, as are users with none.

    Returns:
        The plan, a sequence of batches; each has `gather_columns(columns)`, and `offsets` for the ops.

    Raises:
        ValueError: an argument of another dtype or out of range, offsets that do not begin at 0 or fall (named with
            the position), a user in `order` that is unknown or given twice, or more windows than 2²⁸ or than half of
            memory holds.
    """
    offsets = checks.vector("pack_events", "offsets", offsets, np.int64)
    checks.check_offsets(offsets)
    checks.check_range("pack_events", "window", window, 1, 2**31 - 1)
    checks.check_range("pack_events", "token_budget", token_budget, window, 2**31 - 1, note=" (window to 2**31 - 1)")
    stride = window if stride is None else stride
    checks.check_range("pack_events", "stride", stride, 1, window, note=" (1 to window)")
    if max_users is not None:
        checks.check_range("pack_events", "max_users", max_users, 1, 2**31 - 1)
    checks.check_range("pack_events", "min_events", min_events, 0, 2**63 - 1)
    if mode not in ("all", "last"):
        raise ValueError(f"pack_events: mode is {mode!r}, expected 'all' or 'last'")
    max_users = 2**31 - 1 if max_users is None else max_users
    known = len(offsets) - 1
    chosen = np.arange(known, dtype=np.int64) if order is None else checks.checked_order(order, known)
    checks.check_plan_size(offsets, chosen, window, stride, min_events, mode)
    batch_offsets, users, starts, ends, contexts = _implementation().plan_batches(
        offsets, chosen, token_budget, window, stride, max_users, min_events, mode == "last"
    )
    return Plan(batch_offsets, users, starts, ends, contexts, token_budget)
