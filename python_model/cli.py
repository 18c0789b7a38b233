"""The `argus` command: prepare data, train, evaluate, recommend, and a demo of all of it.

Only option parsing stands here; torch and the model are imported by the command that needs them, so that --help is
quick. Errors in what the user gave are one sentence on stderr and exit code 2; --debug shows the traceback.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from python_model import console

if TYPE_CHECKING:
    pass

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""


class ArgusGroup(TyperGroup):
    """Turns errors in the user's input into one sentence and exit code 2, Ctrl-C into exit code 130."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command; ValueError (DataError among them), OSError and divergence become a message."""
        try:
            return super().invoke(ctx)
        except (typer.Exit, typer.Abort):
            raise
        except KeyboardInterrupt:
            console.say("Stopped.")
            raise typer.Exit(INTERRUPTED) from None
        except (ValueError, OSError, RuntimeError) as error:
            expected = not isinstance(error, RuntimeError) or type(error).__name__ == "TrainingDiverged"
            if ctx.params.get("debug") or not expected:
                raise
            console.say(f"argus: {error}")
            raise typer.Exit(2) from None


app = typer.Typer(
    cls=ArgusGroup,
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="ARGUS, the recommender transformer over long user histories: prepare data, train, evaluate, recommend.\n\n"
    "Start with `argus demo`. Then, on your own data:\n\n"
    "- `argus prepare movielens ml-100k data/ml`\n"
    "- `argus pretrain data/ml runs/pretrain`\n"
    "- `argus finetune data/ml runs/finetune --from runs/pretrain`\n"
    "- `argus evaluate data/ml runs/pretrain runs/finetune`\n"
    "- `argus recommend data/ml runs/finetune --user 42`",
)


class Source(str, Enum):
    """Where events come from."""

    yambda = "yambda"
    kuairand = "kuairand"
    movielens = "movielens"
    synthetic = "synthetic"


class Size(str, Enum):
    """Published model sizes, and one for a laptop."""

    tiny = "tiny"
    m3 = "3m"
    m19 = "19m"
    m126 = "126m"
    b1 = "1b"


class Protocol(str, Enum):
    """How events are held out."""

    temporal = "temporal"
    leave_last_out = "leave-last-out"


class TrainingProtocol(str, Enum):
    """How events are held out, if any are."""

    temporal = "temporal"
    leave_last_out = "leave-last-out"
    all = "all"


class Part(str, Enum):
    """Which held-out events are evaluated."""

    test = "test"
    validation = "validation"


class Score(str, Enum):
    """What orders the catalogue."""

    next_item = "next_item"
    pair = "pair"


class Ranking(str, Enum):
    """What orders impressions."""

    pair = "pair"
    next_item = "next_item"
    feedback = "feedback"


Data = Annotated[Path, typer.Argument(metavar="DATA", help="Directory that `argus prepare` made.", show_default=False)]
Out = Annotated[Path, typer.Argument(metavar="OUT", help="Directory of what is made here.", show_default=False)]
Device = Annotated[str, typer.Option(help="Where to compute: cpu, cuda, cuda:1, …")]
Threads = Annotated[
    int | None, typer.Option(min=1, help="CPU threads; OMP_NUM_THREADS or one for a small model by default.")
]
Json = Annotated[
    Path | None,
    typer.Option("--json", metavar="FILE", help="Write the figures of the table as JSON.", show_default=False),
]
Window = Annotated[
    int | None, typer.Option(help="Events of a user that the model sees at once; the recipe's by default.")
]
Steps = Annotated[int | None, typer.Option(help="Optimiser steps; the recipe's by default.")]
BatchEvents = Annotated[int | None, typer.Option(help="Events in a batch at most; the recipe's by default.")]
LearningRate = Annotated[float | None, typer.Option(help="Peak learning rate; the recipe's by default.")]
Seed = Annotated[int | None, typer.Option(help="Seed of weights, batches and negatives; 0 by default.")]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="NAME=VALUE", help="Any other setting of the model or the training; repeat it for several."
    ),
]
Recipe = Annotated[
    str | None,
    typer.Option(help="Settings to start from: default, demo, ml-100k, kuairand-pure; the data set's by default."),
]
Resume = Annotated[bool, typer.Option("--resume", help="Continue the run in OUT where it was stopped or killed.")]


