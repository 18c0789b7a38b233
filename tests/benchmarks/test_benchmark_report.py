"""The report: what is summed up, the Markdown table, a page that stands alone, and files that are not results."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from benchmarks.harness.growth import Point, Scaling, Series, fit_power, to_json
from benchmarks.harness.results import PeerResult, Quantiles, Record, write_records
from benchmarks.report import page, summary

MACHINE = {"cpu": "Toy CPU", "cores": 2, "threads": 2}
CEILINGS = {"copy_gb_per_s": 10.0, "fp32_tflop_per_s": 0.2, "bf16_tflop_per_s": 0.4}


def record(**changes: Any) -> Record:
    values: dict[str, Any] = {
        "op": "causal_attention", "case": "lognormal_16", "dtype": "fp32", "pass_": "forward_backward",
        "backend": "cpp", "verified": True, "verified_on": "the case", "ms": Quantiles(0.9, 1.0, 1.2), "repeats": 9,
        "peak_bytes": 4 << 20, "flops": 10**8, "bytes": 10**6, "gb_per_s": 1.0, "tflop_per_s": 0.1,
        "share_of_ceiling": 0.5, "ceilings": CEILINGS, "machine": MACHINE, "versions": {"torch": "2.13"},
        "commit": "abc123",
        "peers": {
            "eager": PeerResult(ms=2.0, peak_bytes=8 << 20, ratio=2.0),
            "compile": PeerResult(ms=1.5, peak_bytes=8 << 20, ratio=1.5),
            "fbgemm": PeerResult(skipped="not installed"),
        },
    }  # fmt: skip
    return Record(**(values | changes))


def slower(ratio: float) -> dict[str, PeerResult]:
    return {"eager": PeerResult(ms=1.0, ratio=ratio)}


@pytest.fixture
def records() -> list[Record]:
    return [
        record(),
        record(backend="reference", ms=Quantiles(1.8, 2.0, 2.2), peers=slower(1.0), share_of_ceiling=0.25),
        record(pass_="forward", ms=Quantiles(0.1, 0.2, 0.3), peers=slower(7.0)),
        record(dtype="bf16", peers={"eager": PeerResult(ms=8.0, ratio=8.0)}, share_of_ceiling=None),
        record(backend="wrong", verified=False, ms=None, refused="d_q fails: max error 1 (allowed <2>)", peers={}),
        record(op="rowwise_adagrad_", case="rows", pass_="step", peers=slower(0.5), peak_bytes=None),
    ]


@pytest.fixture
def results(tmp_path: Path, records: list[Record]) -> Path:
    write_records(tmp_path / "toy-cpu" / "run.jsonl", records)
    points = [Point(size, Quantiles(size, size, size), 1000 * size) for size in (512, 1024, 2048)]
    series = Series("causal_attention", "events per user", "forward", "cpp", "fp32", points)
    series.time_fit = fit_power([512, 1024, 2048], [512, 1024, 2048])
    series.points.append(Point(4096, left_out="needs about 99.0 GiB, 1.0 GiB are free"))
    (tmp_path / "toy-cpu" / "scaling.json").write_text(to_json(Scaling(MACHINE, {}, "abc123", [series])))
    (tmp_path / "toy-cpu" / "end_to_end.json").write_text(json.dumps(END_TO_END))
    return tmp_path


END_TO_END = {
    "steps": [
        {
            "preset": "tiny", "backend": "auto", "precision": "float32", "events_per_second": 12345.6, "mfu": 0.21,
            "ms": {"p10": 1.0, "p50": 2.0, "p90": 3.0}, "peak_bytes": 1 << 20, "skipped": None,
        },
        {"preset": "3m", "backend": "stock torch", "precision": "float32", "ms": None, "skipped": "out of <memory>"},
    ],
    "impressions": {
        "tiny": {
            "events": 2048, "impressions": 900, "whole_history_ms": {"p10": 1.0, "p50": 2.0, "p90": 3.0},
            "per_impression_ms": 150.0, "ratio": 75.0, "measured": 450,
        }
    },
    "decoding": {"tiny": [{"method": "paged cache (auto)", "cached_events": 1024, "p50": 1.5, "p99": 2.5}]},
}  # fmt: skip


def test_the_fastest_right_backend_stands_for_a_case(records: list[Record]) -> None:
    keys = [one.key for one in summary.headline(records)]
    assert keys == [
        ("causal_attention", "lognormal_16", "fp32", "forward_backward", "cpp"),
        ("causal_attention", "lognormal_16", "bf16", "forward_backward", "cpp"),
        ("rowwise_adagrad_", "rows", "fp32", "step", "cpp"),
    ]


def test_a_row_is_the_geometric_mean_and_the_extremes(records: list[Record]) -> None:
    attention, adagrad = summary.op_rows(records)
    assert attention.over_eager is not None
    assert attention.over_eager.mean == pytest.approx(4.0)
    assert (attention.over_eager.low, attention.over_eager.high) == (2.0, 8.0)
    assert attention.over_best_peer == summary.Span(1.5, 1.5, 1.5), "compile; eager is no peer, fbgemm was skipped"
    assert attention.best_peers == ("compile",)
    assert attention.memory_of_eager is not None and attention.memory_of_eager.mean == 0.5
    assert adagrad.over_best_peer is None and adagrad.memory_of_eager is None
    assert adagrad.over_eager is not None and adagrad.over_eager.mean == 0.5, "slower than eager is said as well"


def test_the_markdown_table(records: list[Record]) -> None:
    text = summary.markdown(records)
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in rows}) == 1
    assert rows[2].startswith("| causal_attention | cpp | 4.00× (2.00–8.00) | 1.50× (compile) | 50 % | 50 % |")
    assert "Toy CPU, 2 cores" in text and "abc123" in text


class Outside(HTMLParser):
    """Collects every address in a page, and checks that its tags nest."""

    VOID = ("meta", "link", "img", "source", "br")

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "srcset")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_stands_alone(results: Path) -> None:
    text = page.page(page.load(results))
    parser = Outside()
    parser.feed(text)
    assert parser.open == []
    assert parser.addresses and all(address.startswith(("data:", "#")) for address in parser.addresses)
    assert not re.search(r"url\((?!#)|<script[^>]|@import", text)
    assert text.count("<figure data-chart") >= 3 and "var(--series-0)" in text, "one drawing, colours of both modes"
    for shown in ("4.00×", "allowed &lt;2&gt;", "99.0 GiB", "12,346", "75.0×", "out of &lt;memory&gt;", "paged cache"):
        assert shown in text, shown


@pytest.mark.slow
def test_the_same_results_give_the_same_page(results: Path) -> None:
    assert page.page(page.load(results)) == page.page(page.load(results))


def run_command(*arguments: str) -> Any:
    app = typer.Typer()
    page.register(app)
    return CliRunner().invoke(app, list(arguments))


@pytest.mark.slow
def test_the_command_writes_both_files(results: Path, tmp_path: Path) -> None:
    out, table = tmp_path / "page" / "report.html", tmp_path / "table.md"
    done = run_command(str(results), "--out", str(out), "--table", str(table))
    assert done.exit_code == 0, done.output
    assert out.read_text().startswith("<!doctype html>") and table.read_text().startswith("| op |")
    assert sorted(path.name for path in out.parent.iterdir()) == ["report.html"]


@pytest.fixture
def damaged(results: Path) -> Iterator[Path]:
    yield results / "toy-cpu"


def test_what_is_not_a_result_is_one_sentence(damaged: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    done = run_command(str(empty), "--out", str(tmp_path / "x.html"))
    assert done.exit_code == 2 and "holds no results" in done.output
    (damaged / "scaling.json").write_text("{}")
    done = run_command(str(damaged.parent), "--out", str(tmp_path / "x.html"))
    assert done.exit_code == 2 and re.search(r"scaling\.json: not what it should hold", done.output)
    (damaged / "scaling.json").unlink()
    with (damaged / "run.jsonl").open("a") as file:
        file.write("[]\n")
    done = run_command(str(damaged.parent), "--out", str(tmp_path / "x.html"))
    assert done.exit_code == 2 and "run.jsonl:7: not a benchmark record" in done.output
    assert not (tmp_path / "x.html").exists()


def test_a_file_of_records_stands_for_itself(results: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    done = run_command(str(results / "toy-cpu" / "run.jsonl"), "--out", str(out))
    assert done.exit_code == 0, done.output
    assert "| op |" in done.output and "<h2>" in out.read_text()
    nothing = tmp_path / "nothing.jsonl"
    nothing.touch()
    done = run_command(str(nothing), "--out", str(tmp_path / "x.html"))
    assert done.exit_code == 2 and "expected a record in each line" in done.output
