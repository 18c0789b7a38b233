"""Computes how evenly the ranks of a step work and what stochastic length saves, from the lengths of histories.

Nothing is measured: work is `history_cost`. Windows are cut, shuffled and packed as training does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from python_model.data.balance import HistoryCost, balanced
from python_model.data.schema import load_dataset
from python_model.data.stochastic_length import StochasticLength
from python_model.data.windows import Windows, cut_windows, joined, pack
from python_model.training.history_cost import history_cost
from python_model.training.memory_plan import Parameters, Setting

RANKS = (2, 4, 8, 16)
ALPHAS = (1.6, 1.7, 1.8, 1.9)
LOGNORMAL = "lognormal"
MEAN, SIGMA, USERS = 700, 1.2, 40_000
"""Of the log-normal lengths: 1.9 % of the users have more than 4,096 events, half of them fewer than 341."""
STEPS = 20
"""Steps that a figure is the mean of, at most."""


def lengths_of(source: str) -> np.ndarray:
    """Events of each user, int64: of a prepared data set, or drawn where the source is "lognormal"."""
    if source != LOGNORMAL:
        return np.diff(load_dataset(Path(source)).offsets)
    drawn = np.random.default_rng(0).lognormal(np.log(MEAN) - SIGMA**2 / 2, SIGMA, USERS)
    return np.maximum(1, drawn).astype(np.int64)


def cost_of(setting: Setting) -> HistoryCost:
    """What a window costs a model of the setting's size."""
    numbers = Parameters.of(setting.model)
    return history_cost(
        setting.model, numbers.blocks, numbers.rest, setting.negatives, recomputed=setting.activation_checkpointing
    )


def windows_of(lengths: np.ndarray, window: int, random: np.random.Generator) -> Windows:
    """The windows of more than one event of a pass over histories of these lengths."""
    ends = np.cumsum(lengths)
    found = cut_windows(
        ends - lengths, ends, ends - lengths, window=window, overlap=0, phase=random.random(len(lengths))
    )
    return found.take(np.flatnonzero(found.lengths > 1))


def dearest(batches: Sequence[Windows], cost: HistoryCost) -> float:
    """The largest cost of a rank in units of the mean over the ranks."""
    costs = [cost.of(one.lengths).sum() for one in batches]
    return float(max(costs) / np.mean(costs))


def work(lengths: np.ndarray, setting: Setting, window: int) -> dict[str, float]:
    """The largest cost of a rank ÷ the mean, averaged over steps, by how the windows of a step are dealt.

    "by count": equally many windows to each rank; "by events": as batches are packed; "by cost": balanced. Also
    "windows", those of a rank in a step. ValueError where a pass does not fill one step.
    """
    random, cost, ranks = np.random.default_rng(0), cost_of(setting), setting.ranks
    found = windows_of(lengths, window, random)
    batches = pack(found, setting.batch_events, window, random.permutation(len(found)))
    steps = [batches[at : at + ranks] for at in range(0, len(batches) - ranks + 1, ranks)][:STEPS]
    if not steps:
        raise ValueError(
            f"the histories fill {len(batches)} batches of {setting.batch_events} events, expected at least {ranks}, "
            "one a rank: lower --batch-events"
        )
    figures: dict[str, list[float]] = {"windows": [], "by count": [], "by events": [], "by cost": []}
    for step in steps:
        together = joined(step)
        by_count = [together.take(index) for index in np.array_split(random.permutation(len(together)), ranks)]
        figures["windows"].append(len(together) / ranks)
        figures["by count"].append(dearest(by_count, cost))
        figures["by events"].append(dearest(step, cost))
        figures["by cost"].append(dearest(balanced(step, cost, setting.batch_events), cost))
    return {name: float(np.mean(values)) for name, values in figures.items()}


def shortened(lengths: np.ndarray, setting: Setting, window: int, alpha: float) -> dict[str, float]:
    """What stochastic length leaves of a pass: shares of windows replaced, of events and of arithmetic."""
    stochastic, cost = StochasticLength(alpha, window), cost_of(setting)
    whole = windows_of(lengths, window, np.random.default_rng(0)).lengths
    events, squares = stochastic.expected(whole), stochastic.expected(whole, 2)
    arithmetic = cost.linear * events.sum() + cost.quadratic * squares.sum()
    return {
        "length": float(stochastic.length),
        "replaced": float(stochastic.probability(whole).mean()),
        "events": float(events.sum() / whole.sum()),
        "arithmetic": float(arithmetic / cost.of(whole).sum()),
    }


def tables(lengths: np.ndarray, settings: Sequence[Setting], window: int) -> str:
    """Markdown: how evenly 2 to 16 ranks work, and what stochastic length saves, for each size.

    window: events of a user in a batch at most, and no more than a size's `max_events`, as training has it.
    """
    windows = {setting.size: min(window, setting.model.max_events) for setting in settings}
    lines = [
        "| size | ranks | windows a rank | dealt by count | by events | by cost | step of the first ÷ of the last |",
        f"|---|{'---:|' * 6}",
    ]
    for setting in settings:
        for ranks in RANKS:
            found = work(lengths, replace(setting, ranks=ranks), windows[setting.size])
            lines.append(
                f"| {setting.size} | {ranks} | {found['windows']:.1f} | {found['by count']:.3f} | "
                f"{found['by events']:.3f} | {found['by cost']:.3f} | {found['by count'] / found['by cost']:.2f}× |"
            )
    lines += [
        "",
        "| size | α | events of a subsequence | windows replaced | events left | arithmetic left |",
        f"|---|{'---:|' * 5}",
    ]
    for setting in settings:
        for alpha in ALPHAS:
            left = shortened(lengths, setting, windows[setting.size], alpha)
            lines.append(
                f"| {setting.size} | {alpha} | {left['length']:,.0f} | {left['replaced']:.1%} | {left['events']:.1%} | "
                f"{left['arithmetic']:.1%} |"
            )
    return "\n".join(lines) + "\n"
