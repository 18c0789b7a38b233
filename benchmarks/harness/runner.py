"""Runs cases one after the other and makes records of the results; the ceilings are measured in between."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from argus_kernels.testing.harness import captured_arguments
from benchmarks.harness import results
from benchmarks.harness.cases import Case, Spec
from benchmarks.harness.ceilings import Ceilings, measure_ceilings
from benchmarks.harness.contest import Contest, Pass
from benchmarks.harness.results import NOT_WANTED, PeerResult, Quantiles, Record
from benchmarks.harness.timing import Budget, CudaTimer, timer
from benchmarks.harness.verify import Judge, Verdict
from benchmarks.peers import Peer, peers_of

SUITES = {
    "quick": Budget(seconds=0.3, min_repeats=3, max_repeats=50, once_from=0.5),
    "full": Budget(seconds=4.0, min_repeats=5, max_repeats=200),
}
"""Repetitions of a contender in one group of passes."""


@dataclass(frozen=True)
class Settings:
    """How to run; `backends` and `peers` name the wanted ones, None means all."""

    device: str = "cpu"
    budget: Budget = SUITES["quick"]
    backends: tuple[str, ...] | None = None
    peers: tuple[str, ...] | None = None
    seed: int = 0
    time_budget: float | None = None
    """Seconds for the whole run: cases that would not end in time are cut, never repetitions."""
    ceilings_every: float = 120.0
    """Seconds of a run after which the ceilings are measured again."""
    graphs: bool = True
    """Time CUDA graphs where a contender can be captured."""
    every_definition: bool = True
    """Time `reference` in every dtype. It computes in float32 whatever it is given, so that one dtype tells of all."""


@dataclass(frozen=True)
class Environment:
    """The fields that all records of a run share."""

    ceilings: Ceilings
    machine: dict[str, Any]
    versions: dict[str, str]
    commit: str

    @classmethod
    def of(cls, device: str, dtypes: Sequence[str]) -> Environment:
        """Measures the ceilings and collects the other fields."""
        ceilings = measure_ceilings(device, tuple(dict.fromkeys(dtypes)))
        return cls(ceilings, results.machine(device), results.versions(), results.source_commit())


@dataclass
class _Judged:
    """A case before it is timed: our backends judged, by name, and its costs (flops, bytes) by pass."""

    verdicts: dict[str, Verdict]
    judged_on: str
    peers: list[Peer]
    costs: dict[str, tuple[int, int]]


@dataclass
class Run:
    """A run over cases.

    Afterwards `cut` names the cases that the time budget left out, and `absent` says why backends did not run, by (op,
    backend). `on_pass` gets the records of each pass as soon as it is measured.
    """

    specs: Sequence[Spec]
    settings: Settings
    environment: Environment
    clock: Callable[[], float] = time.monotonic
    cut: list[str] = field(default_factory=list)
    absent: dict[tuple[str, str], str] = field(default_factory=dict)
    on_pass: Callable[[list[Record]], None] | None = None

    def records(self, on_case: Callable[[Spec], None] = lambda spec: None) -> Iterator[list[Record]]:
        """Runs the cases and yields the records of each; `on_case` is called with a case before it starts."""
        started = measured = self.clock()
        took: dict[tuple[str, str], float] = {}
        for spec in self.specs:
            before = self.clock()
            case_name = (spec.op.name, spec.sample.name)
            if self._would_be_late(before - started, took, case_name):
                self.cut.append(f"{spec.op.name} {spec.sample.name} {spec.dtype}")
                continue
            if before - measured > self.settings.ceilings_every:
                self.measure_ceilings()
                measured = self.clock()
            on_case(spec)
            yield self._measured(spec)
            took[case_name] = self.clock() - before

    def measure_ceilings(self) -> None:
        """Measures the ceilings once more and keeps the best of each."""
        known = self.environment.ceilings
        found = measure_ceilings(self.settings.device, tuple(known.flops_per_second))
        self.environment = replace(self.environment, ceilings=known.best(found))

    def _would_be_late(self, elapsed: float, took: dict[tuple[str, str], float], case_name: tuple[str, str]) -> bool:
        """Estimated from the time of the same case in its other dtype, else from the mean case so far."""
        if self.settings.time_budget is None:
            return False
        mean = sum(took.values()) / len(took) if took else 0.0
        return elapsed + took.get(case_name, mean) > self.settings.time_budget

    def _measured(self, spec: Spec) -> list[Record]:
        """Verifies a case, then times it; no record if no wanted backend takes it."""
        if "torch._dynamo" in sys.modules:
            torch.compiler.reset()
        settings = self.settings
        case = spec.draw(settings.seed, settings.device)
        judged = self._judged(case)
        if judged is None:
            return []
        clock = timer(settings.device, graphs=settings.graphs)
        contest = Contest(case, judged.verdicts, judged.peers, clock, settings.budget, settings.seed)
        found = []
        for measured in contest.passes():
            # The refused ones have records too.
            found += [self._record(spec, judged, measured, name) for name in judged.verdicts]
            if self.on_pass is not None:
                self.on_pass(found[-len(judged.verdicts) :])
        if isinstance(clock, CudaTimer):
            clock.forget()
        return found

    def _judged(self, case: Case) -> _Judged | None:
        """The verdicts of every wanted backend that takes a case; None if none does."""
        serving = self._serving(case)
        if not serving:
            return None
        judge = Judge(case, self.settings.seed)
        verdicts = {name: judge.verdict(name) for name in serving}
        wanted = self.settings.peers
        peers = [peer for peer in peers_of(case.op.name) if wanted is None or peer.name in wanted]
        return _Judged(verdicts, judge.judged_on, peers, _costs(case))

    def _serving(self, case: Case) -> list[str]:
        """The wanted backends that take this case, in the room's order; the others' reasons go into `absent`.

        If no backend is named, those excluded from `auto` (Triton's interpreter) are left out. So is the definition if
        another backend takes the case, in a dtype that `every_definition` does not want.
        """
        inputs = captured_arguments(case.op, case.arguments)
        serving: list[str] = []
        for backend in case.op.backends:
            if self.settings.backends is not None and backend.name not in self.settings.backends:
                continue
            named = self.settings.backends is not None
            wanted = named or self.settings.every_definition or case.dtype == torch.float32
            if backend.name == "reference" and serving and not wanted:
                continue
            reasons = backend.reasons(inputs) if named else backend.automatic_reasons(inputs)
            if reasons:
                self.absent[case.op.name, backend.name] = "; ".join(reasons)
            else:
                serving.append(backend.name)
        return serving

    def _record(self, spec: Spec, judged: _Judged, measured: Pass, backend: str) -> Record:
        flops, moved = judged.costs[measured.name]
        common: dict[str, Any] = {
            "op": spec.op.name,
            "case": spec.sample.name,
            "dtype": spec.dtype,
            "pass_": measured.name,
            "backend": backend,
            "verified_on": judged.judged_on,
            "flops": flops,
            "bytes": moved,
            "machine": self.environment.machine,
            "versions": self.environment.versions,
            "commit": self.environment.commit,
        }
        if backend not in measured.times:
            reason = measured.refused.get(backend, "was not measured")
            refused = Record(**common, verified=False, ms=None, repeats=0, peak_bytes=None, refused=reason)
            return rated(refused, self.environment.ceilings)
        times = measured.times[backend]
        ours = Quantiles.of(times)
        record = Record(
            **common,
            verified=True,
            ms=ours,
            repeats=len(times),
            peak_bytes=measured.peak_bytes[backend],
            peers=_peer_results(measured, spec.op.name, self.settings.peers, ours.p50),
            times=tuple(float(f"{one:.4g}") for one in times),
        )
        return rated(record, self.environment.ceilings)


def rated(record: Record, ceilings: Ceilings) -> Record:
    """A record with its rates and its share of these ceilings."""
    record = replace(record, ceilings=ceilings.as_record())
    if record.ms is None:
        return record
    seconds = record.ms.p50 / 1e3
    floor = ceilings.floor_seconds(record.flops, record.bytes, record.dtype)
    return replace(
        record,
        gb_per_s=record.bytes / seconds / 1e9,
        tflop_per_s=record.flops / seconds / 1e12,
        share_of_ceiling=floor / seconds,
    )


def _peer_results(measured: Pass, op: str, wanted: tuple[str, ...] | None, ours: float) -> dict[str, PeerResult]:
    found = {}
    for peer in peers_of(op):
        if peer.name in measured.times:
            timed = Quantiles.of(measured.times[peer.name]).p50
            found[peer.name] = PeerResult(timed, measured.peak_bytes[peer.name], timed / ours)
        elif wanted is not None and peer.name not in wanted:
            found[peer.name] = PeerResult(skipped=NOT_WANTED)
        else:
            found[peer.name] = PeerResult(skipped=measured.skipped[peer.name])
    return found


def _costs(case: Case) -> dict[str, tuple[int, int]]:
    """(flops, bytes) of every pass. A room may run the op to count, so each function is called once."""
    sample = case.spec.sample
    counted: dict[int, int] = {}

    def count(function: Callable[[dict[str, Any]], int]) -> int:
        if id(function) not in counted:
            with torch.no_grad():
                counted[id(function)] = int(function(case.arguments))
        return counted[id(function)]

    forward = count(sample.flops), count(sample.bytes)
    backward = count(sample.backward_flops), count(sample.backward_bytes)
    flops, moved = sample.training_flops, sample.training_bytes
    both = (
        forward[0] + backward[0] if flops is None else count(flops),
        forward[1] + backward[1] if moved is None else count(moved),
    )
    return {"forward": forward, "step": forward, "backward": backward, "forward_backward": both}
