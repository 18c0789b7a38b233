"""Compares two results files: the change of every p50 with its spread, marked only where it is outside the noise.

The repetitions of one visit to a case lie within seconds, and one disturbance hits them all; what the visits of a
record disagree by is its noise. A change is marked where every visit of one file is slower than every visit of the
other, by more than visits usually disagree and than the record's own do. It must show in the times and beside the
peers: those that were timed in the same visits tell what the machine did, and their part is taken out. And the
intervals from p10 to p90 must not overlap. Records of a single visit are judged by the spread of their repetitions,
which says less: they must change by more.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from benchmarks.harness.results import Key, PeerResult, Quantiles, Record

BEYOND_USUAL = 4 / 3
"""How far visits of two files must lie apart, in units of what nine in ten records disagree by within their file."""
SMALLEST_OF_VISITS = 0.08
SMALLEST_CHANGE = 0.03
"""What counts of a single visit with plenty of repetitions; with three it is 17 %, with ten 7 %."""
PLENTY = 30
FEW, CHANGE_OF_FEW = 3, math.log(3)
"""Fewer repetitions than FEW of a single visit say nothing of their spread; two runs of one commit differed by 2.1."""
DISTURBED = 0.1
"""The share of the processors' time in others' hands from which a visit is worth a note."""


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
    pairs = [_Pair.of(first[key], second[key]) for key in common if first[key].ms and second[key].ms]
    elsewhere = statistics.median([pair.drift for pair in pairs if pair.drift is not None] or [0.0])
    noise = _Noise.of(pairs)
    return Comparison(
        tuple(_change(pair, noise, elsewhere) for pair in pairs),
        tuple(key for key in first if key not in second),
        tuple(key for key in second if key not in first),
        tuple(key for key in common if first[key].verified and not second[key].verified),
        tuple(_notes(before, after)),
    )


@dataclass(frozen=True)
class _Side:
    """One file's half of a pair: the logarithm of the time of every visit, and of the peers' median in that visit."""

    ms: Quantiles
    repeats: int
    times: tuple[float, ...]
    peers: tuple[float, ...]

    @classmethod
    def of(cls, record: Record, peers: Iterable[PeerResult]) -> _Side:
        assert record.ms is not None
        times = _logarithms(record.visits or (record.ms.p50,))
        theirs = [_logarithms(peer.visits or (peer.ms or 1.0,)) for peer in peers]
        medians = tuple(map(statistics.median, zip(*theirs, strict=False)))
        return cls(record.ms, record.repeats, times, medians[: len(times)])

    @property
    def disagreement(self) -> float:
        """How far the slowest visit lies above the fastest."""
        return max(self.times) - min(self.times)

    @property
    def relative(self) -> tuple[float, ...]:
        """The visits with the peers' part taken out, as they are where no peer came to all of them."""
        if not self.peers:
            return self.times
        return tuple(time - peer for time, peer in zip(self.times, self.peers, strict=True))


@dataclass(frozen=True)
class _Pair:
    """A record in both files; `drift` is what the peers changed by, a logarithm, None without any in all visits."""

    key: Key
    before: _Side
    after: _Side
    drift: float | None

    @classmethod
    def of(cls, before: Record, after: Record) -> _Pair:
        common = [name for name in before.peers if _stayed(before, name) and _stayed(after, name)]
        sides = [_Side.of(record, [record.peers[name] for name in common]) for record in (before, after)]
        drift = statistics.mean(sides[1].peers) - statistics.mean(sides[0].peers) if common else None
        return cls(before.key, sides[0], sides[1], drift)

    @property
    def has_visits(self) -> bool:
        """Whether both files have more than one, so that their disagreement tells the noise."""
        return min(len(self.before.times), len(self.after.times)) > 1


@dataclass(frozen=True)
class _Noise:
    """What is usual in both files: `disagreement` of nine in ten records' visits at most, `spread` of repetitions."""

    disagreement: float
    spread: float

    @classmethod
    def of(cls, pairs: Sequence[_Pair]) -> _Noise:
        disagreements = [side.disagreement for pair in pairs if pair.has_visits for side in (pair.before, pair.after)]
        spreads = [_spread(side.ms) for pair in pairs for side in (pair.before, pair.after)]
        return cls(
            Quantiles.of(disagreements).p90 if disagreements else 0.0,
            statistics.median(spreads) if spreads else 0.0,
        )

    def threshold(self, pair: _Pair) -> float:
        """How far apart the visits of a pair must lie.

        Of single visits it is the larger of the smallest change that counts and the pooled spread, both wider for few
        repetitions. Those may lie close together by chance: no spread counts as less than the usual one.
        """
        if pair.has_visits:
            own = max(pair.before.disagreement, pair.after.disagreement)
            return max(SMALLEST_OF_VISITS, BEYOND_USUAL * self.disagreement, own)
        repeats = max(min(pair.before.repeats, pair.after.repeats), 1)
        pooled = math.hypot(*(max(_spread(side.ms), self.spread) for side in (pair.before, pair.after)))
        smallest = SMALLEST_CHANGE * max(1.0, PLENTY / repeats) ** 0.75 if repeats >= FEW else CHANGE_OF_FEW
        return max(smallest, pooled * (1 + 9 / repeats))


def _change(pair: _Pair, noise: _Noise, elsewhere: float) -> Change:
    """How a record changed; `elsewhere` is what the peers of other records did, for those that have none."""
    drift = elsewhere if pair.drift is None else pair.drift
    taken_out = elsewhere if pair.drift is None else 0.0
    threshold = noise.threshold(pair)
    change = _gap(pair.before.relative, [time - taken_out for time in pair.after.relative])
    shown = _gap(pair.before.times, pair.after.times)
    is_marked = (
        change * shown > 0
        and min(abs(change), abs(shown)) > threshold
        and _apart(pair.before.ms, pair.after.ms, math.exp(drift))
    )
    return Change(
        pair.key,
        pair.before.ms.p50,
        pair.after.ms.p50,
        pair.after.ms.p50 / pair.before.ms.p50 / math.exp(drift) - 1,
        math.expm1(drift),
        math.expm1(threshold),
        ("slower" if change > 0 else "faster") if is_marked else "",
    )


def _gap(before: Sequence[float], after: Sequence[float]) -> float:
    """How far all of `after` lie above all of `before`, or, negative, below; 0 where they mix."""
    return max(min(after) - max(before), 0.0) or min(max(after) - min(before), 0.0)


def _stayed(record: Record, name: str) -> bool:
    """Whether a peer was timed in every visit of the record."""
    peer = record.peers.get(name)
    return peer is not None and peer.ms is not None and len(peer.visits) >= len(record.visits)


def _logarithms(times: Iterable[float]) -> tuple[float, ...]:
    return tuple(map(math.log, times))


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
    for name, records in (("A", before), ("B", after)):
        disturbed = sum(max(record.machine.get("others", [0.0])) > DISTURBED for record in records)
        if disturbed:
            had = f"others had more than {DISTURBED:.0%} of the processors' time"
            notes.append(f"{name}: {disturbed} of {len(records)} records come from visits in which {had}")
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
