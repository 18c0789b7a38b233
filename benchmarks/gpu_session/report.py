"""The report of a session's lines: tables in Markdown, records, the GPU's tuning table, golden vectors."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from argus_kernels.core import tuning
from argus_kernels.core.tuning import Key, Tunable
from benchmarks import tune
from benchmarks.gpu_session import lines
from benchmarks.gpu_session.golden import REPOSITORY
from benchmarks.gpu_session.lines import Line, Lines
from benchmarks.harness.results import Record, write_records, write_whole
from benchmarks.harness.verify import first_line
from benchmarks.report.summary import markdown
from benchmarks.report.table import share_of_ceiling

MAX_CONFIGS = 1000
"""Of a kernel; more is a damaged line."""
GOLDEN = REPOSITORY / "tests" / "csrc" / "simt" / "golden"
"""The golden vectors that the tests replay on the executor, a file for each GPU."""


def write(folder: Path, out: Path, install: bool = False) -> list[Path]:
    """Writes the report of the session's folder into `out`, and into the tree if asked; returns the written files.

    Raises:
        ValueError: there are no results, those of a rehearsal are to go into the tree, or a line's contents do not
            match its kind. Nothing is written then.
    """
    found = lines.read(folder)
    session = next(found.of("session"), {})
    if install and (session.get("rehearse") or session.get("device") != "cuda"):
        raise ValueError(f"{folder} holds a rehearsal, and only what a GPU gave goes into the tree")
    try:
        text, records, choices = page(found), records_of(found), choices_of(found)
        about = _about_machine(found)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"{folder}: a line holds something else than its kind should: {first_line(error)}") from error
    out.mkdir(parents=True, exist_ok=True)
    written = [out / "report.md"]
    write_whole(written[0], text)
    if records:
        written.append(out / "records.jsonl")
        write_records(written[-1], records)
    vectors = [json.dumps(line) for line in found.of("golden")]
    for place in [out, *([None] if install else [])]:
        if choices:
            written.append((place or tuning.FOLDER) / f"{about.file}.json")
            tune.write_table(written[-1], about.name, choices, about.versions, about.commit)
        if vectors:
            written.append(place / f"golden_{about.file}.jsonl" if place else GOLDEN / f"{about.file}.jsonl")
            write_whole(written[-1], "\n".join(vectors) + "\n")
    return written


@dataclass(frozen=True)
class _Machine:
    """The machine of the session: the GPU's name, the name of its files, versions and commit."""

    name: str = "unknown"
    file: str = "unknown"
    versions: Mapping[str, str] = field(default_factory=dict)
    commit: str = ""


def _about_machine(found: Lines) -> _Machine:
    for line in found.of("machine"):
        gpu, name = line["machine"].get("gpu"), str(line["machine"]["name"])
        # A machine without a GPU has made its own name into that of a folder.
        return _Machine(gpu or name, tuning.normalised_gpu_name(gpu or name), line["versions"], line["commit"])
    return _Machine()


def records_of(found: Lines) -> list[Record]:
    """The measurements, as `python -m benchmarks compare` and `report` read them.

    Raises:
        ValueError: a line is not a record, with its number among the records.
    """
    records = []
    for number, line in enumerate(found.of("record"), 1):
        try:
            records.append(Record.from_json(json.dumps(line["record"])))
        except (ValueError, TypeError) as error:
            raise ValueError(f"record {number} is not a benchmark record: {error}") from None
    return records


def choices_of(found: Lines) -> list[tune.Choice]:
    """The best of the tried configurations for every kernel and key.

    Raises:
        ValueError, KeyError, TypeError: a trial has unexpected contents.
    """
    by_kernel: dict[str, list[Line]] = defaultdict(list)
    for line in found.of("trial"):
        _require_trial(line)
        by_kernel[line["kernel"]].append(line)
    choices = []
    for kernel, tried in by_kernel.items():
        configs: list[dict[str, int]] = [{} for _ in range(1 + max(line["index"] for line in tried))]
        for line in tried:
            configs[line["index"]] = line["config"]
        tunable = Tunable(kernel, "triton", tuple(configs))
        by_case: dict[str, list[tune.Trial]] = defaultdict(list)
        for line in tried:
            keys = tuple(Key(**key) for key in line["keys"])
            by_case[line["case"]].append(tune.Trial(tunable, line["index"], keys, line["ms"], line["dropped"]))
        choices += tune.choose(list(by_case.values()))
    return choices


