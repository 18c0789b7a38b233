"""`argus compare`: ARGUS and its baselines under one budget, in one table."""

from __future__ import annotations

from typing import Annotated

import typer

from python_model.cli.app import app
from python_model.cli.options import BatchEvents, Data, Device, Part, Set, Threads, Window
from python_model.cli.studies import FinetuneSteps, MaxEvents, Seeds, StudyOut, StudySteps, as_list, budget_of, run


@app.command(
    epilog="Examples: `argus compare data/ml runs/compare --seeds 3`, "
    "`argus compare data/ml runs/tuning --part validation --models argus,hstu --set dropout=0.3`."
)
def compare(
    data: Data,
    out: StudyOut,
    models: Annotated[
        str, typer.Option(help="argus, hstu, sasrec, sasrec_bce, argus_hstu, separated by commas.")
    ] = "argus,hstu,sasrec,sasrec_bce",
    steps: StudySteps = None,
    finetune_steps: FinetuneSteps = None,
    batch_events: BatchEvents = None,
    window: Window = None,
    seeds: Seeds = None,
    part: Annotated[Part, typer.Option(help="Which held-out events.")] = Part.test,
    max_events: MaxEvents = None,
    settings: Set = None,
    device: Device = "auto",
    threads: Threads = None,
) -> None:
    """Train ARGUS, HSTU and SASRec with equal budgets and compare them, popularity and item-kNN on held-out events.

    The table, the figures and their numbers go to OUT (compare.md, compare_*.svg, compare.json). The same command
    resumes after a stop; finished models are not trained again.
    """
    from python_model.data.schema import load_dataset
    from python_model.studies.compare import compare as study_of_models

    budget = budget_of(steps, finetune_steps, batch_events, window, seeds, max_events, settings)
    chosen = as_list(models)
    dataset = load_dataset(data)
    run(out, dataset, lambda found: study_of_models(found, chosen, budget, part.value), device, threads)
