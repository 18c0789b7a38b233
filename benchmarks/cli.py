"""The command line: `python -m benchmarks run | compare | scaling | overhead | end-to-end | serving | report | …`."""

from __future__ import annotations

import importlib
import itertools
import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from typer.core import TyperGroup

from benchmarks.harness import compare as comparing
from benchmarks.harness import rounds as rounding
from benchmarks.harness.cases import Spec, select
from benchmarks.harness.results import REPOSITORY, Key, Record, read_records, write_records
from benchmarks.harness.runner import SUITES, Environment, Run, Settings, rated
from benchmarks.peers import PEERS
from benchmarks.report import table

OTHER_COMMANDS = {
    "scaling": "scenarios.scaling",
    "dense": "scenarios.dense",
    "table-step": "scenarios.table_step",
    "fewer-rows": "scenarios.fewer_rows",
    "end-to-end": "scenarios.end_to_end",
    "report": "report.page",
    "tune": "tune",
    "host": "scenarios.host",
    "overhead": "scenarios.overhead",
    "serving": "scenarios.serving",
    "http": "scenarios.http",
    "prepare": "scenarios.preparing",
}
"""Commands of other modules, which are imported when asked for: some need the model, and what the model reads with."""


class _Commands(TyperGroup):
    """The commands defined here, and those of `OTHER_COMMANDS`."""

    def list_commands(self, ctx: Any) -> list[str]:
        """All names, those defined here first."""
        return [*super().list_commands(ctx), *OTHER_COMMANDS]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Imports and returns the command of that name; None if there is none."""
        if cmd_name not in OTHER_COMMANDS:
            return super().get_command(ctx, cmd_name)
        found = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
        importlib.import_module(f"benchmarks.{OTHER_COMMANDS[cmd_name]}").register(found)
        return typer.main.get_command(found)


app = typer.Typer(
    cls=_Commands, help=__doc__, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False
)


@app.command()
def run(
    op: Annotated[list[str] | None, typer.Option(help="An op; may be repeated. All by default.")] = None,
    case: Annotated[list[str] | None, typer.Option(help="A case, such as lognormal_16; may be repeated.")] = None,
    backend: Annotated[list[str] | None, typer.Option(help="A backend; may be repeated. All that serve.")] = None,
    peer: Annotated[list[str] | None, typer.Option(help="A peer, or none; may be repeated. All by default.")] = None,
    suite: Annotated[str, typer.Option(help="quick or full: how long everything is repeated.")] = "quick",
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
    dtype: Annotated[list[str] | None, typer.Option(help="fp32, bf16 or fp16; may be repeated.")] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", dir_okay=False, help="Write one line of JSON per record.")
    ] = None,
    time_budget: Annotated[float | None, typer.Option(help="Seconds; cases that do not fit are cut.")] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads; torch's choice by default.")] = None,
    graphs: Annotated[bool, typer.Option(help="Time CUDA graphs where possible.")] = True,
    seed: Annotated[int, typer.Option(help="Of the draws and of the order of repetitions.")] = 0,
) -> None:
    """Verify every backend, then time it beside its peers and the machine's ceilings."""
    dtypes = dtype or ["fp32", "bf16"]
    try:
        specs = select(op or (), case or (), dtypes, device)
        settings = _settings(specs, backend, peer, suite, device, seed, time_budget, graphs)
        if json_file is not None:
            write_records(json_file, ())
    except OSError as error:
        raise typer.BadParameter(f"cannot write {json_file}: {error.strerror}", param_hint="'--json'") from None
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    if threads is not None:
        torch.set_num_threads(threads)
    console = table.make_console()
    with console.status("measuring the machine's ceilings"):
        environment = Environment.of(device, dtypes)
    _say_where(console, environment)
    progress = Run(specs, settings, environment)
    try:
        records = _measure(console, progress, json_file)
    except KeyboardInterrupt:
        kept = (
            f"{json_file} holds what was measured so far" if json_file else "--json FILE would have kept what there was"
        )
        console.print(f"interrupted: {kept}; name the cases that are missing with --op and --case", highlight=False)
        raise typer.Exit(130) from None
    table.show(console, records)
    _say_what_is_missing(console, progress, json_file)


def _settings(
    specs: list[Spec],
    backends: list[str] | None,
    peers: list[str] | None,
    suite: str,
    device: str,
    seed: int,
    time_budget: float | None,
    graphs: bool,
) -> Settings:
    known_backends = {backend.name for spec in specs for backend in spec.op.backends}
    known_peers = {"none", *(peer.name for peer in PEERS)}
    for what, given, known in (
        ("suite", [suite], set(SUITES)),
        ("device", [device], {"cpu", "cuda"}),
        ("backend", backends or [], known_backends),
        ("peer", peers or [], known_peers),
    ):
        unknown = sorted(set(given) - known)
        if unknown:
            raise ValueError(f"{what} {', '.join(unknown)} is unknown, expected one of {', '.join(sorted(known))}")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device cuda: torch sees no GPU here")
    return Settings(
        device=device,
        budget=SUITES[suite],
        backends=tuple(backends) if backends else None,
        peers=tuple(name for name in peers if name != "none") if peers else None,
        seed=seed,
        time_budget=time_budget,
        graphs=graphs,
        every_definition=suite != "quick",
    )


