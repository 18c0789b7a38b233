"""`python -m benchmarks report`: one HTML page and one Markdown table from the committed results.

A folder of results has a folder for each machine; every `*.jsonl` there holds records of `python -m benchmarks run`,
`scaling.json` and `end_to_end.json` the results of the commands of those names. A file of records can be given instead
of a folder. The page loads nothing: figures, style and script are inline, in the reader's light or dark mode.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from string import Template
from typing import Annotated, Any

import typer

from benchmarks.harness.growth import Scaling, from_json
from benchmarks.harness.results import RESULTS, Record, read_records, write_whole
from benchmarks.report.summary import markdown

TEMPLATE = Path(__file__).with_name("template.html")
LEAD = (
    "Every figure was timed after its results had passed the error rule against float64 truth; peers ran interleaved "
    "with our kernels in the same process, and the ceilings were measured in the same run."
)


@dataclass
class MachineResults:
    """What was measured on one machine."""

    name: str
    records: list[Record] = field(default_factory=list)
    scaling: Scaling | None = None
    end_to_end: dict[str, Any] | None = None


def load(folder: Path) -> list[MachineResults]:
    """The results of every machine in `folder`; for a file of records, those of the machines named in it.

    Raises:
        ValueError: there are no results, or a file has other contents than its name says; names file and line.
    """
    if folder.is_file():
        return _load_file(folder)
    found = []
    for place in sorted(path for path in folder.glob("*") if path.is_dir()):
        machine = MachineResults(place.name)
        for path in sorted(place.glob("*.jsonl")):
            machine.records += read_records(path)
        machine.scaling = _read(place / "scaling.json", from_json)
        machine.end_to_end = _read(place / "end_to_end.json", json.loads)
        if machine.records or machine.scaling or machine.end_to_end:
            found.append(machine)
    if not found:
        raise ValueError(f"{folder} holds no results, expected <machine>/*.jsonl in it")
    return found


def _load_file(path: Path) -> list[MachineResults]:
    machines: dict[str, MachineResults] = {}
    for record in read_records(path):
        name = str(record.machine.get("name", path.stem))
        machines.setdefault(name, MachineResults(name)).records.append(record)
    if not machines:
        raise ValueError(f"{path} holds no results, expected a record in each line")
    return list(machines.values())


def _read(path: Path, parse: Any) -> Any:
    if not path.exists():
        return None
    try:
        return parse(path.read_text())
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path}: not what it should hold: {error}") from error


def page(machines: Sequence[MachineResults], title: str = "argus-kernels: benchmarks") -> str:
    """The HTML page."""
    from benchmarks.report import plots, sections
    from python_model.reporting import interactive

    parts = []
    for machine in machines:
        parts.append(f"<h2>{escape(machine.name)}</h2>")
        if machine.records:
            parts += [sections.machine_line(machine.records), sections.kernels(machine.records)]
        if machine.scaling:
            parts += ["<h2>Cost against size</h2>", sections.scaling(machine.scaling)]
        if machine.end_to_end:
            parts += ["<h2>End to end</h2>", sections.end_to_end(machine.end_to_end)]
    footer = "Made by python -m benchmarks report."
    return Template(TEMPLATE.read_text()).substitute(
        title=escape(title),
        lead=escape(LEAD),
        body="\n".join(parts),
        footer=escape(footer),
        light=plots.colour_variables(plots.LIGHT),
        dark=plots.colour_variables(plots.DARK),
        style=interactive.STYLE.strip(),
        script=interactive.script(),
    )


def markdown_tables(machines: Sequence[MachineResults]) -> str:
    """The Markdown for the README: a table for each machine that has records."""
    return "\n".join(markdown(machine.records) for machine in machines if machine.records)


def command(
    folder: Annotated[
        Path, typer.Argument(help="folder of results, a folder for each machine in it; or a file of records")
    ] = RESULTS,
    out: Annotated[Path, typer.Option(help="the HTML page to write")] = Path("runs/benchmarks/report.html"),
    table: Annotated[Path | None, typer.Option(help="the Markdown table to write; printed if left out")] = None,
) -> None:
    """One HTML page with rooflines, ratio bars and tables, and a Markdown table for the README."""
    try:
        machines = load(folder)
    except ValueError as error:
        typer.echo(f"report: {error}", err=True)
        raise typer.Exit(2) from None
    write_whole(out, page(machines))
    text = markdown_tables(machines)
    if table is None:
        typer.echo(text)
    else:
        write_whole(table, text)
    typer.echo(f"written to {out}" + (f" and {table}" if table else ""))


def register(app: typer.Typer) -> None:
    """Adds the command to `python -m benchmarks`."""
    app.command("report")(command)
