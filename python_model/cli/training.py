"""`argus pretrain` and `argus finetune`."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from python_model.cli.app import app, exit_code
from python_model.cli.options import (
    BatchEvents,
    Data,
    Device,
    Epochs,
    LearningRate,
    Out,
    Patience,
    Profile,
    Recipe,
    Resume,
    Seed,
    Set,
    Size,
    Steps,
    Threads,
    TrainingProtocol,
    Window,
    check,
    parse_settings,
)
from python_model.io.errors import counted
from python_model.reporting import console

if TYPE_CHECKING:
    from python_model.data.schema import Dataset
    from python_model.training.progress import StepReport
    from python_model.training.runs import Settings


@app.command(
    epilog="Examples: `argus pretrain data/ml runs/pretrain`, `argus pretrain data/ml runs/pretrain --resume`, "
    "`argus pretrain data/ml runs/full --steps 5000 --set form=full --set dropout=0.1`, "
    "`argus pretrain data/newer runs/newer --from runs/pretrain`."
)
def pretrain(
    data: Data,
    out: Out,
    source: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="RUN",
            show_default=False,
            help="Run of `argus pretrain` to continue on this data, which may have other items.",
        ),
    ] = None,
    recipe: Recipe = None,
    size: Annotated[Size | None, typer.Option(help="Published size; the recipe's by default.")] = None,
    steps: Steps = None,
    epochs: Epochs = None,
    window: Window = None,
    batch_events: BatchEvents = None,
    learning_rate: LearningRate = None,
    protocol: Annotated[TrainingProtocol | None, typer.Option(help="Which events are held out.")] = None,
    seed: Seed = None,
    patience: Patience = None,
    settings: Set = None,
    device: Device = "auto",
    threads: Threads = None,
    resume: Resume = False,
    profile: Profile = None,
) -> None:
    """Pre-train: predict the next item and the feedback of every event, in one pass over each history.

    Checkpoints, metrics.jsonl and TensorBoard logs (`tensorboard --logdir OUT`) go to OUT. Ctrl-C saves and leaves.
    """
    given = _given(
        settings, protocol, steps=steps, epochs=epochs, window=window, batch_events=batch_events,
        learning_rate=learning_rate, seed=seed, patience=patience,
    )  # fmt: skip
    _train(
        "pretrain",
        data,
        out,
        given,
        recipe=recipe,
        size=size.value if size else None,
        source=source,
        device=device,
        threads=threads,
        resume=resume,
        profile=profile,
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
    epochs: Epochs = None,
    window: Window = None,
    batch_events: BatchEvents = None,
    learning_rate: LearningRate = None,
    seed: Seed = None,
    patience: Patience = None,
    settings: Set = None,
    device: Device = "auto",
    threads: Threads = None,
    resume: Resume = False,
    profile: Profile = None,
) -> None:
    """Fine-tune two towers: a user vector and item vectors whose dot product orders what the user was shown.

    The loss is pairwise, over the impressions of each user, in one pass over the history. Ctrl-C saves and leaves.
    """
    from python_model.training import checkpoint

    goes_on = resume and checkpoint.exists(out)
    if (source is not None and from_scratch) or (source is None and not from_scratch and not goes_on):
        raise ValueError("give either --from RUN (a run of `argus pretrain`) or --from-scratch")
    given = _given(
        settings, protocol, steps=steps, epochs=epochs, window=window, batch_events=batch_events,
        learning_rate=learning_rate, seed=seed, patience=patience,
    )  # fmt: skip
    _train(
        "finetune", data, out, given, recipe=recipe, source=source, from_scratch=from_scratch, device=device,
        threads=threads, resume=resume, profile=profile,
    )  # fmt: skip


def _given(settings: list[str] | None, protocol: TrainingProtocol | None, **named: Any) -> dict[str, Any]:
    """The settings that the user named, by their names in the configurations; --set goes last."""
    named["protocol"] = protocol.value if protocol else None
    return {name: value for name, value in named.items() if value is not None} | parse_settings(settings or [])


def _train(
    stage: str, data: Path, out: Path, given: dict[str, Any], *, recipe: str | None, size: str | None = None,
    source: Path | None = None, from_scratch: bool = False, device: str, threads: int | None, resume: bool,
    profile: int | None,
) -> None:  # fmt: skip
    from python_model.data.schema import load_dataset
    from python_model.train import train
    from python_model.training import checkpoint, process_group, runs
    from python_model.training.continued import Continuation
    from python_model.training.step_profile import StepProfile

    check(device)
    # The elastic agent restarts the same command line: the run exists by then and must be resumed.
    resume = resume or (process_group.restarted() and checkpoint.exists(out))
    say = console.say if process_group.is_first() else _say_nothing
    dataset = load_dataset(data)
    resumed = resume and checkpoint.exists(out)
    if resume and not resumed:
        say(f"{out} has no checkpoint yet: starting from the beginning")
    settings = runs.settings_of(
        stage, dataset, given, recipe=recipe, size=size, source=source, resumed=out if resumed else None,
        device=device,
    )  # fmt: skip
    if stage == "pretrain" and source is not None and not resumed:
        say(Continuation.of(checkpoint.chosen(source), dataset).text())
    for note in settings.notes:
        say(note)
    runs.use_threads(threads, settings.model.width)
    title = runs.TITLE_OF_STAGE[stage].capitalize()
    recorded = (
        StepProfile(out, profile, lambda found: say(found.text())) if profile and process_group.is_first() else None
    )
    try:
        with process_group.process_group(device) as own_device, _progress(title) as progress:
            train(
                stage, dataset, out, settings.model, settings.train, resume=resume, init_from=source,
                from_scratch=from_scratch, progress=progress, device=own_device, profile=recorded,
            )  # fmt: skip
    except KeyboardInterrupt as stop:
        if process_group.is_first():
            _record(dataset, out, settings, new=not resumed)
            _say_how_to_resume(stage, data, out)
        raise typer.Exit(exit_code(stop)) from None
    if process_group.is_first():
        _record(dataset, out, settings, new=not resumed)
        if recorded is not None:
            say(f"Profile: {recorded.directory}; open trace.json.gz in ui.perfetto.dev")
        say(f"{title} ends after {counted(checkpoint.read_description(out).step, 'step')}: {out}")
        for line in runs.verdict(out):
            say(line)
        _say_next(stage, data, out, checkpoint.read_description(out).train_config.protocol)


def _record(dataset: Dataset, out: Path, settings: Settings, *, new: bool) -> None:
    """OUT/recipe.toml: the settings of a new run whose recipe grew with the data, and what was chosen and why."""
    from dataclasses import asdict

    from python_model.training import checkpoint
    from python_model.training.grown import Size
    from python_model.training.recipe_file import RECIPE, write_recipe

    if not (new and settings.reasons and checkpoint.exists(out)):
        return
    about = {"data": dataset.info.name, **asdict(Size(dataset.info.events, dataset.info.users, dataset.info.items))}
    write_recipe(out / RECIPE, "\n".join(settings.notes), about, settings.model, settings.train)


def _progress(title: str) -> AbstractContextManager[Callable[[StepReport], None] | None]:
    """The progress bar; only the first rank shows one."""
    from python_model.training import process_group

    return console.TrainingProgress(title) if process_group.is_first() else nullcontext()


def _say_nothing(text: str) -> None:
    pass


def _say_how_to_resume(stage: str, data: Path, out: Path) -> None:
    from python_model.training import checkpoint, process_group

    if not checkpoint.exists(out):
        console.say("Stopped before the first step was saved; nothing to resume.")
        return
    step = checkpoint.read_description(out).step
    program = ["argus"] if process_group.launched() == 1 else ["torchrun", "…", "-m", "python_model"]
    command = " ".join([*program, shlex.join([stage, str(data), str(out), "--resume"])])
    console.say(f"Stopped and saved after step {step:,}. Resume with: {command}")


def _say_next(stage: str, data: Path, out: Path, protocol: str) -> None:
    if stage == "pretrain":
        command = ["argus", "finetune", str(data), "runs/finetune", "--from", str(out)]
    elif protocol == "all":
        # Nothing is held out, so there is nothing to evaluate on.
        command = ["argus", "export", str(data), str(out), "exports/all"]
    else:
        command = ["argus", "evaluate", str(data), str(out)]
    console.say(f"Next: {shlex.join(command)}")
