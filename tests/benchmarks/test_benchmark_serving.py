"""The benchmark of serving, at sizes that take a moment: what it says is there and adds up."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from benchmarks.cli import app
from benchmarks.scenarios.serving import clustered_vectors

pytest.importorskip("faiss")

SMALL = ["--items", "3000", "--width", "16", "--queries", "20", "--rows", "5000", "--users", "500", "--size", "tiny",
         "--cached", "100", "--events", "5", "--threads", "1"]  # fmt: skip


def test_all_parts(tmp_path: Path) -> None:
    out = tmp_path / "serving.json"
    result = CliRunner().invoke(app, ["serving", *SMALL, "--json", str(out)])
    assert result.exit_code == 0, result.output
    found = json.loads(out.read_text())
    assert found["index"]["recall"] > 0.95 and found["index"]["items"] == 3000 and found["index"]["k"] == 100
    assert found["score"]["rows_per_second"] == pytest.approx(5000 / found["score"]["seconds"])
    assert [one["dtype"] for one in found["session"]] == ["float32", "bfloat16"]
    assert all(one["cached_events"] == 100 and 0 < one["p50_ms"] <= one["p99_ms"] for one in found["session"])
    assert CliRunner().invoke(app, ["serving", "--part", "nothing"]).exit_code == 2


def test_vectors_are_a_function_of_the_seed() -> None:
    one = clustered_vectors(70_000, 8, 1)
    np.testing.assert_allclose(np.linalg.norm(one, axis=1), 1, rtol=1e-5)
    np.testing.assert_array_equal(one, clustered_vectors(70_000, 8, 1))
    assert np.abs(one - clustered_vectors(70_000, 8, 2)).max() > 0.1
    assert np.abs(one[:10] - clustered_vectors(10, 8, 1, users=True)).max() > 0.1
