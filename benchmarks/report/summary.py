"""The report's summary of a set of records: the best backend of each case, and one row for each op."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from benchmarks.harness.results import PASSES, Record

HEADLINE = ("step", "forward_backward", "forward")
"""The pass that stands for a case: the first of these that was measured."""
HEADLINE_ORDER = {name: HEADLINE.index(name) if name in HEADLINE else len(HEADLINE) for name in PASSES}


@dataclass(frozen=True)
class Span:
    """Geometric mean of a figure over cases, and its extremes."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Span | None:
        """The mean of the positive values; None without any."""
        known = [value for value in values if value is not None and value > 0]
        if not known:
            return None
        return cls(math.exp(sum(map(math.log, known)) / len(known)), min(known), max(known))


@dataclass(frozen=True)
class OpRow:
    """One op over all its cases and dtypes, each by its fastest verified backend."""

    op: str
    pass_: str
    backends: tuple[str, ...]
    cases: int
    over_eager: Span | None
    over_best_peer: Span | None
    best_peers: tuple[str, ...]
    share_of_ceiling: Span | None
    memory_of_eager: Span | None
    """Peak extra memory as a share of eager PyTorch's."""


def best_backends(records: Sequence[Record]) -> list[Record]:
    """The fastest verified backend of every op, case, dtype and pass, in the order of the records."""
    best: dict[tuple[str, str, str, str], Record] = {}
    for record in records:
        place = record.key[:4]
        if record.verified and record.ms and (place not in best or record.ms.p50 < _p50(best[place])):
            best[place] = record
    return list(best.values())


def headline(records: Sequence[Record]) -> list[Record]:
    """The best backends' records of the representative pass of each case."""
    best = best_backends(records)
    passes: dict[tuple[str, str, str], str] = {}
    for record in best:
        case = record.key[:3]
        if case not in passes or HEADLINE_ORDER[record.pass_] < HEADLINE_ORDER[passes[case]]:
            passes[case] = record.pass_
    return [record for record in best if passes[record.key[:3]] == record.pass_]


def best_peer(record: Record) -> tuple[str, float] | None:
    """The fastest peer other than eager PyTorch, and its time divided by ours; None without one."""
    ratios = {name: peer.ratio for name, peer in record.peers.items() if peer.ratio and name != "eager"}
    if not ratios:
        return None
    name = min(ratios, key=lambda peer: ratios[peer])
    return name, ratios[name]


def over_eager(record: Record) -> float | None:
    """How many times faster than eager PyTorch."""
    peer = record.peers.get("eager")
    return peer.ratio if peer else None


def memory_of_eager(record: Record) -> float | None:
    """Peak extra memory as a share of eager PyTorch's; None if either is unknown or below a mebibyte."""
    peer = record.peers.get("eager")
    if peer is None or not record.peak_bytes or not peer.peak_bytes or peer.peak_bytes < 1 << 20:
        return None
    return record.peak_bytes / peer.peak_bytes


def op_rows(records: Sequence[Record]) -> list[OpRow]:
    """One row for each op, in the order of the records."""
    rows = []
    shown = headline(records)
    for op in dict.fromkeys(record.op for record in shown):
        mine = [record for record in shown if record.op == op]
        peers = [best_peer(record) for record in mine]
        rows.append(
            OpRow(
                op,
                mine[0].pass_,
                tuple(dict.fromkeys(record.backend for record in mine)),
                len(mine),
                Span.of(over_eager(record) for record in mine),
                Span.of(peer[1] if peer else None for peer in peers),
                tuple(dict.fromkeys(peer[0] for peer in peers if peer)),
                Span.of(None if record.is_disturbed else record.share_of_ceiling for record in mine),
                Span.of(memory_of_eager(record) for record in mine),
            )
        )
    return rows


def markdown(records: Sequence[Record]) -> str:
    """The README's table: a row for each op, then machine and commit."""
    lines = [
        "| op | backend | over eager PyTorch | over the best peer | share of ceiling | peak memory of eager's |",
        "|---|---|---|---|---|---|",
    ]
    for row in op_rows(records):
        peers = f" ({', '.join(row.best_peers)})" if row.best_peers else ""
        lines.append(
            f"| {row.op} | {', '.join(row.backends)} | {times(row.over_eager)} | {times(row.over_best_peer)}{peers} | "
            f"{percent(row.share_of_ceiling)} | {percent(row.memory_of_eager)} |"
        )
    lines += ["", provenance(records)]
    return "\n".join(lines) + "\n"


def provenance(records: Sequence[Record]) -> str:
    """The machine and versions of the figures, in a sentence or two."""
    machines = list(dict.fromkeys(machine_sentence(record) for record in records))
    commits = list(dict.fromkeys(record.commit or "unknown" for record in records))
    passes = "Geometric mean (lowest to highest) over an op's cases and dtypes, forward and backward or step, p50."
    return f"{passes} Machine: {'; '.join(machines)}. Commit: {', '.join(commits)}."


def machine_sentence(record: Record) -> str:
    """The machine in words."""
    facts = record.machine
    place = facts.get("gpu") or f"{facts.get('cpu', 'unknown CPU')}, {facts.get('cores', '?')} cores"
    return f"{place}, {facts.get('threads', '?')} threads, torch {record.versions.get('torch', '?')}"


def times(span: Span | None) -> str:
    """As in 1.80× (1.20–2.40)."""
    return _span(span, "×", lambda value: f"{value:.2f}")


def percent(span: Span | None) -> str:
    """As in 41 % (30–55)."""
    return _span(span, " %", lambda value: f"{100 * value:.0f}")


def _span(span: Span | None, unit: str, text: Callable[[float], str]) -> str:
    if span is None:
        return "–"
    low, high = text(span.low), text(span.high)
    return text(span.mean) + unit + ("" if low == high else f" ({low}–{high})")


def _p50(record: Record) -> float:
    return record.ms.p50 if record.ms else math.inf
