"""`argus study`: one command per study."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from python_model.cli.app import INTERRUPTED, study
from python_model.cli.options import (
    BatchEvents,
    Device,
    Part,
    Precision,
    Protocol,
    Set,
    Threads,
    Window,
    check,
    parse_settings,
)
from python_model.io.disk import replace_text
from python_model.io.errors import counted
from python_model.io.exclusive import owned
from python_model.io.settings import Between, shown
from python_model.reporting import console

if TYPE_CHECKING:
    from python_model.data.schema import Dataset
    from python_model.data.synthetic import SyntheticConfig
    from python_model.studies.study import Budget, Study

Number = TypeVar("Number", int, float)
StudyOut = Annotated[
    Path, typer.Argument(metavar="OUT", help="Directory of the results; made here.", show_default=False)
]
StudyData = Annotated[
    Path | None,
    typer.Option("--data", metavar="DATA", help="Prepared data set; the study's synthetic service by default."),
]
StudySteps = Annotated[int | None, typer.Option(min=1, help="Steps of pre-training; the study's own by default.")]
FinetuneSteps = Annotated[int | None, typer.Option(min=1, help="Steps of fine-tuning; the study's own by default.")]
Seeds = Annotated[int | None, typer.Option(min=1, max=1000, help="Models of each kind; the study's own by default.")]
MaxEvents = Annotated[
    int | None, typer.Option(min=1, help="Evaluate users drawn at random until there are this many events.")
]


@study.command(epilog="Example: `argus study logq runs/logq`.")
def logq(
    out: StudyOut,
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps of each model.")] = 3000,
    seeds: Annotated[int, typer.Option(min=1, max=1000, help="Models of each loss.")] = 3,
    negatives: Annotated[int, typer.Option(min=2, help="Negatives of a step, half of the batch, half uniform.")] = 64,
    threads: Threads = 1,
) -> None:
    """Measure the effect of the logQ correction on data with known true probabilities; resumes after a stop."""
    import torch

    from python_model.studies import logq as study_of_logq

    settings = study_of_logq.Settings(steps=steps, seeds=seeds, negatives=negatives)
    torch.set_num_threads(threads or 1)
    with owned(out):
        found = study_of_logq.read(out / "logq.json", settings)
        for outcome in study_of_logq.outcomes(settings, list(found)):
            found.append(outcome)
            study_of_logq.write(out, settings, found)
            console.say(f"{outcome.loss}, seed {outcome.seed}: {outcome.divergence[-1]:.4f} nats from the truth")
    console.say(study_of_logq.table(found))
    console.say(f"Written: {out}/logq.md, logq_divergence.svg, logq_offset.svg, logq.json")


@study.command(
    epilog="Examples: `argus study scaling runs/scaling`, `argus study scaling runs/scaling --data data/yambda "
    "--sizes 3m,19m,126m --steps 20000 --batch-events 65536 --window 2048 --device cuda --set precision=bfloat16`."
)
def scaling(
    out: StudyOut,
    sizes: Annotated[
        str, typer.Option(help="Presets or LAYERSxWIDTH, separated by commas.")
    ] = "1x16,1x32,2x32,2x64,2x128",
    growth: Annotated[
        float,
        typer.Option(min=0, max=1, help="Data and steps grow like parameters to this power; 0: the same for all."),
    ] = 0.5,
    compute: Annotated[
        str, typer.Option(help="Budgets at which sizes are compared, shares of the largest size's; none where empty.")
    ] = "0.02,0.1",
    data: StudyData = None,
    steps: StudySteps = None,
    finetune_steps: FinetuneSteps = None,
    batch_events: BatchEvents = None,
    window: Window = None,
    seeds: Seeds = None,
    max_events: MaxEvents = None,
    settings: Set = None,
    device: Device = "auto",
    threads: Threads = None,
) -> None:
    """Quality over the size of the model, data and compute grown along, and at equal compute; resumes after a stop."""
    from python_model.studies.scaling import SERVICE
    from python_model.studies.scaling import scaling as study_of_scaling
    from python_model.studies.study import shapes_of

    chosen = as_list(sizes)
    shares = _numbers("--compute", compute, float, Between(1e-6, 1)) if compute else []
    budget = budget_of(steps, finetune_steps, batch_events, window, seeds, max_events, settings)
    widest = max(shapes_of(size).width for size in chosen)
    make = partial(study_of_scaling, sizes=chosen, budget=budget, growth=growth, compute=shares)
    _run(out, data, SERVICE, make, device, threads, widest)


@study.command(
    epilog="Examples: `argus study context runs/context`, `argus study context runs/loyalty --without loyalty`, "
    "`argus study context runs/each --train-each --device cuda --batch-events 65536 --steps 20000`."
)
def context(
    out: StudyOut,
    windows: Annotated[
        str, typer.Option(help="Events of a user that a model sees, separated by commas.")
    ] = "128,512,2048",
    train_each: Annotated[
        bool, typer.Option("--train-each", help="Train a model for each context, not one for all.")
    ] = False,
    without: Annotated[
        str, typer.Option(help="Memories of the service to leave out: seasons, loyalty, discovery, by commas.")
    ] = "",
    short_steps: Annotated[
        int, typer.Option(min=0, help="Steps on windows of 2,048 events before those on longer ones.")
    ] = 0,
    data: StudyData = None,
    steps: StudySteps = None,
    batch_events: BatchEvents = None,
    window: Window = None,
    seeds: Seeds = None,
    max_events: MaxEvents = None,
    settings: Set = None,
    device: Device = "auto",
    threads: Threads = None,
) -> None:
    """Quality over the length of the context, on a service with a long memory; resumes where it was stopped."""
    from python_model.studies.context import SERVICE, service
    from python_model.studies.context import context as study_of_context

    chosen = _numbers("--windows", windows, int, Between(2, 2**31 - 1))
    if without and data is not None:
        raise ValueError(f"--without {without} changes the study's own service: leave out --data")
    budget = budget_of(steps, None, batch_events, window, seeds, max_events, settings)
    make = partial(study_of_context, windows=chosen, budget=budget, train_each=train_each, short_steps=short_steps)
    _run(out, data, SERVICE if data is not None else service(chosen, as_list(without)), make, device, threads)


@study.command("data", epilog="Example: `argus study data runs/data --shares 0.05,0.2,1`.")
def data_share(
    out: StudyOut,
    shares: Annotated[
        str, typer.Option(help="Shares of the users to train on, separated by commas.")
    ] = "0.015625,0.0625,0.25,1",
    data: StudyData = None,
    steps: StudySteps = None,
    finetune_steps: FinetuneSteps = None,
    batch_events: BatchEvents = None,
    window: Window = None,
    seeds: Seeds = None,
    max_events: MaxEvents = None,
    settings: Set = None,
    device: Device = "auto",
    threads: Threads = None,
) -> None:
    """Quality over the amount of training data, at equal steps; resumes where it was stopped."""
    from python_model.studies.data_share import SERVICE
    from python_model.studies.data_share import data_share as study_of_data

    chosen = _numbers("--shares", shares, float, Between(1e-6, 1))
    budget = budget_of(steps, finetune_steps, batch_events, window, seeds, max_events, settings)
    _run(out, data, SERVICE, lambda dataset: study_of_data(dataset, chosen, budget), device, threads)


@study.command(
    epilog="Examples: `argus study ablations runs/ablations`, "
    "`argus study ablations runs/lag --data data/kuairand --only no_lag,no_lag_seen`."
)
def ablations(
    out: StudyOut,
    only: Annotated[
        str, typer.Option(help="Ablations to run beside the full model, separated by commas; all by default.")
    ] = "",
    data: StudyData = None,
    steps: StudySteps = None,
    finetune_steps: FinetuneSteps = None,
    batch_events: BatchEvents = None,
    window: Window = None,
    seeds: Seeds = None,
    max_events: MaxEvents = None,
    settings: Set = None,
    device: Device = "auto",
    threads: Threads = None,
) -> None:
    """Measure the effect of each part of the model by leaving it out; resumes where it was stopped."""
    from python_model.studies.ablations import SERVICE
    from python_model.studies.ablations import ablations as study_of_ablations

    chosen = as_list(only)
    budget = budget_of(steps, finetune_steps, batch_events, window, seeds, max_events, settings)
    _run(out, data, SERVICE, lambda dataset: study_of_ablations(dataset, chosen, budget), device, threads)


@study.command(epilog="Example: `argus study forms runs/forms`.")
def forms(
    out: StudyOut,
    data: StudyData = None,
    steps: StudySteps = None,
    finetune_steps: FinetuneSteps = None,
    batch_events: BatchEvents = None,
    window: Window = None,
    seeds: Seeds = None,
    max_events: MaxEvents = None,
    settings: Set = None,
    device: Device = "auto",
    threads: Threads = None,
) -> None:
    """Full form against simplified, two heads against one, a year of fine-tuning against a week; resumes."""
    from python_model.studies.forms import SERVICE
    from python_model.studies.forms import forms as study_of_forms

    budget = budget_of(steps, finetune_steps, batch_events, window, seeds, max_events, settings)
    _run(out, data, SERVICE, partial(study_of_forms, budget=budget), device, threads)


@study.command(
    epilog="Examples: `argus study recipes runs/recipes --data data/ml`, "
    "`argus study recipes runs/recipes --data data/ml --trials 12` (goes on), "
    "`argus study recipes runs/temporal --data data/shop --protocol temporal --epochs 2`."
)
def recipes(
    out: StudyOut,
    data: StudyData = None,
    trials: Annotated[int, typer.Option(min=1, max=1000, help="Settings of each model.")] = 6,
    epochs: Annotated[float, typer.Option(min=1e-3, max=1e6, help="Passes over the training events of a run.")] = 8.0,
    evaluations: Annotated[int, typer.Option(min=1, max=1000, help="On the validation part, of a run.")] = 4,
    seeds: Annotated[int, typer.Option(min=1, max=1000, help="Models of the best settings.")] = 3,
    protocol: Annotated[Protocol, typer.Option(help="Which events are held out.")] = Protocol.leave_last_out,
    validate_events: Annotated[int, typer.Option(min=1, help="Events of the validation part, whole users.")] = 4000,
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Of the settings that are drawn.")] = 0,
    settings: Set = None,
    device: Device = "auto",
    threads: Threads = None,
) -> None:
    """Search for the best settings of ARGUS, SASRec and HSTU with the same effort, on the validation part alone.

    The best of each is then trained with every seed and evaluated on the test part. Resumes after a stop; more trials
    continue a search.
    """
    from python_model.data.synthetic import preset
    from python_model.studies import recipes as study_of_recipes
    from python_model.studies.study import open_data
    from python_model.training.runs import use_threads

    check(device)
    plan = study_of_recipes.Plan(
        trials, epochs, evaluations, seeds, seed, protocol.value, validate_events, parse_settings(settings or [])
    )
    dataset = open_data(data, preset("demo"), out)
    use_threads(threads, 128)
    try:
        with owned(out):
            written = study_of_recipes.search(
                dataset, out, plan, device=device, show=console.TrainingProgress, say=console.say
            )
    except KeyboardInterrupt:
        console.say("Stopped and saved. Run the same command again to go on.")
        raise typer.Exit(INTERRUPTED) from None
    console.say(written[1].read_text("utf-8"))
    console.say(f"Written: {', '.join(str(file) for file in written)}")


@study.command(
    "one-pass",
    epilog="Examples: `argus study one-pass runs/one-pass`, "
    "`argus study one-pass runs/one-pass-3m --size 3m --most 40`.",
)
def one_pass(
    out: StudyOut,
    size: Annotated[str, typer.Option(help="A preset or LAYERSxWIDTH.")] = "tiny",
    lengths: Annotated[str, typer.Option(help="Events of the history, separated by commas.")] = "256,512,1024,2048",
    most: Annotated[
        int | None,
        typer.Option(min=1, help="Impressions to run one by one, evenly spread; all by default. Fewer are scaled up."),
    ] = None,
    batch_events: Annotated[int, typer.Option(min=1, help="Events in a batch of prefixes at most.")] = 8192,
    data: StudyData = None,
    precision: Annotated[Precision, typer.Option(help="Of the arithmetic; bfloat16 is autocast.")] = Precision.float32,
    device: Device = "auto",
    threads: Threads = None,
) -> None:
    """One training pass over a history against one pass per impression, timed in one run.

    Resumes after the last length that was measured.
    """
    import torch

    from python_model.data.identity import identity_of
    from python_model.model.argus import Argus
    from python_model.studies import one_pass as study_of_passes
    from python_model.studies.study import open_data, shapes_of
    from python_model.training.runs import use_threads

    check(device)
    chosen = sorted(_numbers("--lengths", lengths, int, Between(2, 2**31 - 1)))
    shapes = shapes_of(size)
    use_threads(threads, shapes.width)
    dataset = open_data(data, study_of_passes.SERVICE, out)
    settings = {
        "size": size, "most": most, "batch_events": batch_events, "precision": precision.value, "device": device,
        "threads": torch.get_num_threads(), "data": identity_of(dataset),
    }  # fmt: skip
    torch.manual_seed(0)
    model = Argus.for_dataset(shapes, dataset).to(device)
    with owned(out):
        costs = study_of_passes.read(out / "one_pass.json", settings)
        for events in chosen:
            if any(one.events == events for one in costs):
                continue
            batch = study_of_passes.one_history(dataset, events, device)
            costs.append(
                study_of_passes.measure(model, batch, most=most, budget=batch_events, precision=precision.value)
            )
            study_of_passes.write(out, settings, costs)
            ratio = f"{costs[-1].ratio:.0f} times as long as one pass"
            console.say(f"{counted(events, 'event')}: a pass per impression takes {ratio}")
    console.say(study_of_passes.table(costs))
    console.say(f"Written: {out}/one_pass.md, one_pass_ratio.svg, one_pass.json")


@study.command(epilog="Example: `argus study ceiling runs/ceiling`, some seconds.")
def ceiling(out: StudyOut, data: StudyData = None, part: Annotated[Part, typer.Option()] = Part.test) -> None:
    """Compute the highest pairwise accuracy possible on a synthetic service, between popularity and the oracle."""
    from dataclasses import asdict

    from python_model.data.synthetic import preset
    from python_model.studies import ceiling as study_of_ceilings
    from python_model.studies.study import open_data

    dataset = open_data(data, preset("demo"), out)
    found = study_of_ceilings.reaches(dataset, part.value)
    text = study_of_ceilings.table(found)
    with owned(out):
        replace_text(out / "ceiling.md", text)
        console.write_json(out / "ceiling.json", {"data": dataset.info.name, "rows": [asdict(one) for one in found]})
    console.say(text)
    console.say(f"Written: {out}/ceiling.md, ceiling.json")


def as_list(text: str) -> list[str]:
    """The parts of a text between commas."""
    return [part.strip() for part in text.split(",") if part.strip()]


def _numbers(option: str, text: str, kind: Callable[[str], Number], bounds: Between) -> list[Number]:
    """The comma-separated numbers of an option, each within bounds; ValueError naming the first that is not."""
    found = []
    for part in as_list(text):
        try:
            number = kind(part)
        except ValueError:
            number = None
        if number is None or number not in bounds:
            raise ValueError(f"{option}: expected numbers {bounds} separated by commas, found {shown(part)}")
        found.append(number)
    if not found:
        raise ValueError(f"{option}: expected numbers separated by commas, found {text!r}")
    return found


def budget_of(
    steps: int | None, finetune_steps: int | None, batch_events: int | None, window: int | None, seeds: int | None,
    max_events: int | None, settings: list[str] | None,
) -> Budget:  # fmt: skip
    """The budget that the options of a study give."""
    from python_model.studies.study import Budget, require_budget

    given = parse_settings(settings or [])
    budget = Budget(steps, finetune_steps, batch_events, window, seeds, max_events, given)
    require_budget(budget)
    return budget


def _run(
    out: Path, data: Path | None, service: SyntheticConfig, make: Callable[[Dataset], Study], device: str,
    threads: int | None, width: int = 0,
) -> None:  # fmt: skip
    """Open or make the data and run the study."""
    from python_model.studies.study import open_data

    check(device)
    run(out, open_data(data, service, out), make, device, threads, width)


def run(
    out: Path, dataset: Dataset, make: Callable[[Dataset], Study], device: str, threads: int | None, width: int = 0
) -> None:
    """Run a study; print which files were written, or how to resume."""
    from python_model.studies.study import run_study
    from python_model.training.runs import use_threads

    check(device)
    use_threads(threads, width)
    try:
        written = run_study(make(dataset), dataset, out, device=device, show=console.TrainingProgress, say=console.say)
    except KeyboardInterrupt:
        console.say("Stopped and saved. Run the same command again to go on.")
        raise typer.Exit(INTERRUPTED) from None
    console.say((out / written[1].name).read_text("utf-8"))
    console.say(f"Written: {', '.join(str(file) for file in written)}")
