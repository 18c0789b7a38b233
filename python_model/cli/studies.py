"""`argus study`: one command a study."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from python_model import console
from python_model.cli.app import study
from python_model.cli.options import Threads


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
