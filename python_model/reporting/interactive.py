"""Figures of a page: an inline drawing, its values for `page.js`, and a legend whose entries filter.

A page that holds such figures has `STYLE` in its style sheet and `script()` at the end of its body. It loads nothing,
and shows the same drawings without JavaScript.
"""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any, Literal

import matplotlib
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

MAX_POINTS = 300
"""Values a series shows under the pointer: a screen has no room for more, and a page stays small."""

Along = Literal["x", "y", "point"]
Point = tuple[float, float] | tuple[float, float, str]

STYLE = """
figure svg { width: 100%; height: auto; display: block; touch-action: pan-y; }
figure text { font-family: inherit !important; }
.legend { display: flex; flex-wrap: wrap; gap: .15rem .3rem; margin: .3rem 0 0; font-size: .82rem; }
.legend + .legend { margin-top: 0; }
.legend button { display: inline-flex; align-items: center; gap: .35rem; border: 0; border-radius: .3rem;
  padding: .1rem .4rem; background: none; color: inherit; font: inherit; cursor: pointer; }
.legend button:hover, thead button:hover { background: color-mix(in srgb, currentColor 9%, transparent); }
.legend button[aria-pressed=false] { opacity: .4; text-decoration: line-through; }
.legend i, .tip i { width: .7em; height: .7em; border-radius: 50%; display: inline-block; flex: none; }
.legend span { font-size: .9em; }
.tip { position: fixed; z-index: 9; pointer-events: none; max-width: 22rem; padding: .35rem .55rem;
  border-radius: .4rem; background: #1f2430; color: #f2f4f8; font-size: .8rem; line-height: 1.45;
  font-variant-numeric: tabular-nums; }
.tip[hidden] { display: none; }
.tip div { display: flex; align-items: center; gap: .4rem; }
thead button { border: 0; border-radius: .25rem; margin: 0 -.2rem; padding: 0 .2rem; background: none; color: inherit;
  font: inherit; cursor: pointer; }
th[aria-sort=ascending] button::after { content: " ▴"; } th[aria-sort=descending] button::after { content: " ▾"; }
"""


@dataclass
class Series:
    """What one colour of a panel shows: a name, points in data coordinates, and the legend entries it hangs on."""

    panel: int
    name: str
    color: str
    points: Sequence[Point]
    facets: tuple[str, ...]
    artists: list[Artist] = field(default_factory=list)


@dataclass
class Marks:
    """The values of a drawing, collected while it is drawn."""

    along: Along = "x"
    """What the pointer picks: all series at an x, the row at a y, or the nearest point."""
    series: list[Series] = field(default_factory=list)
    legends: dict[str, list[tuple[str, str, str]]] = field(default_factory=dict)
    """Title of a legend -> (entry, colour, marker); the entries of one have no common title if it is ""."""

    def add(
        self, artists: Iterable[Artist], points: Iterable[Sequence[Any]], name: str, color: str,
        facets: Sequence[str] | None = None,
    ) -> None:  # fmt: skip
        """A series of the axes of its artists; without `facets` it is an entry of the legend itself."""
        drawn = list(artists)
        axes = drawn[0].axes
        assert axes is not None and isinstance(axes.figure, Figure)
        if facets is None and name:
            self.entry("", name, color)
        kept = [tuple(point) for point in points if all(math.isfinite(part) for part in point[:2])]
        # Evenly thinned, the last value kept: it is the one that people look for.
        step = max(1, math.ceil(len(kept) / MAX_POINTS))
        kept = kept[::-1][::step][::-1]
        panel = [id(one) for one in axes.figure.axes].index(id(axes))
        known = (name,) if facets is None and name else tuple(facets or ())
        self.series.append(Series(panel, name, color, kept, known, drawn))

    def entry(self, title: str, name: str, color: str, marker: str = "") -> None:
        """An entry of a legend; a second one of the same name is the same entry."""
        entries = self.legends.setdefault(title, [])
        if name not in [one[0] for one in entries]:
            entries.append((name, color, marker))


