"""The demo at miniature scale: every part of it runs, says its figures twice the same, and can be run again."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from python_model import demo
from python_model.cli import app
from python_model.data.synthetic import SyntheticConfig, preset

KEYS = ["ndcg@10", "recall@10", "pairwise_accuracy", "next_item_ne", "feedback_ne", "feedback_auc"]


@pytest.fixture
def miniature(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small service and a few steps; everything else is the demo's own."""

    def small(name: str, seed: int) -> SyntheticConfig:
        assert name == "demo"
        return preset("small", users=40, seed=seed)

    short: dict[str, Any] = {"batch_events": 256, "window": 32}
    recipe = demo.RECIPE
    monkeypatch.setattr(demo, "service_preset", small)
    monkeypatch.setattr(
        demo,
        "RECIPE",
        replace(
            recipe,
            pretrain=replace(recipe.pretrain, steps=5, **short),
            finetune=replace(recipe.finetune, steps=3, **short),
        ),
    )


@pytest.mark.usefixtures("miniature")
def test_the_demo_runs_twice_into_the_same_place(tmp_path: Path) -> None:
    out, file = tmp_path / "demo", tmp_path / "demo.json"
    tables = []
    for _ in range(2):
        result = CliRunner().invoke(app, ["demo", "--out", str(out), "--json", str(file), "--seed", "3"])
        assert result.exit_code == 0, result.output
        tables.append(json.loads(file.read_text()))
    assert tables[0] == tables[1]
    assert list(tables[0]["rows"]) == ["popularity", "pretrained", "finetuned", "oracle"]
    for row, values in tables[0]["rows"].items():
        assert list(values) == KEYS
        line = next(line for line in result.stdout.splitlines() if line.startswith(f"│ {row}"))
        assert [cell.strip() for cell in line.split("│")[2:-1]] == [f"{value:.4f}" for value in values.values()]
    assert f"Report: {out / 'report.html'}" in result.stderr
    assert "What ARGUS expects next:" in result.stdout and "  8. track " in result.stdout
    page = (out / "report.html").read_text()
    assert "What it recommends" in page and "Learning: pre-training" in page and "Learning: fine-tuning" in page


def test_history_says_what_happened(tmp_path: Path) -> None:
    from python_model.data.schema import load_dataset
    from python_model.data.synthetic import generate

    generate(tmp_path / "data", preset("small", users=10, seed=1))
    dataset = load_dataset(tmp_path / "data")
    lines = demo.recent_history(dataset, 4, 100_000)
    rows = range(int(dataset.offsets[5]) - 1, int(dataset.offsets[4]) - 1, -1)
    assert len(lines) == len(rows)
    for line, row in zip(lines, rows, strict=True):
        assert line.startswith(f"track {dataset.item_column('item_id')[dataset.item[row]]} (artist ")
        assert ("own choice" in line) == bool(dataset.organic[row])
        for task in ("like", "dislike", "skip"):
            said = line.split(", ")[-1].split(" and ")
            assert (task in said) == (dataset.feedback(task)[row] == 1)
