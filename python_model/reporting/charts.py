"""Charts for reports and studies: inline SVG whose text and axes take the colour of the page around them."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from python_model.io.disk import replace_text

# Placeholder for the page's text colour; replaced by currentColor, so that one drawing fits light and dark pages.
_INK = "#010203"
PALETTE = ("#3b82f6", "#e2703a", "#2a9d6f", "#a855f7", "#c28f0e", "#d6456e", "#0e9db0", "#8b8b8b")
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
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


def line_chart(
    series: Mapping[str, tuple[np.ndarray, np.ndarray]],
    x_label: str,
    y_label: str,
    *,
    smooth: bool = True,
    from_zero: bool = False,
) -> str:
    """SVG of curves name -> (x [n], y [n]); smooth draws the raw curve faintly below its running mean.

    from_zero: the vertical axis starts at 0.
    """

    def draw(axes: Axes) -> None:
        for (name, (x, y)), color in zip(series.items(), _colors(), strict=False):
            window = max(1, len(y) // 40)
            if smooth and window > 1:
                axes.plot(x, y, color=color, linewidth=0.6, alpha=0.25)
                y = running_mean(y, window)
            axes.plot(x, y, color=color, linewidth=1.7, label=name)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        if len(series) > 1:
            axes.legend()
        if from_zero:
            axes.set_ylim(bottom=0)

    return _svg(draw)


def point_chart(
    series: Mapping[str, tuple[np.ndarray, Sequence[np.ndarray]]],
    x_label: str,
    y_label: str,
    *,
    line: tuple[np.ndarray, np.ndarray] | None = None,
    levels: Mapping[str, float] | None = None,
    log_y: bool = False,
) -> str:
    """SVG of name -> (x [n], n arrays of repeated measurements): measurements as faint points, a line through means.

    The horizontal axis is logarithmic. line: (x, y) of a fit, dashed. levels: name -> height of a dotted line.
    """

    def draw(axes: Axes) -> None:
        for (name, (x, measured)), color in zip(series.items(), _colors(), strict=False):
            for place, found in zip(x, measured, strict=True):
                axes.plot(np.full(len(found), place), found, "o", color=color, markersize=3, alpha=0.45)
            axes.plot(x, [found.mean() for found in measured], color=color, linewidth=1.7, label=name)
        if line is not None:
            axes.plot(*line, color=PALETTE[7], linewidth=1.2, linestyle="--", label="fit")
        for (name, height), color in zip((levels or {}).items(), PALETTE[::-1], strict=False):
            axes.axhline(height, color=color, linewidth=1.0, linestyle=":", label=name)
        axes.set_xscale("log")
        if log_y:
            axes.set_yscale("log")
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        if len(series) + (line is not None) + len(levels or {}) > 1:
            axes.legend()

    return _svg(draw)


def range_chart(measured: Mapping[str, np.ndarray], x_label: str, *, zero: bool = False) -> str:
    """SVG of one row per name, the first on top: measurements as points, their range, their mean as a vertical bar.

    zero: a line at 0, for differences.
    """

    def draw(axes: Axes) -> None:
        places = np.arange(len(measured))[::-1]
        for place, found in zip(places, measured.values(), strict=True):
            axes.plot([found.min(), found.max()], [place, place], color=PALETTE[0], linewidth=1.7, alpha=0.5)
            axes.plot(found, np.full(len(found), place), "o", color=PALETTE[0], markersize=3.5)
            axes.plot([found.mean()], [place], "|", color=PALETTE[1], markersize=11, markeredgewidth=2)
        if zero:
            axes.axvline(0, color=_INK, linewidth=0.8)
        axes.set_yticks(places, list(measured))
        axes.set_xlabel(x_label)

    return _svg(draw, height=0.26 * len(measured) + 0.9)


def bar_chart(names: Sequence[str], values: Sequence[float], x_label: str) -> str:
    """SVG of horizontal bars, the first on top, each with its value as a percentage."""

    def draw(axes: Axes) -> None:
        places = np.arange(len(names))[::-1]
        axes.barh(places, values, color=PALETTE[0], height=0.66)
        for place, value in zip(places, values, strict=True):
            axes.annotate(
                f"{value:.1%}", (value, place), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8.5
            )
        axes.set_yticks(places, names)
        axes.set_xlabel(x_label)
        axes.set_xlim(min([*values, 0.0]) * 1.3, max([*values, 1e-9]) * 1.18)
        axes.grid(axis="y", visible=False)

    return _svg(draw, height=0.26 * len(names) + 0.9)


def histogram(values: np.ndarray, x_label: str, y_label: str) -> str:
    """SVG of a histogram over logarithmic bins; values are positive."""

    def draw(axes: Axes) -> None:
        low, high = (float(values.min()), float(values.max())) if len(values) else (1.0, 1.0)
        axes.hist(values, bins=np.geomspace(low, max(high, 2 * low) * 1.001, 33).tolist(), color=PALETTE[0])
        axes.set_xscale("log")
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)

    return _svg(draw)


def rank_frequency(counts: np.ndarray, x_label: str, y_label: str) -> str:
    """SVG of counts sorted from the largest, both axes logarithmic; zeros are left out."""

    def draw(axes: Axes) -> None:
        ordered = np.sort(counts[counts > 0])[::-1]
        axes.plot(np.arange(1, len(ordered) + 1), ordered, color=PALETTE[0], linewidth=1.7)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)

    return _svg(draw)


def running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Mean of the last `window` values at every position, of fewer at the start; values [n] -> [n]."""
    total = np.cumsum(np.concatenate([[0.0], values.astype(np.float64)]))
    end = np.arange(1, len(values) + 1)
    start = np.maximum(end - window, 0)
    return (total[end] - total[start]) / (end - start)


def write_svg(path: Path, svg: str) -> None:
    """Write a drawing as a separate file, on white, for pages that link to it."""
    box = re.search(r'viewBox="([^"]*)"', svg)
    if box is None:
        raise ValueError("svg has no viewBox, expected a drawing of this module")
    sheet = f'<rect width="{box[1].split()[2]}" height="{box[1].split()[3]}" fill="#ffffff"/>'
    opening, rest = svg.split(">", 1)
    replace_text(path, f'{opening} color="#1f2328">{sheet}{rest}\n')


def _colors() -> list[str]:
    return [color for _ in range(4) for color in PALETTE]


def _svg(draw: Callable[[Axes], None], width: float = 5.4, height: float = 2.9) -> str:
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": "argus"}):
        # A figure without pyplot needs no display and keeps no global state.
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasSVG(figure)
        draw(figure.add_subplot())
        buffer = io.StringIO()
        figure.savefig(
            buffer, format="svg", transparent=True,
            metadata={"Date": None, "Creator": None, "Format": None, "Type": None},
        )  # fmt: skip
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace(_INK, "currentColor")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    # The page decides the size; the drawing keeps its proportions through its viewBox.
    opening, rest = text.split(">", 1)
    return re.sub(r' (width|height)="[^"]*"', "", opening) + ">" + rest