def _say_where(console: Console, environment: Environment) -> None:
    machine, ceilings = environment.machine, environment.ceilings.as_record()
    name = machine.get("gpu") or f"{machine['cpu']}, {machine['cores']} cores"
    console.print(f"{name}, {machine['threads']} threads, torch {torch.__version__}, commit {environment.commit}")
    rates = ", ".join(
        f"{key.removesuffix('_tflop_per_s')} {value:.3g} TFLOP/s"
        for key, value in ceilings.items()
        if key.endswith("_tflop_per_s")
    )
    console.print(f"ceilings measured now: copy {ceilings['copy_gb_per_s']:.3g} GB/s, matrix product {rates}")


def _measure(console: Console, run: Run, json_file: Path | None) -> list[Record]:
    """All records; the file holds those so far after every case. Their ceilings are the best of the whole run.

    Progress is a bar on a terminal, and one line per case elsewhere.
    """
    records: dict[Key, Record] = {}

    def keep(found: Iterable[Record]) -> None:
        records.update({record.key: record for record in found})
        if json_file is not None:
            write_records(json_file, records.values())

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(elapsed_when_finished=False),
    )
    with Progress(*columns, console=console, transient=True, speed_estimate_period=600) as progress:
        task = progress.add_task("", total=len(run.specs))
        begun = itertools.count(1)

        def tell(spec: Spec) -> None:
            name = f"{spec.op.name} {spec.sample.name} {spec.dtype}"
            progress.update(task, description=name)
            if not console.is_terminal:
                console.print(f"{next(begun)}/{len(run.specs)} {name}", highlight=False)

        for found in run.records(tell):
            keep(found)
            progress.advance(task)
        run.measure_ceilings()
    keep([rated(record, run.environment.ceilings) for record in records.values()])
    return list(records.values())


def _say_what_is_missing(console: Console, run: Run, json_file: Path | None) -> None:
    for (op, backend), reason in run.absent.items():
        console.print(f"not here: {op}[{backend}]: {reason}", highlight=False, markup=False)
    if run.cut:
        console.print(f"[bold yellow]cut by the time budget of {run.settings.time_budget:g} s:[/] {', '.join(run.cut)}")
    if json_file is not None:
        console.print(f"written to {json_file}")


@app.command(epilog="Examples: `python -m benchmarks compare main --op causal_attention`, `… compare a.jsonl b.jsonl`.")
def compare(
    before: Annotated[str, typer.Argument(help="A commit or a source tree to run in turns with this one, or a file.")],
    after: Annotated[str | None, typer.Argument(help="The same; this tree by default.")] = None,
    op: Annotated[list[str] | None, typer.Option(help="Of trees: an op; may be repeated.")] = None,
    case: Annotated[list[str] | None, typer.Option(help="Of trees: a case; may be repeated.")] = None,
    backend: Annotated[list[str] | None, typer.Option(help="Of trees: a backend; may be repeated.")] = None,
    dtype: Annotated[list[str] | None, typer.Option(help="Of trees: fp32, bf16 or fp16; may be repeated.")] = None,
    device: Annotated[str, typer.Option(help="Of trees: cpu or cuda.")] = "cpu",
    rounds: Annotated[int, typer.Option(min=3, max=99, help="Of trees: runs of each.")] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    fail_on_slower: Annotated[
        bool, typer.Option(help="Exit with 1 where something got slower or is refused now.")
    ] = False,
) -> None:
    """Say what changed: each case's ratio of medians, its 95 % interval, and slower, faster or same."""
    console = Console(stderr=True) if as_json else table.make_console()
    try:
        files = [Path(one) for one in (before, after or "") if Path(one).is_file()]
        if len(files) == 1:
            raise ValueError(f"{files[0]} is a file and the other is none: compare two files, or two trees or commits")
        if files:
            runs = [[read_records(file)] for file in files]
        else:
            given = {"op": op, "case": case, "backend": backend, "dtype": dtype, "peer": ["none"], "device": [device]}
            options = [part for name, values in given.items() for one in values or () for part in (f"--{name}", one)]
            if after is None:
                # This tree knows its names; a wrong one is refused before another is checked out and built.
                specs = select(op or (), case or (), dtype or ["fp32", "bf16"], device)
                _settings(specs, backend, ["none"], "quick", device, 0, None, True)
            with rounding.tree_of(before) as one, rounding.tree_of(after or str(REPOSITORY)) as other:
                runs = rounding.in_turns([one, other], rounds, options, console.print)
        found = comparing.compare(*runs)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    if as_json:
        typer.echo(json.dumps(comparing.as_json(found), indent=2))
    else:
        _show_comparison(console, found)
    if fail_on_slower and found.is_worse:
        raise typer.Exit(1)


def _show_comparison(console: Console, found: comparing.Comparison) -> None:
    console.print(comparing.as_table(found))
    for title, keys in (
        ("refused now, verified before", found.newly_refused),
        ("only before", found.only_before),
        ("only after", found.only_after),
    ):
        for key in keys:
            console.print(f"{title}: {' '.join(key)}")
    for note in found.notes:
        console.print(note, highlight=False, markup=False)
    verdicts = Counter(change.verdict for change in found.changes)
    console.print(f"{len(found.changes)} compared: " + ", ".join(f"{count} {name}" for name, count in verdicts.items()))


def main() -> None:
    """Runs the command line."""
    app()
