"""`python -m benchmarks host`: the compiled form of argus_kernels.host against its numpy definition.

Both run on the same inputs and their results are compared before a time is reported. The definition of the sketch
counts one event after the other in Python; it is timed on the first `--definition-events` events and scaled linearly to
all events.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from argus_kernels import host, host_reference
from argus_kernels.core import native

MEAN_EVENTS_PER_USER = 100
ITEMS = 1_000_000


@dataclass
class Cost:
    """The cost of one run over all events: seconds of wall clock, and of processor time over all threads."""

    seconds: float
    cpu_seconds: float

    def scaled(self, factor: float) -> Cost:
        """The cost of `factor` times the events."""
        return Cost(self.seconds * factor, self.cpu_seconds * factor)


@dataclass
class Row:
    """One line of the table: the best of the repetitions of either form."""

    name: str
    definition: Cost
    compiled: Cost

    @property
    def ratio(self) -> float:
        """The speedup of the compiled form by wall clock."""
        return self.definition.seconds / self.compiled.seconds

    @property
    def cpu_ratio(self) -> float:
        """The ratio of processor times, which other processes hardly affect."""
        return self.definition.cpu_seconds / self.compiled.cpu_seconds


def best(function: Callable[[], Any], repeat: int) -> tuple[Cost, Any]:
    """The lowest cost of `repeat` runs, and the result."""
    seconds, cpu_seconds, result = float("inf"), float("inf"), None
    for _ in range(repeat):
        # Dropped before the clock starts: freeing its memory is not part of the next run.
        result = None
        began, cpu_began = time.perf_counter(), time.process_time()
        result = function()
        seconds = min(seconds, time.perf_counter() - began)
        cpu_seconds = min(cpu_seconds, time.process_time() - cpu_began)
    return Cost(seconds, cpu_seconds), result


def compare(name: str, function: Callable[[Any], Any], compiled: Any, repeat: int) -> Row:
    """Times `function` on both implementations and checks that they agree."""
    slow, expected = best(lambda: function(host_reference), repeat)
    fast, found = best(lambda: function(compiled), repeat)
    for one, other in zip(as_list(found), as_list(expected), strict=True):
        np.testing.assert_array_equal(one, other, err_msg=name)
    return Row(name, slow, fast)


def as_list(result: Any) -> list[Any]:
    return list(result) if isinstance(result, (tuple, list)) else [result]


def sketch_rows(compiled: Any, items: np.ndarray, definition_events: int, repeat: int) -> list[Row]:
    keys = host_reference.hash_keys(0, 4)
    part = items[:definition_events]
    tables = {module: np.zeros((4, 2**20)) for module in (compiled, host_reference)}
    slow, _ = best(lambda: host_reference.sketch_update(tables[host_reference], keys, part, None, 0.0), 1)
    compiled.sketch_update(tables[compiled], keys, part, None, 0.0)
    np.testing.assert_array_equal(tables[compiled], tables[host_reference])
    fast, _ = best(lambda: compiled.sketch_update(tables[compiled], keys, items, None, 0.0), repeat)
    estimate = compare(
        "FrequencySketch.estimate",
        lambda module: module.sketch_estimate(tables[compiled], keys, items),
        compiled,
        repeat,
    )
    return [Row("FrequencySketch.update", slow.scaled(len(items) / len(part)), fast), estimate]


def pack_rows(compiled: Any, items: np.ndarray, rng: np.random.Generator, repeat: int) -> list[Row]:
    lengths = rng.geometric(1 / MEAN_EVENTS_PER_USER, len(items) // MEAN_EVENTS_PER_USER)
    lengths = (lengths * (len(items) / lengths.sum())).astype(np.int64)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    order = rng.permutation(len(lengths))
    plan = compare(
        "pack_events",
        lambda module: module.plan_batches(offsets, order, 16_384, 512, 512, 2**31 - 1, 1, False),
        compiled,
        repeat,
    )
    batches = list(host.pack_events(offsets, 16_384, 512, order=order))
    columns = [items, items.astype(np.int32), items.astype(np.int8), items.astype(np.float32)]

    def gather(module: Any) -> list[Any]:
        return [module.gather_rows(column, batch.starts, batch.ends) for batch in batches for column in columns]

    return [plan, compare("Batch.gather, 4 columns of all batches", gather, compiled, repeat)]


def measure(events: int, definition_events: int, repeat: int, seed: int) -> list[Row]:
    native.require("host")
    import argus_kernels._host as compiled

    rng = np.random.default_rng(seed)
    items = rng.zipf(1.2, events).astype(np.int64) % ITEMS
    keys = host_reference.hash_keys(0, 4)
    return [
        *sketch_rows(compiled, items, min(definition_events, events), repeat),
        *pack_rows(compiled, items, rng, repeat),
        compare("hash_ids, 4 hashes", lambda module: module.hash_ids(items, keys, ITEMS), compiled, repeat),
    ]


def main(
    events: Annotated[int, typer.Option(help="Events in the log.")] = 10_000_000,
    definition_events: Annotated[int, typer.Option(help="Events the sketch's definition is timed on.")] = 500_000,
    repeat: Annotated[int, typer.Option(help="Runs of each; the best counts.")] = 5,
    seed: Annotated[int, typer.Option(help="Seed of the drawn log.")] = 0,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures to this file too.")] = None,
) -> None:
    """Times the host helpers, compiled and by their numpy definition."""
    rows = measure(events, definition_events, repeat, seed)
    machine = f"{os.cpu_count()} cores, {platform.machine()}, numpy {version('numpy')}"
    table = Table(title=f"{events:,} events; {machine}")
    for heading in ("", "definition, s", "compiled, s", "times faster", "times less CPU", "compiled, ns an event"):
        table.add_column(heading, justify="left" if not heading else "right")
    for row in rows:
        slow, fast = row.definition.seconds, row.compiled.seconds
        figures = (
            f"{slow:.3f}",
            f"{fast:.4f}",
            f"{row.ratio:.0f}",
            f"{row.cpu_ratio:.0f}",
            f"{fast / events * 1e9:.2f}",
        )
        table.add_row(row.name, *figures)
    Console().print(table)
    if json_file is not None:
        written = [{**asdict(row), "ratio": row.ratio, "cpu_ratio": row.cpu_ratio} for row in rows]
        json_file.write_text(json.dumps({"events": events, "machine": machine, "rows": written}, indent=2) + "\n")


def register(app: typer.Typer) -> None:
    """Adds `host` to the commands of `python -m benchmarks`."""
    app.command("host")(main)
