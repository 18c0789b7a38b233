"""One pass over a whole history against one pass per impression: the same states and gradients, timed in one run.

A system that runs its network once per impression re-encodes the earlier history each time. One causal pass gives the
states before all impressions at once. Both are timed on the same encoder and the same history, forward and backward;
the heads are left out, since their cost is the same. Prefixes are packed into full batches, so the slower method pays
for its arithmetic, not for small batches.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from argus_kernels.core.varlen import local_positions
from python_model.data.batches import BatchBuilder, JaggedBatch
from python_model.data.schema import Dataset
from python_model.data.synthetic import SyntheticConfig
from python_model.data.windows import Windows
from python_model.io.disk import replace_text
from python_model.model.argus import Argus
from python_model.studies.trials import read_study, write_json

SERVICE = SyntheticConfig(users=16, events_per_user=2600.0, days=365)
REPEATS = 5


@dataclass(frozen=True)
class PassCost:
    """Training cost of the encoder on one history of `events` events with `impressions` impressions.

    whole_seconds: one pass over the history, median of REPEATS. measured: number of impressions run one by one, evenly
    spread over the history; prefix_seconds: their total time, prefix_events: events they encoded. all_seconds: for all
    impressions; where not all were measured it is extrapolated in proportion to the encoded events, and `extrapolated`
    is true. largest_difference: between the states of both methods, relative to the largest state.
    """

    events: int
    impressions: int
    measured: int
    whole_seconds: float
    prefix_seconds: float
    prefix_events: int
    all_seconds: float
    extrapolated: bool
    largest_difference: float

    @property
    def ratio(self) -> float:
        """How many times longer one pass per impression takes."""
        return self.all_seconds / self.whole_seconds


def one_history(dataset: Dataset, events: int, device: str | torch.device = "cpu") -> JaggedBatch:
    """The first `events` events of the user with the longest history, as a batch; ValueError where they have fewer."""
    lengths = np.diff(dataset.offsets)
    user = int(lengths.argmax())
    if lengths[user] < events:
        raise ValueError(f"length is {events}, expected at most the longest history of {lengths[user]} events")
    start = dataset.offsets[user : user + 1]
    return BatchBuilder(dataset).build(Windows(start, start, start + events)).to(device)


def measure(
    model: Argus, batch: JaggedBatch, *, most: int | None = None, budget: int = 8192, precision: str = "float32"
) -> PassCost:
    """Time both methods on the histories of a batch.

    most: largest number of impressions to run one by one, None for all. budget: most events in a batch of prefixes.
    """
    model.train()
    ends = impression_ends(batch)
    chosen = torch.arange(len(ends)) if most is None else evenly_spread(len(ends), most)
    chosen = chosen.to(ends.device)
    draw = torch.Generator().manual_seed(0)
    above = torch.randn(len(ends), model.config.width, generator=draw).to(ends.device)
    train_states(model, batch, ends, above, precision)  # the first call prepares what later ones reuse
    timed = [_seconds(lambda: train_states(model, batch, ends, above, precision)) for _ in range(REPEATS)]
    whole = float(np.median([seconds for seconds, _ in timed]))
    states = timed[-1][1][chosen]

    spent, encoded = 0.0, 0
    found: list[Tensor] = []
    for chunk, wanted in prefix_chunks(batch, ends[chosen], max(budget, batch.max_length)):
        done = sum(len(one) for one in found)
        gradients = above[chosen[done : done + len(wanted)]]
        seconds, states_here = _seconds(_prefix_pass(model, chunk, wanted, gradients, precision))
        spent, encoded = spent + seconds, encoded + len(chunk)
        found.append(states_here)
    model.zero_grad(set_to_none=True)
    total = int((local_positions(batch.offsets, len(batch))[ends] + 1).sum())
    difference = float((torch.cat(found) - states).abs().max() / states.abs().max())
    return PassCost(
        len(batch), len(ends), len(chosen), whole, spent, encoded, spent * total / encoded, len(chosen) < len(ends),
        difference,
    )  # fmt: skip


def impression_ends(batch: JaggedBatch) -> Tensor:
    """Rows whose state is read for an impression: those right before one, int64, rising."""
    place = local_positions(batch.offsets, len(batch))
    return ((~batch.organic) & (place >= 1)).nonzero()[:, 0] - 1


def evenly_spread(count: int, most: int) -> Tensor:
    """At most `most` of the numbers 0 … count − 1, rising, one from the middle of each of as many equal parts."""
    if most < 1:
        raise ValueError(f"most is {most}, expected at least 1")
    kept = min(count, most)
    return ((torch.arange(kept) + 0.5) * count / max(kept, 1)).long()


def prefix_chunks(batch: JaggedBatch, ends: Tensor, budget: int) -> Iterator[tuple[JaggedBatch, Tensor]]:
    """Batches of the histories up to `ends`, in order, of at most `budget` events; and the rows wanted in each."""
    lengths = (local_positions(batch.offsets, len(batch))[ends] + 1).tolist()
    start = total = 0
    for place, length in enumerate([*lengths, budget + 1]):
        if total + length > budget and place > start:
            chunk = prefixes(batch, ends[start:place])
            yield chunk, chunk.is_target.nonzero()[:, 0]
            start, total = place, 0
        total += length


def prefixes(batch: JaggedBatch, ends: Tensor) -> JaggedBatch:
    """For each row ends[i] its user's history up to that row, inclusive, as a separate user; only that row counts."""
    owner = torch.searchsorted(batch.offsets[1:].long(), ends, right=True)
    starts = batch.offsets.long()[owner]
    lengths = ends + 1 - starts
    offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    user = torch.repeat_interleave(torch.arange(len(ends), device=ends.device), lengths)
    rows = torch.arange(int(offsets[-1]), device=ends.device) - offsets[user] + starts[user]
    return JaggedBatch(
        offsets=offsets.int(),
        max_length=int(lengths.max()) if len(ends) else 0,
        users=batch.users[owner],
        rows=batch.rows[rows],
        items=batch.items[rows],
        time=batch.time[rows],
        organic=batch.organic[rows],
        grade=batch.grade[rows],
        context=batch.context[:, rows],
        feedback=batch.feedback[rows],
        is_target=rows == ends[user],
    )


