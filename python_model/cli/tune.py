"""`argus tune`: a search for the settings of pre-training."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from python_model.cli.app import app, exit_code
from python_model.cli.options import Data, Device, Epochs, Set, Steps, Threads, TrainingProtocol, check, parse_settings
from python_model.io.errors import counted
from python_model.reporting import console

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table

    from python_model.training.tune import TrialRow

MAX_HOURS = 24 * 365.0


@app.command(
    epilog="Examples: `argus tune data/shop tuned --trials 40`, "
    "`argus tune data/shop tuned --hours 2 --set window=64`, "
    "then `argus pretrain data/shop runs/shop --recipe tuned/recipe.toml`."
)
def tune(
    data: Data,
    out: Annotated[
        Path,
        typer.Argument(metavar="OUT", help="Directory of the search; one that is there goes on.", show_default=False),
    ],
    trials: Annotated[int, typer.Option(min=1, max=100_000, help="Trials in all, earlier calls included.")] = 20,
    hours: Annotated[
        float | None,
        typer.Option(min=0, max=MAX_HOURS, help="No trial begins after so many hours.", show_default=False),
    ] = None,
    steps: Steps = None,
    epochs: Epochs = None,
    protocol: Annotated[TrainingProtocol | None, typer.Option(help="Which events are held out.")] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Of the search and of every trial.")] = 0,
    settings: Set = None,
    device: Device = "auto",
    threads: Threads = None,
) -> None:
    """Search for the settings of pre-training on the validation part, never the test part; write OUT/recipe.toml.

    Searched are size, batch, window, negatives, both learning rates, weight decay and dropout; `--set` fixes one of
    them, or any other. Trials that fall behind are pruned. Ctrl-C saves; the same command goes on.
    """
    from python_model.data.schema import load_dataset
    from python_model.training import tune as search
    from python_model.training.recipe_file import RECIPE
    from python_model.training.runs import use_threads

    check(device)
    named = {"steps": steps, "epochs": epochs, "protocol": protocol.value if protocol else None}
    given = {name: value for name, value in named.items() if value is not None} | parse_settings(settings or [])
    dataset = load_dataset(data)
    use_threads(threads, 128)
    try:
        rows = search.tune(
            dataset, out, trials=trials, hours=hours, given=given, seed=seed, device=device,
            show=console.TrainingProgress,
        )  # fmt: skip
    except KeyboardInterrupt as stop:
        console.say(f"Stopped. The same command goes on: argus tune {shlex.quote(str(data))} {shlex.quote(str(out))} …")
        raise typer.Exit(exit_code(stop)) from None
    console.stdout().print(_table(rows))
    if (out / RECIPE).is_file():
        console.say(f"{counted(len(rows), 'trial')}; the best settings: {out / RECIPE}")
        command = ["argus", "pretrain", str(data), "runs/tuned", "--recipe", str(out / RECIPE)]
        console.say(f"Next: {shlex.join(command)}")


def _table(rows: Sequence[TrialRow]) -> Table:
    """One line a trial, the best first."""
    from rich.table import Table

    table = Table(title="Trials on the validation part", caption_justify="left")
    names = list(dict.fromkeys(name for row in rows for name in row.params))
    for name in ("trial", "state", "value", "steps", *names):
        table.add_column(name, justify="right", no_wrap=True)
    complete = [row for row in rows if row.state == "complete" and row.value is not None]
    ordered = sorted(complete, key=lambda row: row.order) + [row for row in rows if row not in complete]
    for row in ordered:
        shown = [_short(row.params.get(name, "–")) for name in names]
        value = "–" if row.value is None else f"{row.value:.4f}"
        table.add_row(str(row.number), row.state, value, f"{row.steps:,}", *shown)
    return table


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
