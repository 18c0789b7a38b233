"""Times several subjects against each other: interleaved, so that a drifting clock affects all of them equally.

A subject is a chain of stages (forward, then backward, say); every repetition runs the chain and times each stage.
The repetitions of all subjects are spread evenly over the whole measurement in random order; each subject's number of
repetitions is planned from a warm-up. A timer runs one repetition: `CpuTimer` by the process's monotonic clock,
`CudaTimer` by CUDA events, with a cold L2 cache and as CUDA graphs if the subject can be captured.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from benchmarks.harness.results import Quantiles

Stage = Callable[[Any], Any]
"""Takes what the stage before it returned (None for the first) and returns what the next one needs."""


SLOW_SECONDS = 0.3
"""From here on a warm-up differs from a repetition by less than repetitions differ from each other."""


@dataclass(frozen=True)
class Subject:
    """A named subject to time: its stages run one after the other in every repetition."""

    name: str
    stages: tuple[Stage, ...]

    @classmethod
    def of(cls, name: str, call: Callable[[], Any]) -> Subject:
        """A subject of one stage without an argument."""
        return cls(name, (lambda _: call(),))


@dataclass(frozen=True)
class Budget:
    """How long a subject may be repeated: `seconds` in all, at least `min_repeats`, at most `max_repeats` times.

    A subject that takes `once_from` seconds or more is timed once.
    """

    seconds: float = 1.0
    min_repeats: int = 5
    max_repeats: int = 200
    once_from: float = math.inf

    def repeats(self, estimate_seconds: float) -> int:
        """How many repetitions of the given length fit."""
        if estimate_seconds >= self.once_from:
            return 1
        fitting = int(self.seconds / max(estimate_seconds, 1e-9))
        return max(self.min_repeats, min(self.max_repeats, fitting))


@dataclass
class Timing:
    """Milliseconds of every repetition, one row per repetition, one column per stage."""

    repeats: list[tuple[float, ...]] = field(default_factory=list)

    def stage(self, index: int) -> Quantiles:
        """Quantiles of one stage."""
        return Quantiles.of([row[index] for row in self.repeats])

    @property
    def total(self) -> Quantiles:
        """Quantiles of the whole chain."""
        return Quantiles.of([sum(row) for row in self.repeats])


class Timer(Protocol):
    """Runs a subject once and returns the milliseconds of each stage."""

    def once(self, subject: Subject) -> tuple[float, ...]:
        """Milliseconds of each stage."""
        ...


class CpuTimer:
    """Wall clock of the calling thread around each stage; the stages' results are freed outside the timed span."""

    def once(self, subject: Subject) -> tuple[float, ...]:
        """Milliseconds of each stage."""
        value: Any = None
        kept, times = [], []
        for stage in subject.stages:
            started = time.perf_counter()
            value = stage(value)
            times.append((time.perf_counter() - started) * 1e3)
            kept.append(value)
        return tuple(times)


class CudaTimer:
    """CUDA events around each stage, after the L2 cache was overwritten; CUDA graphs if capture succeeds.

    A subject is captured at its first repetition, one graph per stage in one memory pool, and replayed afterwards. A
    subject that cannot be captured (it synchronises, or allocates outside torch) is launched stage by stage; `launched`
    names those subjects. `forget` frees the graphs.
    """

    def __init__(self, graphs: bool = True) -> None:
        self.graphs = graphs
        self.launched: set[str] = set()
        self._captured: dict[int, tuple[Subject, list[torch.cuda.CUDAGraph], list[Any]]] = {}
        cache = torch.cuda.get_device_properties(0).L2_cache_size
        self._flush = torch.empty(max(4 * cache, 1 << 28), dtype=torch.int8, device="cuda")

    def once(self, subject: Subject) -> tuple[float, ...]:
        """Milliseconds of each stage."""
        calls = self._calls(subject)
        events = [torch.cuda.Event(enable_timing=True) for _ in range(len(calls) + 1)]
        self._flush.zero_()
        torch.cuda.synchronize()
        value: Any = None
        kept = []
        events[0].record()
        for call, event in zip(calls, events[1:], strict=True):
            value = call(value)
            kept.append(value)
            event.record()
        torch.cuda.synchronize()
        return tuple(events[i].elapsed_time(events[i + 1]) for i in range(len(calls)))

    def forget(self) -> None:
        """Frees all captured graphs and their memory."""
        self._captured.clear()

    def _calls(self, subject: Subject) -> Sequence[Stage]:
        if not self.graphs or subject.name in self.launched:
            return subject.stages
        if id(subject) not in self._captured:
            try:
                self._captured[id(subject)] = (subject, *self._capture(subject))
            except RuntimeError:
                torch.cuda.synchronize()
                self.launched.add(subject.name)
                return subject.stages
        return [_replay(graph) for graph in self._captured[id(subject)][1]]

    def _capture(self, subject: Subject) -> tuple[list[torch.cuda.CUDAGraph], list[Any]]:
        """Graphs of all stages, and the stages' results, which must outlive the graphs."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):
                value: Any = None
                for stage in subject.stages:
                    value = stage(value)
        torch.cuda.current_stream().wait_stream(stream)
        graphs: list[torch.cuda.CUDAGraph] = []
        kept: list[Any] = []
        value = None
        for stage in subject.stages:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=graphs[0].pool() if graphs else None, stream=stream):
                value = stage(value)
            graphs.append(graph)
            kept.append(value)
        return graphs, kept


def _replay(graph: torch.cuda.CUDAGraph) -> Stage:
    return lambda _: graph.replay()


def timer(device: str, *, graphs: bool = True) -> Timer:
    """The timer of a device type, "cpu" or "cuda"."""
    return CudaTimer(graphs) if device == "cuda" else CpuTimer()


def measure(
    subjects: Sequence[Subject],
    clock: Timer,
    budget: Budget | None = None,
    *,
    seed: int = 0,
    warm_up: int = 1,
    warm: dict[str, tuple[float, ...]] | None = None,
    on_repeat: Callable[[], None] | None = None,
) -> dict[str, Timing]:
    """Times all subjects, interleaved; their names must differ.

    Each is run `warm_up` times (at least once), which also gives the number of repetitions that fit its budget. A
    subject in `warm` has already run and took those milliseconds per stage; one slower than SLOW_SECONDS counts that
    run as its first repetition. Subjects of equal duration run as a round-robin in fresh random order each round;
    repetitions of faster and slower subjects alike are spread evenly over the measurement.
    """
    budget = budget or Budget()
    names = [subject.name for subject in subjects]
    if len(set(names)) != len(names):
        raise ValueError(f"subjects must have different names, found {', '.join(names)}")
    rng = random.Random(seed)
    timings = {name: Timing() for name in names}
    schedule: list[tuple[float, float, Subject]] = []
    for subject in subjects:
        first = (warm or {}).get(subject.name)
        if first is None:
            first = min((clock.once(subject) for _ in range(max(warm_up, 1))), key=sum)
        count = budget.repeats(sum(first) / 1e3)
        if warm and subject.name in warm and sum(first) >= SLOW_SECONDS * 1e3:
            timings[subject.name].repeats.append(first)
            count -= 1
        schedule += [((index + rng.random()) / count, rng.random(), subject) for index in range(count)]
    for _, _, subject in sorted(schedule, key=lambda entry: entry[:2]):
        timings[subject.name].repeats.append(clock.once(subject))
        if on_repeat is not None:
            on_repeat()
    return timings
