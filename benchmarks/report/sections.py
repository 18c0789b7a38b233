"""The sections of the report page: tables and pictures of one machine's results, as HTML."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from html import escape
from typing import Any

from matplotlib.figure import Figure

from benchmarks.harness.growth import Scaling, summary
from benchmarks.harness.results import PeerResult, Record
from benchmarks.report import plots
from benchmarks.report.plots import LIGHT, Theme
from benchmarks.report.summary import (
    best_backends,
    best_peer,
    headline,
    machine_sentence,
    op_rows,
    over_eager,
    percent,
    provenance,
    times,
)  # fmt: skip
from benchmarks.report.table import share_of_ceiling
from python_model.reporting.interactive import Along, Marks, page_figure


def table(headings: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """A table; its first `left` columns are text, the others figures. Cells are already HTML."""

    def cells(tag: str, values: Sequence[str]) -> str:
        sides = [' class="left"' if column < left else "" for column in range(len(values))]
        return "".join(f"<{tag}{side}>{value}</{tag}>" for side, value in zip(sides, values, strict=True))

    body = "".join(f"<tr>{cells('td', row)}</tr>\n" for row in rows)
    head = cells("th", [escape(heading) for heading in headings])
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table></div>\n'


def figure(draw: Callable[[Theme, Marks], Figure], description: str, along: Along = "point") -> str:
    """A figure inside the page, in the reader's light or dark mode."""
    marks = Marks(along)
    return page_figure(draw(LIGHT, marks), marks, plots.COLOURS, description)


def kernels(records: Sequence[Record]) -> str:
    """Everything about the ops: summary, ratio bars, rooflines, all figures, what was refused."""
    parts = ["<h3>Every op beside eager PyTorch and its best peer</h3>", _summary_table(records)]
    parts.append(f'<p class="note">{escape(provenance(records))}</p>')
    bars = [(_label(one), over_eager(one), _ratio(one)) for one in headline(records)]
    bars = [row for row in bars if row[1] or row[2]]
    if bars:
        parts.append("<h3>Times faster, case by case</h3>")
        parts.append(figure(partial(plots.ratio_bars, bars), "ratio of peers' time to ours", "y"))
    if any(record.tflop_per_s for record in records):
        parts.append("<h3>Against the machine</h3>")
        parts.append(
            "<p>Useful arithmetic per second over useful arithmetic per byte that must move. The line is what the same "
            "run measured of torch's own copy and matrix product.</p>"
        )
        parts.append(figure(partial(plots.roofline, records), "rooflines"))
    parts.append(_all_figures(records))
    refused = [record for record in records if record.refused]
    if refused:
        rows = [[escape(" ".join(record.key)), escape(record.refused or "")] for record in refused]
        parts.append("<h3>Refused</h3>" + table(["what", "why"], rows, left=2))
    return "\n".join(parts)


def _summary_table(records: Sequence[Record]) -> str:
    rows = []
    for row in op_rows(records):
        peers = f"<small>{escape(', '.join(row.best_peers))}</small>" if row.best_peers else ""
        rows.append(
            [
                escape(row.op), escape(", ".join(row.backends)), escape(row.pass_.replace("_", " + ")), str(row.cases),
                times(row.over_eager), times(row.over_best_peer) + peers, percent(row.share_of_ceiling),
                percent(row.memory_of_eager),
            ]
        )  # fmt: skip
    headings = [
        "op", "backend", "pass", "cases", "× eager", "× the best peer", "of ceiling", "memory / eager's",
    ]  # fmt: skip
    return table(headings, rows, left=3)


def _all_figures(records: Sequence[Record]) -> str:
    best = {record.key for record in best_backends(records)}
    rows = []
    for record in records:
        if record.ms is None:
            continue
        name = f"<strong>{escape(record.backend)}</strong>" if record.key in best else escape(record.backend)
        spread = f"{record.ms.p10:.3g} / {record.ms.p50:.3g} / {record.ms.p90:.3g}"
        rows.append(
            [
                escape(record.op), escape(record.case), record.dtype, record.pass_.replace("_", " + "), name, spread,
                _number(record.gb_per_s), _number(record.tflop_per_s), escape(share_of_ceiling(record) or "–"),
                _mebibytes(record.peak_bytes), escape(", ".join(_peer(n, p) for n, p in record.peers.items())),
            ]
        )  # fmt: skip
    headings = [
        "op", "case", "dtype", "pass", "backend", "ms p10 / p50 / p90", "GB/s", "TFLOP/s", "of ceiling", "peak MiB",
        "peers: their time / ours",
    ]  # fmt: skip
    return f"<details><summary>All {len(rows)} figures</summary>{table(headings, rows, left=5)}</details>"


