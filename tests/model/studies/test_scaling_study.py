"""The scaling study: how steps and users grow, equal compute, and the fit on planted results."""

from __future__ import annotations

import numpy as np
import pytest

from python_model.data.schema import Dataset
from python_model.studies.scaling import Reporter, best_sizes, fits, scaling, training_flop
from python_model.studies.study import Budget
from python_model.studies.summary import signed
from python_model.studies.trials import TrialResult
from tests.model.studies.planted import planted

SIZES = ("1x16", "1x32", "2x128")
PARAMETERS = (3_000, 30_000, 300_000, 3_000_000)


def by_size(slope: float, noise: float, seeds: int = 3, end: str = "") -> list[TrialResult]:
    """Sizes whose NDCG grows by `slope` per tenfold parameters, and whose losses fall by as much."""
    random = np.random.default_rng(0)
    out = []
    for seed in range(seeds):
        for parameters in PARAMETERS:
            value = slope * np.log10(parameters) + noise * random.normal() + 0.01 * random.normal(size=20)
            metrics = {
                "ndcg@10": value,
                "pairwise_accuracy": value,
                "next_item_ne": 1 - value,
                "feedback_ne": 1 - value,
            }
            out.append(planted(f"{parameters}{end}", metrics, seed=seed, parameters=parameters))
    return out


def test_the_fit_finds_the_planted_slope_and_how_straight_it_is() -> None:
    found = fits(by_size(0.03, noise=0.002))
    assert list(found) == ["ndcg@10", "pairwise_accuracy", "next_item_ne", "feedback_ne"]
    assert found["ndcg@10"].slope == pytest.approx(0.03, abs=0.004)
    assert found["ndcg@10"].low < 0.03 < found["ndcg@10"].high and found["ndcg@10"].r2 > 0.95
    assert found["next_item_ne"].slope == pytest.approx(-0.03, abs=0.004)
    flat = fits(by_size(0.0, noise=0.002))["ndcg@10"]
    assert flat.low < 0 < flat.high and flat.r2 < 0.5
    assert fits(by_size(0.03, noise=0.0)[:2]) == {}


def test_the_report_has_fit_intervals_and_the_best_size_of_every_budget() -> None:
    grown, small, large = by_size(0.03, 0.001), by_size(-0.02, 0.001, end=".c0"), by_size(0.02, 0.001, end=".c1")
    flop = {one.name: 1e9 for one in small} | {one.name: 1e12 for one in large}
    report = Reporter([0.1, 0.5], flop).report([*grown, *small, *large], [])
    assert "| per tenfold parameters | slope | 95 % interval of the slope | R² | points |" in report.text
    slope = report.more["fits"]["ndcg@10"]["slope"]
    assert f"| NDCG@10 | {signed(slope)} |" in report.text and "| 12 |" in report.text
    assert "At 1e+09 FLOP, 0.1 of the largest size's:" in report.text
    assert "| 1e+09 | `3000` | `3000` | `3000` | `3000` |" in report.text
    assert "| 1e+12 | `3000000` | `3000000` | `3000000` | `3000000` |" in report.text
    assert set(report.figures) == {"ndcg", "pairwise_accuracy", "next_item_ne", "feedback_ne"}
    assert report.more["fits"]["ndcg@10"]["points"] == 12 and set(report.more["intervals"]) == set(map(str, PARAMETERS))


def test_the_best_size_has_the_lowest_loss_and_the_highest_gain() -> None:
    rows = {"a": [planted("a", {"ndcg@10": np.array([0.2]), "next_item_ne": np.array([0.9])})],
            "b": [planted("b", {"ndcg@10": np.array([0.3]), "next_item_ne": np.array([0.8])})]}  # fmt: skip
    assert best_sizes(rows, "ndcg@10") == "b" and best_sizes(rows, "next_item_ne") == "b"
    assert best_sizes(rows, "feedback_ne") == "–"


def test_data_and_steps_grow_with_the_parameters(tiny_service: Dataset) -> None:
    budget = Budget(steps=400, finetune_steps=100, seeds=1)
    study = scaling(tiny_service, SIZES, budget, growth=0.5, compute=[0.1])
    grown = {trial.name: trial for trial in study.trials if "." not in trial.name}
    assert list(grown) == list(SIZES)
    smallest, largest = grown["1x16"].pretrain, grown["2x128"].pretrain
    assert smallest is not None and largest is not None and largest.steps == 400 and largest.train_share == 1
    share = (16**2 / (2 * 128**2)) ** 0.5
    assert smallest.train_share == pytest.approx(share) and smallest.steps == round(400 * share)
    same = scaling(tiny_service, SIZES, budget, growth=0.0, compute=[])
    assert {one.steps for trial in same.trials for one in trial.stages} == {400, 100}
    assert {one.train_share for trial in same.trials for one in trial.stages} == {1.0}


def test_at_equal_compute_every_size_takes_the_same_arithmetic(tiny_service: Dataset) -> None:
    study = scaling(tiny_service, SIZES, Budget(steps=4000, finetune_steps=1000, seeds=1), compute=[0.1, 0.5])
    largest = next(trial for trial in study.trials if trial.name == "2x128")
    for number, share in enumerate((0.1, 0.5)):
        found = [training_flop(trial) for trial in study.trials if trial.name.endswith(f".c{number}")]
        assert len(found) == 3
        assert found == pytest.approx([share * training_flop(largest)] * 3, rel=0.01)
    steps = [trial.stages[0].steps for trial in study.trials if trial.name.endswith(".c0")]
    assert steps[0] > steps[1] > steps[2] == 400
