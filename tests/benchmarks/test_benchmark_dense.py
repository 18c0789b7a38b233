"""`python -m benchmarks dense` on layers of a few kilobytes."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from typer.testing import CliRunner

from benchmarks.cli import app


def test_every_layer_is_timed_three_ways_on_one_thread(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    written = tmp_path / "dense.json"
    options = ["--width", "16", "--megabytes", "1", "--seconds", "0", "--rows", "2", "--json", str(written)]
    done = CliRunner().invoke(app, ["dense", *options])
    assert done.exit_code == 0, done.output
    assert torch.get_num_threads() == threads
    rows = json.loads(written.read_text())
    assert [(row["layer"], row["dtype"]) for row in rows] == [
        (layer, dtype) for dtype in ("fp32", "bf16") for layer in ("qkv", "output", "up", "down")
    ]
    assert [row["weight_bytes"] for row in rows[:4]] == [3072, 1024, 4096, 4096]
    for row in rows:
        assert row["read"] > 0 and 0 < row["direct"] < 1e5 and 0 < row["modules"] < 1e5


def test_an_unknown_dtype_is_refused() -> None:
    done = CliRunner().invoke(app, ["dense", "--dtype", "fp8"])
    assert done.exit_code == 2
    assert "expected one of fp32, bf16, fp16" in " ".join(done.output.replace("│", " ").split())
