"""Times one case: our verified backends and the peers are admitted one by one, then timed against each other.

A case is measured in two groups; an in-place op has only one (`step`). `forward` records no gradients, as in serving.
The training group runs forward and backward in one repetition and times each, which gives both `backward` and
`forward_backward`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness.cases import Case
from benchmarks.harness.memory import PeakMemory
from benchmarks.harness.timing import SLOW_SECONDS, Budget, Stage, Subject, Timer, Timing, measure
from benchmarks.harness.verify import Verdict, first_line
from benchmarks.peers import Peer

TOLERANCE = {torch.float64: 1e-6, torch.float32: 2e-3, torch.bfloat16: 4e-2, torch.float16: 1e-2}
"""Relative RMS difference within which two full-size results in a dtype pass for the same computation."""


@dataclass(frozen=True)
class Pass:
    """The measurements of one pass, by contender; `skipped` holds peers, `refused` our own backends.

    `times`: the milliseconds of every repetition; `peak_bytes`: of the first one.
    """

    name: str
    times: dict[str, tuple[float, ...]] = field(default_factory=dict)
    peak_bytes: dict[str, int | None] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)


@dataclass
class _Contender:
    name: str
    call: Callable[[], Any]
    case: Case
    peer: Peer | None = None
    peaks: tuple[int | None, ...] = ()
    """Peak extra bytes of each stage of the group under way."""
    milliseconds: tuple[float, ...] = ()
    """How long each stage took in the last warm-up."""

    @property
    def is_misleading_at_first(self) -> bool:
        """Whether the first run does not count: it compiled, or was so short that loading and cold caches matter."""
        return sum(self.milliseconds) < SLOW_SECONDS * 1e3 or (self.peer is not None and self.peer.compiles)


class Contest:
    """Measures a drawn case; `verdicts` are our backends' verdicts by name, in the room's order."""

    def __init__(
        self,
        case: Case,
        verdicts: dict[str, Verdict],
        peers: Sequence[Peer],
        clock: Timer,
        budget: Budget,
        seed: int = 0,
    ) -> None:
        self._case = case
        self._verdicts = verdicts
        self._peers = peers
        self._clock = clock
        self._budget = budget
        self._seed = seed
        self._skipped: dict[str, str] = {}
        self._refused = {name: verdict.forward for name, verdict in verdicts.items() if verdict.forward}
        self._gradients: dict[torch.dtype, Tensor] = {}

    def passes(self) -> Iterator[Pass]:
        """Measures every pass of the case and yields each as soon as it is known."""
        contenders = self._admit()
        if self._case.updates_in_place:
            yield self._without_gradients("step", contenders)
            return
        yield self._without_gradients("forward", contenders)
        if self._case.leaves:
            yield from self._training(contenders)

    def _admit(self) -> list[_Contender]:
        """Runs each contender, which also warms it up, and keeps those that give the expected result.

        The expected result is that of our `reference` backend on the full case (else of the last of our backends
        verified on pieces), because float64 is too slow at full size. If none of our backends runs, nothing is timed.
        """
        ours = [name for name in reversed(self._verdicts) if name not in self._refused]
        admitted: list[_Contender] = []
        expected: Tensor | None = None
        for name in ours:
            expected = self._try(self._ours(name), expected, admitted)
        for peer in self._peers:
            reason = "none of our backends was verified" if expected is None else peer.why_not(self._case)
            if reason:
                self._skipped[peer.name] = reason
            else:
                self._try_peer(peer, expected, admitted)
        return admitted

    def _ours(self, name: str) -> _Contender:
        case = self._case.fresh()
        return _Contender(name, case.call(name), case)

    def _try_peer(self, peer: Peer, expected: Tensor | None, admitted: list[_Contender]) -> None:
        case = self._case.fresh()
        try:
            call = peer.build(case)
        except Exception as error:  # a peer may fail in any way: the reason goes into the record
            self._skipped[peer.name] = f"fails: {first_line(error)}"
        else:
            self._try(_Contender(peer.name, call, case, peer), expected, admitted)

    def _try(self, contender: _Contender, expected: Tensor | None, admitted: list[_Contender]) -> Tensor | None:
        """Admits a contender or notes why not; returns the expected result for the next ones."""
        case = contender.case
        try:
            with torch.no_grad():
                (result,) = self._warm(contender, (lambda _: case.result(contender.call()),))
                result = result.detach().clone()
                if contender.is_misleading_at_first:
                    self._warm(contender, (lambda _: contender.call(),))
        except Exception as error:  # a contender may fail in any way: the reason goes into the record
            self._note(contender, f"fails: {first_line(error)}")
            return expected
        if contender.peer is None or contender.peer.same_result:
            reason = None if expected is None else _difference(result, expected)
            if reason:
                self._note(contender, reason)
                return expected
        admitted.append(contender)
        return result if expected is None else expected

    def _warm(self, contender: _Contender, stages: tuple[Stage, ...]) -> list[Any]:
        """Runs the stages once for their peak memory and duration; returns their results."""
        memory = PeakMemory(self._case.device)
        value: Any = None
        kept, peaks, times = [], [], []
        for stage in stages:
            clocked = _Clocked(stage, value)
            value, peak = memory.peak_of(clocked)
            kept.append(value)
            peaks.append(peak)
            times.append(clocked.milliseconds)
        contender.peaks, contender.milliseconds = tuple(peaks), tuple(times)
        return kept

    def _note(self, contender: _Contender, reason: str) -> None:
        (self._skipped if contender.peer else self._refused)[contender.name] = reason

    def _without_gradients(self, name: str, contenders: list[_Contender]) -> Pass:
        with torch.no_grad():
            subjects = [Subject.of(contender.name, contender.call) for contender in contenders]
            timings = measure(subjects, self._clock, self._budget, seed=self._seed, warm=self._warm_times(contenders))
        peaks = {contender.name: contender.peaks[0] for contender in contenders}
        return self._pass(name, timings, sum, peaks)

    def _training(self, contenders: list[_Contender]) -> list[Pass]:
        """The training group; contenders that cannot differentiate leave the contest here."""
        for name, verdict in self._verdicts.items():
            if verdict.gradients:
                self._refused.setdefault(name, verdict.gradients)
        able = [contender for contender in contenders if self._trains(contender)]
        subjects = [Subject(contender.name, self._stages(contender)) for contender in able]
        timings = measure(subjects, self._clock, self._budget, seed=self._seed + 1, warm=self._warm_times(able))
        whole = {c.name: None if None in c.peaks else max(p for p in c.peaks if p is not None) for c in able}
        return [
            self._pass("backward", timings, lambda stages: stages[1], {c.name: c.peaks[1] for c in able}),
            self._pass("forward_backward", timings, sum, whole),
        ]

    def _trains(self, contender: _Contender) -> bool:
        """Runs both stages once for their peak memory; notes the reason and returns False if that fails."""
        if contender.peer is None and contender.name in self._refused:
            return False
        reason = contender.peer.why_no_gradients(self._case) if contender.peer else None
        if reason:
            self._note(contender, reason)
            return False
        try:
            self._warm(contender, self._stages(contender))
            if contender.is_misleading_at_first:
                self._warm(contender, self._stages(contender))
        except Exception as error:  # as in _try
            self._note(contender, f"fails: {first_line(error)}")
            return False
        return True

    def _warm_times(self, contenders: list[_Contender]) -> dict[str, tuple[float, ...]] | None:
        """On a GPU the timer warms up by itself: it captures graphs, and this host clock measured only launches."""
        if self._case.device != "cpu":
            return None
        return {contender.name: contender.milliseconds for contender in contenders}

    def _stages(self, contender: _Contender) -> tuple[Stage, Stage]:
        leaves = [*self._case.leaves, *(contender.peer.own_leaves(contender.call) if contender.peer else ())]

        def forward(_: Any) -> Tensor:
            return self._case.result(contender.call())

        def backward(root: Tensor) -> Any:
            return torch.autograd.grad(root, leaves, self._gradient(root), allow_unused=True)

        return forward, backward

    def _gradient(self, root: Tensor) -> Tensor:
        """The gradient of the first output: ones for a loss, noise for vectors."""
        if root.dtype not in self._gradients:
            generator = torch.Generator().manual_seed(self._seed)
            noise = torch.randn(root.shape, generator=generator) if root.dim() > 1 else torch.ones(root.shape)
            self._gradients[root.dtype] = noise.to(root.device, root.dtype)
        return self._gradients[root.dtype]

    def _pass(
        self,
        name: str,
        timings: dict[str, Timing],
        time_of: Callable[[tuple[float, ...]], float],
        peaks: dict[str, int | None],
    ) -> Pass:
        return Pass(
            name,
            {contender: tuple(map(time_of, timing.repeats)) for contender, timing in timings.items()},
            peaks,
            dict(self._skipped),
            dict(self._refused),
        )


class _Clocked:
    """Runs a stage on its argument; returns its result and its time."""

    def __init__(self, stage: Stage, value: Any) -> None:
        self._stage = stage
        self._value = value
        self.milliseconds = 0.0

    def __call__(self) -> Any:
        started = time.perf_counter()
        returned = self._stage(self._value)
        self.milliseconds = (time.perf_counter() - started) * 1e3
        return returned


def _difference(result: Tensor, expected: Tensor) -> str | None:
    """Why a full-size result is not the expected one; None if it is, within rounding."""
    if result.shape != expected.shape:
        return f"gives shape {list(result.shape)}, expected {list(expected.shape)}"
    coarser = max(TOLERANCE[result.dtype], TOLERANCE[expected.dtype])
    scale = float(expected.float().square().mean().sqrt())
    error = float((result.float() - expected.float()).square().mean().sqrt())
    if not error <= coarser * max(scale, 1e-30):
        return f"gives another result on the full case: relative RMS difference {error / max(scale, 1e-30):.2e}"
    return None
