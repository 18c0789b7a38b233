"""Charts for reports and studies: in a page, with values under the pointer, or in a file of their own."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from python_model.io.disk import replace_text
from python_model.reporting.interactive import Along, Marks, draw_svg, page_figure

# Placeholder for the page's text colour; replaced by currentColor, so that one drawing fits light and dark pages.
_INK = "#010203"
PALETTE = ("#3b82f6", "#e2703a", "#2a9d6f", "#a855f7", "#c28f0e", "#d6456e", "#0e9db0", "#8b8b8b")
_STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.size": 9.5,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "axes.titlecolor": _INK,
    "text.color": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _INK,
    "grid.alpha": 0.12,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
}


@dataclass(frozen=True)
class Chart:
    """A drawing and its values."""

    figure: Figure
    marks: Marks

    def page(self, caption: str = "") -> str:
        """A `<figure>` for a page of `interactive`; text and axes take the colour of the page around them."""
        return page_figure(self.figure, self.marks, {_INK: "currentColor"}, caption)

    def write(self, path: Path) -> None:
        """A file of its own, on white and with its legend inside."""
        axes = self.figure.axes[0]
        with matplotlib.rc_context(_STYLE):
            if len(axes.get_legend_handles_labels()[1]) > 1 and axes.get_legend() is None:
                axes.legend()
        svg = draw_svg(self.figure, None, {_INK: "currentColor"})
        box = re.search(r'viewBox="([^"]*)"', svg)
        assert box is not None, "matplotlib writes a viewBox"
        sheet = f'<rect width="{box[1].split()[2]}" height="{box[1].split()[3]}" fill="#ffffff"/>'
        opening, rest = svg.split(">", 1)
        replace_text(path, f'{opening} color="#1f2328">{sheet}{rest}\n')


def line_chart(
    series: Mapping[str, tuple[np.ndarray, np.ndarray]],
    x_label: str,
    y_label: str,
    *,
    smooth: bool = True,
    from_zero: bool = False,
    levels: Mapping[str, float] | None = None,
) -> Chart:
    """Curves name -> (x [n], y [n]); smooth draws the raw curve faintly below its running mean.

    from_zero: the vertical axis starts at 0. levels: name -> height of a dotted line.
    """

    def draw(axes: Axes, marks: Marks) -> None:
        for (name, (x, y)), color in zip(series.items(), _colors(), strict=False):
            window = max(1, len(y) // 40)
            drawn = []
            if smooth and window > 1:
                drawn += axes.plot(x, y, color=color, linewidth=0.6, alpha=0.25)
                y = running_mean(y, window)
            drawn += axes.plot(x, y, color=color, linewidth=1.7, label=name)
            marks.add(drawn, zip(x, y, strict=True), name, color)
        _levels(axes, marks, levels)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        if from_zero:
            axes.set_ylim(bottom=0)

    return _chart(draw)


def point_chart(
    series: Mapping[str, tuple[np.ndarray, Sequence[np.ndarray]]],
    x_label: str,
    y_label: str,
    *,
    line: tuple[np.ndarray, np.ndarray] | None = None,
    levels: Mapping[str, float] | None = None,
    log_y: bool = False,
    bars: Mapping[str, tuple[np.ndarray, np.ndarray]] | None = None,
) -> Chart:
    """Name -> (x [n], n arrays of repeated measurements): measurements as faint points, a line through means.

    The horizontal axis is logarithmic. line: (x, y) of a fit, dashed. levels: name -> height of a dotted line. bars:
    name -> ends (low [n], high [n]) of an error bar at every x.
    """

    def draw(axes: Axes, marks: Marks) -> None:
        for (name, (x, measured)), color in zip(series.items(), _colors(), strict=False):
            drawn = []
            for at, found in zip(x, measured, strict=True):
                drawn += axes.plot(np.full(len(found), at), found, "o", color=color, markersize=3, alpha=0.45)
            means = [found.mean() for found in measured]
            drawn += axes.plot(x, means, color=color, linewidth=1.7, label=name)
            if bars is not None and name in bars:
                axes.vlines(x, *bars[name], color=color, linewidth=3, alpha=0.3)
            marks.add(drawn, zip(x, means, strict=True), name, color)
        if line is not None:
            drawn = axes.plot(*line, color=PALETTE[7], linewidth=1.2, linestyle="--", label="fit")
            marks.add(drawn, zip(*line, strict=True), "fit", PALETTE[7])
        _levels(axes, marks, levels)
        axes.set_xscale("log")
        if log_y:
            axes.set_yscale("log")
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)

    return _chart(draw)


def range_chart(measured: Mapping[str, np.ndarray], x_label: str, *, zero: bool = False) -> Chart:
    """One row per name, the first on top: measurements as points, their range, their mean as a vertical bar.

    zero: a line at 0, for differences.
    """

    def draw(axes: Axes, marks: Marks) -> None:
        heights = np.arange(len(measured))[::-1]
        for height, (name, found) in zip(heights, measured.items(), strict=True):
            low, high, mean = found.min(), found.max(), found.mean()
            drawn = axes.plot([low, high], [height, height], color=PALETTE[0], linewidth=1.7, alpha=0.5)
            drawn += axes.plot(found, np.full(len(found), height), "o", color=PALETTE[0], markersize=3.5)
            drawn += axes.plot([mean], [height], "|", color=PALETTE[1], markersize=11, markeredgewidth=2)
            text = f"{name}: {mean:.4g} ({low:.4g} to {high:.4g})"
            marks.add(drawn, [(mean, height, text)], "", PALETTE[1])
        if zero:
            axes.axvline(0, color=_INK, linewidth=0.8)
        axes.set_yticks(heights, list(measured))
        axes.set_xlabel(x_label)

    return _chart(draw, height=0.26 * len(measured) + 0.9, along="y")


def bar_chart(names: Sequence[str], values: Sequence[float], x_label: str) -> Chart:
    """Horizontal bars, the first on top, each with its value as a percentage."""

    def draw(axes: Axes, marks: Marks) -> None:
        heights = np.arange(len(names))[::-1]
        bars = axes.barh(heights, values, color=PALETTE[0], height=0.66)
        for bar, height, name, value in zip(bars, heights, names, values, strict=True):
            axes.annotate(
                f"{value:.1%}", (value, height), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8.5
            )
            marks.add([bar], [(value, height, f"{name}: {value:.2%}")], "", PALETTE[0])
        axes.set_yticks(heights, names)
        axes.set_xlabel(x_label)
        axes.set_xlim(min([*values, 0.0]) * 1.3, max([*values, 1e-9]) * 1.18)
        axes.grid(axis="y", visible=False)

    return _chart(draw, height=0.26 * len(names) + 0.9, along="y")


def histogram(values: np.ndarray, x_label: str, y_label: str) -> Chart:
    """A histogram over logarithmic bins; values are positive."""

    def draw(axes: Axes, marks: Marks) -> None:
        low, high = (float(values.min()), float(values.max())) if len(values) else (1.0, 1.0)
        edges = np.geomspace(low, max(high, 2 * low) * 1.001, 33)
        counts, _, bars = axes.hist(values, bins=edges.tolist(), color=PALETTE[0])
        points = [
            (np.sqrt(left * right), count, f"{left:,.0f} to {right:,.0f}: {count:,.0f}")
            for left, right, count in zip(edges, edges[1:], np.asarray(counts), strict=False)
        ]
        marks.add(list(bars), points, "", PALETTE[0])  # type: ignore[arg-type]
        axes.set_xscale("log")
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)

    return _chart(draw)


def rank_frequency(counts: np.ndarray, x_label: str, y_label: str) -> Chart:
    """Counts sorted from the largest, both axes logarithmic; zeros are left out."""

    def draw(axes: Axes, marks: Marks) -> None:
        ordered = np.sort(counts[counts > 0])[::-1]
        ranks = np.arange(1, len(ordered) + 1)
        drawn = axes.plot(ranks, ordered, color=PALETTE[0], linewidth=1.7)
        # On a logarithmic axis, ranks that are evenly apart on the screen.
        kept = np.unique(np.geomspace(1, max(len(ordered), 1), 120).astype(np.int64)) - 1
        marks.add(drawn, zip(ranks[kept], ordered[kept], strict=True) if len(ordered) else [], "", PALETTE[0])
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)

    return _chart(draw)


def running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Mean of the last `window` values at every position, of fewer at the start; values [n] -> [n]."""
    total = np.cumsum(np.concatenate([[0.0], values.astype(np.float64)]))
    end = np.arange(1, len(values) + 1)
    start = np.maximum(end - window, 0)
    return (total[end] - total[start]) / (end - start)


def _levels(axes: Axes, marks: Marks, levels: Mapping[str, float] | None) -> None:
    for (name, height), color in zip((levels or {}).items(), PALETTE[::-1], strict=False):
        drawn = axes.axhline(height, color=color, linewidth=1.0, linestyle=":", label=name)
        known = sorted({point[0] for one in marks.series for point in one.points})
        marks.add([drawn], [(x, height) for x in known], name, color)


def _colors() -> list[str]:
    return [color for _ in range(4) for color in PALETTE]


def _chart(draw: Callable[[Axes, Marks], None], width: float = 5.4, height: float = 2.9, along: Along = "x") -> Chart:
    marks = Marks(along)
    with matplotlib.rc_context(_STYLE):
        # A figure without pyplot needs no display and keeps no global state.
        figure = Figure(figsize=(width, height), layout="constrained")
        draw(figure.add_subplot(), marks)
    return Chart(figure, marks)
