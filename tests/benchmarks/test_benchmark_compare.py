"""What counts as slower or faster: intervals of the ratio of medians, of two files and of runs in turns."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from benchmarks import cli
from benchmarks.harness import rounds
from benchmarks.harness.compare import Interval, as_json, as_table, compare, ratio_of_medians
from benchmarks.harness.results import REPOSITORY, Record, write_records

MakeRecord = Callable[..., Record]


def drawn(seed: int, count: int, factor: float = 1.0, spread: float = 0.05) -> list[float]:
    noise: list[float] = np.exp(np.random.default_rng(seed).normal(0, spread, count)).tolist()
    return [factor * value for value in noise]


def run(make_record: MakeRecord, seed: int, factor: float = 1.0, count: int = 30, **changes: object) -> list[Record]:
    times = drawn(seed, count, factor)
    return [make_record(float(np.median(times)), times=tuple(times), **changes)]


@pytest.mark.parametrize(
    ("interval", "verdict"),
    [((1.2, 1.04, 1.3), "slower"), ((0.8, 0.7, 0.96), "faster"), ((1.02, 1.01, 1.029), "same"), ((1, 0.5, 2), "same")],
)
def test_the_whole_interval_must_lie_beyond_what_counts(interval: tuple[float, ...], verdict: str) -> None:
    assert Interval(*interval).verdict == verdict


def test_an_interval_covers_the_truth_nineteen_times_in_twenty() -> None:
    covered = 0
    for seed in range(200):
        found = ratio_of_medians(drawn(seed, 40), drawn(1000 + seed, 40, 1.1), paired=False)
        covered += found.low <= 1.1 <= found.high
    assert 180 <= covered <= 200


def test_the_same_measurements_give_the_same_interval() -> None:
    assert ratio_of_medians([1, 2, 3], [2, 3, 4], paired=False) == ratio_of_medians([1, 2, 3], [2, 3, 4], paired=False)
    assert ratio_of_medians([2, 2, 2], [3, 3, 3], paired=True) == (1.5, 1.5, 1.5)


@pytest.mark.parametrize(("factor", "verdict"), [(1.0, "same"), (1.25, "slower"), (0.8, "faster")])
def test_two_files(make_record: MakeRecord, factor: float, verdict: str) -> None:
    found = compare([run(make_record, 1)], [run(make_record, 2, factor)])
    assert [change.verdict for change in found.changes] == [verdict]
    assert found.changes[0].interval.ratio == pytest.approx(factor, rel=0.05)
    assert found.is_worse is (verdict == "slower")
    assert any("name a commit to run both in turns" in note for note in found.notes)


def test_few_repetitions_say_nothing(make_record: MakeRecord) -> None:
    found = compare([run(make_record, 1, count=2)], [run(make_record, 2, 3.0)])
    assert found.changes[0].verdict == "too few" and not found.is_worse
    earlier = compare([[make_record(1.0)]], [[make_record(3.0)]])
    assert earlier.changes[0].verdict == "too few" and earlier.changes[0].interval.ratio == 3.0


@pytest.mark.parametrize(("factor", "verdict"), [(1.0, "same"), (1.25, "slower"), (0.8, "faster")])
def test_rounds_take_out_what_the_machine_did(make_record: MakeRecord, factor: float, verdict: str) -> None:
    """From round to round the machine differs by a factor of three, and both sides alike."""
    machine = [1.0, 3.0, 1.2, 2.0, 1.5, 2.5, 1.1]
    before = [run(make_record, number, load) for number, load in enumerate(machine)]
    after = [run(make_record, 50 + number, load * factor) for number, load in enumerate(machine)]
    assert compare(before, after).changes[0].verdict == verdict


def test_a_burst_in_one_round_is_no_change(make_record: MakeRecord) -> None:
    before = [run(make_record, number) for number in range(5)]
    after = [run(make_record, 50 + number, 4.0 if number == 2 else 1.0) for number in range(5)]
    assert compare(before, after).changes[0].verdict == "same"


def test_unpaired_and_newly_refused(make_record: MakeRecord) -> None:
    before = [*run(make_record, 1), make_record(1.0, op="gone"), make_record(1.0, op="broken")]
    refused = make_record(1.0, op="broken", ms=None, verified=False, refused="wrong")
    found = compare([before], [[*run(make_record, 2), refused, make_record(1.0, op="new")]])
    assert [key[0] for key in found.only_before] == ["gone"] and [key[0] for key in found.only_after] == ["new"]
    assert [key[0] for key in found.newly_refused] == ["broken"] and found.is_worse
    assert len(found.changes) == 1 and as_table(found).row_count == 1
    assert as_json(found)["newly_refused"][0]["op"] == "broken"
    with pytest.raises(ValueError, match="expected as many runs of both sides, found 1 and 2"):
        compare([before], [before, before])


def test_the_command_compares_files(tmp_path: Path, make_record: MakeRecord) -> None:
    for name, factor in (("a", 1.0), ("b", 1.0), ("slow", 1.5)):
        write_records(tmp_path / f"{name}.jsonl", run(make_record, len(name), factor))
    command = ["compare", str(tmp_path / "a.jsonl")]
    same = CliRunner().invoke(cli.app, [*command, str(tmp_path / "b.jsonl"), "--fail-on-slower"])
    assert same.exit_code == 0 and "1 compared: 1 same" in same.stdout, same.output
    slower = CliRunner().invoke(cli.app, [*command, str(tmp_path / "slow.jsonl"), "--fail-on-slower", "--json"])
    assert slower.exit_code == 1 and json.loads(slower.stdout)["changes"][0]["verdict"] == "slower"
    for other in (".", str(tmp_path / "c")):
        refused = CliRunner().invoke(cli.app, [*command, other])
        assert refused.exit_code == 2 and "two trees or commits" in " ".join(refused.output.replace("│", " ").split())


@pytest.mark.parametrize("ops", [[], ["another"]])
def test_files_without_a_common_case_are_refused(tmp_path: Path, make_record: MakeRecord, ops: list[str]) -> None:
    """An empty file, such as one of a run that was cut short, has not shown that nothing got slower."""
    write_records(tmp_path / "a.jsonl", run(make_record, 1))
    write_records(tmp_path / "b.jsonl", [record for op in ops for record in run(make_record, 1, op=op)])
    command = ["compare", str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl"), "--fail-on-slower"]
    result = CliRunner().invoke(cli.app, command)
    assert result.exit_code == 2 and "no case is in both sides" in " ".join(result.output.split())


WRONG = [(["--op", "nope"], "op nope is unknown"), (["--case", "nope"], "case nope is unknown"),
         (["--dtype", "fp8"], "dtype fp8 is unknown"), (["--device", "tpu"], "device tpu is unknown"),
         (["--backend", "nope"], "backend nope is unknown")]  # fmt: skip


@pytest.mark.parametrize(("options", "says"), WRONG)
def test_a_wrong_name_is_refused_before_a_commit_is_checked_out(
    monkeypatch: pytest.MonkeyPatch, options: list[str], says: str
) -> None:
    monkeypatch.setattr(rounds, "tree_of", lambda named: pytest.fail("a tree was asked for"))
    result = CliRunner().invoke(cli.app, ["compare", "HEAD", *options])
    assert result.exit_code == 2 and says in " ".join(result.output.replace("│", " ").split())


def test_sigterm_removes_the_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def git(*arguments: str) -> str:
        asked.append(" ".join(arguments[:2]))
        return "0123456789abcdef"

    monkeypatch.setattr(rounds, "_git", git)
    monkeypatch.setattr(rounds, "_build", lambda tree, commit: os.kill(os.getpid(), signal.SIGTERM))
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as ended, rounds.tree_of("HEAD"):
        pytest.fail("the signal was not raised")
    assert ended.value.code == 143
    assert asked == ["rev-parse --verify", "worktree add", "worktree remove"]
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_command_runs_trees_in_turns(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, make_record: MakeRecord
) -> None:
    (tmp_path / "old" / "benchmarks").mkdir(parents=True)
    ran: list[tuple[Path, list[str]]] = []

    def measured(tree: Path, options: list[str]) -> None:
        ran.append((tree, options))
        write_records(Path(options[-1]), run(make_record, len(ran), 1.5 if tree == REPOSITORY else 1.0))

    monkeypatch.setattr(rounds, "_run", measured)
    given = ["compare", str(tmp_path / "old"), "--rounds", "4", "--op", "causal_attention", "--dtype", "fp32"]
    result = CliRunner().invoke(cli.app, [*given, "--fail-on-slower"])
    assert result.exit_code == 1 and "1 compared: 1 slower" in result.stdout, result.output
    assert [{tree for tree, _ in ran[pair : pair + 2]} for pair in (0, 2, 4, 6)] == [{REPOSITORY, tmp_path / "old"}] * 4
    wanted = ["--op", "causal_attention", "--dtype", "fp32", "--peer", "none", "--device", "cpu", "--json"]
    assert all(options[:-1] == wanted for _, options in ran)


def test_what_is_no_tree_is_refused(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli.app, ["compare", "no-such-commit"])
    assert result.exit_code == 2
    assert "no-such-commit: expected a results file" in " ".join(result.output.split())