def scaling(found: Scaling) -> str:
    """The plots of cost against size, and the points that were left out."""
    parts = []
    for op in dict.fromkeys(one.op for one in found.series):
        series = [one for one in found.series if one.op == op]
        if any(one.measured() for one in series):
            parts.append(figure(partial(plots.cost_against_size, series), f"{op}: cost over size", "x"))
    lines = "".join(f"<li>{escape(line.strip())}</li>" for line in summary(found))
    return "".join(parts) + f"<details><summary>Exponents, and what was left out</summary><ul>{lines}</ul></details>"


def end_to_end(found: dict[str, Any]) -> str:
    """The tables of `end_to_end.json`."""
    steps = []
    for row in found["steps"]:
        if row["ms"] is None:
            steps.append([escape(row["preset"]), escape(row["backend"]), row["precision"], "–", "–", "–", "–"])
            continue
        steps.append(
            [
                escape(row["preset"]), escape(row["backend"]), row["precision"], f"{row['events_per_second']:,.0f}",
                f"{row['ms']['p50']:,.1f}", f"{100 * row['mfu']:.1f} %", _mebibytes(row["peak_bytes"]),
            ]
        )  # fmt: skip
    headings = ["preset", "backend", "precision", "events/s", "ms", "MFU", "peak MiB"]
    parts = ["<h3>Pre-training step</h3>", table(headings, steps, left=3)]
    skipped = [row for row in found["steps"] if row["skipped"]]
    parts += [
        f"<p class='note'>{escape(r['preset'])}, {escape(r['backend'])}: {escape(r['skipped'])}</p>" for r in skipped
    ]
    passes = [_pass_row(preset, cost) for preset, cost in found["impressions"].items()]
    headings = ["preset", "events", "impressions", "one pass, ms", "a pass each, ms", "saved", "impressions measured"]
    parts += ["<h3>One pass per history against one per impression</h3>", table(headings, passes)]
    decode = [
        [escape(preset), escape(one["method"]), f"{one['cached_events']:,}", f"{one['p50']:.3f}", f"{one['p99']:.3f}"]
        for preset, latencies in found["decoding"].items()
        for one in latencies
    ]
    parts += ["<h3>One more event of one user</h3>"]
    parts.append(table(["preset", "method", "cached events", "p50, ms", "p99, ms"], decode, left=2))
    return "\n".join(parts)


def _pass_row(preset: str, cost: dict[str, Any]) -> list[str]:
    whole, each = cost["whole_history_ms"]["p50"], cost["per_impression_ms"]
    counts = [f"{cost[name]:,}" for name in ("events", "impressions")]
    return [escape(preset), *counts, f"{whole:,.1f}", f"{each:,.0f}", f"{cost['ratio']:,.1f}×", f"{cost['measured']:,}"]


def machine_line(records: Sequence[Record]) -> str:
    """The machine, the versions, the commit and the ceilings, in a paragraph."""
    first = records[0]
    ceilings = ", ".join(_ceiling(name, value) for name, value in first.ceilings.items())
    versions = ", ".join(f"{name} {version}" for name, version in first.versions.items())
    commits = ", ".join(dict.fromkeys(record.commit or "unknown" for record in records))
    return (
        f'<p class="note">{escape(machine_sentence(first))}. {escape(versions)}. Commit {escape(commits)}. '
        f"Ceilings of the run: {ceilings or 'not measured'}.</p>"
    )


def _ceiling(name: str, value: float) -> str:
    what, *unit = name.split("_", 1)
    units = {"gb_per_s": "GB/s", "tflop_per_s": "TFLOP/s"}
    return escape(f"{what} {value:,.3g} {units.get(unit[0], unit[0]) if unit else ''}".strip())


def _label(record: Record) -> str:
    return f"{record.op}\n{record.case}, {record.dtype}"


def _ratio(record: Record) -> float | None:
    peer = best_peer(record)
    return peer[1] if peer else None


def _peer(name: str, peer: PeerResult) -> str:
    return f"{name} {peer.ratio:.2f}" if peer.ratio else f"{name} –"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:,.3g}"


def _mebibytes(value: int | None) -> str:
    return "–" if value is None else f"{value / 2**20:,.0f}"