def _print_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"argus-kernels {version('argus-kernels')}")
        raise typer.Exit


@app.callback()
def _common(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    pass


@app.command(epilog="Example: `argus demo --out demo`, then open `demo/report.html`.")
def demo(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where data, runs and the report go.")] = Path("argus-demo"),
    seed: Annotated[int, typer.Option(help="Seed of the service and of the training.")] = 0,
    device: Device = "cpu",
    threads: Threads = None,
    json_file: Json = None,
) -> None:
    """See ARGUS learn and recommend, in a minute or two on a laptop.

    Generates a synthetic music service whose truth is known, pre-trains a small model on it, fine-tunes it, evaluates
    both against popularity and against the truth (the oracle), recommends tracks to one user and writes an HTML report.
    """
    from python_model.demo import run_demo

    _check(device, json_file)
    try:
        run_demo(out, seed=seed, device=device, threads=threads, json_file=json_file)
    except KeyboardInterrupt:
        console.say(f"Stopped. The same command starts the demo anew: argus demo --out {shlex.quote(str(out))}")
        raise typer.Exit(INTERRUPTED) from None


@app.command(
    epilog="Examples: `argus prepare movielens ml-100k data/ml`, `argus prepare kuairand kuairand-pure data/kuairand`, "
    "`argus prepare yambda yambda/flat/50m data/yambda`, `argus prepare synthetic small data/small --set seed=7`."
)
def prepare(
    source: Annotated[Source, typer.Argument(help="The format to read.", show_default=False)],
    path: Annotated[
        str,
        typer.Argument(
            metavar="PATH", help="File or directory to read; for synthetic: demo, small or large.", show_default=False
        ),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Directory to make.", show_default=False)],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a prepared data set in OUT.")] = False,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="An option of the source; repeat for several."),
    ] = None,
) -> None:
    """Read interactions into the one format that training and evaluation use.

    Checks every row; an error names file, column and row, and leaves nothing half-written behind.
    """
    from python_model.data.prepare import prepare as prepare_data

    options = parse_settings(settings or [])
    if source is Source.synthetic:
        options["preset"] = path
    given = None if source is Source.synthetic else path
    with console.counting_progress(f"Preparing {source.value}") as advance:
        info = prepare_data(source.value, given, out, overwrite=overwrite, progress=advance, **options)
    console.say(f"{out}: {info.events:,} events of {info.users:,} users on {info.items:,} items")
    console.say(f"Next: argus pretrain {shlex.quote(str(out))} runs/pretrain")


@app.command(
    epilog="Examples: `argus pretrain data/ml runs/pretrain`, `argus pretrain data/ml runs/pretrain --resume`, "
    "`argus pretrain data/ml runs/full --steps 5000 --set form=full --set dropout=0.1`."
)
def pretrain(
    data: Data,
    out: Out,
    recipe: Recipe = None,
    size: Annotated[Size | None, typer.Option(help="Published size; the recipe's by default.")] = None,
    steps: Steps = None,
    window: Window = None,
    batch_events: BatchEvents = None,
    learning_rate: LearningRate = None,
    protocol: Annotated[TrainingProtocol | None, typer.Option(help="Which events are held out.")] = None,
    seed: Seed = None,
    settings: Set = None,
    device: Device = "cpu",
    threads: Threads = None,
    resume: Resume = False,
) -> None:
    """Pre-train: predict the next item and the feedback of every event, in one pass over each history.

    Checkpoints, metrics.jsonl and TensorBoard logs (`tensorboard --logdir OUT`) go to OUT. Ctrl-C saves and leaves.
    """
    given = _given(steps, window, batch_events, learning_rate, seed, protocol, settings)
    _train(
        "pretrain",
        data,
        out,
        given,
        recipe=recipe,
        size=size.value if size else None,
        device=device,
        threads=threads,
        resume=resume,
    )


