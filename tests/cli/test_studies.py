"""`argus study`: each study end to end on a small service, resumed, and what it refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from python_model.cli import app
from python_model.data.synthetic import generate, preset
from python_model.studies.context import SERVICE, service

runner = CliRunner()
QUICK = ["--steps", "3", "--finetune-steps", "2", "--seeds", "1", "--max-events", "150", "--batch-events", "256"]
SETTINGS = ["--set", "negatives_in_batch=16", "--set", "negatives_uniform=16", "--set", "warmup_steps=1"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    out = tmp_path_factory.mktemp("studies") / "service"
    generate(out, preset("demo", users=60, events_per_user=40.0, days=20, clusters=4, artists=4, tracks=4))
    return str(out)


def study(name: str, out: Path, data: str, *options: str) -> str:
    result = runner.invoke(app, ["study", name, str(out), "--data", data, *options])
    assert result.exit_code == 0, result.output
    return result.stderr


def rows(out: Path, name: str) -> dict[str, dict[str, Any]]:
    """The trials of a study by name, from its JSON."""
    found = json.loads((out / f"{name}.json").read_text())["results"]
    assert all((out / file).is_file() for file in [f"{name}.md", *(p.name for p in out.glob(f"{name}_*.svg"))])
    return {one["name"]: one for one in found}


@pytest.mark.slow
def test_scaling(data: str, tmp_path: Path) -> None:
    options = ["--sizes", "1x8,1x16,2x16", "--compute", "0.5", "--window", "64", *QUICK, *SETTINGS]
    study("scaling", tmp_path, data, *options)
    found = rows(tmp_path, "scaling")
    assert [one["parameters"]["encoder"] for one in found.values()] == [872, 3280, 6560] * 2
    fit = json.loads((tmp_path / "scaling.json").read_text())["fits"]["ndcg@10"]
    assert fit["low"] < fit["slope"] < fit["high"] and fit["points"] == 3
    table = (tmp_path / "scaling.md").read_text()
    assert (
        "| `oracle` |" in table and "| R² |" in table and "best by NDCG@10" in table and "(scaling_ndcg.svg)" in table
    )
    stamp = (tmp_path / "trials" / "1x8-seed-0" / "result.json").stat().st_mtime_ns
    study("scaling", tmp_path, data, *options)
    assert (tmp_path / "trials" / "1x8-seed-0" / "result.json").stat().st_mtime_ns == stamp
    refused = runner.invoke(app, ["study", "scaling", str(tmp_path), "--data", data, *options, "--steps", "4"])
    assert refused.exit_code == 2 and "pretrain.steps was 2, now 3" in refused.stderr, "1x16 takes .71 of the steps"


@pytest.mark.slow
def test_context(data: str, tmp_path: Path) -> None:
    quick = [option for option in QUICK if option != "--finetune-steps"]
    quick.remove("2")
    study("context", tmp_path / "one", data, "--windows", "8,32", "--window", "16", *quick, *SETTINGS)
    found = rows(tmp_path / "one", "context")
    assert list(found) == ["8", "32"] and found["8"]["metrics"] != found["32"]["metrics"]
    assert (tmp_path / "one" / "trials" / "model-seed-0" / "pretrain" / "metrics.jsonl").is_file(), "one model for both"
    text = (tmp_path / "one" / "context.md").read_text()
    assert (
        "| `oracle_8` |" in text and "| `oracle_32` |" in text and "| `8→32` |" in text and "| `oracle_8→32` |" in text
    )
    assert set(json.loads((tmp_path / "one" / "context.json").read_text())["gains"]) == {"8→32", "oracle_8→32"}
    study("context", tmp_path / "each", data, "--train-each", "--windows", "8,32", *quick, *SETTINGS)
    for window in (8, 32):
        trial = tmp_path / "each" / "trials" / f"{window}-seed-0"
        assert json.loads((trial / "trial.json").read_text())["pretrain"]["window"] == window
        assert (trial / "pretrain" / "metrics.jsonl").is_file()
    refused = runner.invoke(app, ["study", "context", str(tmp_path), "--data", data, "--windows", "8,100000"])
    assert refused.exit_code == 2 and "longest history" in refused.stderr


def test_what_the_context_study_leaves_out(data: str, tmp_path: Path) -> None:
    assert service() == replace(SERVICE, events_per_user=2048.0)
    seasonless, last = service(without=["seasons"]), service(without=["loyalty", "discovery"])
    assert seasonless.seasonality == seasonless.cycles == 0 < seasonless.loyalty
    assert last.loyalty == last.discovery == 0
    for options, says in (
        (["--without", "sun"], "without: found sun, expected some of seasons, loyalty, discovery"),
        (["--without", "loyalty", "--data", data], "--without loyalty changes the study's own service"),
        (
            ["--windows", "512,90000"],
            "windows: found 90,000 events, expected under 59,184, as the service runs six years",
        ),
    ):
        refused = runner.invoke(app, ["study", "context", str(tmp_path / "o"), *options])
        assert refused.exit_code == 2 and says in refused.stderr
    assert not (tmp_path / "o").exists()


def test_data(data: str, tmp_path: Path) -> None:
    study("data", tmp_path, data, "--shares", "0.1,1", *QUICK, *SETTINGS)
    events = json.loads((tmp_path / "data.json").read_text())["settings"]["training_events"]
    assert 0.05 < events["10_percent"] / events["100_percent"] < 0.2
    assert "| `10_percent` |" in (tmp_path / "data.md").read_text()


def test_ablations(data: str, tmp_path: Path) -> None:
    only = "no_pretraining,feedback_only,no_log_q,no_time_bias,no_feedback_input,no_lag_seen"
    study("ablations", tmp_path, data, "--only", only, *QUICK, *SETTINGS)
    found = rows(tmp_path, "ablations")
    assert set(found) == {"argus", *only.split(",")}
    assert found["no_pretraining"]["metrics"]["ndcg@10"] is None, "nothing trained that head"
    assert found["feedback_only"]["metrics"]["next_item_ne"] is None
    assert found["no_log_q"]["metrics"]["ndcg@10"] != found["argus"]["metrics"]["ndcg@10"]
    differences = json.loads((tmp_path / "ablations.json").read_text())["differences"]
    assert set(differences["pairwise_accuracy"]) == set(only.split(","))
    assert "| `no_log_q` | ≈" in (tmp_path / "ablations.md").read_text(), "one seed shows no difference"
    refused = runner.invoke(app, ["study", "ablations", str(tmp_path), "--data", data, "--only", "no_coffee"])
    assert refused.exit_code == 2 and "no_coffee is none, expected some of" in refused.stderr


@pytest.mark.slow
def test_forms(data: str, tmp_path: Path) -> None:
    study("forms", tmp_path, data, "--window", "32", *QUICK, *SETTINGS)
    found = rows(tmp_path, "forms")
    assert found["next_item_head"]["metrics"]["feedback_ne"] is None, "nothing trained that head"
    differences = json.loads((tmp_path / "forms.json").read_text())["differences"]
    assert len(differences) == 8 and differences["full − simplified"]["ndcg@10"] is not None
    assert "| `simplified − week` |" in (tmp_path / "forms.md").read_text()


def test_one_pass(data: str, tmp_path: Path) -> None:
    options = ["--size", "1x16", "--lengths", "16,32"]
    study("one-pass", tmp_path, data, *options)
    record = json.loads((tmp_path / "one_pass.json").read_text())
    assert [one["events"] for one in record["costs"]] == [16, 32]
    for one in record["costs"]:
        assert one["measured"] == one["impressions"] > 0 and not one["extrapolated"]
        assert one["largest_difference"] < 1e-4, "both ways give the same states"
    study("one-pass", tmp_path, data, *options)
    assert json.loads((tmp_path / "one_pass.json").read_text()) == record, "nothing is measured twice"
    study("one-pass", tmp_path / "few", data, "--size", "1x16", "--lengths", "32", "--most", "3")
    assert "~" in (tmp_path / "few" / "one_pass.md").read_text()
    refused = runner.invoke(app, ["study", "one-pass", str(tmp_path / "long"), "--data", data, "--lengths", "5000"])
    assert refused.exit_code == 2 and "longest history" in refused.stderr


def test_a_size_that_is_none_is_refused(data: str, tmp_path: Path) -> None:
    refused = runner.invoke(app, ["study", "scaling", str(tmp_path), "--data", data, "--sizes", "2x64,bigx8"])
    assert refused.exit_code == 2 and "LAYERSxWIDTH" in refused.stderr
