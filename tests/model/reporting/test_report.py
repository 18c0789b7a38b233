"""The HTML report: one file that loads nothing, says the figures of the table and escapes what it is given."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from python_model.data.schema import Dataset, load_dataset
from python_model.data.synthetic import generate, preset
from python_model.evaluation.evaluate import EvaluationResult, evaluate
from python_model.reporting.charts import running_mean
from python_model.reporting.console import format_metric
from python_model.reporting.report import Recommendations, Stage, _against_oracle, best_rows, write_report


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    out = tmp_path_factory.mktemp("report") / "service"
    generate(out, preset("small", users=30, seed=2))
    return load_dataset(out)


@pytest.fixture(scope="module")
def result(dataset: Dataset) -> EvaluationResult:
    return evaluate({}, dataset, item_average=True)


@pytest.fixture(scope="module")
def page(dataset: Dataset, result: EvaluationResult, tmp_path_factory: pytest.TempPathFactory) -> str:
    history = [
        {"step": s, "events": s * 9, "seconds": s / 5, "next_item": 5 / s, "feedback_like": 1 / s} for s in range(1, 90)
    ]
    pairs = [
        {"step": s, "events": s * 9, "seconds": s / 5, "pair": 1 / s, "pairwise_accuracy": 0.6} for s in range(1, 9)
    ]
    file = write_report(
        tmp_path_factory.mktemp("page") / "deep" / "report.html", title="A <b> title", dataset=dataset, result=result,
        stages=[Stage("pre-training", history, {"steps": 89}), Stage("fine-tuning", pairs)],
        recommendations=Recommendations("u<1>", ["track 1"], ["track 2", "track 3"]),
    )  # fmt: skip
    return file.read_text(encoding="utf-8")


class Structure(HTMLParser):
    """Fails on tags that do not nest; collects what an element loads and the text of the cells."""

    VOID = ("meta", "br", "link", "img", "path", "use", "rect")

    def __init__(self) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.loads: list[str] = []
        self.cells: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.loads += [value for name, value in attributes if name in ("src", "href") and value]
        if tag not in self.VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.loads += [value for name, value in attributes if name in ("src", "href") and value]

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.stack.pop() == tag

    def handle_data(self, data: str) -> None:
        if "td" in self.stack:
            self.cells.append(data)


def test_the_page_is_well_formed_and_loads_nothing(page: str) -> None:
    parser = Structure()
    parser.feed(page)
    assert parser.stack == []
    assert parser.loads == []
    assert not re.search(r"@import|url\((?!#)|<script[^>]|<link|<img", page)


def test_figures_carry_their_values(page: str) -> None:
    charts = [json.loads(unescape(found)) for found in re.findall(r'<figure data-chart="([^"]*)"', page)]
    assert len(charts) == page.count("<svg") == 9
    for chart in charts:
        assert chart["panels"] and all(one["points"] for one in chart["series"])
        for index in range(len(chart["series"])):
            assert f'data-series="{index}"' in page
    (curve,) = [one for one in charts if one["panels"][0]["y"]["label"] == "next-item loss (nats)"]
    assert curve["series"][0]["points"][-1][0] == 89
    left, top, right, bottom = curve["panels"][0]["box"]
    assert 0 < left < right and 0 < top < bottom


def test_the_page_says_where_it_was_made(page: str) -> None:
    assert re.search(r"Made on \d{4}-\d\d-\d\d at .* cores; argus-kernels \d.*, torch \d.*, Python 3\.", page)


def test_the_page_has_every_figure_of_the_table(page: str, result: EvaluationResult) -> None:
    parser = Structure()
    parser.feed(page)
    expected = [format_metric(value) for row in result.rows.values() for value in row.values()]
    assert parser.cells == expected


def test_the_page_draws_every_curve_and_the_data(page: str) -> None:
    assert page.count("<svg") == 9
    for label in ("next-item loss", "feedback loss", "pairwise loss", "pairwise accuracy", "events of a user"):
        assert label in page
    assert "currentColor" in page and "#010203" not in page


def test_validation_is_drawn_beside_popularity(dataset: Dataset, result: EvaluationResult, tmp_path: Path) -> None:
    history = [
        {"step": s, "validation_next_item_ne": 1 - s / 90, "validation_ndcg@10": s / 90,
         "validation_popularity_ndcg@10": 0.1} if s % 10 == 0 else {"step": s, "next_item": 1.0} for s in range(90)
    ]  # fmt: skip
    file = tmp_path / "report.html"
    write_report(file, title="t", dataset=dataset, result=result, stages=[Stage("pre-training", history)])
    page = file.read_text(encoding="utf-8")
    for text in ("validation: normalised entropy", "next-item NE", ">popularity<", "popularity, NDCG@10"):
        assert text in page
    assert "validation: pairs" not in page
    assert page.count("<svg") == 4 + 1 + 1 + 2


def test_models_stand_between_popularity_and_the_oracle(dataset: Dataset, result: EvaluationResult) -> None:
    def row(value: float, entropy: float) -> dict[str, float | None]:
        return {"ndcg@10": value, "next_item_ne": entropy, "feedback_ne": None}

    rows = {"popularity": row(0.1, 1.0), "pretrained": row(0.3, 0.9), "oracle": row(0.5, 0.8)}
    svg = _against_oracle(replace(result, rows=rows))
    assert svg.count("50.0%") == 2 and "pretrained, next-item NE" in svg and "feedback" not in svg
    assert _against_oracle(replace(result, rows={"popularity": rows["popularity"]})) == ""


def test_text_is_escaped(page: str) -> None:
    assert "A &lt;b&gt; title" in page and "u&lt;1&gt;" in page and "<b> title" not in page


def test_the_best_row_leaves_the_oracle_out() -> None:
    rows = {"popularity": {"ndcg@10": 0.1, "feedback_ne": 1.0}, "finetuned": {"ndcg@10": 0.3, "feedback_ne": 0.8}}
    rows["oracle"] = {"ndcg@10": 0.9, "feedback_ne": 0.1}
    assert best_rows(rows, "ndcg@10") == best_rows(rows, "feedback_ne") == {"finetuned"}  # type: ignore[arg-type]
    assert best_rows({"popularity": {"ndcg@10": None}}, "ndcg@10") == set()


def test_running_mean_equals_the_loop() -> None:
    values = np.arange(10.0) ** 2
    expected = [values[max(0, i - 3) : i + 1].mean() for i in range(10)]
    np.testing.assert_allclose(running_mean(values, 4), expected)


def test_a_report_is_replaced_as_a_whole(dataset: Dataset, result: EvaluationResult, tmp_path: Path) -> None:
    for title in ("first", "second"):
        write_report(tmp_path / "report.html", title=title, dataset=dataset, result=result, stages=[])
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]
    assert "<h1>second</h1>" in (tmp_path / "report.html").read_text(encoding="utf-8")
