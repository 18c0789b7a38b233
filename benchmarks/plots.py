"""The benchmarks' figures: cost against size, rooflines and ratio bars, on a light or a dark ground.

Backends and peers keep one colour each in every figure of a page, so that an eye finds them again.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from benchmarks.scaling import Fit, Series

MARKERS = "osD^vPX*"


@dataclass(frozen=True)
class Theme:
    """Colours of a figure: ground, text, quiet lines, and the series in order."""

    ground: str
    text: str
    quiet: str
    series: tuple[str, ...]


LIGHT = Theme(
    "#ffffff", "#1f2430", "#d5d9e0",
    ("#2563c9", "#d9601a", "#1f8f5f", "#a3379b", "#8a6d00", "#c2314c", "#3a8fa8", "#6b6f7a"),
)  # fmt: skip
DARK = Theme(
    "#171a21", "#e6e8ee", "#3a4050",
    ("#7fb0ff", "#ff9d5c", "#5fd3a0", "#e18adb", "#e0c04a", "#ff8095", "#7cd0e6", "#a9adb8"),
)  # fmt: skip


def new_figure(width: float, height: float, columns: int, theme: Theme) -> tuple[Figure, list[Axes]]:
    """A figure of `columns` panels in the theme's colours."""
    figure = Figure(figsize=(width, height), facecolor=theme.ground, layout="constrained")
    panels = [figure.add_subplot(1, columns, index + 1) for index in range(columns)]
    for axes in panels:
        axes.set_facecolor(theme.ground)
        axes.tick_params(colors=theme.text, which="both", labelsize=9)
        for side, spine in axes.spines.items():
            spine.set_color(theme.quiet)
            spine.set_visible(side in ("left", "bottom"))
        axes.xaxis.label.set_color(theme.text)
        axes.yaxis.label.set_color(theme.text)
        axes.title.set_color(theme.text)
        axes.grid(True, color=theme.quiet, linewidth=0.6, alpha=0.7)
        axes.set_axisbelow(True)
    return figure, panels


def legend(axes: Axes, theme: Theme, **where: Any) -> None:
    """A legend in the theme's colours."""
    drawn = axes.legend(frameon=False, fontsize=8.5, **where)
    for text in drawn.get_texts():
        text.set_color(theme.text)


def save(figure: Figure, path: Path) -> None:
    """Writes the figure; the suffix decides the format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Without a fixed salt and date the same figure would be another file each time.
    with matplotlib.rc_context({"svg.hashsalt": "argus"}):
        metadata = {"Date": None} if path.suffix == ".svg" else {}
        figure.savefig(path, dpi=150, facecolor=figure.get_facecolor(), metadata=metadata)


def svg(figure: Figure) -> str:
    """The figure as an SVG element."""
    text = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "argus"}):
        figure.savefig(text, format="svg", facecolor=figure.get_facecolor(), metadata={"Date": None})
    return text.getvalue()


def cost_against_size(series: Sequence[Series], theme: Theme = LIGHT) -> Figure:
    """Time and peak memory of one op's series over size, with the fitted power laws."""
    figure, (time, memory) = new_figure(10, 4, 2, theme)
    for index, one in enumerate(series):
        seen = one.measured()
        colour, marker = theme.series[index % len(theme.series)], MARKERS[index % len(MARKERS)]
        sizes = [point.size for point in seen]
        times = [point.ms.p50 for point in seen if point.ms]
        peaks = [(point.size, point.peak_bytes / 2**20) for point in seen if point.peak_bytes]
        label = f"{one.name} {_law(one.time_fit)}"
        time.plot(sizes, times, marker=marker, linestyle="none", color=colour, label=label, markersize=5)
        _fitted(time, one.time_fit, sizes, 1.0, colour)
        memory.plot(
            [size for size, _ in peaks], [peak for _, peak in peaks], marker=marker, linestyle="none", color=colour,
            label=f"{one.name} {_law(one.memory_fit)}", markersize=5,
        )  # fmt: skip
        _fitted(memory, one.memory_fit, [size for size, _ in peaks], 1 / 2**20, colour)
    for axes, title in ((time, "time, ms (p50)"), (memory, "peak extra memory, MiB")):
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel(series[0].axis)
        axes.set_title(f"{series[0].op}: {title}", fontsize=10.5, loc="left")
        if axes.lines:
            legend(axes, theme)
    return figure


def _law(fit: Fit | None) -> str:
    if fit is None:
        return ""
    error = "" if fit.standard_error is None else f" ± {fit.standard_error:.2f}"
    return f"(∝ n^{fit.exponent:.2f}{error})"


def _fitted(axes: Axes, fit: Fit | None, sizes: Iterable[int], scale: float, colour: str) -> None:
    ends = sorted(sizes)
    if fit is None or len(ends) < 2:
        return
    line = [ends[0], ends[-1]]
    costs = [scale * fit.factor * size**fit.exponent for size in line]
    axes.plot(line, costs, color=colour, linewidth=1.2, alpha=0.8)
