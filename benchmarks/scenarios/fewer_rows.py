"""`python -m benchmarks fewer-rows`: what the mask rule saves where few of a history's rows are wanted.

One layer of a preset over a batch of histories, all rows of it or every tenth, forward and with its gradients. And
candidates behind one history: in one pass against the stored keys, in one pass over history and candidates anew, and
one after the other, each appended to the history anew; attention alone, and the model of the full form. All ways of a
case give the same numbers, which is checked first.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor

from argus_kernels import Offsets, causal_attention
from benchmarks.harness.results import Quantiles
from benchmarks.harness.timing import Budget, CpuTimer, Subject, measure
from benchmarks.scenarios.workload import SIZES, make_batch, make_model
from python_model.config import PRESETS, preset
from python_model.model.candidates import Candidates, StoredHistories
from python_model.model.layers import Block, Layout, rows_read

SHARE = 10
"""One row in so many is read in the case `layer`."""
TOLERANCE = 1e-3
"""Of the largest element, between two ways of one result in float32."""


@dataclass(frozen=True)
class Row:
    """A way's milliseconds, and how many times longer it takes than the first way of its case, by medians."""

    case: str
    way: str
    ms: Quantiles
    ratio: float


Ways = dict[str, Callable[[], Tensor]]


def layer_ways(name: str, users: int, events: int) -> dict[str, Ways]:
    """One layer of a preset over `users` histories of `events` each."""
    config = preset(name)
    block, total = Block(config), users * events
    x = torch.randn(total, config.width)
    offsets = Offsets(torch.arange(users + 1) * events)
    layout = Layout(offsets, torch.arange(total) * 60, events)
    read = torch.arange(total) % SHARE == SHARE - 1
    few = replace(layout, rows=rows_read(read, offsets.tensor))
    biases = torch.randn(config.heads, config.position_buckets), torch.randn(config.heads, config.time_buckets)

    def forward(one: Layout) -> Tensor:
        with torch.no_grad():
            found: Tensor = block(x, one, *biases)
        return found if one.rows is not None else found[read]

    def trained(one: Layout) -> Tensor:
        leaf = x.detach().requires_grad_()
        found = block(leaf, one, *biases)
        (found if one.rows is not None else found[read]).square().sum().backward()
        assert leaf.grad is not None
        return leaf.grad

    return {
        "layer, forward": {"a tenth": lambda: forward(few), "all rows": lambda: forward(layout)},
        "layer, trained": {"a tenth": lambda: trained(few), "all rows": lambda: trained(layout)},
    }


def attention_ways(events: int, candidates: int, heads: int = 4, width: int = 64) -> Ways:
    """Attention of candidates behind one history."""
    q, k, v = torch.randn(3, events + candidates, heads, width)
    keys = Offsets(torch.tensor([0, events + candidates]))
    place = torch.arange(events + candidates).clamp(max=events).int()
    rows, own, one = place[events:], Offsets(torch.tensor([0, candidates])), Offsets(torch.tensor([0, events + 1]))

    def appended() -> Tensor:
        return causal_attention(q[: events + 1], k[: events + 1], v[: events + 1], one)[events:]

    return {
        "stored keys": lambda: causal_attention(q[events:], k, v, own, key_offsets=keys, visible=rows, position=rows),
        "one pass anew": lambda: causal_attention(q, k, v, keys, visible=place, position=place)[events:],
        "one anew": appended,
    }


