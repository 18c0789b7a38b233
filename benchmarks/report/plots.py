"""The benchmarks' figures: cost against size, rooflines and ratio bars.

Each backend and peer has the same colour in every figure of a page. Where `marks` are given, a figure is for a page:
its values are added to them, and the page writes the legend.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullLocator

from python_model.reporting.interactive import Marks

if TYPE_CHECKING:
    from benchmarks.harness.growth import Fit, Series
    from benchmarks.harness.results import Record

MARKERS = "osD^vPX*"
SIGNS = "●■◆▲▼✚✖★"
"""The same as letters, for the legend of a page."""


@dataclass(frozen=True)
class Theme:
    """Colours of a figure: background, text, grid lines, and the series in order."""

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


def colour_variables(theme: Theme) -> str:
    """The colours of the series as variables of a style sheet."""
    return " ".join(f"--series-{index}: {colour};" for index, colour in enumerate(theme.series))


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
    # A fixed salt and date make the file reproducible.
    with matplotlib.rc_context({"svg.hashsalt": "argus"}):
        metadata = {"Date": None} if path.suffix == ".svg" else {}
        figure.savefig(path, dpi=150, facecolor=figure.get_facecolor(), metadata=metadata)


def cost_against_size(series: Sequence[Series], theme: Theme = LIGHT, marks: Marks | None = None) -> Figure:
    """Time and peak memory of one op's series against size, with the fitted power laws."""
    figure, (time, memory) = new_figure(10, 3.6 + 0.2 * len(series) * (marks is None), 2, theme)
    for index, one in enumerate(series):
        seen = one.measured()
        colour, marker = theme.series[index % len(theme.series)], MARKERS[index % len(MARKERS)]
        sizes = [point.size for point in seen]
        times = [point.ms.p50 for point in seen if point.ms]
        peaks = [(point.size, point.peak_bytes / 2**20) for point in seen if point.peak_bytes]
        style: dict[str, Any] = {"marker": marker, "linestyle": "none", "color": colour, "markersize": 5}
        for axes, found, fit, scale in (
            (time, list(zip(sizes, times, strict=False)), one.time_fit, 1.0),
            (memory, peaks, one.memory_fit, 1 / 2**20),
        ):
            label = f"{one.name} {_law(fit)}"
            drawn = axes.plot([size for size, _ in found], [cost for _, cost in found], label=label, **style)
            drawn += _fitted(axes, fit, [size for size, _ in found], scale, colour)
            if marks is not None:
                marks.entry("", one.name, colour)
                marks.add(drawn, found, label, colour, facets=(one.name,))
    points = [point for one in series for point in one.measured()]
    shown = (bool(points), any(point.peak_bytes for point in points))
    titles = ("time, ms (p50)", "peak extra memory, MiB")
    for axes, title, has_values in zip((time, memory), titles, shown, strict=True):
        axes.set_xlabel(series[0].axis)
        axes.set_title(f"{series[0].op}: {title}", fontsize=10.5, loc="left", color=theme.text)
        # Without a positive value there is no logarithm to draw: the op's memory is below the resolution.
        if has_values:
            axes.set_xscale("log")
            axes.set_yscale("log")
            _plain_numbers(axes)
            ticks = sorted({point.size for point in points})
            axes.set_xticks(ticks, [f"{size:,}" for size in ticks])
            axes.set_xticks([], minor=True)
            if marks is None:
                legend(axes, theme, loc="upper left", bbox_to_anchor=(0, -0.16), borderaxespad=0)
    return figure


def _plain_numbers(axes: Axes) -> None:
    """Ticks of the y axis as 0.5 or 40, not as powers; with ticks between powers of ten if those are too few."""

    def between(value: float, position: float) -> str:
        low, high = axes.get_ylim()
        return f"{value:,g}" if high < 10 * low else ""

    axes.yaxis.set_major_formatter(lambda value, position: f"{value:,g}")
    axes.yaxis.set_minor_formatter(between)


def _law(fit: Fit | None) -> str:
    if fit is None:
        return ""
    error = "" if fit.standard_error is None else f" ± {fit.standard_error:.2f}"
    return f"(∝ n^{fit.exponent:.2f}{error})"


def _fitted(axes: Axes, fit: Fit | None, sizes: Iterable[int], scale: float, colour: str) -> list[Line2D]:
    ends = sorted(sizes)
    if fit is None or len(ends) < 2:
        return []
    line = [ends[0], ends[-1]]
    costs = [scale * fit.factor * size**fit.exponent for size in line]
    return axes.plot(line, costs, color=colour, linewidth=1.2, alpha=0.8)


