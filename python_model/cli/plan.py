"""`argus plan`: memory, communication and balance of a run on several ranks, computed before the run."""

from __future__ import annotations

from typing import Annotated

import typer

from python_model.cli.app import app


@app.command(
    epilog="Examples: `argus plan --size 1b --rows 1e9 --ranks 64`, `argus plan --size 126m --batches 4`, "
    "`argus plan` for all sizes and three tables, `argus plan --size 126m --lengths lognormal`."
)
def plan(
    size: Annotated[
        list[str] | None, typer.Option(help="Published size; repeat it for several, all four by default.")
    ] = None,
    rows: Annotated[
        list[float] | None,
        typer.Option(help="Rows of the item table; repeat it for several, 1e7, 1e8 and 1e9 by default."),
    ] = None,
    ranks: Annotated[int, typer.Option(min=1, help="GPUs that train together.")] = 8,
    batch_events: Annotated[int, typer.Option(min=1, help="Events of a batch.")] = 65_536,
    batches: Annotated[int, typer.Option(min=1, help="Batches of each rank in a step.")] = 1,
    negatives: Annotated[int, typer.Option(min=1, help="Candidates of a step.")] = 16_384,
    activation_checkpointing: Annotated[
        bool, typer.Option(help="Whether blocks are computed again in the backward pass.")
    ] = True,
    lengths: Annotated[
        str | None,
        typer.Option(
            help="Histories: a prepared data set, or lognormal (mean 700 events). Prints how evenly 2 to 16 ranks work "
            "and what stochastic length saves."
        ),
    ] = None,
    window: Annotated[
        int,
        typer.Option(
            min=2, help="Events of a user in a batch at most, with --lengths; of a size its longest history at most."
        ),
    ] = 8192,
) -> None:
    """Compute memory on each rank and what each rank sends in a step, as Markdown; nothing is measured.

    The formulas are in docs/scale.md.
    """
    from python_model.training import memory_plan as plans

    if lengths is not None and window > batch_events:
        raise ValueError(f"--window is {window}, expected at most --batch-events, which is {batch_events}")

    settings = [
        plans.Setting(one, _whole(count), ranks, batch_events, batches, negatives, activation_checkpointing)
        for one in size or plans.SIZES
        for count in rows or plans.ROWS
    ]
    text = plans.tables(settings)
    if lengths is not None:
        from python_model.training import work_plan

        of_each_size = list({setting.size: setting for setting in settings}.values())
        text += "\n" + work_plan.tables(work_plan.lengths_of(lengths), of_each_size, window)
    typer.echo(text, nl=False)


def _whole(rows: float) -> int:
    if not (1 <= rows <= 1e15 and rows == int(rows)):
        raise ValueError(f"--rows {rows}: expected a whole number from 1 to 1e15, as in 100000000 or 1e8")
    return int(rows)
