"""What is marked as a change, and what passes for noise."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmarks.cli import app
from benchmarks.compare import compare
from benchmarks.results import Quantiles, Record, write_records

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


def test_what_was_timed_once_must_change_by_a_factor_of_two(make_record: MakeRecord) -> None:
    for after, mark in ((18.0, ""), (21.0, "slower")):
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
    slowed = noisy(make_record, rng, {3: 1.5, 5: 1.4, 50: 1.3}[repeats], repeats)
    assert not [change for change in compare(before, same).changes if change.mark]
    assert len(compare(before, slowed).slower) >= 450


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