def _require_trial(line: Line) -> None:
    """ValueError unless a tuning table can be made of it, which kernels read whatever wrote it."""
    right = 0 <= line["index"] < MAX_CONFIGS and all(type(value) is int for value in line["config"].values())
    right = right and (line["ms"] is None or 0 < line["ms"] < float("inf"))
    for key in line["keys"]:
        right = right and (key["kernel"], type(key["dtype"])) == (line["kernel"], str)
        right = right and type(key["width"]) is type(key["size"]) is int
        right = right and key["size"] == tuning.size_bucket(key["size"])
    if not right:
        raise ValueError(f"a trial of {line['kernel']!r} is none that a tuning table can be made of: {line['config']}")


def page(found: Lines) -> str:
    """The Markdown page."""
    parts = ["# A session", *_about(found)]
    records = records_of(found)
    if records:
        parts += ["## Kernels", markdown(records), *_timed(records)]
    for title, section in (
        ("Kernels of one kind", _kinds), ("Error rule", _error_rule), ("Configurations", _configurations),
        ("Sanitizer", _sanitizer), ("Profiles", _profiles), ("Training step", _training), ("Steps", _steps),
        ("Left out", _left_out),
    ):  # fmt: skip
        rows = list(section(found))
        if rows:
            parts += [f"## {title}", "\n".join(rows)]
    return "\n\n".join(parts) + "\n"


def _about(found: Lines) -> Iterator[str]:
    for line in found.of("session"):
        kind = "rehearsal" if line["rehearse"] else "session"
        yield f"A {kind} of at most {line['seconds']:g} s on {line['device']}."
    for line in found.of("machine"):
        about, versions = line["machine"], line["versions"]
        rates = ", ".join(f"{name} {rate / 1e12:.3g} TFLOP/s" for name, rate in line["flops_per_second"].items())
        yield (
            f"{about.get('gpu') or about['cpu']}, torch {versions['torch']}, commit {line['commit'] or 'unknown'}; "
            f"copy {line['copy_bytes_per_second'] / 1e9:,.0f} GB/s, matrix product {rates}."
        )
    if found.damaged:
        yield f"{found.damaged} lines were cut short and are left out."


def _table(headings: Sequence[str], rows: Sequence[Sequence[Any]]) -> Iterator[str]:
    if not rows:
        return
    yield "| " + " | ".join(headings) + " |"
    yield "|" + "---|" * len(headings)
    for row in rows:
        yield "| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in row) + " |"


def _joined(sentences: Sequence[Any] | None) -> str:
    return "; ".join(map(str, sentences or ()))


def _timed(records: Sequence[Record]) -> Iterator[str]:
    rows = []
    for record in records:
        case = (record.op, record.case, record.dtype, record.pass_, record.backend)
        if record.ms is None:
            rows.append((*case, "refused", record.refused, "", ""))
            continue
        ratios = {name: peer.ratio for name, peer in record.peers.items() if peer.ratio}
        peers = ", ".join(f"{name} {ratio:.2f}×" for name, ratio in ratios.items())
        share = share_of_ceiling(record)
        rows.append((*case, f"{record.ms.p50:.4g}", f"{record.tflop_per_s or 0:.3g}", share, peers))
    headings = ("op", "case", "dtype", "pass", "backend", "ms", "TFLOP/s", "ceiling", "peers, above 1 slower than ours")
    yield "\n".join(_table(headings, rows))


def _kinds(found: Lines) -> Iterator[str]:
    """The times of kernels that were asked for by kind, beside those of the kernels that the library chose."""
    chosen = {record.key: record for record in records_of(found)}
    rows = []
    for line in found.of("record_of_kernels"):
        record = Record.from_json(json.dumps(line["record"]))
        usual = chosen.get(record.key)
        cells = [f"{one.ms.p50:.4g}" if one is not None and one.ms is not None else "" for one in (record, usual)]
        rows.append((record.op, record.case, record.dtype, record.pass_, line["kernels"], *cells))
    yield from _table(("op", "case", "dtype", "pass", "kernels", "ms", "ms of those chosen"), rows)


