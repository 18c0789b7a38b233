"""The observers between popularity and the oracle: right by definition, and blind to the session they score."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from python_model.cli import app
from python_model.data.schema import Dataset, load_dataset
from python_model.data.synthetic import SyntheticConfig, generate, preset
from python_model.data.synthetic.tastes import START, Calendar, expected_taste
from python_model.studies.ceiling import _most_probable, _Observers, reaches


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    out = tmp_path_factory.mktemp("ceiling") / "service"
    generate(out, preset("small", users=150, seed=2))
    return load_dataset(out)


def test_the_conditional_mean_is_the_best_linear_guess_of_drawn_tastes() -> None:
    random = np.random.default_rng(0)
    users, sessions, drift = 40_000, 5, 0.92
    slow = random.normal(size=users)
    tastes = []
    base = random.normal(size=users)
    for _ in range(sessions):
        slow = drift * slow + np.sqrt(1 - drift**2) * random.normal(size=users)
        tastes.append(np.sqrt(0.5) * base + 0.5 * slow + 0.5 * random.normal(size=users))
    drawn = np.array(tastes)
    least_squares = np.linalg.lstsq(drawn[:-1].T, drawn[-1], rcond=None)[0]
    config, numbers = SyntheticConfig(drift=drift), np.arange(sessions)
    calendar = Calendar.of(START + 86_400 * numbers, config)
    found = expected_taste(config, np.eye(sessions - 1), numbers, calendar)
    np.testing.assert_allclose(found, least_squares, atol=0.02)
    assert np.array_equal(expected_taste(config, np.zeros((0, 3)), numbers[:1], calendar.at(numbers[:1])), np.zeros(3))


def test_the_most_probable_taste_is_a_stationary_point() -> None:
    random = np.random.default_rng(1)
    design, fixed, weight = random.normal(size=(60, 4)), random.normal(size=60), random.random(60)
    given, asked = random.random(60) < 0.4, random.random(60) < 0.7
    answers = ((given, 0.65, -2.1, np.ones(60, bool)), (~given, -1.0, 1.5, asked))

    def log_posterior(w: np.ndarray) -> float:
        pull, total = design @ w + fixed, -0.5 * float(w @ w)
        for yes, offset, slope, where in answers:
            z = offset + slope * pull
            total += float((weight * where * (yes * z - np.logaddexp(0, z))).sum())
        return total

    found = _most_probable(design, fixed, weight, answers)
    best = log_posterior(found)
    assert all(log_posterior(found + step) < best for step in np.concatenate([np.eye(4), -np.eye(4)]) * 1e-3)


def test_observers_are_blind_to_the_session_and_stand_in_order(dataset: Dataset) -> None:
    found = {one.name: one for one in reaches(dataset)}
    assert found["popularity"].share == 0 and found["oracle"].share == 1
    names = ["popularity", "feedback", "past tastes", "oracle"]
    assert [found[name].accuracy for name in names] == sorted(found[name].accuracy for name in names)
    observers = _Observers(dataset, "test")
    before = observers.from_past_tastes()
    changed = np.array(observers.oracle.session_taste)
    last = np.unique(observers.session[dataset.offsets[1:] - 1])
    changed[last] += 1.0
    observers.oracle.session_taste = changed
    after = observers.from_past_tastes()
    assert np.array_equal(before, after), "a user's last session is nobody's past"
    changed -= 1.0
    assert not np.array_equal(before, observers.from_past_tastes())


def test_the_command(dataset: Dataset, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["study", "ceiling", str(tmp_path), "--data", str(dataset.path)])
    assert result.exit_code == 0, result.output
    assert "| past tastes |" in (tmp_path / "ceiling.md").read_text()
