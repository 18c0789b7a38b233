"""Compares two sets of measurements case by case: the ratio of medians and its 95 % interval, by bootstrap.

Two trees are timed in turns, one run of each after the other, so that other load on the machine affects both equally;
the rounds are then resampled in pairs. If two files are compared, each is one run: their repetitions are resampled, and
a disturbance of one of the runs is part of the ratio. A case is slower or faster if the whole interval is beyond LEAST.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from rich.table import Table

from benchmarks.harness.results import Key, Record

DRAWS = 2000
LEAST = 0.03
"""What counts: a change within 3 % is no change that anybody notices."""
FEW = 3
"""Fewer measurements than this say nothing of their spread."""
STYLES = {"slower": "bold red", "faster": "bold green", "same": "", "too few": "dim"}

Run = Sequence[Record]


class Interval(NamedTuple):
    """A ratio of medians, after / before, and the ends of its 95 % interval."""

    ratio: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """Slower, faster or same."""
        if self.low > 1 + LEAST:
            return "slower"
        return "faster" if self.high < 1 / (1 + LEAST) else "same"


def ratio_of_medians(before: Sequence[float], after: Sequence[float], *, paired: bool, seed: int = 0) -> Interval:
    """The ratio and its interval from DRAWS bootstrap draws; paired: number n of both was measured side by side."""
    one, other = np.asarray(before), np.asarray(after)
    random = np.random.default_rng(seed)
    drawn = random.integers(0, len(one), (DRAWS, len(one)))
    drawn_after = drawn if paired else random.integers(0, len(other), (DRAWS, len(other)))
    ratios = np.median(other[drawn_after], axis=1) / np.median(one[drawn], axis=1)
    low, high = np.quantile(ratios, [0.025, 0.975])
    return Interval(float(np.median(other) / np.median(one)), float(low), float(high))


@dataclass(frozen=True)
class Change:
    """How a case's median changed. verdict: "slower", "faster", "same", or "too few" measurements to say."""

    key: Key
    before_ms: float
    after_ms: float
    interval: Interval
    verdict: str


@dataclass(frozen=True)
class Comparison:
    """All changes, the cases that only one side has, and those verified before and refused now."""

    changes: tuple[Change, ...]
    only_before: tuple[Key, ...]
    only_after: tuple[Key, ...]
    newly_refused: tuple[Key, ...]
    notes: tuple[str, ...]

    @property
    def is_worse(self) -> bool:
        """Whether a case got slower or is refused now."""
        return bool(self.newly_refused) or any(change.verdict == "slower" for change in self.changes)


def compare(before: Sequence[Run], after: Sequence[Run]) -> Comparison:
    """Compares an equal number of runs of two sides: one each, or rounds in which both were measured in turns."""
    if len(before) != len(after) or not before:
        raise ValueError(f"expected as many runs of both sides, found {len(before)} and {len(after)}")
    first, second = ([{record.key: record for record in run} for run in side] for side in (before, after))
    common = [key for key in first[0] if all(key in run for run in (*first, *second))]
    if not common:
        raise ValueError("no case is in both sides: nothing to compare")
    known = {key for run in second for key in run}
    refused = [key for key in common if first[0][key].verified and not second[0][key].verified]
    timed = [key for key in common if all(run[key].ms for run in (*first, *second))]
    return Comparison(
        tuple(_change(key, [run[key] for run in first], [run[key] for run in second]) for key in timed),
        tuple(key for key in first[0] if key not in known),
        tuple(key for key in second[0] if not any(key in run for run in first)),
        tuple(refused),
        tuple(_notes(before, after)),
    )


def _change(key: Key, before: Sequence[Record], after: Sequence[Record]) -> Change:
    rounds = len(before)
    one, other = (_samples(records) for records in (before, after))
    interval = ratio_of_medians(one, other, paired=rounds > 1)
    verdict = interval.verdict if min(len(one), len(other)) >= FEW else "too few"
    return Change(key, float(np.median(one)), float(np.median(other)), interval, verdict)


def _samples(records: Sequence[Record]) -> list[float]:
    """The median of every round; for a single round its repetitions, or its median if an older file lacks them."""
    if len(records) == 1 and records[0].times:
        return list(records[0].times)
    return [record.ms.p50 for record in records if record.ms is not None]


def _notes(before: Sequence[Run], after: Sequence[Run]) -> list[str]:
    notes = []
    facts = ("name", "cpu", "cores", "threads", "gpu")
    machines = [{str([record.machine.get(fact) for fact in facts]) for run in side for record in run}
                for side in (before, after)]  # fmt: skip
    if machines[0] != machines[1]:
        notes.append("the sides come from different machines or thread counts: the changes are not the code's alone")
    commits = [
        ", ".join(sorted({record.commit or "unknown" for run in side for record in run})) for side in (before, after)
    ]
    notes.append(f"before: commit {commits[0]}; after: commit {commits[1]}; {len(before)} runs of each")
    if len(before) == 1:
        notes.append("one run of each: what disturbed one of them is in its ratios; name a commit to run both in turns")
    return notes


def as_json(comparison: Comparison) -> dict[str, Any]:
    """The comparison in the form of the JSON file."""
    names = ("op", "case", "dtype", "pass", "backend")

    def named(key: Key) -> dict[str, str]:
        return dict(zip(names, key, strict=True))

    changes = [
        {**named(one.key), "before_ms": one.before_ms, "after_ms": one.after_ms, **one.interval._asdict(),
         "verdict": one.verdict}
        for one in comparison.changes
    ]  # fmt: skip
    return {
        "changes": changes,
        "only_before": list(map(named, comparison.only_before)),
        "only_after": list(map(named, comparison.only_after)),
        "newly_refused": list(map(named, comparison.newly_refused)),
        "notes": list(comparison.notes),
    }


def as_table(comparison: Comparison) -> Table:
    """Every change; those beyond the noise in colour."""
    table = Table(title="ratio of medians, after / before, and its 95 % interval", title_justify="left")
    for column in ("op", "case", "dtype", "pass", "backend"):
        table.add_column(column)
    for column in ("before ms", "after ms", "ratio", "interval"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("")
    for change in comparison.changes:
        interval = "" if change.verdict == "too few" else f"{change.interval.low:.3f} to {change.interval.high:.3f}"
        figures = f"{change.before_ms:.3f}", f"{change.after_ms:.3f}", f"{change.interval.ratio:.3f}", interval
        table.add_row(*change.key, *figures, change.verdict, style=STYLES[change.verdict])
    return table
