"""`python -m benchmarks table-step` on a small case: every way is timed after its tables were compared."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from argus_kernels.ops import triple_embedding
from benchmarks.cli import app
from benchmarks.harness.cases import Case, Spec
from benchmarks.scenarios import table_step


def small_specs(*given: Any) -> list[Spec]:
    """The first small case, without missing ids, in the dtypes asked for."""
    sample = next(one for one in triple_embedding.OP.samples() if one.name == "small_and_large_tables")

    def make(generator: torch.Generator, dtype: torch.dtype) -> dict[str, Any]:
        arguments = sample.make(generator, dtype)
        return {**arguments, "ids": arguments["ids"].clamp_min(0), "sparse": True}

    return [Spec(triple_embedding.OP, dataclasses.replace(sample, make=make), dtype) for dtype in given[-1]]


def test_every_way_is_compared_and_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_step, "select", small_specs)
    # Where FBGEMM is installed: its CPU step refuses the odd row widths of a small case.
    monkeypatch.setattr("benchmarks.peers.fbgemm.why_not", lambda case: "it does not take these row widths")
    written = tmp_path / "steps.json"
    done = CliRunner().invoke(app, ["table-step", "--seconds", "0", "--dtype", "fp32", "--json", str(written)])
    assert done.exit_code == 0, done.output
    rows = json.loads(written.read_text())
    found = [row["way"] for row in rows]
    assert found[:3] == ["fused", "two_steps", "two_steps_dense"] and found[-1] == "torch"
    assert rows[0]["ratio"] == 1.0
    assert all(0 < row["best"] <= row["ms"]["p50"] for row in rows)


def test_ways_that_there_are_not_say_why() -> None:
    ways, absent = table_step.ways_of(small_specs(["bf16"])[0].draw(0, "cpu"))
    assert [way.name for way in ways] == ["fused", "two_steps", "two_steps_dense"]
    assert "no bfloat16 tables" in absent["fbgemm"]
    assert "adds no row-sparse gradients in 16 bits" in absent["torch"]
    table_step.compare(ways, 4e-2)


def test_a_way_that_computes_something_else_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    case: Case = small_specs(["fp32"])[0].draw(0, "cpu")
    ways, _ = table_step.ways_of(case)
    step = ways[1].step

    def wrong() -> None:
        step()
        with torch.no_grad():
            ways[1].tables[0][0, 0] += 1

    ways[1] = dataclasses.replace(ways[1], step=wrong)
    with pytest.raises(RuntimeError, match="two_steps differs from fused by 1 in table 0"):
        table_step.compare(ways, 1e-3)


def test_an_unknown_case_is_refused() -> None:
    done = CliRunner().invoke(app, ["table-step", "--case", "no_such"])
    assert done.exit_code == 2
    assert "case no_such is unknown" in " ".join(done.output.replace("│", " ").split())