def model_ways(name: str, events: int, candidates: int) -> Ways:
    """The expected feedback of candidates behind one history, by a model of the full form: three tokens an event."""
    size = replace(SIZES["cpu"], items=10_000)
    model = make_model(name, size, "cpu", form="full", max_events=events + 1).eval()
    history = make_batch([events], size.features(), "cpu")
    draw = torch.Generator().manual_seed(1)
    asked = Candidates(
        torch.randint(size.items, (candidates,), generator=draw), torch.tensor([0, candidates]).int(),
        history.time[-1:] + 60, torch.tensor([True]), history.context[:, -1:],
    )  # fmt: skip

    def encoded() -> StoredHistories:
        return model.store_histories(history, "feedback")

    with torch.no_grad():
        stored = encoded()
    first = replace(asked, items=asked.items[:1], offsets=torch.tensor([0, 1]).int())

    def scored(one: Candidates, histories: Callable[[], StoredHistories]) -> Callable[[], Tensor]:
        def call() -> Tensor:
            with torch.no_grad():
                return model.score_candidates(histories(), one, "feedback")

        return call

    return {
        "stored keys": scored(asked, lambda: stored),
        "one pass anew": scored(asked, encoded),
        "one anew": scored(first, encoded),
    }


def agree(case: str, ways: Ways) -> None:
    """Runs each way once; RuntimeError where a result is not that of the first."""
    results = {name: way() for name, way in ways.items()}
    expected = next(iter(results.values()))
    for name, found in results.items():
        difference = float((found - expected[: len(found)]).abs().max() / expected.abs().max())
        if not difference <= TOLERANCE:
            raise RuntimeError(f"fewer-rows: {case}: {name} differs by {difference:g} of the largest element")


def measured(case: str, ways: Ways, seconds: float, times: dict[str, int]) -> list[Row]:
    """Rows of the ways of a case, compared first; times: how often a way is needed for what the first does."""
    agree(case, ways)
    subjects = [Subject.of(name, way) for name, way in ways.items()]
    timings = measure(subjects, CpuTimer(), Budget(seconds=seconds, min_repeats=3))
    base = timings[subjects[0].name].total.p50
    return [Row(case, name, timings[name].total, timings[name].total.p50 * times.get(name, 1) / base) for name in ways]


def main(
    model: Annotated[str, typer.Option("--preset", help="A preset of the model.")] = "3m",
    events: Annotated[int, typer.Option(min=2, help="Events of the history behind the candidates.")] = 8192,
    candidates: Annotated[int, typer.Option(min=1, help="Candidates of the request.")] = 1000,
    users: Annotated[int, typer.Option(min=1, help="Histories of the layer's batch, of 1,024 events.")] = 8,
    seconds: Annotated[float, typer.Option(help="For each way of a case.")] = 2.0,
    threads: Annotated[int | None, typer.Option(help="CPU threads; torch's choice by default.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures to this file too.")] = None,
) -> None:
    """Time a layer whose rows are read in part, and candidates against a stored history."""
    if model not in PRESETS:
        raise typer.BadParameter(f"--preset is {model}, expected one of {', '.join(PRESETS)}")
    if threads is not None:
        torch.set_num_threads(threads)
    torch.manual_seed(0)
    cases = layer_ways(model, users, min(1024, events))
    cases["attention of candidates"] = attention_ways(events, candidates)
    cases["model over candidates"] = model_ways(model, events, candidates)
    table = Table(title=f"{model}, a tenth of the rows; {candidates:,} candidates behind {events:,} events")
    for heading in ("case", "way", "ms p10", "p50", "p90", "/ first"):
        table.add_column(heading, justify="left" if heading in ("case", "way") else "right", no_wrap=True)
    found: list[Row] = []
    for case, ways in cases.items():
        table.add_section()
        rows = measured(case, ways, seconds, {"one anew": candidates})
        found += rows
        for row in rows:
            times = f" × {candidates:,}" if row.way == "one anew" else ""
            figures = [f"{one:.2f}" for one in (row.ms.p10, row.ms.p50, row.ms.p90, row.ratio)]
            table.add_row(row.case, row.way + times, *figures)
    Console().print(table)
    if json_file is not None:
        json_file.write_text(json.dumps([asdict(row) for row in found], indent=2) + "\n")


def register(app: typer.Typer) -> None:
    """Adds `fewer-rows` to the commands of `python -m benchmarks`."""
    app.command("fewer-rows")(main)
