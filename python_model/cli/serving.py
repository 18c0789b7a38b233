"""`argus export`, `index`, `candidates`, `score` and `serve`: the three ways to serve a trained run."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from python_model.cli.app import app, exit_code
from python_model.cli.options import (
    MAX_LAG,
    Cached,
    Data,
    Device,
    EngineName,
    Engines,
    Json,
    RowScore,
    Score,
    Threads,
    WhichCheckpoint,
    Window,
    check,
)
from python_model.io.errors import counted
from python_model.reporting import console

if TYPE_CHECKING:
    import socket

    from python_model.serving.scorers import RowScorer
    from python_model.serving.spread import Recipe

ExportDirectory = Annotated[
    Path, typer.Argument(metavar="EXPORT", help="Directory that `argus export` made.", show_default=False)
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what an earlier run of this command made.")]
ServedScore = Annotated[
    Score | None, typer.Option(help="pair for a fine-tuned run, next_item for a pre-trained one by default.")
]

Host = Annotated[str, typer.Option(help="With --http: the address to listen on.")]
Port = Annotated[int, typer.Option(min=0, max=65_535, help="With --http: the port; 0 for any free one.")]
Timeout = Annotated[
    float, typer.Option(min=0.01, max=3600, help="With --http: seconds within which a request must be begun.")
]
Queue = Annotated[
    int, typer.Option(min=1, max=1 << 20, help="With --http: requests that may wait; further ones get status 503.")
]
Batch = Annotated[int, typer.Option(min=1, max=1 << 12, help="With --http: most requests answered together.")]


@app.command(epilog="Example: `argus export data/ml runs/finetune exports/ml`.")
def export(
    data: Data,
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A trained run.", show_default=False)],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Directory to make.", show_default=False)],
    score: ServedScore = None,
    best: Annotated[int, typer.Option(min=0, help="Items of each user in scores.parquet, with their scores.")] = 100,
    window: Window = None,
    which: WhichCheckpoint = None,
    overwrite: Overwrite = False,
    device: Device = "auto",
    threads: Threads = None,
) -> None:
    """Write all that serving needs into one directory: vectors, scores, ids, histories and the model.

    Item and user vectors in float32, bfloat16 and int8, as Parquet and as .npy; the data set is not needed afterwards.
    """
    from python_model.data.schema import load_dataset
    from python_model.serving.export import export as write_export
    from python_model.training import checkpoint
    from python_model.training.runs import require_fit, use_threads

    check(device)
    dataset = load_dataset(data)
    directory = checkpoint.chosen(run, which.value if which else None)
    description = checkpoint.read_description(directory)
    require_fit(run, description, dataset)
    use_threads(threads, description.model_config.width)
    with console.counting_progress("Users") as advance:
        info = write_export(
            dataset, directory, out, score=score.value if score else None, window=window, best=best, device=device,
            overwrite=overwrite, progress=advance,
        )  # fmt: skip
    console.say(
        f"{out}: {counted(info.items, 'item')}, {counted(info.users, 'user')}, vectors of {info.width} for the score "
        f"{info.score}"
    )
    for side, forms in info.errors.items():
        errors = ", ".join(f"{form} {100 * error['relative_rms']:.2f} %" for form, error in forms.items())
        console.say(f"Error of the {side}' vectors (root mean square, of their length): {errors}")
    console.say(f"Next: argus index {shlex.quote(str(out))}")


@app.command(epilog="Example: `argus index exports/ml --check 1000`.")
def index(
    path: ExportDirectory,
    links: Annotated[int, typer.Option(help="Links of a node to others (M of HNSW).")] = 48,
    build_breadth: Annotated[int, typer.Option(help="Nodes kept in view while building (efConstruction).")] = 80,
    search_breadth: Annotated[int, typer.Option(help="Nodes kept in view while searching (efSearch).")] = 320,
    queries: Annotated[
        int, typer.Option("--check", metavar="USERS", help="Compare with exact search for so many users; 0 for none.")
    ] = 200,
    k: Annotated[int, typer.Option("--k", min=1, help="Items that the check asks for.")] = 100,
    threads: Threads = None,
    json_file: Json = None,
) -> None:
    """Build the HNSW index over the item vectors of an export and measure its recall against exact search."""
    from python_model.io.exclusive import replacing
    from python_model.serving import index as indexing
    from python_model.serving.bundle import Export

    check("cpu", json_file)
    found = Export.open(path)
    faiss = indexing.require_faiss()
    if threads is not None:
        faiss.omp_set_num_threads(threads)
    settings = indexing.IndexSettings(links, build_breadth, search_breadth)
    began = time.perf_counter()
    with (
        replacing(path / indexing.INDEX, path),
        console.working(f"Building the index of {counted(found.info.items, 'item')}"),
    ):
        built = indexing.CandidateIndex.build(found.item_vectors(), settings)
        built.save(path, found.info.model)
    seconds = time.perf_counter() - began
    console.say(f"{path / indexing.INDEX}: {counted(len(built), 'item')} in {seconds:.1f} s")
    figures: dict[str, Any] = {"items": len(built), "build_seconds": seconds, **asdict(settings)}
    if queries > 0:
        with console.working("Comparing with exact search"):
            checked = indexing.check_index(built, indexing.sample_users(found, queries), k)
        figures |= asdict(checked)
        console.say(
            f"recall@{checked.k} {checked.recall:.4f} against exact search, {checked.p50_ms:.2f} ms a query on one "
            f"thread (99 %: {checked.p99_ms:.2f} ms; exact: {checked.exact_ms:.2f} ms), over "
            f"{counted(checked.queries, 'user')}"
        )
    if json_file is not None:
        console.write_json(json_file, figures)
    console.say(f"Next: argus candidates {shlex.quote(str(path))} --out candidates.parquet")


@app.command(
    epilog="Examples: `argus candidates exports/ml --user 42 --user 7 --k 5 --exclude-seen`, "
    "`argus candidates exports/ml --out candidates.parquet --blocked blocked.txt`."
)
def candidates(
    path: ExportDirectory,
    user: Annotated[
        list[str] | None,
        typer.Option("--user", help="User id as in the source data; repeat it for several. All users by default."),
    ] = None,
    k: Annotated[int, typer.Option("--k", min=1, help="How many items.")] = 100,
    exclude_seen: Annotated[
        bool, typer.Option("--exclude-seen", help="Leave out items that the user's history already has.")
    ] = False,
    blocked: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Items nobody gets: a text with an id a line, or Parquet with item_id."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write user_id, rank, item_id, score as Parquet.")
    ] = None,
    exact: Annotated[bool, typer.Option("--exact", help="Search all items instead of the index.")] = False,
    breadth: Annotated[
        int | None, typer.Option(min=1, help="Nodes kept in view while searching; the index's by default.")
    ] = None,
    threads: Threads = None,
) -> None:
    """Retrieve the best items of users from the index of an export, without seen or blocked ones."""
    import numpy as np

    from python_model.io.exclusive import replacing
    from python_model.serving import candidates as retrieving
    from python_model.serving.bundle import Export
    from python_model.serving.id_files import read_ids

    if user is None and out is None:
        raise ValueError("name users with --user, or a file for the candidates of all users with --out")
    check("cpu", out)
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
    found = Export.open(path)
    users = np.arange(found.info.users) if user is None else found.user_ids.require(user)
    left_out = None
    if blocked is not None:
        ids = read_ids(blocked, found.item_ids, "item_id")
        console.say(f"{'Warning: ' if ids.unknown else ''}{ids}")
        left_out = ids.numbers
    search = retrieving.search_of(found, exact=exact, breadth=breadth)
    if out is None:
        for part, items, scores in retrieving.candidates(
            found, users, k, search, exclude_seen=exclude_seen, blocked=left_out
        ):
            console.print_candidates(found, part, items, scores)
        return
    with replacing(out), console.counting_progress("Users") as advance:
        rows = retrieving.write_candidates(
            out, found, users, k, search, exclude_seen=exclude_seen, blocked=left_out, progress=advance
        )
    console.say(f"{out}: {counted(rows, 'candidate')} of {counted(len(users), 'user')}")


@app.command(
    epilog="Examples: `argus score runs/finetune rows.parquet scores --data data/ml`, "
    "`argus score exports/ml rows.parquet scores`. The same command goes on where it was stopped."
)
def score(
    source: Annotated[
        Path,
        typer.Argument(metavar="RUN|EXPORT", help="A trained run, or what `argus export` made.", show_default=False),
    ],
    rows: Annotated[
        Path,
        typer.Argument(
            metavar="ROWS", help="Parquet with user_id, item_id, time; a file or a folder.", show_default=False
        ),
    ],
    out: Annotated[
        Path, typer.Argument(metavar="OUT", help="Folder of the scored rows, a part per row group.", show_default=False)
    ],
    data: Annotated[
        Path | None,
        typer.Option(metavar="DATA", help="With a run: the histories behind the scores, from `argus prepare`."),
    ] = None,
    kind: Annotated[
        RowScore | None,
        typer.Option(
            "--score",
            help="With a run: pair if it is fine-tuned, next_item otherwise by default; feedback with --joint.",
        ),
    ] = None,
    joint: Annotated[
        bool,
        typer.Option("--joint", help="With a run: score the rows of one user, time and context in one pass."),
    ] = False,
    lag: Annotated[
        int | None,
        typer.Option(min=1, max=MAX_LAG, help="With a run: seconds by which known events are older; the model's own."),
    ] = None,
    vectors: Annotated[bool, typer.Option("--vectors", help="Add the user and item vectors beside the score.")] = False,
    window: Window = None,
    engine: EngineName = Engines.local,
    overwrite: Overwrite = False,
    device: Device = "auto",
    threads: Threads = None,
    json_file: Json = None,
) -> None:
    """Score rows of user, item and time in batches, each exactly once, as a feature for another ranker.

    With a run and --data, a row's score uses what was known at the row's time. --joint scores all rows of one request
    against the encoded history in one pass, which the full form needs. With an export, a score uses the newest state
    of the user, and earlier rows have no score. Unknown users and items have no score; the reasons are counted.
    """
    from python_model.data.engines import open_engine
    from python_model.serving import score as scoring
    from python_model.serving.spread import Recipe, workers

    check(device, json_file)
    began = time.perf_counter()
    if joint and vectors:
        raise ValueError("--vectors is given with --joint, expected one of them: a joint score has no vectors")
    if kind is RowScore.feedback and not joint:
        raise ValueError("--score feedback needs --joint: it depends on the candidate, and has no user vector")
    recipe = Recipe(source, data, kind.value if kind else None, lag, window, vectors, device, joint=joint)
    try:
        with open_engine(engine.value) as runner:
            scorer = _scorer(recipe, threads)
            started = time.perf_counter()
            recipe = replace(recipe, states=out / scoring.STATES_FOLDER if data and not joint else None)
            report = scoring.score_parquet(
                scorer, rows, out, overwrite=overwrite, bar=console.counting_progress, workers=workers(runner, recipe)
            )
    except KeyboardInterrupt as stop:
        console.say("Stopped. The same command goes on with the parts that are missing.")
        raise typer.Exit(exit_code(stop)) from None
    seconds = time.perf_counter() - started
    rate = f", {report.scored_now / seconds:,.0f} rows/s" if report.scored_now else ", all of them before"
    console.say(f"{out}: {report.scored:,} of {counted(report.rows, 'row')} scored{rate}")
    for reason, count in sorted(report.missing.items()):
        console.say(f"Without a score: {counted(count, 'row')} ({reason})")
    if json_file is not None:
        console.write_json(
            json_file, {**asdict(report), "seconds": seconds, "seconds_in_all": time.perf_counter() - began}
        )


def _scorer(recipe: Recipe, threads: int | None) -> RowScorer:
    """What scores the rows."""
    from python_model.data.schema import load_dataset
    from python_model.serving.bundle import Export
    from python_model.training import checkpoint
    from python_model.training.runs import require_fit, use_threads

    source, data = recipe.source, recipe.data
    if Export.is_at(source):
        if recipe.joint or any(given is not None for given in (data, recipe.score, recipe.lag, recipe.window)):
            raise ValueError(f"{source} is an export: --data, --score, --joint, --lag and --window are for a run")
        use_threads(threads, 1 << 20)
        return recipe.make()
    if not source.exists():
        raise ValueError(f"{source}: not found: expected a run of `argus finetune`, or what `argus export` made")
    if data is None:
        raise ValueError(f"{source} is no export: give the histories behind a run with --data, or make an export first")
    description = checkpoint.read_description(checkpoint.chosen(source))
    require_fit(source, description, load_dataset(data))
    use_threads(threads, description.model_config.width)
    return recipe.make_from_history(data)


@app.command(
    epilog="Examples: `argus serve exports/ml --state sessions`, then a line such as "
    '`{"user": 42, "item": 50, "time": 893286638, "feedback": {"like": 1}, "k": 5}`; '
    "`argus serve exports/ml --state sessions --http --port 8000`."
)
def serve(
    path: ExportDirectory,
    state: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Where sessions are kept; without it they end with the command."),
    ] = None,
    http: Annotated[bool, typer.Option("--http", help="Serve over HTTP instead of standard input.")] = False,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    timeout: Timeout = 30.0,
    queue: Queue = 1024,
    batch: Batch = 64,
    resident: Annotated[int, typer.Option(min=1, max=1 << 20, help="Users in memory at once.")] = 64,
    max_events: Annotated[
        int | None,
        typer.Option(min=2, max=1 << 20, help="Longest history of a user; the model's longest by default."),
    ] = None,
    cached_events: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=1 << 31,
            help="Events in memory of all users together; room for --resident longest histories by default.",
        ),
    ] = None,
    cache: Annotated[
        Cached | None, typer.Option(help="What keys and values are kept in; the weights' type by default.")
    ] = None,
    replay: Annotated[
        bool, typer.Option("--replay", help="Keep events only, and encode them again when a user returns.")
    ] = False,
    fsync: Annotated[
        bool, typer.Option("--fsync", help="Flush every event to the disk before it is answered.")
    ] = False,
    ahead: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=1 << 32,
            help="Seconds by which an event may be later than this machine's clock; a day by default.",
        ),
    ] = None,
    device: Device = "auto",
    threads: Threads = None,
) -> None:
    """Serve sessions: events in, the best items (and vectors) out; JSON lines, or HTTP with --http.

    A line names `user`. With `item` and `time` it is an event, with `organic`, `context` and `feedback` where known;
    with `amend` and `feedback` it is feedback for an earlier event. `k` asks for items, `exclude_seen` leaves out known
    ones, `items` asks for scores of items, `vectors` for the vectors; `score`, `now`, `organic` and `context` describe
    the request. Every line is answered; a line answered with `error` has changed nothing.

    With --http the same objects are posted to /events, /recommend and /score; /openapi.json describes them. SIGTERM or
    Ctrl-C ends the server after it has answered what it accepted and saved the sessions.
    """
    # torch reads this when it first allocates: a long history spans thousands of 4 KB pages.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    import torch

    from python_model.serving import lines
    from python_model.serving.store import SessionStore

    check(device)
    if threads is not None:
        torch.set_num_threads(threads)
    page = 64
    with (
        _listening(host, port) if http else contextlib.nullcontext() as bound,
        SessionStore.open(
            path, state, resident=resident, max_events=max_events,
            dtype=None if cache is None else getattr(torch, cache.value),
            on_full="replay" if replay else "offload", device=device, fsync=fsync, page_size=page,
            pages=None if cached_events is None else -(-cached_events // page),
            **({} if ahead is None else {"ahead": ahead}),
        ) as store,
    ):  # fmt: skip
        if bound is not None:
            from python_model.serving.http import server
            from python_model.serving.http.app import Limits

            server.serve(store, bound, Limits(queue, batch, timeout), lambda url: print(f"Ready on {url}", flush=True))
            return
        try:
            lines.serve(store, sys.stdin.buffer, sys.stdout.buffer)
        except BrokenPipeError:
            # The reader of the answers has gone: this is no error, and the interpreter must not flush at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _listening(host: str, port: int) -> socket.socket:
    """A bound socket; ValueError where the packages for HTTP are missing or the address cannot be had."""
    try:
        from python_model.serving.http import server
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("python_model"):
            raise
        message = f'--http: {error.name} is not installed: pip install "argus-kernels[serve]"'
        raise ValueError(message) from None
    return server.listen(host, port)
