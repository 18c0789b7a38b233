"""What is marked as a change, and what passes for noise."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmarks.cli import app
from benchmarks.harness.compare import compare
from benchmarks.harness.results import PeerResult, Quantiles, Record, write_records

MakeRecord = Callable[..., Record]


def test_a_slowed_kernel_is_marked(make_record: MakeRecord) -> None:
    found = compare([make_record(10.0)], [make_record(12.5)])
    (change,) = found.slower
    assert change.change == pytest.approx(0.25)
    assert found.is_worse


def test_a_faster_kernel_is_marked(make_record: MakeRecord) -> None:
    found = compare([make_record(10.0)], [make_record(7.0)])
    assert found.changes[0].mark == "faster" and not found.is_worse


@pytest.mark.parametrize(("after", "spread"), [(10.2, 0.001), (12.5, 0.2), (10.0, 0.02)])
def test_within_the_noise(make_record: MakeRecord, after: float, spread: float) -> None:
    """Below three per cent, or intervals that overlap, or no change."""
    found = compare([make_record(10.0, spread)], [make_record(after, spread)])
    assert found.changes[0].mark == ""


def test_what_the_whole_machine_did_is_taken_out(make_record: MakeRecord) -> None:
    before = make_record(10.0, peers={"eager": 30.0, "compile": 20.0})
    everything_slower = make_record(14.0, peers={"eager": 42.0, "compile": 28.0})
    only_ours = make_record(14.0, peers={"eager": 30.0, "compile": 20.0})
    assert compare([before], [everything_slower]).changes[0].mark == ""
    assert compare([before], [everything_slower]).changes[0].machine == pytest.approx(0.4)
    assert compare([before], [only_ours]).changes[0].mark == "slower"


def test_peers_that_met_something_else_prove_nothing(make_record: MakeRecord) -> None:
    before = make_record(10.0, peers={"eager": 30.0, "compile": 20.0})
    disturbed_peers = make_record(10.0, peers={"eager": 90.0, "compile": 60.0})
    assert compare([before], [disturbed_peers]).changes[0].mark == ""


def test_what_was_timed_once_must_change_by_a_factor_of_three(make_record: MakeRecord) -> None:
    for after, mark in ((28.0, ""), (31.0, "slower")):
        found = compare([make_record(10.0, 0.0, 1)], [make_record(after, 0.0, 1)])
        assert found.changes[0].mark == mark


def test_few_repetitions_need_a_larger_change(make_record: MakeRecord) -> None:
    for repeats, mark in ((3, ""), (30, "slower")):
        found = compare([make_record(10.0, 0.01, repeats)], [make_record(10.8, 0.01, repeats)])
        assert found.changes[0].mark == mark


def noisy(make_record: MakeRecord, rng: random.Random, factor: float, repeats: int) -> list[Record]:
    """500 cases, repetitions with 5 % noise, on a machine whose speed wanders by 15 % from case to case."""
    records = []
    for case in range(500):
        machine = rng.uniform(0.85, 1.15)
        ours, *peers = (
            Quantiles.of([centre * machine * rng.lognormvariate(0, 0.05) for _ in range(repeats)])
            for centre in (10.0 * factor, 30.0, 20.0)
        )
        others = {"eager": peers[0].p50, "compile": peers[1].p50}
        records.append(make_record(10.0, peers=others, repeats=repeats, ms=ours, case=str(case)))
    return records


@pytest.mark.parametrize("repeats", [3, 5, 50])
def test_two_runs_of_the_same_code_mark_nothing_and_a_slowed_one_is_seen(make_record: MakeRecord, repeats: int) -> None:
    rng = random.Random(0)
    before, same = (noisy(make_record, rng, 1.0, repeats) for _ in range(2))
    slowed = noisy(make_record, rng, {3: 1.75, 5: 1.6, 50: 1.5}[repeats], repeats)
    assert not [change for change in compare(before, same).changes if change.mark]
    assert len(compare(before, slowed).slower) >= 450


def visited(
    make_record: MakeRecord, rng: random.Random, factor: float = 1.0, burst: tuple[int, float] | None = None
) -> list[Record]:
    """138 cases of two visits with two repetitions each, which wander by 2 % between and within visits.

    `burst`: the visit in which something makes every eighth case slower, and how much.
    """
    records = []
    for case in range(138):
        visits: list[list[float]] = []
        for visit in range(2):
            hit = burst[1] if burst and burst[0] == visit and case % 8 == 0 else 1.0
            centre = 10.0 * factor * hit * rng.lognormvariate(0, 0.02)
            visits.append([centre * rng.lognormvariate(0, 0.02) for _ in range(2)])
        medians = tuple(Quantiles.of(times).p50 for times in visits)
        ms = Quantiles.of([time for times in visits for time in times])
        records.append(make_record(ms.p50, repeats=4, ms=ms, visits=medians, case=str(case)))
    return records


@pytest.mark.parametrize("visit", [0, 1])
@pytest.mark.parametrize("of_before", [True, False])
def test_a_burst_in_one_visit_is_no_change(make_record: MakeRecord, visit: int, of_before: bool) -> None:
    rng = random.Random(1)
    quiet, disturbed = visited(make_record, rng), visited(make_record, rng, burst=(visit, 1.8))
    found = compare(disturbed, quiet) if of_before else compare(quiet, disturbed)
    assert not [change for change in found.changes if change.mark]


@pytest.mark.parametrize("burst", [None, (0, 1.8), (1, 1.8)])
def test_a_quarter_slower_in_both_visits_is_marked(make_record: MakeRecord, burst: tuple[int, float] | None) -> None:
    """Everywhere but where a burst makes the visits disagree by more than that."""
    rng = random.Random(2)
    before, after = visited(make_record, rng), visited(make_record, rng, 1.25, burst)
    assert len(compare(before, after).slower) >= (135 if burst is None else 118)
    assert {change.mark for change in compare(after, before).changes} <= {"faster", ""}


def test_it_is_the_other_visit_that_tells_a_burst(make_record: MakeRecord) -> None:
    """The same numbers of the disturbed visit alone are marked."""

    def alone(record: Record) -> Record:
        p50 = record.visits[1]
        return dataclasses.replace(record, ms=Quantiles(0.98 * p50, p50, 1.02 * p50), repeats=30, visits=())

    rng = random.Random(1)
    quiet, disturbed = visited(make_record, rng), visited(make_record, rng, burst=(1, 1.8))
    assert len(compare(list(map(alone, quiet)), list(map(alone, disturbed))).slower) >= 15


def with_peer(make_record: MakeRecord, ours: tuple[float, float], peer: tuple[float, ...]) -> Record:
    p50 = sum(ours) / 2
    peers = {"eager": PeerResult(sum(peer) / len(peer), 0, 1.0, visits=peer)}
    return dataclasses.replace(make_record(p50, visits=ours, ms=Quantiles(min(ours), p50, max(ours))), peers=peers)


@pytest.mark.parametrize(
    ("peer", "machine", "mark"),
    [((30.0, 30.0), 0.0, "slower"), ((42.0, 42.0), 0.4, ""), ((42.0,), 0.0, "slower")],
    ids=["unchanged", "as much slower", "in one visit only"],
)
def test_the_machine_is_told_by_peers_that_came_to_both_visits(
    make_record: MakeRecord, peer: tuple[float, ...], machine: float, mark: str
) -> None:
    before = with_peer(make_record, (10.0, 10.2), (30.0, 30.0)[: len(peer)])
    (change,) = compare([before], [with_peer(make_record, (14.0, 14.2), peer)]).changes
    assert change.mark == mark and change.machine == pytest.approx(machine)


def test_records_without_peers_take_the_machine_from_the_others(make_record: MakeRecord) -> None:
    def run(machine: float) -> list[Record]:
        times = (10.0 * machine, 10.2 * machine)
        lone = make_record(times[0], visits=times, ms=Quantiles(times[0], times[0], times[1]), case="lone")
        return [lone, with_peer(make_record, times, times)]

    found = compare(run(1.0), run(1.4))
    assert [change.mark for change in found.changes] == ["", ""]
    assert found.changes[0].machine == pytest.approx(0.4)


def test_a_file_without_visits_compares_with_one_that_has_them(make_record: MakeRecord) -> None:
    new = dataclasses.replace(make_record(10.0), visits=(9.9, 10.1))
    assert compare([make_record(10.0)], [new]).changes[0].mark == ""
    assert compare([make_record(15.0)], [new]).changes[0].mark == "faster"


def test_visits_in_others_hands_are_counted(make_record: MakeRecord) -> None:
    quiet = make_record(10.0, machine={"others": [0.01, 0.02]})
    busy = make_record(10.0, machine={"others": [0.01, 0.2]})
    (note,) = [note for note in compare([quiet, quiet], [quiet, busy]).notes if "others" in note]
    assert note == "B: 1 of 2 records come from visits in which others had more than 10% of the processors' time"


def test_unpaired_and_newly_refused(make_record: MakeRecord) -> None:
    gone, new = make_record(1.0, backend="gone"), make_record(1.0, backend="new")
    refused = make_record(1.0, ms=None, verified=False, refused="wrong")
    found = compare([make_record(1.0), gone], [refused, new])
    assert found.only_before == (gone.key,) and found.only_after == (new.key,)
    assert found.newly_refused == (refused.key,) and found.is_worse


def test_command(tmp_path: Path, make_record: MakeRecord) -> None:
    paths = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    write_records(paths[0], [make_record(10.0)])
    write_records(paths[1], [make_record(13.0, machine={"name": "other"})])
    given = ["compare", *map(str, paths)]
    plain = CliRunner().invoke(app, given)
    assert plain.exit_code == 0 and "1 slower" in plain.output and "different machines" in plain.output
    strict = CliRunner().invoke(app, [*given, "--json", "--fail-on-slower"])
    assert strict.exit_code == 1
    assert json.loads(strict.output)["changes"][0]["mark"] == "slower"
    assert CliRunner().invoke(app, ["compare", str(paths[0]), str(paths[0]), "--fail-on-slower"]).exit_code == 0
