"""One pass over the whole history against one pass per impression.

A system that runs its network once per impression encodes the user's history again for each of them; one pass over the
history gives the state before every impression at once, because attention is causal. Both are timed on the same encoder
and the same histories, forward and backward, and give the same states. The heads are left out: they cost the same for
each prediction either way. `argus study one-pass` times the same passes on prepared data.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.harness.results import Quantiles
from benchmarks.harness.timing import Budget, Subject, measure, timer
from python_model.data.batches import JaggedBatch
from python_model.model.argus import Argus
from python_model.studies.one_pass import impression_ends, prefix_chunks, train_states


@dataclass(frozen=True)
class ImpressionCost:
    """Whole-history and per-impression training cost of the encoder, forward and backward.

    The task is to compute `impressions` states over `events` events. `per_impression_ms` is the time for all of them,
    scaled from the `measured` impressions that were run (drawn at random; all if it equals `impressions`), which encode
    `encoded_events` events in total; `ratio` is that time divided by the time of one pass over the whole histories.
    """

    events: int
    longest: int
    impressions: int
    whole_history_ms: Quantiles
    measured: int
    encoded_events: int
    per_impression_ms: float
    ratio: float


def impression_cost(
    model: Argus, batch: JaggedBatch, token_budget: int, seconds: float, precision: str = "float32"
) -> ImpressionCost:
    """Times both ways for about `seconds` each; prefixes are packed into batches of `token_budget` events."""
    model.train()
    ends = impression_ends(batch)
    device = batch.items.device.type
    draw = torch.Generator(batch.items.device).manual_seed(0)
    above = torch.randn(len(ends), model.config.width, generator=draw, device=batch.items.device)
    whole = Subject.of("whole history", lambda: train_states(model, batch, ends, above, precision))
    clock = timer(device, graphs=False)
    timing = measure([whole], clock, Budget(seconds, min_repeats=3, max_repeats=50))
    whole_ms = timing["whole history"].total

    order = torch.randperm(len(ends), generator=torch.Generator().manual_seed(0)).to(ends.device)
    measured = encoded = 0
    spent = 0.0
    for chunk, wanted in prefix_chunks(batch, ends[order], token_budget):
        if spent > seconds * 1e3:
            break
        gradients = above[order[measured : measured + len(wanted)]]
        step = Subject.of("prefixes", _prefix_pass(model, chunk, wanted, gradients, precision))
        spent += sum(clock.once(step))
        measured += len(wanted)
        encoded += len(chunk)
    per_impression = spent * len(ends) / measured
    model.zero_grad(set_to_none=True)
    return ImpressionCost(
        len(batch), batch.max_length, len(ends), whole_ms, measured, encoded, per_impression,
        per_impression / whole_ms.p50,
    )  # fmt: skip


def _prefix_pass(
    model: Argus, chunk: JaggedBatch, wanted: Tensor, above: Tensor, precision: str
) -> Callable[[], Tensor]:
    return lambda: train_states(model, chunk, wanted, above, precision)