def roofline(records: Sequence[Record], theme: Theme = LIGHT, marks: Marks | None = None) -> Figure:
    """Measured rate against arithmetic intensity, one panel per dtype, with the ceilings of the same run.

    A colour is an op, a marker a backend.
    """
    timed = [record for record in records if record.tflop_per_s and record.bytes and record.ceilings]
    dtypes = list(dict.fromkeys(record.dtype for record in timed))
    ops = list(dict.fromkeys(record.op for record in records))
    backends = list(dict.fromkeys(record.backend for record in records))
    figure, panels = new_figure(5.6 * max(len(dtypes), 1), 4.6, max(len(dtypes), 1), theme)
    for axes, dtype in zip(panels, dtypes, strict=False):
        shown = [record for record in timed if record.dtype == dtype]
        for record in shown:
            intensity, rate = record.flops / record.bytes, record.tflop_per_s or 0.0
            colour = theme.series[ops.index(record.op) % len(theme.series)]
            marker = MARKERS[backends.index(record.backend) % len(MARKERS)]
            drawn = axes.plot(
                intensity, rate, linestyle="none", markersize=6, alpha=0.85, color=colour, marker=marker
            )  # fmt: skip
            if marks is not None:
                text = f"{' '.join(record.key)}: {rate:.3g} TFLOP/s at {intensity:.3g} FLOP per byte"
                marks.add(drawn, [(intensity, rate, text)], "", colour, facets=(record.op, record.backend))
        _ceiling(axes, shown, theme)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_title(f"{dtype}: TFLOP/s over FLOP per byte", fontsize=10.5, loc="left", color=theme.text)
        axes.set_xlabel("FLOP per byte that must move")
    if marks is not None:
        for index, op in enumerate(ops):
            marks.entry("op", op, theme.series[index % len(theme.series)])
        for index, backend in enumerate(backends):
            marks.entry("backend", backend, theme.text, SIGNS[index % len(SIGNS)])
    elif dtypes:
        _roofline_legend(figure, ops, backends, theme)
    return figure


def _ceiling(axes: Axes, records: Sequence[Record], theme: Theme) -> None:
    copy = max(record.ceilings["copy_gb_per_s"] for record in records) / 1e3
    peak = max(record.ceilings.get(f"{record.dtype}_tflop_per_s", 0.0) for record in records)
    intensities = [record.flops / record.bytes for record in records]
    low, high = min(intensities) / 2, max(*intensities, 2 * peak / copy) * 2
    places = [low, peak / copy, high] if low < peak / copy < high else [low, high]
    axes.plot(places, [min(copy * place, peak) for place in places], color=theme.text, linewidth=1.4)
    axes.annotate(
        f"{peak:.3g} TFLOP/s, {1e3 * copy:.3g} GB/s", (high, peak), ha="right", va="bottom", fontsize=8.5,
        color=theme.text, xytext=(0, 2), textcoords="offset points",
    )  # fmt: skip


def _roofline_legend(figure: Figure, ops: Sequence[str], backends: Sequence[str], theme: Theme) -> None:
    drawn = []
    for index, op in enumerate(ops):
        drawn.append(Line2D([], [], linestyle="none", marker="s", color=theme.series[index % 8], label=op))
    for index, backend in enumerate(backends):
        marker = MARKERS[index % len(MARKERS)]
        drawn.append(Line2D([], [], linestyle="none", marker=marker, color=theme.text, label=backend))
    columns = 2 + 3 * (len(figure.axes) > 1)
    box = figure.legend(handles=drawn, loc="outside lower center", ncols=columns, frameon=False, fontsize=8.5)
    for text in box.get_texts():
        text.set_color(theme.text)


COLOURS = {
    LIGHT.text: "currentColor",
    LIGHT.quiet: "var(--line)",
    **{colour: f"var(--series-{index})" for index, colour in enumerate(LIGHT.series)},
}
"""A colour of a figure that was drawn with LIGHT -> the page's, which has one for light and one for dark mode."""


def ratio_bars(
    rows: Sequence[tuple[str, float | None, float | None]], theme: Theme = LIGHT, marks: Marks | None = None
) -> Figure:
    """For each label, the speedup over eager PyTorch and over the best peer; 1 means equally fast."""
    figure, (axes,) = new_figure(9, 1.2 + 0.36 * len(rows), 1, theme)
    for column, (name, shift) in enumerate((("over eager PyTorch", -0.19), ("over the best peer", 0.19))):
        places = [place for place, row in enumerate(rows) if row[column + 1] is not None]
        ratios = [float(row[column + 1] or 1.0) for row in rows if row[column + 1] is not None]
        lengths = [ratio - 1 for ratio in ratios]
        colour = theme.series[column]
        bars = axes.barh([place + shift for place in places], lengths, 0.36, left=1, color=colour, label=name)
        for bar, place, ratio in zip(bars, places, ratios, strict=True):
            text = axes.annotate(
                f"{ratio:.2f}", (ratio, place + shift), va="center", ha="left" if ratio >= 1 else "right",
                xytext=(3 if ratio >= 1 else -3, 0), textcoords="offset points", fontsize=7.5, color=theme.text,
            )  # fmt: skip
            if marks is not None:
                marks.entry("", name, colour)
                said = f"{rows[place][0]}: {ratio:.2f}× {name}".replace("\n", " ")
                marks.add([bar, text], [(ratio, place + shift, said)], "", colour, facets=(name,))
    axes.axvline(1, color=theme.text, linewidth=1)
    axes.set_xscale("log")
    axes.margins(x=0.12)
    axes.set_yticks(range(len(rows)), [row[0] for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.xaxis.set_major_locator(LogLocator(10, (1, 2, 5)))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}×")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.grid(False, axis="y")
    if marks is None:
        legend(axes, theme, loc="lower right")
    return figure
