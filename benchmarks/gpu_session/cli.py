"""The command line: `python -m benchmarks.gpu_session run --seconds 540 --out DIR`, then `report DIR`."""

from __future__ import annotations

import importlib
import os
import shutil
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.gpu_session import lines
from benchmarks.gpu_session.conductor import REPOSITORY, Conductor, require_new
from benchmarks.gpu_session.context import Context
from benchmarks.gpu_session.plan import STEPS

DEVICES = ("cuda", "cpu")
LIBRARIES = ("_ops_*.so", "_host.*.so", "_build_info.json")

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


@app.command()
def run(
    out: Annotated[Path, typer.Option(help="a new folder for results.jsonl and session.log")],
    seconds: Annotated[float, typer.Option(help="what the session takes at most")] = 540.0,
    device: Annotated[str, typer.Option(help="cuda, or cpu for a rehearsal")] = "cuda",
    rehearse: Annotated[bool, typer.Option("--rehearse", help="small sizes, to see that everything runs")] = False,
    libraries: Annotated[
        Path | None, typer.Option(help="a folder of native libraries built before, which go into the package")
    ] = None,
    step: Annotated[list[str] | None, typer.Option(help="a step; may be repeated. All by default.")] = None,
) -> None:
    """Spend at most the given seconds on all steps; every result is in the folder as soon as it is known."""
    names = [one.name for one in STEPS]
    unknown = [name for name in step or () if name not in names]
    try:
        if device not in DEVICES:
            raise ValueError(f"device is {device!r}, expected one of {', '.join(DEVICES)}")
        if rehearse != (device == "cpu"):
            raise ValueError(f"device is {device}, and a rehearsal is on the CPU: --device cpu --rehearse, or neither")
        if not 0 < seconds < float("inf"):
            raise ValueError(f"seconds is {seconds}, expected a number above 0")
        if unknown:
            raise ValueError(f"step is {unknown[0]!r}, expected one of {', '.join(names)}")
        if libraries is not None:
            _take(libraries)
        require_new(out)
    except (ValueError, OSError) as error:
        typer.echo(f"gpu_session: {error}", err=True)
        raise typer.Exit(2) from None
    out = out.resolve()
    try:
        lines.append(out, "session", seconds=seconds, device=device, rehearse=rehearse, steps=step or names)
        Conductor(out, device, rehearse, seconds).run([one for one in STEPS if not step or one.name in step])
    except OSError as error:
        typer.echo(f"gpu_session: cannot go on: {error}", err=True)
        raise typer.Exit(1) from None
    for line in lines.read(out).of("step"):
        typer.echo(f"{line['step']:<16} {line['outcome']:<8} {line['seconds']:>7.1f} s  {line['tasks']}")
    typer.echo(f"written to {out}; next: python -m benchmarks.gpu_session report {out}")


def _take(folder: Path) -> None:
    """Copies prebuilt libraries into the package, replacing each atomically."""
    found = [path for pattern in LIBRARIES for path in sorted(folder.glob(pattern))]
    if not found:
        raise ValueError(f"libraries is {folder}, expected {' or '.join(LIBRARIES)} in it")
    for path in found:
        target = REPOSITORY / "argus_kernels" / path.name
        shutil.copy2(path, target.with_name(f"{target.name}.{os.getpid()}.new"))
        os.replace(target.with_name(f"{target.name}.{os.getpid()}.new"), target)


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="the folder of a session")],
    out: Annotated[Path | None, typer.Option(help="a folder for what is made; FOLDER/report if left out")] = None,
    install: Annotated[
        bool, typer.Option("--install", help="put the tuning table and golden vectors into the tree as well")
    ] = False,
) -> None:
    """Tables, the GPU's tuning table, golden vectors and records of a session, whole or cut off."""
    from benchmarks.gpu_session import report as reporting

    try:
        written = reporting.write(folder, out or folder / "report", install)
    except (ValueError, OSError) as error:
        typer.echo(f"gpu_session: {error}", err=True)
        raise typer.Exit(2) from None
    for path in written:
        typer.echo(f"written: {path}")


@app.command(hidden=True)
def step(
    name: str,
    arguments: Annotated[list[str] | None, typer.Argument()] = None,
    start: int = 0,
    out: Path = Path(),
    device: str = "cuda",
    until: float = 0.0,
    rehearse: bool = False,
) -> None:
    """One process of a step; the conductor starts it."""
    module = importlib.import_module(f"benchmarks.gpu_session.steps.{name}")
    module.run(Context(out, device, rehearse, name, until, start), *(arguments or ()))
