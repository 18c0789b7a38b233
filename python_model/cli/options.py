"""Options that several commands share, and what is checked of them before any work begins."""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from python_model.io.json_text import parse
from python_model.io.settings_help import asked, listing


class Source(str, Enum):
    """Where events come from."""

    yambda = "yambda"
    kuairand = "kuairand"
    movielens = "movielens"
    table = "table"
    synthetic = "synthetic"


class Size(str, Enum):
    """Published model sizes, and one for a laptop; the same with the HSTU encoder."""

    tiny = "tiny"
    m3 = "3m"
    m19 = "19m"
    m126 = "126m"
    b1 = "1b"
    hstu_tiny = "hstu-tiny"
    hstu_m3 = "hstu-3m"
    hstu_m19 = "hstu-19m"
    hstu_m126 = "hstu-126m"
    hstu_b1 = "hstu-1b"
    hstu_dlrm_v4 = "hstu-dlrm-v4"


class Cached(str, Enum):
    """What sessions keep keys and values in."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    int8 = "int8"


class Protocol(str, Enum):
    """How events are held out."""

    temporal = "temporal"
    leave_last_out = "leave-last-out"
    yambda = "yambda"


class TrainingProtocol(str, Enum):
    """How events are held out, if any are."""

    temporal = "temporal"
    leave_last_out = "leave-last-out"
    yambda = "yambda"
    all = "all"


class Part(str, Enum):
    """Which held-out events are evaluated."""

    test = "test"
    validation = "validation"


class Score(str, Enum):
    """What orders the catalogue."""

    next_item = "next_item"
    pair = "pair"


class RowScore(str, Enum):
    """What a row is scored by."""

    next_item = "next_item"
    pair = "pair"
    feedback = "feedback"


class Ranking(str, Enum):
    """What orders impressions."""

    pair = "pair"
    next_item = "next_item"
    feedback = "feedback"


class Lists(str, Enum):
    """Definition of NDCG and recall under the protocol yambda."""

    per_user = "per-user"
    benchmark = "benchmark"


class Precision(str, Enum):
    """Of the arithmetic."""

    float32 = "float32"
    bfloat16 = "bfloat16"


class Checkpoint(str, Enum):
    """Which checkpoint of a run."""

    best = "best"
    latest = "latest"


class Engines(str, Enum):
    """Where the work runs."""

    local = "local"
    ray = "ray"


def _explain_settings(assignments: list[str] | None) -> list[str] | None:
    """`--set help` prints all settings and exits, even where other arguments are missing."""
    if asked(assignments):
        from python_model.config import ModelConfig, TrainConfig

        typer.echo(listing(ModelConfig, TrainConfig, without=("stage",)))
        raise typer.Exit
    return assignments


def _own_device(device: str) -> str:
    """The device that "auto" stands for on this machine; any other as it is."""
    if device != "auto":
        return device
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


MAX_PROFILE = 100
"""Steps: every event of a profiled step is held in memory, some kilobytes each."""
MAX_LAG = 4_102_444_800
"""Seconds. Times begin in 1970 and end in 2100, so no event is older than this."""
MAX_THREADS = 1024
"""More threads than a machine has cores; the runtime would try to start any number that it is given."""

Data = Annotated[Path, typer.Argument(metavar="DATA", help="Directory that `argus prepare` made.", show_default=False)]
Out = Annotated[Path, typer.Argument(metavar="OUT", help="Directory of what is made here.", show_default=False)]
Device = Annotated[
    str,
    typer.Option(callback=_own_device, help="Where to compute: auto (a GPU where there is one), cpu, cuda, cuda:1, …"),
]
Profile = Annotated[
    int | None,
    typer.Option(
        min=1, max=MAX_PROFILE, metavar="N", show_default=False,
        help="Profile N steps: tables by phase, module and op, and a trace for Perfetto, in OUT/profile.",
    ),
]  # fmt: skip
Threads = Annotated[
    int | None,
    typer.Option(min=1, max=MAX_THREADS, help="CPU threads; OMP_NUM_THREADS or one for a small model by default."),
]
Json = Annotated[
    Path | None,
    typer.Option("--json", metavar="FILE", help="Write the figures of the table as JSON.", show_default=False),
]
Window = Annotated[
    int | None, typer.Option(min=2, help="Events of a user that the model sees at once; the recipe's by default.")
]
Steps = Annotated[
    int | None, typer.Option(help="Optimiser steps; the recipe's, or chosen from the size of the data, by default.")
]
Epochs = Annotated[
    float | None, typer.Option(help="Passes over the training events, in place of --steps.", show_default=False)
]
Patience = Annotated[
    int | None,
    typer.Option(min=0, help="Validations without improvement that end the training; 0: none; 5 by default."),
]
BatchEvents = Annotated[int | None, typer.Option(help="Events in a batch at most; the recipe's by default.")]
LearningRate = Annotated[float | None, typer.Option(help="Peak learning rate; the recipe's by default.")]
Seed = Annotated[int | None, typer.Option(help="Seed of weights, batches and negatives; 0 by default.")]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="NAME=VALUE",
        callback=_explain_settings,
        is_eager=True,
        help="Any other setting of the model or the training; repeat it for several. `--set help` lists them.",
    ),
]
Recipe = Annotated[
    str | None,
    typer.Option(
        help="Settings to start from: default, grown, demo, ml-100k, kuairand-pure, or a TOML file of `argus tune`; by "
        "default grown in pre-training, which derives them from the size of the data."
    ),
]
WhichCheckpoint = Annotated[
    Checkpoint | None,
    typer.Option(
        "--checkpoint", help="Checkpoint of a run; the best on the validation part by default, if it has one."
    ),
]
EngineName = Annotated[
    Engines,
    typer.Option("--engine", help="Where the work runs: this process, or Ray's workers; the same rows either way."),
]
Resume = Annotated[bool, typer.Option("--resume", help="Continue the run in OUT where it was stopped or killed.")]


def parse_settings(assignments: Sequence[str]) -> dict[str, Any]:
    """NAME=VALUE texts as a mapping; values are JSON where they can be read as JSON, else strings."""
    out: dict[str, Any] = {}
    for text in assignments:
        name, equals, value = text.partition("=")
        name = name.strip()
        if not equals or not name:
            raise ValueError(f"--set {text!r}: expected NAME=VALUE, or help for the list of settings")
        if name in out:
            raise ValueError(f"--set {name}: expected once, found again with {value!r}")
        try:
            out[name] = parse(value)
        except ValueError:
            out[name] = value
    return out


def check(device: str, *files: Path | None) -> None:
    """Refuse a missing device and files that cannot be written, before the work begins."""
    from python_model.io.disk import require_writable

    for file in files:
        if file is not None:
            require_writable(file)
    if re.fullmatch(r"cpu|cuda(:\d{1,3})?", device, re.ASCII) is None:
        raise ValueError(f"--device {device}: expected auto, cpu, cuda, or cuda: and a number")
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"--device {device}: {str(error).splitlines()[0]}") from error
