"""`python -m benchmarks table-step`: a whole training step of embedding tables, lookup to updated rows.

One step is triple_embedding's forward and backward pass and row-wise Adagrad on its tables; the projection's gradients
are computed and left. All ways run interleaved in one process, each on tables of its own, after one step of each has
been compared with the others' from the same start.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor

from argus_kernels import triple_embedding
from argus_kernels.optim import RowwiseAdagrad
from benchmarks.harness.cases import Case, select
from benchmarks.harness.ceilings import measure_ceilings
from benchmarks.harness.results import Quantiles
from benchmarks.harness.timing import Budget, CpuTimer, Subject, measure
from benchmarks.peers import fbgemm
from benchmarks.peers.base import first_reason, no_missing_ids

CASES = ("events_16384_sparse",)


@dataclass(frozen=True)
class Way:
    """One way to make a step. tables: those that it updates. exact: computes row-wise Adagrad, so can be compared."""

    name: str
    step: Callable[[], None]
    tables: list[Tensor]
    exact: bool = True


@dataclass(frozen=True)
class Row:
    """A way's milliseconds, and how many times longer it takes than the fused step, by medians."""

    case: str
    dtype: str
    way: str
    best: float
    ms: Quantiles
    ratio: float
    share_of_ceiling: float


def copies(case: Case) -> Case:
    """The same case on leaves of its own."""
    given = dict(case.arguments)
    given["tables"] = [table.detach().clone().requires_grad_() for table in given["tables"]]
    for name in ("weight", "bias"):
        given[name] = given[name].detach().clone().requires_grad_()
    return Case(case.spec, given, case.device)


def ours(case: Case, gradient: Tensor, name: str, *, fused: bool, sparse: bool) -> Way:
    """triple_embedding and RowwiseAdagrad."""
    given = {**copies(case).arguments, "sparse": sparse}
    optimizer = RowwiseAdagrad(given["tables"], lr=0.01, eps=1e-8, fused=fused)

    def step() -> None:
        optimizer.zero_grad()
        given["weight"].grad = given["bias"].grad = None
        triple_embedding(**given).backward(gradient)
        optimizer.step()

    return Way(name, step, given["tables"])


def by_torch(case: Case, gradient: Tensor) -> Way:
    """The embedding, concatenation and linear of torch with row-sparse gradients, and torch.optim.Adagrad."""
    given = copies(case).arguments
    optimizer = torch.optim.Adagrad(given["tables"], lr=0.01, eps=1e-8)

    def step() -> None:
        optimizer.zero_grad()
        given["weight"].grad = given["bias"].grad = None
        parts = [
            F.embedding(given["ids"][k], given["tables"][column], sparse=True)
            for k, column in enumerate(given["columns"])
        ]
        F.linear(torch.cat(parts, 1), given["weight"].T, given["bias"]).backward(gradient)
        with torch.sparse.check_sparse_tensor_invariants(enable=False):
            optimizer.step()

    return Way("torch", step, given["tables"], exact=False)


def by_fbgemm(case: Case, gradient: Tensor) -> Way:
    """FBGEMM's lookup, whose backward pass is its EXACT_ROWWISE_ADAGRAD, and a linear layer."""
    own = copies(case)
    call = fbgemm.Lookup(own, **fbgemm.rowwise_adagrad())

    def step() -> None:
        own.arguments["weight"].grad = own.arguments["bias"].grad = None
        call().backward(gradient)

    return Way("fbgemm", step, list(call.tables.split_embedding_weights()))


def _no_sparse_sum(case: Case) -> str | None:
    """The reason if torch would have to add row-sparse gradients of a 16-bit table."""
    columns = case.arguments["columns"]
    if case.dtype == torch.float32 or len(set(columns)) == len(columns):
        return None
    return "torch adds no row-sparse gradients in 16 bits on a CPU, and a table is read twice"


