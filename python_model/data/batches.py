"""From a prepared data set to jagged batches: whole users or windows of them, packed under a token budget.

Training windows partition each user's training events; an overlap gives every window but the first some history that
it sees and is not trained on. Evaluation windows end at given events and give each at least a stated history. The
order of a training epoch is a function of (seed, epoch), so a run resumes at any step.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, Protocol, TypeVar

import numpy as np
import torch

from argus_kernels.host import Batch
from python_model.data.balance import HistoryCost, balanced
from python_model.data.description import DatasetInfo
from python_model.data.schema import Dataset
from python_model.data.stochastic_length import StochasticLength
from python_model.data.ties import shuffled_ties
from python_model.data.windows import Windows, cut_windows, pack

Value = TypeVar("Value")


@dataclass(frozen=True)
class JaggedBatch:
    """T packed events of B windows, each of one user and in order of time; all tensors on one device.

    offsets int32 [B + 1]; max_length: longest window; users int64 [B]; rows int64 [T]: row in events.parquet.
    items, time, grade int64 [T]; organic, is_target bool [T]: is_target marks the events whose prediction counts
    (the others are history). context int64 [C, T] and feedback int64 [T, F] in the order of the description, -1 =
    missing or not observed.
    """

    offsets: torch.Tensor
    max_length: int
    users: torch.Tensor
    rows: torch.Tensor
    items: torch.Tensor
    time: torch.Tensor
    organic: torch.Tensor
    grade: torch.Tensor
    context: torch.Tensor
    feedback: torch.Tensor
    is_target: torch.Tensor

    def __len__(self) -> int:
        """Events."""
        return len(self.rows)

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> JaggedBatch:
        """The batch on another device."""
        tensors = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "max_length"}
        return replace(self, **{name: value.to(device, non_blocking=non_blocking) for name, value in tensors.items()})


def empty_batch(info: DatasetInfo) -> JaggedBatch:
    """A batch without events, for a rank that has nothing to compute but must take part."""
    numbers, flags = torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.bool)
    return JaggedBatch(
        offsets=torch.zeros(1, dtype=torch.int32), max_length=0, users=numbers, rows=numbers, items=numbers,
        time=numbers, organic=flags, grade=numbers, context=numbers.new_zeros(len(info.context), 0),
        feedback=numbers.new_zeros(0, len(info.feedback)), is_target=flags,
    )  # fmt: skip


class BatchSource(Protocol):
    """An endless source of a run's batches; implemented by BatchPlan and `python_model.data.stream.ShardStream`."""

    def start(self) -> dict[str, Any]:
        """The position of a new run: what `walk` takes, and what a checkpoint stores as JSON."""
        ...

    def require(self, of: int) -> None:
        """ValueError where a step cannot have `of` batches; called before a run creates anything."""
        ...

    def epoch_batches(self) -> int:
        """Batches of the first epoch; of a stream, about as many."""
        ...

    def walk(self, place: Mapping[str, Any], numbers: Sequence[int], of: int) -> Iterator[Step]:
        """From a position on, the batches of every step with these numbers, out of its `of` batches.

        A number of `of` or more gives a batch without events. The content of a step does not depend on which rank takes
        which numbers.
        """
        ...

    def merge(self, places: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The position of the run from the positions of its ranks, in rank order."""
        ...


@dataclass(frozen=True)
class Step:
    """A rank's batches of one step and the position after them, as far as this rank knows it."""

    batches: list[JaggedBatch]
    place: dict[str, Any]


class BatchBuilder:
    """Gathers the columns of a data set into batches; the columns stay in memory, in their stored types."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset
        self._context = [dataset.context(name) for name in dataset.info.context]
        self._feedback = [dataset.feedback(name) for name in dataset.info.feedback]

    def build(
        self, windows: Windows, targets: np.ndarray | None = None, *, rows: np.ndarray | None = None
    ) -> JaggedBatch:
        """One batch of the windows.

        targets: bool [events], further restricts which rows are targets. rows: int64 [T], the rows of the windows that
        are shown, window by window and rising; None for all of them.
        """
        lengths = windows.lengths
        offsets = np.concatenate([np.zeros(1, np.int32), np.cumsum(lengths, dtype=np.int32)])
        data = self.dataset
        users = data.user[windows.start].astype(np.int64)
        gather: Callable[[np.ndarray], np.ndarray]
        if rows is None:
            batch = Batch(users, windows.start, windows.end, windows.target - windows.start, offsets)
            rows, gather = batch.rows, batch.gather
        else:
            gather = partial(np.take, indices=rows)
        is_target = rows >= np.repeat(windows.target, lengths)
        if targets is not None:
            is_target &= gather(targets)
        context = np.empty((len(self._context), len(rows)), np.int64)
        for index, column in enumerate(self._context):
            context[index] = gather(column)
        feedback = np.empty((len(rows), len(self._feedback)), np.int64)
        for index, column in enumerate(self._feedback):
            feedback[:, index] = gather(column)
        return JaggedBatch(
            offsets=torch.from_numpy(offsets),
            max_length=int(lengths.max(initial=0)),
            users=torch.from_numpy(users),
            rows=torch.from_numpy(rows),
            items=torch.from_numpy(gather(data.item).astype(np.int64)),
            time=torch.from_numpy(gather(data.time)),
            organic=torch.from_numpy(gather(data.organic)),
            grade=torch.from_numpy(gather(data.grade).astype(np.int64)),
            context=torch.from_numpy(context),
            feedback=torch.from_numpy(feedback),
            is_target=torch.from_numpy(is_target),
        )


NOBODY = (
    "train: nobody has two events to train on: take a longer log, or pretrain with --protocol all, which holds none out"
)


class BatchPlan:
    """The training batches of every epoch, a function of (seed, epoch) alone.

    train: bool [events] or None for all: the rows to train on, a prefix of each user's history. targets: bool [events]
    or None for all: the rows whose prediction counts; windows without any are left out. window: largest number
    of events of a user in one window, `overlap` of them history. shortening: replaces long windows by subsequences.
    shuffled_ties: events of a window at the same second come in another order in every epoch.
    cost: of a window; the windows of a step of several batches are then dealt to them by it (`balance`).
    """

    def __init__(
        self,
        dataset: Dataset,
        token_budget: int,
        window: int,
        seed: int,
        *,
        train: np.ndarray | None = None,
        targets: np.ndarray | None = None,
        overlap: int = 0,
        shortening: StochasticLength | None = None,
        shuffled_ties: bool = False,
        cost: HistoryCost | None = None,
    ) -> None:
        _check_window(token_budget, window, overlap)
        self.dataset = dataset
        self.token_budget, self.window, self.overlap, self.seed = token_budget, window, overlap, seed
        self._builder, self._shortening, self._cost = BatchBuilder(dataset), shortening, cost
        self._shuffled_ties = shuffled_ties
        self._first = dataset.offsets[:-1]
        self._last = self._first + _prefix_lengths(dataset, train)
        if (self._last - self._first).max(initial=0) < 2:
            raise ValueError(NOBODY)
        self._targets = targets
        self._before = None if targets is None else np.concatenate([np.zeros(1, np.int64), np.cumsum(targets)])

    def batches(self, epoch: int, start: int = 0) -> Iterator[JaggedBatch]:
        """The batches of an epoch from number `start` on; windows of one event, which teach nothing, are left out."""
        for windows in self._plan(epoch)[start:]:
            yield self._build(windows)

    def start(self) -> dict[str, Any]:
        """See `BatchSource`."""
        return {"epoch": 0, "batch": 0}

    def require(self, of: int) -> None:
        """See `BatchSource`: the first epoch decides."""
        if of > 1 and (there := len(self._plan(0))) < of:
            raise ValueError(f"batches_per_step is {of}, expected at most the {there} batches of an epoch")

    def epoch_batches(self) -> int:
        """See `BatchSource`."""
        return len(self._plan(0))

    def walk(self, place: Mapping[str, Any], numbers: Sequence[int], of: int) -> Iterator[Step]:
        """See `BatchSource`; a step that the rest of an epoch does not fill goes on in the next one."""
        self.require(of)
        epoch, behind = place["epoch"], place["batch"]
        plan = self._plan(epoch)
        while True:
            taken = []
            for _ in range(of):
                while behind >= len(plan):
                    epoch, behind = epoch + 1, 0
                    plan = self._plan(epoch)
                taken.append(plan[behind])
                behind += 1
            if self._cost is not None and of > 1:
                taken = balanced(taken, self._cost, self.token_budget)
            nothing = empty_batch(self.dataset.info)
            batches = [self._build(taken[number]) if number < of else nothing for number in numbers]
            yield Step(batches, {"epoch": epoch, "batch": behind})

    def merge(self, places: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """See `BatchSource`: every rank has the same position."""
        return dict(places[0])

    def _plan(self, epoch: int) -> list[Windows]:
        random = np.random.default_rng([self.seed, epoch])
        phase = random.random(len(self._first))
        windows = cut_windows(
            self._first, self._last, self._first, window=self.window, overlap=self.overlap, phase=phase
        )
        windows = windows.take(np.flatnonzero(windows.lengths > 1))
        if self._before is not None:
            windows = windows.take(np.flatnonzero(self._before[windows.end] > self._before[windows.target]))
        if self._shortening is not None:
            windows = self._shortening.shorten(windows, [self.seed, epoch])
        elif self._shuffled_ties:
            draw = np.random.default_rng([self.seed, epoch, 2]).integers(0, 1 << 62, len(windows))
            windows = replace(windows, draw=draw)
        return pack(windows, self.token_budget, self.window, random.permutation(len(windows)))

    def _build(self, windows: Windows) -> JaggedBatch:
        rows = None if self._shortening is None else self._shortening.rows(windows)
        batch = self._builder.build(windows, self._targets, rows=rows)
        if not self._shuffled_ties:
            return batch
        assert windows.draw is not None
        order = shuffled_ties(batch.time.numpy(), batch.offsets.numpy(), windows.draw)
        return _reordered(batch, torch.from_numpy(order), self.dataset.info)


def _reordered(batch: JaggedBatch, order: torch.Tensor, info: DatasetInfo) -> JaggedBatch:
    """The events of equal time in another order; context that follows from times, as the gap, stays in its place."""
    names = ("rows", "items", "organic", "grade", "feedback", "is_target")
    follows = torch.tensor([name in info.derived for name in info.context], dtype=torch.bool)
    context = torch.where(follows[:, None], batch.context, batch.context[:, order])
    return replace(batch, **{name: getattr(batch, name)[order] for name in names}, context=context)


def evaluation_batches(
    dataset: Dataset, targets: np.ndarray, token_budget: int, window: int, *, history: int | None = None
) -> Iterator[JaggedBatch]:
    """Batches that show every row of `targets` (bool [events]) exactly once as a target, in row order.

    Each target has at least `history` events before it in its window (default window // 2), or all that its user has;
    windows end at a target. History includes all earlier events, of the training part or not.
    """
    history = window // 2 if history is None else history
    _check_window(token_budget, window, history)
    if targets.dtype != np.bool_ or targets.shape != (len(dataset),):
        raise ValueError(f"targets: expected bool [{len(dataset)}], found {targets.dtype} {list(targets.shape)}")
    windows = _windows_of_targets(dataset, np.flatnonzero(targets), window, history)
    builder = BatchBuilder(dataset)
    for batch in pack(windows, token_budget, window):
        yield builder.build(batch, targets)


def history_windows(dataset: Dataset, ends: np.ndarray, window: int) -> Windows:
    """For each row ends[i] the window of at most `window` events that ends with it; only that last row counts."""
    start = np.maximum(dataset.offsets[dataset.user[ends]], ends + 1 - window)
    return Windows(start, ends, ends + 1)


def prefetch(values: Iterable[Value], depth: int = 2) -> Iterator[Value]:
    """The same values, produced up to `depth` ahead in a background thread; its exceptions are raised here."""
    ready: queue.Queue[tuple[bool, Value | BaseException | None]] = queue.Queue(maxsize=depth)
    stopped = threading.Event()

    def offer(entry: tuple[bool, Value | BaseException | None]) -> bool:
        while not stopped.is_set():
            try:
                ready.put(entry, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def produce() -> None:
        try:
            for value in values:
                if not offer((True, value)):
                    return
            offer((False, None))
        except BaseException as error:  # handed to the consumer, who raises it
            offer((False, error))

    thread = threading.Thread(target=produce, daemon=True)
    thread.start()
    try:
        while True:
            more, value = ready.get()
            if isinstance(value, BaseException) and not more:
                raise value
            if not more:
                return
            yield value  # type: ignore[misc]
    finally:
        stopped.set()
        thread.join()


def _windows_of_targets(dataset: Dataset, rows: np.ndarray, window: int, history: int) -> Windows:
    """Greedy cover from each user's first target on: a window takes the targets that leave it its history."""
    user = dataset.user[rows]
    offset = dataset.offsets[user]
    # Users are cut from their first target to their last; pieces without a target are dropped, ends move to a target.
    starts = np.flatnonzero(np.diff(user, prepend=-1))
    ends = np.append(starts[1:], len(rows)) - 1
    windows = cut_windows(rows[starts], rows[ends] + 1, offset[starts], window=window, overlap=history)
    low, high = np.searchsorted(rows, windows.target), np.searchsorted(rows, windows.end)
    windows, low, high = windows.take(high > low), low[high > low], high[high > low]
    end = rows[high - 1] + 1
    floor = dataset.offsets[dataset.user[windows.target]]
    return Windows(np.maximum(floor, end - window), rows[low], end)


def _prefix_lengths(dataset: Dataset, train: np.ndarray | None) -> np.ndarray:
    """int64 [U]: how many events of each user are trained on."""
    if train is None:
        return np.diff(dataset.offsets)
    if train.dtype != np.bool_ or train.shape != (len(dataset),):
        raise ValueError(f"train: expected bool [{len(dataset)}], found {train.dtype} {list(train.shape)}")
    before = np.concatenate([np.zeros(1, np.int64), np.cumsum(train)])[dataset.offsets]
    counts = np.diff(before)
    position = np.arange(len(dataset)) - dataset.offsets[dataset.user]
    wrong = train != (position < counts[dataset.user])
    if wrong.any():
        row = int(np.argmax(wrong))
        raise ValueError(
            f"train: expected a prefix of each user's events; user {dataset.user[row]} leaves out row {row} "
            "and has a later one"
        )
    return counts


def _check_window(token_budget: int, window: int, overlap: int) -> None:
    if window < 2:
        raise ValueError(f"window: expected at least 2, found {window}")
    if token_budget < window:
        raise ValueError(f"token_budget: expected at least the window of {window}, found {token_budget}")
    if not 0 <= overlap < window:
        raise ValueError(f"overlap or history: expected a value in [0, {window - 1}], found {overlap}")
