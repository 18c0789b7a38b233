"""The recipe that grows with the data: shapes, dropout, negatives, window and rates from events, users and catalogue.

Where no recipe is named, `argus pretrain` takes this one. The rule was chosen by trials on validation parts only
(docs/results/recipe.md). The length of the run follows from its settings (`training.length`).
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, replace

from python_model.config import ModelConfig, TrainConfig
from python_model.io.errors import counted
from python_model.training.length import chosen_steps


@dataclass(frozen=True)
class Shape:
    """A step of the ladder: a model for logs of at least `events` events."""

    events: int
    layers: int
    width: int
    dropout: float


LADDER = (Shape(0, 2, 64, 0.2), Shape(300_000, 3, 128, 0.3), Shape(30_000_000, 4, 256, 0.1))
"""From the smallest. A larger model learns a small log by heart before it is better."""
CORE_HOURS = 6.0
"""Processor time that a run may take on a CPU, at FLOP_RATE."""
FLOP_RATE = 20e9
"""Measured: 16,000 events a second of 1.3 MFLOP each (2 layers of width 64, 1,682 candidates) on one core."""
MEMORY_SHARE = 0.5
"""Of the machine's memory, for the item table with gradient and optimiser state."""
WINDOWS = (64, 512)
CATALOGUE_SHARE = 3
"""All items are candidates where scoring them takes at most this many times the arithmetic of the encoder."""
SPARSE_ITEMS = 100_000
"""Catalogue from which gradients of the tables are row-sparse: a dense step would touch every row."""


@dataclass(frozen=True)
class Size:
    """What the rule looks at: numbers of events, users and items of a log."""

    events: int
    users: int
    items: int


@dataclass(frozen=True)
class Grown:
    """The settings, and sentences that say what was chosen and why."""

    model: ModelConfig
    train: TrainConfig
    reasons: tuple[str, ...]


def grown(size: Size, *, on_cpu: bool = True, memory: int | None = None) -> Grown:
    """The recipe of pre-training for a log.

    on_cpu: bound by CORE_HOURS. memory: bytes of the machine, None: as it says itself.
    """
    memory = machine_memory() if memory is None else memory
    rung = max(n for n, one in enumerate(LADDER) if size.events >= one.events)
    bounds = []
    while True:
        model = shapes(LADDER[rung], size.items)
        train = settings(model, size)
        too_long = on_cpu and core_hours(model, train, size) > CORE_HOURS
        too_large = table_bytes(model, size.items) > MEMORY_SHARE * memory
        if rung == 0 or not (too_long or too_large):
            break
        bounds.append(f"{LADDER[rung].layers} layers of width {LADDER[rung].width} would take "
                      + ("too long" if too_long else "too much memory"))  # fmt: skip
        rung -= 1
    while table_bytes(model, size.items) > MEMORY_SHARE * memory and model.item_width > 8:
        model = replace(model, item_width=model.item_width // 2)
    return Grown(model, train, _reasons(model, train, size, bounds, on_cpu))


def shapes(shape: Shape, items: int) -> ModelConfig:
    """The model of a step of the ladder; heads of width 32."""
    width = shape.width
    return ModelConfig(
        layers=shape.layers, width=width, heads=width // 32, dropout=shape.dropout, item_width=width,
        feature_width=width // 4, vector_width=width, temperature=20.0, sparse=items >= SPARSE_ITEMS,
    )  # fmt: skip


def settings(model: ModelConfig, size: Size) -> TrainConfig:
    """Settings of pre-training; the length is chosen later."""
    rate = 3e-3 * math.sqrt(64 / model.width)
    all_items = scores_all(model, size.items)
    window = window_for(size)
    return TrainConfig(
        stage="pretrain", batch_events=max(window, 1024), window=window, learning_rate=rate,
        table_learning_rate=2 * rate, weight_decay=0.05, warmup_steps=100,
        negatives_in_batch=0 if all_items else 1024, negatives_uniform=size.items if all_items else 2048,
    )  # fmt: skip


def finetuning(pretrain: TrainConfig) -> TrainConfig:
    """Settings of fine-tuning after this pre-training; the joint loss stays as a regulariser."""
    return replace(pretrain, stage="finetune", warmup_steps=20, pretrain_weight=0.3)


def window_for(size: Size) -> int:
    """The power of two at or above the mean history, between the bounds of WINDOWS."""
    mean = max(1.0, size.events / max(1, size.users))
    low, high = WINDOWS
    return int(min(max(2 ** math.ceil(math.log2(mean)), low), high))


def encoder_flop(model: ModelConfig) -> float:
    """Of a training event in the encoder's blocks: 6 a parameter."""
    return 6.0 * model.layers * 12 * model.width**2


def event_flop(model: ModelConfig, train: TrainConfig) -> float:
    """Of a training event in encoder, attention and candidates; the full form has three tokens an event."""
    candidates = train.negatives_in_batch + train.negatives_uniform
    tokens = 3 if model.form == "full" else 1
    attention = 6.0 * model.layers * tokens * train.window * model.width
    return tokens * (encoder_flop(model) + attention) + 6.0 * candidates * model.vector_width


def scores_all(model: ModelConfig, items: int) -> bool:
    """Whether all items are candidates."""
    return 6.0 * items * model.vector_width <= CATALOGUE_SHARE * encoder_flop(model)


def core_hours(model: ModelConfig, train: TrainConfig, size: Size) -> float:
    """Processor time of the whole run on a CPU: encoder, attention and candidates, at FLOP_RATE."""
    flop = event_flop(model, train)
    each = max(1, math.ceil(size.events / train.batch_events))
    return chosen_steps(train, each, size.items) * train.batch_events * flop / FLOP_RATE / 3600


def table_bytes(model: ModelConfig, items: int) -> int:
    """Of the item table in training: float32 weights, gradient and AdamW's two moments, or row-wise Adagrad's one."""
    return items * (4 * model.item_width + 4 if model.sparse else 16 * model.item_width)


def machine_memory() -> int:
    """Bytes of physical memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _reasons(model: ModelConfig, train: TrainConfig, size: Size, bounds: list[str], on_cpu: bool) -> tuple[str, ...]:
    candidates = (
        f"all {size.items:,} items as candidates" if train.negatives_in_batch == 0
        else f"{train.negatives_in_batch:,} in-batch and {train.negatives_uniform:,} uniform negatives"
    )  # fmt: skip
    because = f", because {'; '.join(bounds)}" if bounds else ""
    log = f"{counted(size.events, 'event')} of {counted(size.users, 'user')} on {counted(size.items, 'item')}"
    chosen = (
        f"Recipe for {log}: {model.layers} layers of width {model.width}{because}, dropout {model.dropout:g}, windows "
        f"of {train.window} events, {candidates}"
    )
    if model.item_width < model.width:
        chosen += f", item vectors of width {model.item_width} to fit the memory"
    if not on_cpu:
        return (chosen,)
    minutes = 60 * core_hours(model, train, size)
    about = f"{minutes / 60:.1f} hours" if minutes >= 90 else f"{max(1, round(minutes))} min"
    return (
        chosen,
        f"At most about {about} of one core (of {CORE_HOURS:g} hours allowed); validation may end it sooner",
    )
