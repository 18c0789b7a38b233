"""The page's script in a real browser: values under the pointer, a legend that filters, tables that sort."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from python_model.reporting import charts, interactive
from tests.browser import Page, needs_chromium

pytestmark = [pytest.mark.slow, needs_chromium]

STEPS = np.array([1.0, 2.0, 4.0])
TABLE = """<table><thead><tr><th>name</th><th>value</th></tr></thead><tbody>
<tr><td>b</td><td>1,200</td></tr><tr><td>a</td><td>–</td></tr><tr><td>c</td><td>7 %</td></tr></tbody></table>"""

PROBE = """
(() => {
const said = {};
const svg = document.querySelector("figure svg");
const { panels } = JSON.parse(document.querySelector("figure").dataset.chart);
function point(x, y) {
  const at = new DOMPoint(place(panels[0].x, x), place(panels[0].y, y)).matrixTransform(svg.getScreenCTM());
  svg.dispatchEvent(new PointerEvent("pointermove", { clientX: at.x, clientY: at.y, bubbles: true }));
  return tip.hidden ? null : tip.textContent;
}
said.both = point(2.1, 5);
const [first] = document.querySelectorAll(".legend button");
first.click();
said.pressed = first.getAttribute("aria-pressed");
said.shown = [...svg.querySelectorAll("[data-series]")].map((mark) => [mark.dataset.series, mark.style.display]);
said.one = point(4, 5);
first.click();
said.again = point(1, 5);
svg.dispatchEvent(new PointerEvent("pointerleave"));
said.left = tip.hidden;
const column = (index) => [...document.querySelectorAll("tbody tr")].map((row) => row.cells[index].textContent);
const [byName, byNumber] = document.querySelectorAll("thead button");
byNumber.click();
said.descending = column(1);
byNumber.click();
said.ascending = column(1);
byNumber.click();
said.original = column(0);
byName.click();
said.letters = column(0);
said.width = document.documentElement.scrollWidth - innerWidth;
return said;
})()
"""


def test_hover_legend_and_sorting(tmp_path: Path) -> None:
    curves = {"like": (STEPS, np.array([3.0, 2.5, 2.25])), "skip": (STEPS, np.array([6.0, 5.5, 5.125]))}
    figure = charts.line_chart(curves, "step", "loss", smooth=False).page("losses")
    style = "body { margin: 1rem } figure { margin: 0 }" + interactive.STYLE
    page = f"<!doctype html><meta charset=utf-8><style>{style}</style>{figure}{TABLE}{interactive.script()}"
    (tmp_path / "page.html").write_text(page, encoding="utf-8")
    with Page((tmp_path / "page.html").as_uri(), tmp_path / "profile", width=390, height=800) as browser:
        found = browser.run(PROBE)
    assert found["both"] == "step 2skip: 5.5like: 2.5", "both curves at the step that is nearest, the higher first"
    assert found["pressed"] == "false"
    assert found["shown"] == [["0", "none"], ["1", ""]]
    assert found["one"] == "step 4skip: 5.125"
    assert found["again"] == "step 1skip: 6like: 3"
    assert found["left"] is True
    assert found["descending"] == ["1,200", "7 %", "–"]
    assert found["ascending"] == ["–", "7 %", "1,200"]
    assert found["original"] == ["b", "a", "c"]
    assert found["letters"] == ["a", "b", "c"]
    assert found["width"] <= 0, "nothing sticks out of a phone's screen"
