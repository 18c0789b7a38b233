"""Runs cases one after the other, then all of them again, and makes records of what they show."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from argus_kernels.testing.harness import captured_arguments
from benchmarks.harness import results
from benchmarks.harness.cases import Case, Spec
from benchmarks.harness.ceilings import Ceilings, measure_ceilings
from benchmarks.harness.contest import Contest, Pass
from benchmarks.harness.results import NOT_WANTED, PeerResult, Record
from benchmarks.harness.timing import Budget, CudaTimer, timer
from benchmarks.harness.verify import Judge
from benchmarks.harness.visits import OthersTime, Visited
from benchmarks.peers import peers_of

SUITES = {
    "quick": Budget(seconds=0.3, min_repeats=3, max_repeats=50, once_from=0.5),
    "full": Budget(seconds=4.0, min_repeats=5, max_repeats=200),
}
"""Repetitions of a contender in one group of passes, over all visits."""


@dataclass(frozen=True)
class Settings:
    """How to run; `backends` and `peers` name those wanted, all where None."""

    device: str = "cpu"
    budget: Budget = SUITES["quick"]
    backends: tuple[str, ...] | None = None
    peers: tuple[str, ...] | None = None
    seed: int = 0
    visits: int = 2
    """How often a case is timed: all others come between two visits, and each has its part of the repetitions."""
    time_budget: float | None = None
    """Seconds for the whole run: visits that would not end in time are cut, the later ones first, never repetitions."""
    graphs: bool = True
    """Time CUDA graphs where a contender can be captured."""
    every_definition: bool = True
    """Time `reference` in every dtype. It computes in float32 whatever it is given, so that one dtype tells of all."""


@dataclass(frozen=True)
class Environment:
    """What all records of a run share."""

    ceilings: Ceilings
    machine: dict[str, Any]
    versions: dict[str, str]
    commit: str

    @classmethod
    def of(cls, device: str, dtypes: Sequence[str]) -> Environment:
        """Measures the ceilings and looks up the rest."""
        ceilings = measure_ceilings(device, tuple(dict.fromkeys(dtypes)))
        return cls(ceilings, results.machine(device), results.versions(), results.commit())


@dataclass
class Run:
    """A run over cases, as many times as the settings want visits.

    After it `cut` names the visits to cases that the time budget left out, and `absent` says why backends did not
    serve, by (op, backend). `on_pass` is given the records of each pass as soon as it is measured, of that visit alone.
    """

    specs: Sequence[Spec]
    settings: Settings
    environment: Environment
    clock: Callable[[], float] = time.monotonic
    cut: list[str] = field(default_factory=list)
    absent: dict[tuple[str, str], str] = field(default_factory=dict)
    on_pass: Callable[[list[Record]], None] | None = None

    def records(self, on_visit: Callable[[Spec, int], None] = lambda spec, visit: None) -> Iterator[list[Record]]:
        """Goes over the cases, then over them again, and yields a case's records after each visit to it.

        Records of a later visit are of all visits so far: they take the place of those with the same key. `on_visit`
        is told the case and the number of the visit, from 0, before it starts.
        """
        started = self.clock()
        visited: dict[int, Visited] = {}
        for visit in range(self.settings.visits):
            took: dict[tuple[str, str], float] = {}
            for number, spec in enumerate(self.specs):
                if visit and not (number in visited and visited[number].contenders):
                    continue
                before = self.clock()
                case_name = (spec.op.name, spec.sample.name)
                if self._would_be_late(before - started, took, case_name):
                    which = f" (visit {visit + 1})" if visit else ""
                    self.cut.append(f"{spec.op.name} {spec.sample.name} {spec.dtype}{which}")
                    continue
                on_visit(spec, visit)
                found = self._visit(spec, visited.get(number))
                if found is not None:
                    visited[number] = found
                yield self._records(spec, found) if found else []
                took[case_name] = self.clock() - before

    def _would_be_late(self, elapsed: float, took: dict[tuple[str, str], float], case_name: tuple[str, str]) -> bool:
        """Judged by how long this visit to the same case took in its other dtype, else by the mean case so far."""
        if self.settings.time_budget is None:
            return False
        mean = sum(took.values()) / len(took) if took else 0.0
        return elapsed + took.get(case_name, mean) > self.settings.time_budget

    def _visit(self, spec: Spec, known: Visited | None) -> Visited | None:
        """Times a case once more, the first time after verifying it; None where no wanted backend serves it."""
        if known is None and "torch._dynamo" in sys.modules:
            torch.compiler.reset()
        case = spec.draw(self.settings.seed, self.settings.device)
        known = known or self._judged(case)
        if known is None:
            return None
        settings = self.settings
        clock = timer(settings.device, graphs=settings.graphs)
        verdicts = {name: verdict for name, verdict in known.verdicts.items() if name in known.contenders}
        peers = [peer for peer in known.peers if peer.name in known.contenders]
        budget, seed = settings.budget.shared(settings.visits), settings.seed + 2 * known.count
        contest = Contest(case, verdicts, peers, known.training, clock, budget, seed)
        others = OthersTime()
        passes = []
        for measured in contest.passes():
            passes.append(measured)
            if self.on_pass is not None:
                self.on_pass([self._record(spec, known, measured, name) for name in known.verdicts])
        known.add(passes, others.share())
        if isinstance(clock, CudaTimer):
            clock.forget()
        return known

    def _judged(self, case: Case) -> Visited | None:
        """The case before its first visit, every wanted backend that serves it judged; None where none does."""
        serving = self._serving(case)
        if not serving:
            return None
        judge = Judge(case, self.settings.seed)
        verdicts = {name: judge.verdict(name) for name in serving}
        wanted = self.settings.peers
        peers = [peer for peer in peers_of(case.op.name) if wanted is None or peer.name in wanted]
        return Visited(verdicts, judge.judged_on, peers, _costs(case))

    def _serving(self, case: Case) -> list[str]:
        """The wanted backends that take this case, in the room's order; why others do not goes into `absent`.

        Where none is named, one that serves by name only (Triton's interpreter) is left out, and the definition beside
        another backend in a dtype that `every_definition` does not want.
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

    def _records(self, spec: Spec, known: Visited) -> list[Record]:
        """One for each pass and backend, the refused ones included."""
        return [self._record(spec, known, measured, name) for measured in known.passes for name in known.verdicts]

    def _record(self, spec: Spec, known: Visited, measured: Pass, backend: str) -> Record:
        flops, moved = known.costs[measured.name]
        common: dict[str, Any] = {
            "op": spec.op.name,
            "case": spec.sample.name,
            "dtype": spec.dtype,
            "pass_": measured.name,
            "backend": backend,
            "verified_on": known.judged_on,
            "flops": flops,
            "bytes": moved,
            "ceilings": self.environment.ceilings.as_record(),
            "machine": self.environment.machine | ({"others": known.others} if known.others else {}),
            "versions": self.environment.versions,
            "commit": self.environment.commit,
        }
        if backend not in measured.visits:
            reason = measured.refused.get(backend, "was not measured")
            return Record(**common, verified=False, ms=None, repeats=0, peak_bytes=None, refused=reason)
        ours = measured.quantiles(backend)
        seconds = ours.p50 / 1e3
        floor = self.environment.ceilings.floor_seconds(flops, moved, spec.dtype)
        return Record(
            **common,
            verified=True,
            ms=ours,
            repeats=measured.repeats(backend),
            peak_bytes=measured.peak_bytes[backend],
            gb_per_s=moved / seconds / 1e9,
            tflop_per_s=flops / seconds / 1e12,
            share_of_ceiling=floor / seconds,
            peers=_peer_results(measured, spec.op.name, self.settings.peers, ours.p50),
            visits=measured.medians(backend),
        )


def _peer_results(measured: Pass, op: str, wanted: tuple[str, ...] | None, ours: float) -> dict[str, PeerResult]:
    found = {}
    for peer in peers_of(op):
        if peer.name in measured.visits:
            timed, peak = measured.quantiles(peer.name).p50, measured.peak_bytes[peer.name]
            found[peer.name] = PeerResult(timed, peak, timed / ours, visits=measured.medians(peer.name))
        elif wanted is not None and peer.name not in wanted:
            found[peer.name] = PeerResult(skipped=NOT_WANTED)
        else:
            found[peer.name] = PeerResult(skipped=measured.skipped[peer.name])
    return found


def _costs(case: Case) -> dict[str, tuple[int, int]]:
    """(flops, bytes) of every pass. A room may count by running: one function is called once."""
    sample = case.spec.sample
    counted: dict[int, int] = {}
    counts = []
    for function in (sample.flops, sample.bytes, sample.backward_flops, sample.backward_bytes):
        if id(function) not in counted:
            with torch.no_grad():
                counted[id(function)] = int(function(case.arguments))
        counts.append(counted[id(function)])
    flops, moved, backward_flops, backward_moved = counts
    return {
        "forward": (flops, moved),
        "step": (flops, moved),
        "backward": (backward_flops, backward_moved),
        "forward_backward": (flops + backward_flops, moved + backward_moved),
    }