@app.command(
    epilog="Examples: `argus finetune data/ml runs/finetune --from runs/pretrain`, "
    "`argus finetune data/ml runs/alone --from-scratch`."
)
def finetune(
    data: Data,
    out: Out,
    source: Annotated[
        Path | None,
        typer.Option("--from", metavar="RUN", help="Run of `argus pretrain` to start from.", show_default=False),
    ] = None,
    from_scratch: Annotated[bool, typer.Option("--from-scratch", help="Start from random weights instead.")] = False,
    recipe: Recipe = None,
    protocol: Annotated[
        TrainingProtocol | None, typer.Option(help="Which events are held out; those of --from RUN by default.")
    ] = None,
    steps: Steps = None,
    window: Window = None,
    batch_events: BatchEvents = None,
    learning_rate: LearningRate = None,
    seed: Seed = None,
    settings: Set = None,
    device: Device = "cpu",
    threads: Threads = None,
    resume: Resume = False,
) -> None:
    """Fine-tune two towers: a user vector and item vectors whose dot product orders what the user was shown.

    The loss is pairwise, over the impressions of each user, in one pass over the history. Ctrl-C saves and leaves.
    """
    from python_model import checkpoint

    if (source is None) == (not from_scratch) and not (resume and checkpoint.exists(out)):
        raise ValueError("give either --from RUN (a run of `argus pretrain`) or --from-scratch")
    given = _given(steps, window, batch_events, learning_rate, seed, protocol, settings)
    _train("finetune", data, out, given, recipe=recipe, source=source, device=device, threads=threads, resume=resume)


@app.command(
    epilog="Examples: `argus evaluate data/ml runs/pretrain runs/finetune --json table.json --report report.html`, "
    "`argus evaluate data/ml runs/finetune alone=runs/alone`."
)
def evaluate(
    data: Data,
    runs: Annotated[
        list[str], typer.Argument(metavar="RUN…", help="Trained runs, or ROW=RUN to name the row.", show_default=False)
    ],
    protocol: Annotated[
        Protocol | None, typer.Option(help="Held-out events; those the runs were trained for by default.")
    ] = None,
    part: Annotated[Part, typer.Option(help="Which held-out events.")] = Part.test,
    k: Annotated[list[int], typer.Option("--k", help="Cut-off of recall and NDCG; repeat it for several.")] = [10],  # noqa: B006
    max_events: Annotated[
        int | None, typer.Option(help="Evaluate users drawn at random until there are this many events.")
    ] = None,
    window: Window = None,
    item_average: Annotated[
        bool, typer.Option("--item-average", help="Add the row item_average: what each item got from others.")
    ] = False,
    ranking: Annotated[
        Ranking | None,
        typer.Option(help="Score that orders impressions; pair for fine-tuned runs, next_item for others by default."),
    ] = None,
    device: Device = "cpu",
    threads: Threads = None,
    json_file: Json = None,
    report: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a one-file HTML report.", show_default=False)
    ] = None,
) -> None:
    """Compare trained runs with popularity (and, on synthetic data, with the truth) on held-out events.

    NDCG and recall rank the whole catalogue for the next item; pairwise accuracy orders impressions of different
    feedback; normalised entropies (ne) are log losses relative to knowing frequencies only, below 1 is better.
    """
    from python_model import runs as training_runs
    from python_model.data.schema import load_dataset

    _check(device, json_file)
    dataset = load_dataset(data)
    opened = training_runs.open_runs(runs, dataset)
    training_runs.use_threads(threads, max(run.description.model_config.width for run in opened))
    result = training_runs.evaluate_runs(
        opened, dataset, device=device, protocol=protocol.value if protocol else None, part=part.value,
        k=k, max_events=max_events, window=window, item_average=item_average,
        ranking_kind=ranking.value if ranking else None,
    )  # fmt: skip
    console.stdout().print(console.metrics_table(result))
    for note in result.notes:
        console.say(f"Note: {note}")
    if json_file is not None:
        console.write_json(json_file, result.to_dict())
    if report is not None:
        from python_model.report import write_report

        title = f"ARGUS on {dataset.info.name}"
        write_report(report, title=title, dataset=dataset, result=result, stages=training_runs.stages_of(opened))
        console.say(f"Report: {report}")


