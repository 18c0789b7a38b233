"""`argus demo`: the whole of it in a minute or two."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from python_model.cli.app import app, exit_code
from python_model.cli.options import Device, Json, Threads, check
from python_model.reporting import console


@app.command(epilog="Example: `argus demo --out demo`, then open `demo/report.html`.")
def demo(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where data, runs and the report go.")] = Path("argus-demo"),
    seed: Annotated[int, typer.Option(help="Seed of the service and of the training.")] = 0,
    device: Device = "auto",
    threads: Threads = None,
    json_file: Json = None,
) -> None:
    """See ARGUS learn and recommend, in a minute or two on a laptop.

    Generates a synthetic music service whose truth is known, pre-trains a small model on it, fine-tunes it, evaluates
    both against popularity and against the truth (the oracle), recommends tracks to one user and writes an HTML report.
    """
    from python_model.demo import run_demo

    check(device, json_file)
    try:
        run_demo(out, seed=seed, device=device, threads=threads, json_file=json_file)
    except KeyboardInterrupt as stop:
        console.say(f"Stopped. The same command starts the demo anew: argus demo --out {shlex.quote(str(out))}")
        raise typer.Exit(exit_code(stop)) from None
