"""Return visits: who comes back, what both visits make together, and what a burst in one of them does to a record."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from argus_kernels.core import Backend, Sample
from argus_kernels.ops import feedback_loss
from benchmarks import cli
from benchmarks.harness import visits
from benchmarks.harness.cases import Spec
from benchmarks.harness.compare import compare
from benchmarks.harness.contest import Pass
from benchmarks.harness.results import Key, Record, read_records
from benchmarks.harness.runner import Environment, Run, Settings
from benchmarks.harness.timing import Budget
from benchmarks.harness.verify import Judge
from benchmarks.harness.visits import OthersTime
from benchmarks.peers import Peer

REFERENCE = feedback_loss.OP.backend("reference")
OPS = ("feedback_loss",)
PEERS = [
    Peer("eager", OPS, lambda case: case.call("reference")),
    Peer("compiled", OPS, lambda case: case.call("reference"), compiles=True),
    Peer("serving_only", OPS, lambda case: case.call("reference"), why_no_gradients=lambda case: "has no backward"),
]
Register = Callable[..., None]


@pytest.fixture(autouse=True)
def peers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.harness.runner.peers_of", lambda op: PEERS)


@pytest.fixture
def with_backends(monkeypatch: pytest.MonkeyPatch) -> Register:
    """Puts backends before the definition in the room of feedback_loss."""

    def register(*backends: Backend) -> None:
        monkeypatch.setattr(feedback_loss.OP, "backends", (*backends, REFERENCE))

    return register


def like_reference(name: str, forward: Callable[..., Any] = REFERENCE.forward) -> Backend:
    return dataclasses.replace(REFERENCE, name=name, forward=forward)


def visited(run: Run) -> list[dict[Key, Record]]:
    """The records after each visit to a case."""
    return [{record.key: record for record in found} for found in run.records()]


@pytest.fixture
def run(small_spec: Spec, environment: Environment, short: Budget, with_backends: Register) -> Run:
    with_backends(like_reference("cpp"))
    return Run([small_spec], Settings(budget=short), environment)


def test_both_visits_make_one_record(run: Run, short: Budget) -> None:
    first, second = visited(run)
    assert first.keys() == second.keys()
    for key, record in second.items():
        assert len(first[key].visits) == 1 and len(record.visits) == 2 and record.visits[0] == first[key].visits[0]
        assert first[key].repeats < record.repeats <= short.max_repeats + 1
        assert record.ms is not None and min(record.visits) <= record.ms.p50 <= max(record.visits)
        assert record.peak_bytes == first[key].peak_bytes


def test_who_returns(run: Run) -> None:
    """All of ours, and the peers that are quick and need not be compiled again."""
    second = visited(run)[-1]
    counts = {
        record.pass_: {name: len(peer.visits) for name, peer in record.peers.items()} for record in second.values()
    }
    assert counts["forward"] == {"eager": 2, "compiled": 1, "serving_only": 2}
    assert counts["backward"] == counts["forward_backward"] == {"eager": 2, "compiled": 1, "serving_only": 0}
    for record in second.values():
        peer = record.peers["compiled"]
        assert peer.ms is not None and record.ms is not None and peer.ratio == pytest.approx(peer.ms / record.ms.p50)


def test_what_is_slow_stays_away(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(visits, "REFERENCE_SECONDS", 0.0)
    monkeypatch.setattr(visits, "PEER_SECONDS", 0.0)
    for (*_, backend), record in visited(run)[-1].items():
        assert len(record.visits) == (2 if backend == "cpp" else 1)
        assert len(record.peers["eager"].visits) == 1


def test_a_case_without_anyone_to_return_is_not_drawn_again(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(visits, "REFERENCE_SECONDS", 0.0)
    run.settings = dataclasses.replace(run.settings, backends=("reference",))
    assert len(visited(run)) == 1 and not run.cut


def test_all_cases_come_between_two_visits(run: Run, small_spec: Spec, monkeypatch: pytest.MonkeyPatch) -> None:
    run.specs = [small_spec, dataclasses.replace(small_spec, dtype="bf16")]
    judged: list[str] = []

    class Counting(Judge):
        def __init__(self, case: Any, seed: int = 0) -> None:
            judged.append(case.spec.dtype)
            super().__init__(case, seed)

    monkeypatch.setattr("benchmarks.harness.runner.Judge", Counting)
    told: list[tuple[str, int]] = []
    for _ in run.records(lambda spec, visit: told.append((spec.dtype, visit))):
        pass
    assert told == [("fp32", 0), ("bf16", 0), ("fp32", 1), ("bf16", 1)]
    assert judged == ["fp32", "bf16"], "the second visit verifies nothing again"


def test_one_visit_has_all_repetitions(run: Run, short: Budget) -> None:
    run.settings = dataclasses.replace(run.settings, visits=1)
    (only,) = visited(run)
    assert all(len(record.visits) == 1 and record.repeats >= short.min_repeats for record in only.values())


def test_who_fails_at_the_second_visit_is_refused(run: Run, with_backends: Register, monkeypatch: Any) -> None:
    draws: list[int] = []
    draw = Spec.draw

    def counted(*given: Any) -> Any:
        draws.append(len(draws))
        return draw(*given)

    monkeypatch.setattr(Spec, "draw", counted)

    def forward(*arguments: Any) -> Any:
        if len(draws) > 1:
            raise RuntimeError("out of registers")
        return REFERENCE.forward(*arguments)

    with_backends(like_reference("failing", forward))
    first, second = visited(run)
    key = next(key for key in first if key[-1] == "failing")
    assert first[key].verified
    assert not second[key].verified and second[key].ms is None and "out of registers" in str(second[key].refused)
    assert all(record.verified for record in second.values() if record.backend == "reference")


@pytest.mark.slow
def test_a_burst_in_one_visit_marks_nothing_and_a_slower_kernel_is_marked(
    small_spec: Spec, environment: Environment, with_backends: Register
) -> None:
    """A backend that naps: for 30 ms; half as long again in one of its visits; half as long again in both."""

    def napping(*seconds: float) -> list[Record]:
        going = [0]

        def forward(*arguments: Any) -> Any:
            time.sleep(seconds[going[0]])
            return REFERENCE.forward(*arguments)

        with_backends(like_reference("napping", forward))
        settings = Settings(budget=Budget(0.1, 4, 20), backends=("napping",), peers=())
        run = Run([small_spec], settings, environment)
        found: dict[Key, Record] = {}
        for records in run.records(lambda spec, visit: going.__setitem__(0, visit)):
            found |= {record.key: record for record in records if record.pass_ == "forward"}
        return list(found.values())

    quiet = napping(0.03, 0.03)
    for disturbed in (napping(0.045, 0.03), napping(0.03, 0.045)):
        assert not compare(quiet, disturbed).slower and not compare(disturbed, quiet).slower
    assert [change.mark for change in compare(quiet, napping(0.045, 0.045)).changes] == ["slower"]


def test_joined_passes() -> None:
    first = Pass(
        "forward", {"cpp": ((1.0, 3.0),), "eager": ((9.0,),), "old": ((5.0,),)}, {"cpp": 7}, {"flex": "absent"}
    )
    both = first.joined(Pass("forward", {"cpp": ((5.0, 5.0),)}, {"cpp": 8}, {"old": "fails"}))
    assert both.visits == {"cpp": ((1.0, 3.0), (5.0, 5.0)), "eager": ((9.0,),)}
    assert both.medians("cpp") == (2.0, 5.0) and both.quantiles("cpp").p50 == 4.0 and both.repeats("cpp") == 4
    assert both.skipped == {"flex": "absent", "old": "fails"} and both.peak_bytes == {"cpp": 7}


@pytest.fixture
def tiny_case(small_sample: Sample, monkeypatch: pytest.MonkeyPatch) -> None:
    production = dataclasses.replace(small_sample, production=True, name="tiny")
    monkeypatch.setattr(feedback_loss.OP, "samples", lambda: [production])


@pytest.mark.usefixtures("tiny_case")
@pytest.mark.parametrize("interrupted", [False, True])
def test_the_file_holds_every_visit_so_far(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interrupted: bool) -> None:
    measured = Run.records

    def records(run: Run, on_visit: Callable[[Spec, int], None]) -> Iterator[list[Record]]:
        for visit, found in enumerate(measured(run, on_visit)):
            if visit and interrupted:
                raise KeyboardInterrupt
            yield found

    monkeypatch.setattr(Run, "records", records)
    path = tmp_path / "run.jsonl"
    given = ["run", "--op", "feedback_loss", "--dtype", "fp32", "--backend", "reference", "--json", str(path)]
    result = CliRunner().invoke(cli.app, given)
    assert result.exit_code == (130 if interrupted else 0), result.output
    assert ("holds what was measured so far" in " ".join(result.output.split())) is interrupted
    found = read_records(path)
    assert [record.pass_ for record in found] == ["forward", "backward", "forward_backward"]
    assert {len(record.visits) for record in found} == {1 if interrupted else 2}
    assert list(tmp_path.iterdir()) == [path]


def test_the_share_of_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stat = tmp_path / "stat"
    monkeypatch.setattr(visits, "_PROC_STAT", stat)
    monkeypatch.setattr(os, "times", lambda: (1.0, 0.0, 0.0, 0.0, 0.0))
    assert OthersTime().share() is None
    stat.write_text("cpu  1000 0 0 5000 0 0 0 10 700 0\ncpu0 1 2 3\n")
    others = OthersTime()
    stat.write_text("cpu  1020 10 10 5100 40 0 0 30 900 0\ncpu0 1 2 3\n")
    assert others.share() == pytest.approx(60 / 200)
    stat.write_text("intr 5\n")
    assert others.share() is None
