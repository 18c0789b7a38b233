"""`python -m benchmarks fewer-rows` at small sizes: every way is timed after its numbers were compared."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from benchmarks.cli import app
from benchmarks.scenarios import fewer_rows


def test_every_way_is_compared_and_timed(tmp_path: Path) -> None:
    written = tmp_path / "rows.json"
    sizes = ["--preset", "tiny", "--events", "40", "--candidates", "7", "--users", "2", "--seconds", "0"]
    done = CliRunner().invoke(app, ["fewer-rows", *sizes, "--json", str(written)])
    assert done.exit_code == 0, done.output
    rows = json.loads(written.read_text())
    assert [row["case"] for row in rows if row["ratio"] == 1.0] == [
        "layer, forward", "layer, trained", "attention of candidates", "model over candidates",
    ]  # fmt: skip
    assert all(row["ms"]["p50"] > 0 for row in rows)
    one = next(row for row in rows if row["way"] == "one anew")
    base = next(row for row in rows if row["case"] == one["case"])
    assert one["ratio"] == pytest.approx(7 * one["ms"]["p50"] / base["ms"]["p50"])


def test_ways_that_differ_are_refused() -> None:
    with pytest.raises(RuntimeError, match="fewer-rows: case: other differs by 1 of the largest element"):
        fewer_rows.agree("case", {"first": lambda: torch.ones(2), "other": lambda: torch.zeros(1)})


def test_an_unknown_preset_is_refused() -> None:
    done = CliRunner().invoke(app, ["fewer-rows", "--preset", "none"])
    assert done.exit_code == 2 and "--preset is none" in done.output
