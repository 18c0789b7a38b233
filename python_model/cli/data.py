"""`argus prepare` and `argus shard`: convert interactions from their source to the format that all commands read."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from python_model.cli import table_options
from python_model.cli.app import app
from python_model.cli.options import Data, EngineName, Engines, Out, Source, parse_settings
from python_model.io.errors import counted
from python_model.io.settings_help import asked
from python_model.reporting import console

if TYPE_CHECKING:
    from python_model.data.description import DatasetInfo


def _explain_options(context: typer.Context, source: Source) -> Source:
    """`--set help` prints the options of the source and exits, even where other arguments are missing."""
    from python_model.data.prepare import describe_options

    # Eager options are parsed before eager arguments, so --set is known here.
    if asked(context.params.get("settings")):
        typer.echo(describe_options(source.value))
        raise typer.Exit
    return source


Paths = Annotated[
    list[str],
    typer.Argument(
        metavar="PATH...",
        help="File or directory to read, of a table one or several; for synthetic: demo, small, large or years.",
        show_default=False,
    ),
]


@app.command(
    epilog="Examples: `argus prepare movielens ml-100k data/ml`, `argus prepare kuairand kuairand-pure data/kuairand`, "
    "`argus prepare yambda yambda/flat/50m data/yambda`, `argus prepare synthetic small data/small --set seed=7`, "
    "`argus prepare yambda yambda/flat/5b data/yambda --engine ray`, "
    "`argus prepare table clicks.csv data/mine --user customer --item sku --time at --feedback bought "
    "--items products.csv --title name`."
)
def prepare(
    source: Annotated[
        Source, typer.Argument(help="The format to read.", show_default=False, is_eager=True, callback=_explain_options)
    ],
    paths: Paths,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Directory to make.", show_default=False)],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a prepared data set in OUT.")] = False,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            is_eager=True,
            help="An option of the source; repeat it for several. `--set help` lists them.",
        ),
    ] = None,
    engine: EngineName = Engines.local,
    mapping: table_options.MappingFile = None,
    user: table_options.User = None,
    item: table_options.Item = None,
    time: table_options.Time = None,
    unit: table_options.Unit = None,
    feedback: table_options.Feedback = None,
    negative: table_options.Negative = None,
    grade: table_options.Grade = None,
    organic: table_options.Organic = None,
    context: table_options.Context = None,
    items: table_options.Items = None,
    item_id: table_options.ItemId = None,
    title: table_options.Title = None,
    item_feature: table_options.ItemFeature = None,
    missing: table_options.Missing = None,
    duplicates: table_options.Duplicates = None,
) -> None:
    """Read interactions into the one format that training and evaluation use.

    Checks every row; an error names file, column and row, and leaves nothing half-written behind. `table` reads a log
    of one's own: CSV, TSV, JSON lines or Parquet, also with gzip.
    """
    from python_model.data.engines import open_engine
    from python_model.data.prepare import prepare as prepare_data
    from python_model.data.prepare import require_options

    options = parse_settings(settings or [])
    columns = table_options.given({
        "mapping": mapping, "user": user, "item": item, "time": time, "unit": unit, "feedback": feedback,
        "negative": negative, "grade": grade, "organic": organic, "context": context, "items": items,
        "item_id": item_id, "title": title, "item_features": item_feature, "missing": missing, "duplicates": duplicates,
    })  # fmt: skip
    given = _given(source, paths, options, columns)
    options |= columns
    require_options(source.value, options)
    if source is Source.synthetic:
        options["preset"] = paths[0]
    with open_engine(engine.value) as runner, console.counting_progress(f"Preparing {source.value}") as advance:
        info = prepare_data(
            source.value, given, out, overwrite=overwrite, progress=advance, engine=runner, **options
        )  # fmt: skip
    for line in _profile(info):
        console.say(line)
    console.say(
        f"{out}: {counted(info.events, 'event')} of {counted(info.users, 'user')} on {counted(info.items, 'item')}"
    )
    console.say(f"Next: argus pretrain {shlex.quote(str(out))} runs/pretrain")


def _given(
    source: Source, paths: list[str], options: dict[str, Any], columns: dict[str, Any]
) -> str | list[str] | None:
    """What `prepare` reads; ValueError where options or paths do not go together."""
    if "" in paths:
        # Path("") is the working directory: an unset variable of the shell would read whatever lies there.
        raise ValueError("PATH is '', expected the name of a file or directory")
    if "preset" in options:
        raise ValueError("--set preset: give the preset as PATH")
    if again := sorted(columns.keys() & options.keys()):
        raise ValueError(f"--set {again[0]}: expected once, found {table_options.spelling(again[0])} too")
    if source is Source.table:
        return paths
    if columns:
        option = table_options.spelling(next(iter(columns)))
        raise ValueError(f"{option} is of `argus prepare table`, found the source {source.value}")
    if len(paths) > 1:
        raise ValueError(f"{source.value} reads one PATH, found {len(paths)}: {', '.join(paths)}")
    return None if source is Source.synthetic else paths[0]


def _profile(info: DatasetInfo) -> list[str]:
    """What was found in a log of one's own."""
    from python_model.data.readers.table.profile import lines

    return lines(info.params["profile"], info.items) if "profile" in info.params else []


@app.command(epilog="Example: `argus shard data/yambda data/yambda-shards --shards 256`.")
def shard(
    data: Data,
    out: Out,
    shards: Annotated[
        int, typer.Option(min=1, help="Files to cut the events into; several for every batch of a step.")
    ],
) -> None:
    """Cut a data set into files of whole users, which training reads as it needs them, in bounded memory.

    The result is a data set like any other. Training in memory needs no shards.
    """
    from python_model.data.shards import shard_dataset

    with console.counting_progress("Cutting into shards") as advance:
        manifest = shard_dataset(data, out, shards, progress=advance)
    events = [one.events for one in manifest.shards]
    console.say(f"{out}: {counted(len(events), 'shard')} of {min(events):,} to {counted(max(events), 'event')}")
    console.say(f"Next: torchrun --nproc-per-node 8 -m python_model pretrain {shlex.quote(str(out))} runs/pretrain")