def train_states(model: Argus, batch: JaggedBatch, rows: Tensor, above: Tensor, precision: str) -> Tensor:
    """The states [n, d] at `rows`, after a backward pass with `above` as their gradient."""
    model.zero_grad(set_to_none=True)
    with _autocast(precision, batch.items.device.type):
        states = model.encode(batch).index_select(0, rows)
    states.backward(above.to(states.dtype))
    return states.detach()


def _prefix_pass(
    model: Argus, chunk: JaggedBatch, wanted: Tensor, above: Tensor, precision: str
) -> Callable[[], Tensor]:
    return lambda: train_states(model, chunk, wanted, above, precision)


def _autocast(precision: str, device: str) -> AbstractContextManager[Any]:
    return nullcontext() if precision == "float32" else torch.autocast(device, dtype=torch.bfloat16)


def _seconds(work: Callable[[], Tensor]) -> tuple[float, Tensor]:
    """The time of the work, including the device's queue, and its result."""
    began = time.perf_counter()
    out = work()
    if out.is_cuda:
        torch.cuda.synchronize(out.device)
    return time.perf_counter() - began, out


def read(file: Path, settings: dict[str, Any]) -> list[PassCost]:
    """The lengths that an earlier run with the same settings measured; ValueError where the settings differ."""
    return read_study(file, settings, "costs", PassCost)


def write(folder: Path, settings: dict[str, Any], costs: Sequence[PassCost]) -> None:
    """`one_pass.json`, `one_pass.md` with the table, and `one_pass_ratio.svg`."""
    # Matplotlib takes a second to import; benchmarks that only use the passes avoid it.
    from python_model.reporting import charts

    ratios = {one.events: one.ratio for one in costs}
    write_json(
        folder / "one_pass.json", {"settings": settings, "ratios": ratios, "costs": [asdict(one) for one in costs]}
    )
    ratio = charts.point_chart(
        {"one pass per impression ÷ one pass": (
            np.array([one.events for one in costs]), [np.array([one.ratio]) for one in costs]
        )},
        "events of history", "times longer", log_y=True,
    )  # fmt: skip
    ratio.write(folder / "one_pass_ratio.svg")
    replace_text(folder / "one_pass.md", table(costs) + "\n![ratio](one_pass_ratio.svg)\n")


def table(costs: Sequence[PassCost]) -> str:
    """Markdown: a row a length of history; extrapolated sums carry a ~."""
    lines = [
        "| events | impressions | measured | one pass, s | a pass each, s | times longer | states differ by |",
        "|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for one in costs:
        about = "~" if one.extrapolated else ""
        lines.append(
            f"| {one.events:,} | {one.impressions:,} | {one.measured:,} | {one.whole_seconds:.3f} "
            f"| {about}{one.all_seconds:.2f} | {about}{one.ratio:.0f} | {one.largest_difference:.1e} |"
        )
    return "\n".join(lines) + "\n"
