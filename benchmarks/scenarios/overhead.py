"""`python -m benchmarks overhead`: the overhead of a call of each op, measured where the computation is negligible.

Eight events of one user on the CPU, through the public function, beside torch's scaled_dot_product_attention on the
same eight events. All calls are timed in turns, in fresh random order, a few hundred at a time; a figure is the median
over the turns. The clock is the processor time of the calling thread, which runs the call and its backward pass: other
processes hardly affect it.
"""

from __future__ import annotations

import json
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.table import Table
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from argus_kernels import OPS
from argus_kernels.core import Op
from argus_kernels.testing.harness import public_function
from benchmarks.harness import results
from benchmarks.report import table

SDPA = "torch: scaled_dot_product_attention"
EVENTS = 8
VARIANTS = {"sampled_softmax_loss": 4}
"""Of the drawn case: with candidates; 0 for the other ops, without optional arguments."""


@dataclass(frozen=True)
class Overhead:
    """Microseconds a call, medians; None where the op has no gradients.

    forward: without gradients. recorded: forward in grad mode. backward: from the first output to every leaf.
    """

    op: str
    forward: float
    recorded: float | None
    backward: float | None


@dataclass
class Subject:
    """One op's call, with its own arguments, and its time in each turn, in microseconds."""

    op: str
    call: Callable[[], Any]
    leaves: list[Tensor]
    took: dict[str, list[float]]

    def turn(self, repeats: int) -> None:
        """Times `repeats` calls of each pass."""
        with torch.no_grad():
            self._note("forward", repeats, self.call)
        if not self.leaves:
            return
        outputs = [self.call() for _ in range(repeats)]
        gradient = torch.ones_like(outputs[0])
        remaining = iter(outputs)
        self._note("backward", repeats, lambda: torch.autograd.grad(next(remaining), self.leaves, gradient))
        self._note("recorded", repeats, self.call)

    def _note(self, name: str, repeats: int, call: Callable[[], Any]) -> None:
        begin = time.thread_time()
        for _ in range(repeats):
            call()
        self.took.setdefault(name, []).append((time.thread_time() - begin) / repeats * 1e6)

    def result(self) -> Overhead:
        """The medians over the turns."""
        found = {name: statistics.median(values) for name, values in self.took.items()}
        return Overhead(self.op, found["forward"], found.get("recorded"), found.get("backward"))


def subject(op: Op, backend: str) -> Subject:
    """The op on eight events of one user."""
    assert op.drawn is not None
    sample = op.drawn([EVENTS], 0, VARIANTS.get(op.name, 0))
    given = sample.draw(torch.float32, 0, "cpu")
    leaves: list[Tensor] = []
    for name in sample.grad:
        for one in given[name] if isinstance(given[name], list) else [given[name]]:
            leaves.append(one.requires_grad_())
    function = public_function(op)

    def call() -> Any:
        out = function(**given, backend=backend)
        return out[0] if isinstance(out, tuple) else out

    return Subject(op.name, call, leaves, {})


def peer() -> Subject:
    """PyTorch's attention of the same eight events, heads and widths."""
    op = next(op for op in OPS if op.name == "causal_attention")
    assert op.drawn is not None
    given = op.drawn([EVENTS], 0, 0).draw(torch.float32, 0, "cpu")
    q, k, v = (given[name].transpose(0, 1)[None].contiguous().requires_grad_() for name in ("q", "k", "v"))
    return Subject(SDPA, lambda: scaled_dot_product_attention(q, k, v, is_causal=True), [q, k, v], {})


def measure(turns: int, repeats: int, backend: str = "cpp") -> list[Overhead]:
    """SDPA's and every op's overhead."""
    subjects = [peer(), *(subject(op, backend) for op in OPS)]
    order = list(subjects)
    for one in order:
        one.turn(repeats)
        one.took.clear()
    draw = random.Random(0)
    for _ in range(turns):
        draw.shuffle(order)
        for one in order:
            one.turn(repeats)
    return [one.result() for one in subjects]


def command(
    turns: Annotated[int, typer.Option(min=1, help="How often every call is timed, all others in between.")] = 15,
    repeats: Annotated[int, typer.Option(min=1, help="Calls a turn.")] = 200,
    backend: Annotated[str, typer.Option(help="The backend that is asked for.")] = "cpp",
    json_file: Annotated[Path | None, typer.Option("--json", dir_okay=False, help="Write the figures here.")] = None,
) -> None:
    """Time a call of every op on eight events, beside torch's attention."""
    if json_file is not None and not json_file.absolute().parent.is_dir():
        # Said before anything is measured.
        raise typer.BadParameter(f"cannot write {json_file}: its directory is missing", param_hint="'--json'")
    try:
        found = measure(turns, repeats, backend)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    shown = Table("op", "forward", "recorded", "backward", title=f"µs a call, {EVENTS} events, backend {backend}")
    for one in found:
        figures = (one.forward, one.recorded, one.backward)
        shown.add_row(one.op, *("–" if figure is None else f"{figure:.1f}" for figure in figures))
    table.make_console().print(shown)
    if json_file is not None:
        document = {
            "machine": results.machine(),
            "versions": results.versions(),
            "commit": results.source_commit(),
            "backend": backend,
            "microseconds": [asdict(one) for one in found],
        }
        json_file.write_text(json.dumps(document, indent=1) + "\n")


def register(app: typer.Typer) -> None:
    """Adds `overhead` to the commands of `python -m benchmarks`."""
    app.command("overhead")(command)