def _error_rule(found: Lines) -> Iterator[str]:
    counts: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    bad = []
    for line in found.of("verdict"):
        counts[line["op"], line["backend"]][line["outcome"]] += 1
        if line["outcome"] in ("wrong", "failed"):
            bad.append(
                (
                    line["op"],
                    line["backend"],
                    line["case"],
                    line["dtype"],
                    _joined(line.get("sentences")),
                )
            )
    names = ("passed", "wrong", "failed", "not served")
    rows = [(op, backend, *(count[name] for name in names)) for (op, backend), count in counts.items()]
    yield from _table(("op", "backend", *names), rows)
    if bad:
        yield ""
        yield from _table(("op", "backend", "case", "dtype", "what was wrong"), bad)
    faults = [(line["op"], line["backend"], line["case"], line["dtype"], line["reason"]) for line in found.of("fault")]
    if faults:
        yield ""
        yield from _table(("op", "backend", "case", "dtype", "fault that broke the GPU's context"), faults)


def _configurations(found: Lines) -> Iterator[str]:
    rows = []
    for line in found.of("trial"):
        config = ", ".join(f"{name} {value}" for name, value in line["config"].items())
        result = line["dropped"] if line["ms"] is None else f"{line['ms']:.4g} ms"
        rows.append((line["kernel"], line["case"], config + (" (default)" if line["index"] == 0 else ""), result))
    yield from _table(("kernel", "case", "configuration", "result"), rows)


def _sanitizer(found: Lines) -> Iterator[str]:
    rows = [
        (
            line["op"],
            line["check"],
            line["exit_status"],
            line["summary"] or "did not end",
            _joined(line["errors"]),
        )
        for line in found.of("sanitizer")
    ]
    yield from _table(("op", "check", "exit status", "summary", "errors"), rows)


METRICS = (
    "Duration", "Compute (SM) Throughput", "Memory Throughput", "DRAM Throughput", "L2 Cache Throughput",
    "Achieved Occupancy", "Registers Per Thread",
)  # fmt: skip


def _profiles(found: Lines) -> Iterator[str]:
    rows = []
    for line in found.of("profiled"):
        values = [" ".join(filter(None, line["metrics"].get(name, ()))) for name in METRICS]
        rows.append((line["op"], line["backend"], line["case"], line["kernel"][:60], *values))
    yield from _table(("op", "backend", "case", "kernel", *METRICS), rows)


def _training(found: Lines) -> Iterator[str]:
    rows = []
    for line in found.of("training"):
        if line["ms"] is None:
            rows.append((line["preset"], line["backend"], line["precision"], "", "", "", line.get("skipped", "")))
            continue
        peak = "" if line["peak_bytes"] is None else f"{line['peak_bytes'] / 2**20:,.0f}"
        rows.append(
            (line["preset"], line["backend"], line["precision"], f"{line['ms']['p50']:.4g}",
             f"{line['events_per_second']:,.0f}", f"{line['mfu']:.1%}", peak)
        )  # fmt: skip
    yield from _table(("preset", "backend", "precision", "ms", "events/s", "MFU", "peak MiB"), rows)


def _steps(found: Lines) -> Iterator[str]:
    ended = {line["step"]: line for line in found.of("step")}
    rows = []
    for line in found.of("step_started"):
        end = ended.get(line["step"])
        tasks = "" if end is None else ", ".join(f"{count} {outcome}" for outcome, count in end["tasks"].items())
        took = "" if end is None else f"{end['seconds']:.1f}"
        rows.append(
            (line["step"], "cut off with the session" if end is None else end["outcome"], took, line["budget"], tasks)
        )
    yield from _table(("step", "outcome", "s", "budget, s", "processes"), rows)
    broken = [
        (line["step"], line["task"], line["outcome"], line.get("reason", ""))
        for line in found.of("task")
        if line["outcome"] != "done"
    ]
    if broken:
        yield ""
        yield from _table(("step", "process", "outcome", "last line"), broken)


def _left_out(found: Lines) -> Iterator[str]:
    rows = [(line["step"], line["what"], line["reason"]) for line in found.of("left_out")]
    yield from _table(("step", "what", "why"), rows)
