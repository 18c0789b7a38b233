"""`python -m benchmarks dense`: the dense layers of an encoder for one event, on one core, with weights in memory.

The four linear layers of a pre-LN block, with their LayerNorms, GELU and residuals, run over enough blocks in turn that
a block's weights have left all caches before its next turn, as in a server that reads users' histories in between.
Three calls are timed: `DirectLinear`, the same layers of torch's modules, and a sum over the weights, which only reads
them.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import torch
import torch.nn.functional as F
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn

from argus_kernels import DirectLinear
from benchmarks.harness.ceilings import DTYPES


@dataclass(frozen=True)
class Layer:
    """One linear layer with its LayerNorm, activation and residual."""

    name: str
    inputs: int
    outputs: int
    norm: bool = False
    gelu: bool = False
    residual: bool = False


@dataclass(frozen=True)
class Row:
    """Microseconds per layer, the best of all rounds over the blocks, for `rows` rows of x."""

    layer: str
    dtype: str
    rows: int
    weight_bytes: int
    direct: float
    modules: float
    read: float

    def rate(self, microseconds: float) -> str:
        """Microseconds, and gigabytes of weights a second."""
        return f"{microseconds:.1f} ({self.weight_bytes / microseconds / 1e3:.1f})"


def layers_of(width: int) -> list[Layer]:
    """The dense layers of a pre-LN block of this width."""
    return [
        Layer("qkv", width, 3 * width, norm=True),
        Layer("output", width, width, residual=True),
        Layer("up", width, 4 * width, norm=True, gelu=True),
        Layer("down", 4 * width, width, residual=True),
    ]


def measure(layer: Layer, name: str, rows: int, megabytes: int, seconds: float) -> Row:
    """Times one layer of all blocks in turn, the three ways in turn, until `seconds` have passed."""
    dtype = DTYPES[name]
    blocks = -(-megabytes * 10**6 // (layer.inputs * layer.outputs * dtype.itemsize))
    linears = [nn.Linear(layer.inputs, layer.outputs, dtype=dtype) for _ in range(blocks)]
    norm = nn.LayerNorm(layer.inputs, dtype=dtype)
    x, residual = torch.randn(rows, layer.inputs).to(dtype), torch.randn(rows, layer.outputs).to(dtype)
    scale, shift = (norm.weight, norm.bias) if layer.norm else (None, None)
    activation = "gelu" if layer.gelu else "none"
    direct = [
        DirectLinear(one.weight, one.bias, norm_weight=scale, norm_bias=shift, eps=norm.eps, activation=activation)
        for one in linears
    ]

    def modules(index: int) -> Tensor:
        out: Tensor = linears[index](norm(x) if layer.norm else x)
        out = F.gelu(out) if layer.gelu else out
        return residual + out if layer.residual else out

    # Read as float32: a sum in bfloat16 would also convert.
    words = [one.weight.detach().view(torch.float32) for one in linears]
    calls: list[Callable[[int], Tensor]] = [
        lambda index: direct[index](x, residual if layer.residual else None),
        modules,
        lambda index: words[index].sum(),
    ]
    best = _best(calls, blocks, seconds)
    return Row(layer.name, name, rows, linears[0].weight.nbytes, *best)


@torch.inference_mode()
def _best(calls: Sequence[Callable[[int], Tensor]], blocks: int, seconds: float) -> list[float]:
    """Microseconds of a call, the best round over all blocks, at least three rounds."""
    best = [float("inf")] * len(calls)
    ends = time.perf_counter() + seconds
    rounds = 0
    while rounds < 3 or time.perf_counter() < ends:
        for place, call in enumerate(calls):
            started = time.perf_counter()
            for index in range(blocks):
                call(index)
            best[place] = min(best[place], (time.perf_counter() - started) / blocks * 1e6)
        rounds += 1
    return best


def main(
    width: Annotated[int, typer.Option(help="Of the encoder; 256 is the 3m preset.")] = 256,
    megabytes: Annotated[int, typer.Option(help="Of weights of a layer over all blocks; more than the caches.")] = 128,
    rows: Annotated[list[int] | None, typer.Option(help="Events at once; may be repeated. 1 and 8 by default.")] = None,
    dtype: Annotated[list[str] | None, typer.Option(help="fp32, bf16 or fp16; may be repeated.")] = None,
    seconds: Annotated[float, typer.Option(help="For each layer, dtype and number of rows.")] = 3.0,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures to this file too.")] = None,
) -> None:
    """Time the dense layers of one event, one core, against torch's modules and a plain read of the weights."""
    names = dtype or ["fp32", "bf16"]
    unknown = [name for name in names if name not in DTYPES]
    if unknown:
        raise typer.BadParameter(f"dtype is {unknown[0]!r}, expected one of {', '.join(DTYPES)}")
    torch.manual_seed(0)
    cases = [(layer, name, n) for name in names for n in rows or [1, 8] for layer in layers_of(width)]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        measured = [measure(*case, megabytes, seconds) for case in track(cases, "dense layers", transient=True)]
    finally:
        torch.set_num_threads(threads)
    table = Table(title=f"one core, {megabytes} MB of weights in turn; µs a layer (GB/s of weights), best round")
    for heading in ("layer", "dtype", "rows", "direct", "modules", "reading", "faster"):
        table.add_column(heading, justify="left" if heading in ("layer", "dtype") else "right", no_wrap=True)
    for row in measured:
        rates = (row.rate(row.direct), row.rate(row.modules), row.rate(row.read))
        table.add_row(row.layer, row.dtype, str(row.rows), *rates, f"{row.modules / row.direct:.2f}")
    Console().print(table)
    if json_file is not None:
        json_file.write_text(json.dumps([asdict(row) for row in measured], indent=2) + "\n")


def register(app: typer.Typer) -> None:
    """Adds `dense` to the commands of `python -m benchmarks`."""
    app.command("dense")(main)