def ways_of(case: Case) -> tuple[list[Way], dict[str, str]]:
    """All ways of a step, the fused one first; and those that there are not, with the reason."""
    gradient = torch.randn(case.arguments["ids"].shape[1], case.arguments["weight"].shape[1]).to(case.dtype)
    ways = [
        ours(case, gradient, "fused", fused=True, sparse=True),
        ours(case, gradient, "two_steps", fused=False, sparse=True),
        ours(case, gradient, "two_steps_dense", fused=False, sparse=False),
    ]
    absent = {}
    for name, build, reason in (
        ("fbgemm", by_fbgemm, fbgemm.why_not(case)),
        ("torch", by_torch, first_reason(no_missing_ids(case), _no_sparse_sum(case))),
    ):
        if reason is None:
            ways.append(build(case, gradient))
        else:
            absent[name] = reason
    return ways, absent


def compare(ways: list[Way], tolerance: float) -> None:
    """Makes one step of each; RuntimeError where a table of an exact way is not that of the first."""
    for way in ways:
        way.step()
        for index, (found, expected) in enumerate(zip(way.tables, ways[0].tables, strict=True)):
            difference = float((found.detach().float() - expected.detach().float()).abs().max())
            if way.exact and not difference <= tolerance:
                raise RuntimeError(f"table-step: {way.name} differs from fused by {difference:g} in table {index}")


def measured(case: Case, seconds: float, rate: float) -> tuple[list[Row], dict[str, str]]:
    """Rows of all ways of a case, compared first; rate: FLOP per second of a matrix product, the ceiling."""
    ways, absent = ways_of(case)
    # A step moves a row by at most lr; a sum in another order changes it by rounding alone.
    compare(ways, 1e-3 if case.dtype == torch.float32 else 4e-2)
    subjects = [Subject.of(way.name, way.step) for way in ways]
    timings = measure(subjects, CpuTimer(), Budget(seconds=seconds, min_repeats=5), warm_up=2)
    sample = case.spec.sample
    floor = (sample.flops(case.arguments) + sample.backward_flops(case.arguments)) / rate * 1e3
    base = timings["fused"].total.p50
    rows = []
    for way in ways:
        total = timings[way.name].total
        best = min(sum(repeat) for repeat in timings[way.name].repeats)
        rows.append(Row(case.name, case.spec.dtype, way.name, best, total, total.p50 / base, floor / total.p50))
    return rows, absent


def main(
    case: Annotated[list[str] | None, typer.Option(help="A case of triple_embedding; may be repeated.")] = None,
    dtype: Annotated[list[str] | None, typer.Option(help="fp32, bf16 or fp16; may be repeated.")] = None,
    seconds: Annotated[float, typer.Option(help="For each way of a case.")] = 4.0,
    threads: Annotated[int | None, typer.Option(help="CPU threads; torch's choice by default.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures to this file too.")] = None,
) -> None:
    """Time a training step of embedding tables: fused, in two steps, and by FBGEMM and torch.

    The floor is that of the products at the machine's matrix rate.
    """
    names = dtype or ["fp32", "bf16"]
    try:
        specs = select(["triple_embedding"], case or CASES, names)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    if threads is not None:
        torch.set_num_threads(threads)
    console = Console()
    ceilings = measure_ceilings("cpu", tuple(names))
    table = Table(title="ms of a step: lookup, backward pass, row-wise Adagrad")
    for heading in ("dtype", "way", "best", "p10", "p50", "p90", "/ fused", "of floor"):
        table.add_column(heading, justify="left" if heading in ("dtype", "way") else "right", no_wrap=True)
    found: list[Row] = []
    for spec in specs:
        table.add_section()
        rows, absent = measured(spec.draw(0, "cpu"), seconds, ceilings.flops_per_second[spec.dtype])
        found += rows
        for row in rows:
            figures: list[Any] = [f"{one:.1f}" for one in (row.best, row.ms.p10, row.ms.p50, row.ms.p90)]
            table.add_row(row.dtype, row.way, *figures, f"{row.ratio:.2f}", f"{row.share_of_ceiling:.0%}")
        for name, reason in absent.items():
            console.print(f"{spec.sample.name} {spec.dtype}: no {name}: {reason}", highlight=False)
    console.print(table)
    if json_file is not None:
        json_file.write_text(json.dumps([asdict(row) for row in found], indent=2) + "\n")


def register(app: typer.Typer) -> None:
    """Adds `table-step` to the commands of `python -m benchmarks`."""
    app.command("table-step")(main)