def draw_svg(figure: Figure, marks: Marks | None, colors: Mapping[str, str]) -> str:
    """The drawing as an SVG element without a size of its own; `colors`: a colour of the drawing -> a CSS value."""
    for index, series in enumerate(marks.series if marks else ()):
        for artist in series.artists:
            artist.set_gid(f"series:{index}")
    FigureCanvasSVG(figure)
    buffer = io.StringIO()
    # A fixed salt and no date make the drawing reproducible.
    with matplotlib.rc_context({"svg.hashsalt": "argus", "svg.fonttype": "none"}):
        figure.savefig(
            buffer, format="svg", transparent=True,
            metadata={"Date": None, "Creator": None, "Format": None, "Type": None},
        )  # fmt: skip
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r'id="series:(\d+)"', r'data-series="\1"', text)
    for color, value in colors.items():
        text = text.replace(color, value)
    # The page decides the size; the drawing keeps its proportions through its viewBox.
    opening, rest = text.split(">", 1)
    return re.sub(r' (width|height)="[^"]*"', "", opening) + ">" + rest


def page_figure(figure: Figure, marks: Marks, colors: Mapping[str, str], caption: str = "") -> str:
    """The drawing with its values and its legend, as a `<figure>`."""
    svg = draw_svg(figure, marks, colors)
    width, height = (72.0 * inches for inches in figure.get_size_inches())
    panels = [_panel(axes, width, height, marks.along) for axes in figure.axes]
    series = [
        {
            "panel": one.panel, "name": one.name, "color": colors.get(one.color, one.color), "facets": one.facets,
            "points": [[*(_rounded(part) for part in point[:2]), *point[2:]] for point in one.points],
        }
        for one in marks.series
    ]  # fmt: skip
    data = json.dumps({"panels": panels, "series": series}, separators=(",", ":"), ensure_ascii=False)
    legends = "".join(_legend(title, entries, colors) for title, entries in marks.legends.items() if len(entries) > 1)
    described = f' aria-label="{escape(caption, quote=True)}"' if caption else ""
    # A tall drawing has its legend where the eye starts.
    content = legends + svg if height > width else svg + legends
    return f'<figure data-chart="{escape(data, quote=True)}"{described}>{content}</figure>'


def script() -> str:
    """The element that makes figures and tables of a page answer."""
    return f"<script>\n{Path(__file__).with_name('page.js').read_text(encoding='utf-8')}</script>"


def _panel(axes: Axes, width: float, height: float, along: Along) -> dict[str, Any]:
    """Where the axes are in the drawing, in units of its viewBox whose y grows downwards, and what they span."""
    place = axes.get_position()
    box = [place.x0 * width, (1 - place.y1) * height, place.x1 * width, (1 - place.y0) * height]
    ends = {"x": (box[0], box[2]), "y": (box[3], box[1])}
    sides: dict[str, Any] = {}
    for side, (low, high), scale, label in (
        ("x", axes.get_xlim(), axes.get_xscale(), axes.get_xlabel()),
        ("y", axes.get_ylim(), axes.get_yscale(), axes.get_ylabel()),
    ):
        start, end = (round(part, 2) for part in ends[side])
        sides[side] = {
            "log": scale == "log", "low": float(low), "high": float(high), "start": start, "end": end, "label": label,
        }  # fmt: skip
    return {"box": [round(part, 2) for part in box], "along": along, **sides}


def _legend(title: str, entries: Sequence[tuple[str, str, str]], colors: Mapping[str, str]) -> str:
    buttons = []
    for name, color, marker in entries:
        sign = f"<span>{escape(marker)}</span>" if marker else f'<i style="background:{colors.get(color, color)}"></i>'
        buttons.append(
            f'<button type="button" value="{escape(name, quote=True)}" aria-pressed="true" '
            f'title="Click: show or hide. Shift-click: this one alone.">{sign}{escape(name)}</button>'
        )
    label = f' aria-label="{escape(title, quote=True)}"' if title else ""
    return f'<div class="legend" role="group"{label}>{"".join(buttons)}</div>'


def _rounded(value: float) -> float:
    return float(f"{float(value):.5g}")
