"""Compares two results files: the change of every p50 with its spread, marked only where it is outside the noise.

Three things tell a change from noise. The peers were timed between the same repetitions: their median change is that
of the machine and is taken out. What is left must pass a threshold that widens with the spread of the repetitions and
with their small number. Slow peers are timed once or thrice and are no sure sign of the machine: where there are no
others, a change must show with their part taken out and without. And the intervals from p10 to p90 must not overlap.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from benchmarks.results import Quantiles, Record

SMALLEST_CHANGE = 0.03
"""What counts with plenty of repetitions; with three it is 17 %, with ten 7 %."""
PLENTY = 30
SLOW_PEER_MS = 300.0
"""From here on the quick suite repeats a peer so few times that one disturbance is its result."""
MOST_DRIFT = math.log(1.35)
"""What a machine drifts by between two runs at most; beyond it the peers' change is no clock's."""
FEW, CHANGE_OF_FEW = 3, math.log(2)
"""Fewer repetitions than FEW say nothing of their spread: only a factor of two counts."""

Key = tuple[str, str, str, str, str]


@dataclass(frozen=True)
class Change:
    """How one record's p50 changed from A to B.

    change: relative, the machine's part taken out (+0.25: a quarter slower). machine: what the peers changed by.
    threshold: how large a change had to be. mark: "slower", "faster", or "" within the noise.
    """

    key: Key
    before_ms: float
    after_ms: float
    change: float
    machine: float
    threshold: float
    mark: str


@dataclass(frozen=True)
class Comparison:
    """All changes, what only one file has, and what was verified in A and is refused in B."""

    changes: tuple[Change, ...]
    only_before: tuple[Key, ...]
    only_after: tuple[Key, ...]
    newly_refused: tuple[Key, ...]
    notes: tuple[str, ...]

    @property
    def slower(self) -> list[Change]:
        """The changes marked as slower."""
        return [change for change in self.changes if change.mark == "slower"]

    @property
    def is_worse(self) -> bool:
        """Whether something got slower or is refused now."""
        return bool(self.slower or self.newly_refused)


def compare(before: Sequence[Record], after: Sequence[Record]) -> Comparison:
    """Pairs the records of two files by op, case, dtype, pass and backend."""
    first = {record.key: record for record in before}
    second = {record.key: record for record in after}
    common = [key for key in first if key in second]
    spreads = [_spread(record.ms) for key in common for record in (first[key], second[key]) if record.ms is not None]
    usual = statistics.median(spreads) if spreads else 0.0
    changes = []
    for key in common:
        change = _change(first[key], second[key], usual)
        if change is not None:
            changes.append(change)
    return Comparison(
        tuple(changes),
        tuple(key for key in first if key not in second),
        tuple(key for key in second if key not in first),
        tuple(key for key in common if first[key].verified and not second[key].verified),
        tuple(_notes(before, after)),
    )


def _change(before: Record, after: Record, usual_spread: float) -> Change | None:
    if before.ms is None or after.ms is None:
        return None
    timed = math.log(after.ms.p50 / before.ms.p50)
    drift, disagreement, is_sure = _drift(before, after)
    threshold = _threshold(before, after, usual_spread) + disagreement
    marked = _apart(before.ms, after.ms, math.exp(drift)) and abs(timed - drift) > threshold
    if not is_sure:
        # It must be a change whether the machine's drift is believed or not.
        unaided = _apart(before.ms, after.ms, 1.0) and abs(timed) > threshold
        marked = marked and unaided and (timed > 0) == (timed > drift)
    return Change(
        before.key,
        before.ms.p50,
        after.ms.p50,
        math.expm1(timed - drift),
        math.expm1(drift),
        math.expm1(threshold),
        ("slower" if timed > drift else "faster") if marked else "",
    )


def _drift(before: Record, after: Record) -> tuple[float, float, bool]:
    """What the peers changed by (a logarithm), how far they disagree, and whether they tell of the machine.

    They do not where all of them are slow, or where they changed by more than a machine drifts.
    """
    drifts, are_slow = [], []
    for name, peer in before.peers.items():
        again = after.peers[name].ms if name in after.peers else None
        if peer.ms and again:
            drifts.append(math.log(again / peer.ms))
            are_slow.append(peer.ms >= SLOW_PEER_MS)
    if not drifts:
        return 0.0, 0.0, False
    if not all(are_slow):
        drifts = [value for value, is_slow in zip(drifts, are_slow, strict=True) if not is_slow]
    drift = statistics.median(drifts)
    disagreement = statistics.median([abs(value - drift) for value in drifts])
    return drift, disagreement, not all(are_slow) and abs(drift) <= MOST_DRIFT


def _threshold(before: Record, after: Record, usual_spread: float) -> float:
    """The larger of the smallest change that counts and the pooled spread, both wider for few repetitions.

    Few repetitions may lie close together by chance: no spread counts as less than the usual one of both files.
    """
    assert before.ms is not None and after.ms is not None
    repeats = max(min(before.repeats, after.repeats), 1)
    pooled = math.hypot(max(_spread(before.ms), usual_spread), max(_spread(after.ms), usual_spread))
    smallest = SMALLEST_CHANGE * max(1.0, PLENTY / repeats) ** 0.75 if repeats >= FEW else CHANGE_OF_FEW
    return max(smallest, pooled * (1 + 9 / repeats))


def _spread(ms: Quantiles) -> float:
    """Half of p10 to p90, relative to p50."""
    return (ms.p90 - ms.p10) / 2 / ms.p50


def _apart(before: Quantiles, after: Quantiles, machine: float) -> bool:
    return before.p90 * machine < after.p10 or after.p90 < before.p10 * machine


def _notes(before: Sequence[Record], after: Sequence[Record]) -> list[str]:
    notes = []
    facts = ("name", "cpu", "cores", "threads", "gpu")
    machines = [
        {str({fact: record.machine.get(fact) for fact in facts}) for record in records} for records in (before, after)
    ]
    if machines[0] != machines[1]:
        notes.append("the files come from different machines or thread counts: the changes are not the code's alone")
    commits = [", ".join(sorted({record.commit or "unknown" for record in records})) for records in (before, after)]
    notes.append(f"A: commit {commits[0]}; B: commit {commits[1]}")
    return notes


def as_json(comparison: Comparison) -> dict[str, Any]:
    """The comparison as JSON holds it."""
    names = ("op", "case", "dtype", "pass", "backend")

    def named(key: Key) -> dict[str, str]:
        return dict(zip(names, key, strict=True))

    return {
        "changes": [
            {
                **named(change.key),
                "before_ms": change.before_ms,
                "after_ms": change.after_ms,
                "change": change.change,
                "machine": change.machine,
                "threshold": change.threshold,
                "mark": change.mark,
            }
            for change in comparison.changes
        ],
        "only_before": [named(key) for key in comparison.only_before],
        "only_after": [named(key) for key in comparison.only_after],
        "newly_refused": [named(key) for key in comparison.newly_refused],
        "notes": list(comparison.notes),
    }


def as_table(comparison: Comparison) -> Table:
    """Every change; marked ones in colour."""
    table = Table(title="change of p50, B against A, the machine's drift taken out", title_justify="left")
    for column in ("op", "case", "dtype", "pass", "backend"):
        table.add_column(column)
    for column in ("A ms", "B ms", "change", "noise", "machine"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("")
    styles = {"slower": "bold red", "faster": "bold green", "": ""}
    for change in comparison.changes:
        table.add_row(
            *change.key,
            f"{change.before_ms:.3f}",
            f"{change.after_ms:.3f}",
            f"{change.change:+.1%}",
            f"±{change.threshold:.1%}",
            f"{change.machine:+.1%}",
            change.mark,
            style=styles[change.mark],
        )
    return table
