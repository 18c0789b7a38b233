"""The study of the logQ correction, small: what it must find, and that it goes on where it was stopped."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from python_model.cli import app
from python_model.studies import logq
from python_model.studies.logq import LOSSES, Service, Settings

SMALL = Settings(items=60, contexts=6, width=8, batch=64, negatives=24, steps=250, seeds=1)


def test_the_service_draws_what_it_says() -> None:
    service = Service(SMALL, 0)
    context, item = service.draw(60_000, torch.Generator().manual_seed(0))
    counts = torch.bincount(context * SMALL.items + item, minlength=6 * 60).view(6, 60).double()
    shares = counts / counts.sum(dim=1, keepdim=True)
    expected = service.log_p.exp()
    error = (expected * (1 - expected) / counts.sum(dim=1, keepdim=True)).sqrt()
    assert ((shares - expected).abs() < 5 * error + 1e-4).all()
    bucket = service.buckets()
    mass = torch.zeros(logq.BUCKETS, dtype=torch.float64).index_add_(0, bucket, service.share)
    assert (mass > 0).all() and mass.sum() == pytest.approx(1)
    assert service.share[bucket == 0].min() >= service.share[bucket == logq.BUCKETS - 1].max()


def test_corrected_losses_find_the_truth_and_the_biased_one_does_not() -> None:
    found = {loss: logq.train_one(loss, SMALL, 0) for loss in LOSSES}
    end = {loss: one.divergence[-1] for loss, one in found.items()}
    assert end["full"] < 0.15
    assert end["standard"] < 0.25 and end["refined"] < 0.25
    assert end["biased"] > 2 * max(end["standard"], end["refined"])
    # Negatives that follow popularity push popular items down where nothing corrects for it.
    assert found["biased"].offset[0] < -0.5 < found["standard"].offset[0]


def test_the_command_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["study", "logq", str(tmp_path / "out"), "--steps", "2", "--seeds", "1", "--negatives", "8"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    record = json.loads((tmp_path / "out/logq.json").read_text())
    assert [one["loss"] for one in record["outcomes"]] == list(LOSSES)
    assert (tmp_path / "out/logq.md").read_text().count("\n| `") == 4
    for name in ("logq_divergence.svg", "logq_offset.svg"):
        assert (tmp_path / "out" / name).read_text().startswith("<svg")
    trained: list[str] = []
    monkeypatch.setattr(logq, "train_one", lambda loss, settings, seed: trained.append(loss))
    assert CliRunner().invoke(app, arguments).exit_code == 0
    assert trained == []
    other = CliRunner().invoke(app, [*arguments[:-1], "16"])
    assert other.exit_code == 2 and "holds a study with other settings" in " ".join(other.output.split())


def test_settings_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="negatives is 600, expected at most twice the 256 events"):
        Settings(negatives=600)
    with pytest.raises(ValueError, match="steps is 0"):
        Settings(steps=0)
