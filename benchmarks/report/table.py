"""The records of a run as a table for people."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from benchmarks.harness.results import NOT_WANTED, Record

WIDTH = 140
"""Columns where there is no terminal to ask."""


def make_console() -> Console:
    """A console as wide as the terminal, or wide enough for the table if the output goes to a file."""
    console = Console()
    return console if console.is_terminal else Console(width=WIDTH)


def show(console: Console, records: Sequence[Record]) -> None:
    """Prints the table, then what was refused, and why peers are missing."""
    console.print(run_table(records))
    for line in notes(records):
        console.print(line, highlight=False, markup=False)


def run_table(records: Sequence[Record]) -> Table:
    """One row a record, under a heading for each case."""
    table = Table(title="p50 in milliseconds, ± half of p10 to p90", title_justify="left", pad_edge=False)
    for column in ("dtype", "pass", "backend"):
        table.add_column(column, no_wrap=True)
    for column in ("ms", "±", "GB/s", "GFLOP/s", "ceiling", "MiB"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("peers: their time / ours", overflow="fold", ratio=1)
    previous: tuple[str, str, str] | None = None
    for record in records:
        group = (record.op, record.case, record.dtype)
        if previous is None or group[:2] != previous[:2]:
            table.add_section()
            table.add_row(Text(record.op, "bold"), Text(record.case, "bold"), *[""] * 8)
        dtype = record.dtype if group != previous else ""
        table.add_row(dtype, record.pass_, record.backend, *_figures(record), _peers(record))
        previous = group
    return table


def notes(records: Sequence[Record]) -> list[str]:
    """Refusals by name, then each reason why a peer was skipped, with the ops concerned."""
    lines = []
    for record in records:
        if not record.verified:
            lines.append(
                f"refused: {record.op}[{record.backend}] {record.case} {record.dtype} {record.pass_}: {record.refused}"
            )
    skipped: dict[tuple[str, str], list[str]] = {}
    for record in records:
        for name, peer in record.peers.items():
            if peer.skipped and peer.skipped != NOT_WANTED:
                places = skipped.setdefault((name, peer.skipped), [])
                place = f"{record.op} {record.case} {record.dtype}"
                if place not in places:
                    places.append(place)
    for (name, reason), places in sorted(skipped.items()):
        where = places[0] if len(places) == 1 else f"{len(places)} cases, {places[0]} the first"
        lines.append(f"skipped: {name}: {reason} ({where})")
    return lines


def _figures(record: Record) -> list[str | Text]:
    if record.ms is None:
        return [Text("refused", "bold red"), *[""] * 5]
    return [
        _short(record.ms.p50),
        _short((record.ms.p90 - record.ms.p10) / 2),
        _short(record.gb_per_s),
        _short(None if record.tflop_per_s is None else 1e3 * record.tflop_per_s),
        share_of_ceiling(record),
        "" if record.peak_bytes is None else f"{record.peak_bytes / 2**20:.0f}",
    ]


def share_of_ceiling(record: Record) -> str:
    """In percent; "disturbed" above 100 %: the ceilings were measured while the machine was busy."""
    if record.share_of_ceiling is None:
        return ""
    return "disturbed" if record.is_disturbed else f"{record.share_of_ceiling:.0%}"


def _peers(record: Record) -> Text:
    parts = Text()
    for name, peer in record.peers.items():
        if peer.ratio is None:
            continue
        parts.append(f"{'  ' if parts else ''}{name} ")
        parts.append(f"{_short(peer.ratio)}×", "green" if peer.ratio >= 1 else "red")
    return parts


def _short(value: float | None) -> str:
    """Three significant digits."""
    if value is None:
        return ""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