@app.command(epilog="Example: `argus recommend data/ml runs/finetune --user 42 --user 7 --k 5 --exclude-seen`.")
def recommend(
    data: Data,
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A trained run.", show_default=False)],
    user: Annotated[
        list[str],
        typer.Option("--user", help="User id as in the source data; repeat it for several.", show_default=False),
    ],
    k: Annotated[int, typer.Option("--k", help="How many items.")] = 10,
    exclude_seen: Annotated[
        bool, typer.Option("--exclude-seen", help="Leave out items that the user's history already has.")
    ] = False,
    score: Annotated[
        Score, typer.Option(help="next_item: what comes next; pair: what would be liked, the fine-tuned ranker.")
    ] = Score.next_item,
    window: Window = None,
    device: Device = "cpu",
    threads: Threads = None,
    json_file: Json = None,
) -> None:
    """Recommend items to users: the best of the whole catalogue after their last event, and why."""
    from dataclasses import asdict

    from python_model import checkpoint
    from python_model.data.schema import load_dataset
    from python_model.recommend import find_users
    from python_model.recommend import recommend as best_items
    from python_model.runs import require_fit, use_threads

    _check(device, json_file)
    dataset = load_dataset(data)
    description = checkpoint.read_description(run)
    require_fit(run, description, dataset)
    use_threads(threads, description.model_config.width)
    if score is Score.pair and description.stage != "finetune":
        raise ValueError(f"--score pair needs a fine-tuned run; {run} is pre-trained only")
    users = find_users(dataset, user)
    found = best_items(
        checkpoint.load_model(run, device), dataset, users, k=k, window=window or description.train_config.window,
        exclude_seen=exclude_seen, score=score.value, device=device,
    )  # fmt: skip
    console.print_recommendations(found)
    if json_file is not None:
        console.write_json(json_file, {"users": [asdict(one) for one in found]})


study = typer.Typer(
    cls=ArgusGroup,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Studies: one question each, with a table, a figure and the numbers behind them.",
)
app.add_typer(study, name="study")


@study.command(epilog="Example: `argus study logq runs/logq`, about two minutes on one core.")
def logq(
    out: Annotated[
        Path, typer.Argument(metavar="OUT", help="Directory of the results; made here.", show_default=False)
    ],
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps of each model.")] = 3000,
    seeds: Annotated[int, typer.Option(min=1, help="Models of each loss.")] = 3,
    negatives: Annotated[int, typer.Option(min=2, help="Negatives of a step, half of the batch, half uniform.")] = 64,
    threads: Threads = 1,
) -> None:
    """What the logQ correction is worth, on data whose true probabilities are known; resumes where it was stopped."""
    import torch

    from python_model.studies import logq as study_of_logq

    settings = study_of_logq.Settings(steps=steps, seeds=seeds, negatives=negatives)
    torch.set_num_threads(threads or 1)
    out.mkdir(parents=True, exist_ok=True)
    found = study_of_logq.read(out / "logq.json", settings)
    for outcome in study_of_logq.outcomes(settings, list(found)):
        found.append(outcome)
        study_of_logq.write(out, settings, found)
        console.say(f"{outcome.loss}, seed {outcome.seed}: {outcome.divergence[-1]:.4f} nats from the truth")
    console.say(study_of_logq.table(found))
    console.say(f"Written: {out}/logq.md, logq_divergence.svg, logq_offset.svg, logq.json")


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True}, add_help_option=False)
def doctor(context: typer.Context) -> None:
    """Say what is installed, which backend serves which op on this machine, and why others do not."""
    from argus_kernels import doctor as kernels_doctor

    raise typer.Exit(kernels_doctor.main(context.args))


