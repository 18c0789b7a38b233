"""Computes what a run on several ranks needs: memory on each rank and bytes sent by each rank in a step.

Nothing is measured here. Every figure follows from the shapes of the model and from what `distributed`, `sharding` and
FSDP2 hold and send, by the formulas in docs/scale.md; the number of parameters is counted in the model itself. Events
are those of Yambda: three context columns, four feedback components, one large table of items.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch

from python_model.config import PRESETS, FeatureSpec, ModelConfig
from python_model.data.feedback import BINARY, categorical
from python_model.model.argus import Argus

SIZES = ("3m", "19m", "126m", "1b")
ROWS = (10**7, 10**8, 10**9)
FEATURES = FeatureSpec(
    items=1,
    context={"hour": 24, "day_of_week": 7, "gap": 8},
    feedback={"like": BINARY, "dislike": BINARY, "skip": BINARY, "share": categorical(5)},
)
SAVED = 16
"""Numbers of width d that a transformer block keeps for its backward pass, an event: its input, two norms (2), queries,
keys and values (3), attention (1), the residual (1), and 4 d before and after the activation (8)."""
LINKS = {"NVLink, 450 GB/s": 450e9, "one 400 Gb/s port a GPU": 50e9}
PEAK = 989e12
"""Dense bfloat16 arithmetic of an H200, FLOP/s, as its maker states it."""


@dataclass(frozen=True)
class Setting:
    """One run. batch_events: events of a batch; batches: of each rank in a step; negatives: candidates of a step."""

    size: str
    rows: int
    ranks: int
    batch_events: int = 65_536
    batches: int = 1
    negatives: int = 16_384
    activation_checkpointing: bool = True

    def __post_init__(self) -> None:
        if self.size not in PRESETS:
            raise ValueError(f"size is {self.size!r}, expected one of {', '.join(PRESETS)}")
        for name in ("rows", "ranks", "batch_events", "batches", "negatives"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 1")

    @property
    def model(self) -> ModelConfig:
        """The shapes."""
        return PRESETS[self.size]

    @property
    def read_rows(self) -> int:
        """Distinct rows that a batch reads, at most: one an event and one a candidate."""
        return min(self.rows, self.batch_events + self.negatives)


@dataclass(frozen=True)
class Parameters:
    """Numbers of the model: `blocks` of the encoder, the `rest` that is dense, `copied` tables; one `block`."""

    blocks: int
    block: int
    rest: int
    copied: int

    @classmethod
    @cache
    def of(cls, config: ModelConfig) -> Parameters:
        """Counted in the model, without its large table."""
        with torch.device("meta"):
            model = Argus(config, FEATURES, torch.empty((1, 1), dtype=torch.int32))
        count = {name: parameter.numel() for name, parameter in model.named_parameters()}
        blocks = sum(n for name, n in count.items() if name.startswith("encoder.blocks."))
        tables = sum(n for name, n in count.items() if name.startswith("tables."))
        item = count["tables.weights.item"]
        return cls(blocks, blocks // config.layers, sum(count.values()) - blocks - tables, tables - item)

    @property
    def dense(self) -> int:
        """What FSDP2 cuts."""
        return self.blocks + self.rest


def memory(setting: Setting) -> dict[str, float]:
    """Bytes on each rank, at most, by what they are for."""
    config, numbers, events = setting.model, Parameters.of(setting.model), setting.batch_events
    held = -(-setting.rows // setting.ranks)
    kept = config.layers + SAVED if setting.activation_checkpointing else config.layers * SAVED
    accumulated = 4 * numbers.dense if setting.batches > 1 else 6 * numbers.block + 4 * numbers.rest
    vectors = (2 * events + setting.negatives) * config.vector_width
    return {
        "dense": 16 * numbers.dense / setting.ranks,
        "gathered": 2 * 2 * numbers.block + 4 * numbers.rest + accumulated,
        "table": 4 * held * config.item_width,
        "adagrad": 4 * held,
        "item columns": 4 * setting.rows,
        "rows at hand": 2 * 4 * setting.read_rows * config.item_width,
        "activations": 2 * events * config.width * (kept + 10) + 2 * 4 * vectors,
    }


def communication(setting: Setting) -> dict[str, float]:
    """Bytes that each rank sends in a step, by what they are for."""
    numbers, away = Parameters.of(setting.model), (setting.ranks - 1) / setting.ranks
    gathers = setting.batches * (2 * 2 * numbers.blocks + 4 * numbers.rest)
    a_row = 8 + 2 * 4 * setting.model.item_width
    return {
        "weights": gathers * away,
        "gradients": 4 * numbers.dense * away,
        "copied": 2 * 4 * numbers.copied * away,
        "table rows": setting.batches * setting.read_rows * a_row * away,
        "batch items": setting.batches * 8 * setting.batch_events * (setting.ranks - 1),
    }


def arithmetic(setting: Setting) -> float:
    """FLOP of each rank in a step: 6 a parameter of the blocks and event, 8 where activations are computed twice."""
    once = 8 if setting.activation_checkpointing else 6
    return once * Parameters.of(setting.model).blocks * setting.batch_events * setting.batches


def tables(settings: Sequence[Setting]) -> str:
    """Markdown: memory on each rank in GB, and what each rank sends in a step in MB with the time that takes."""
    return f"{_memory_table(settings)}\n{_communication_table(settings)}"


def _memory_table(settings: Sequence[Setting]) -> str:
    names = list(memory(settings[0]))
    lines = [
        f"| size | rows | ranks | {' | '.join(names)} | **together, GB** |",
        f"|---|---:|---:|{'---:|' * len(names)}---:|",
    ]
    for setting in settings:
        parts = memory(setting)
        cells = " | ".join(_short(value / 1e9) for value in parts.values())
        lines.append(
            f"| {setting.size} | 10{_power(setting.rows)} | {setting.ranks} | {cells} | "
            f"**{_short(sum(parts.values()) / 1e9)}** |"
        )
    return "\n".join(lines) + "\n"


def _communication_table(settings: Sequence[Setting]) -> str:
    names = list(communication(settings[0]))
    links = " | ".join(f"ms over {name}" for name in LINKS)
    lines = [
        f"| size | ranks | {' | '.join(names)} | **together, MB** | {links} | arithmetic at peak, ms |",
        f"|---|---:|{'---:|' * (len(names) + len(LINKS) + 1)}---:|",
    ]
    seen = set()
    for setting in settings:
        parts = communication(setting)
        total = sum(parts.values())
        cells = " | ".join(_short(value / 1e6) for value in parts.values())
        times = " | ".join(_short(1e3 * total / rate) for rate in LINKS.values())
        line = (
            f"| {setting.size} | {setting.ranks} | {cells} | **{_short(total / 1e6)}** | {times} | "
            f"{_short(1e3 * arithmetic(setting) / PEAK)} |"
        )
        # The rows of the table matter only where a batch could read all of them.
        if line not in seen:
            lines.append(line)
        seen.add(line)
    return "\n".join(lines) + "\n"


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 1 else f"{value:.2f}"


def _power(rows: int) -> str:
    exponent = len(str(rows)) - 1
    if rows != 10**exponent:
        return f" ({rows:,})"
    return "".join("⁰¹²³⁴⁵⁶⁷⁸⁹"[int(digit)] for digit in str(exponent))
