"""`argus evaluate` and `argus recommend`: the metrics and the recommendations of trained runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from python_model.cli.app import app
from python_model.cli.options import (
    Data,
    Device,
    Json,
    Lists,
    Part,
    Protocol,
    Ranking,
    Score,
    Threads,
    WhichCheckpoint,
    Window,
    check,
)
from python_model.reporting import console

if TYPE_CHECKING:
    from python_model.data.schema import Dataset
    from python_model.evaluation.evaluate import EvaluationResult
    from python_model.reporting.report import Stage

Cutoffs = Annotated[list[int], typer.Option("--k", min=1, help="Cut-off of recall and NDCG; repeat it for several.")]


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
    k: Cutoffs = [10],  # noqa: B006
    max_events: Annotated[
        int | None, typer.Option(min=1, help="Evaluate users drawn at random until there are this many events.")
    ] = None,
    window: Window = None,
    item_average: Annotated[
        bool, typer.Option("--item-average", help="Add the row item_average: what each item got from others.")
    ] = False,
    item_knn: Annotated[
        bool, typer.Option("--item-knn", help="Add the row item_knn: what users of the same items also had.")
    ] = False,
    ranking: Annotated[
        Ranking | None,
        typer.Option(help="Score that orders impressions; pair for fine-tuned runs, next_item for others by default."),
    ] = None,
    metrics: Annotated[
        Lists,
        typer.Option(
            "--metrics", help="NDCG and recall under the protocol yambda: benchmark takes the published definitions."
        ),
    ] = Lists.per_user,
    details: Annotated[
        bool, typer.Option("--details", help="Add items new to the user, coverage, Gini, calibration, intervals.")
    ] = False,
    which: WhichCheckpoint = None,
    device: Device = "auto",
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
    from python_model.data.schema import load_dataset
    from python_model.training import runs as training_runs

    check(device, json_file, report)
    dataset = load_dataset(data)
    opened = training_runs.open_runs(runs, dataset, which.value if which else None)
    training_runs.use_threads(threads, max(run.description.model_config.width for run in opened))
    result = training_runs.evaluate_runs(
        opened, dataset, device=device, protocol=protocol.value if protocol else None, part=part.value,
        k=k, max_events=max_events, window=window, item_average=item_average, item_knn=item_knn,
        ranking_kind=ranking.value if ranking else None, lists=metrics.value, details=details,
    )  # fmt: skip
    stages = training_runs.stages_of(opened) if report is not None else []
    _present(result, dataset, stages, json_file, report)


def _present(
    result: EvaluationResult, dataset: Dataset, stages: list[Stage], json_file: Path | None, report: Path | None
) -> None:
    """Write the files, then print: they are complete even if `| head` closes the output while the table is printed."""
    if json_file is not None:
        console.write_json(json_file, result.to_dict())
    if report is not None:
        from python_model.reporting.report import write_report

        title = f"ARGUS on {dataset.info.name}"
        write_report(report, title=title, dataset=dataset, result=result, stages=stages)
    console.stdout().print(console.metrics_table(result))
    if result.details:
        for table in console.details_tables(result):
            console.stdout().print(table)
    for note in result.notes:
        console.say(f"Note: {note}")
    if report is not None:
        console.say(f"Report: {report}")


@app.command(epilog="Example: `argus recommend data/ml runs/finetune --user 42 --user 7 --k 5 --exclude-seen`.")
def recommend(
    data: Data,
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A trained run.", show_default=False)],
    user: Annotated[
        list[str],
        typer.Option("--user", help="User id as in the source data; repeat it for several.", show_default=False),
    ],
    k: Annotated[int, typer.Option("--k", min=1, help="How many items.")] = 10,
    exclude_seen: Annotated[
        bool, typer.Option("--exclude-seen", help="Leave out items that the user's history already has.")
    ] = False,
    score: Annotated[
        Score, typer.Option(help="next_item: what comes next; pair: what would be liked, the fine-tuned ranker.")
    ] = Score.next_item,
    window: Window = None,
    which: WhichCheckpoint = None,
    device: Device = "auto",
    threads: Threads = None,
    json_file: Json = None,
) -> None:
    """Recommend items to users: the best of the whole catalogue after their last event, and why."""
    from dataclasses import asdict

    from python_model.data.schema import load_dataset
    from python_model.evaluation.recommend import find_users
    from python_model.evaluation.recommend import recommend as best_items
    from python_model.training import checkpoint
    from python_model.training.runs import require_fit, use_threads

    check(device, json_file)
    dataset = load_dataset(data)
    directory = checkpoint.chosen(run, which.value if which else None)
    description = checkpoint.read_description(directory)
    require_fit(run, description, dataset)
    use_threads(threads, description.model_config.width)
    if score is Score.pair and description.stage != "finetune":
        raise ValueError(f"--score pair needs a fine-tuned run; {run} is pre-trained only")
    users = find_users(dataset, user)
    found = best_items(
        checkpoint.load_recommender(directory, device), dataset, users, k=k,
        window=window or description.train_config.window, exclude_seen=exclude_seen, score=score.value, device=device,
    )  # fmt: skip
    if json_file is not None:
        console.write_json(json_file, {"users": [asdict(one) for one in found]})
    console.print_recommendations(found)