def _given(
    steps: int | None, window: int | None, batch_events: int | None, learning_rate: float | None, seed: int | None,
    protocol: TrainingProtocol | None, settings: list[str] | None,
) -> dict[str, Any]:  # fmt: skip
    """The settings that the user named, by their names in the configurations; --set goes last."""
    named: dict[str, Any] = {
        "steps": steps,
        "window": window,
        "batch_events": batch_events,
        "learning_rate": learning_rate,
        "seed": seed,
        "protocol": protocol.value if protocol else None,
    }
    return {name: value for name, value in named.items() if value is not None} | parse_settings(settings or [])


def parse_settings(assignments: Sequence[str]) -> dict[str, Any]:
    """NAME=VALUE texts as a mapping; values are JSON where they can be read as JSON, else strings."""
    out: dict[str, Any] = {}
    for text in assignments:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise ValueError(f"--set {text!r}: expected NAME=VALUE")
        try:
            out[name.strip()] = json.loads(value)
        except json.JSONDecodeError:
            out[name.strip()] = value
    return out


def _train(
    stage: str, data: Path, out: Path, given: dict[str, Any], *, recipe: str | None, size: str | None = None,
    source: Path | None = None, device: str, threads: int | None, resume: bool,
) -> None:  # fmt: skip
    from python_model import checkpoint, runs
    from python_model.data.schema import load_dataset
    from python_model.train import train

    _check(device)
    dataset = load_dataset(data)
    resumed = resume and checkpoint.exists(out)
    if resume and not resumed:
        console.say(f"{out} has no checkpoint yet: starting from the beginning")
    model_config, train_config = runs.settings_of(
        stage, dataset, given, recipe=recipe, size=size, source=source, resumed=out if resumed else None
    )
    runs.use_threads(threads, model_config.width)
    title = runs.TITLE_OF_STAGE[stage].capitalize()
    try:
        with console.TrainingProgress(title) as progress:
            train(
                stage, dataset, out, model_config, train_config, resume=resume, init_from=source, progress=progress,
                device=device,
            )  # fmt: skip
    except KeyboardInterrupt:
        _say_how_to_resume(stage, data, out)
        raise typer.Exit(INTERRUPTED) from None
    step = checkpoint.read_description(out).step
    console.say(f"{title} ends after {step:,} steps: {out}")
    _say_next(stage, data, out)


def _say_how_to_resume(stage: str, data: Path, out: Path) -> None:
    from python_model import checkpoint

    if not checkpoint.exists(out):
        console.say("Stopped before the first step was saved; nothing to resume.")
        return
    step = checkpoint.read_description(out).step
    command = shlex.join(["argus", stage, str(data), str(out), "--resume"])
    console.say(f"Stopped and saved after step {step:,}. Resume with: {command}")


def _say_next(stage: str, data: Path, out: Path) -> None:
    if stage == "pretrain":
        command = ["argus", "finetune", str(data), "runs/finetune", "--from", str(out)]
    else:
        command = ["argus", "evaluate", str(data), str(out)]
    console.say(f"Next: {shlex.join(command)}")


def _check(device: str, json_file: Path | None = None) -> None:
    """Refuse a device that is not there and a --json that cannot be written before the work rather than after it."""
    if json_file is not None and not json_file.parent.is_dir():
        raise ValueError(f"--json {json_file}: the directory {json_file.parent} is not there")
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"--device {device}: {str(error).splitlines()[0]}") from error


def main() -> None:
    """Entry point of the `argus` script."""
    app(prog_name="argus")


if __name__ == "__main__":
    main()
