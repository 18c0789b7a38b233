"""`argus pretrain` without a recipe of the data's own: it says what it chose and keeps it, and the file is a recipe."""

from __future__ import annotations

from pathlib import Path

from typer.testing import CliRunner

from python_model.cli import app
from python_model.data.synthetic import generate, preset
from python_model.training import checkpoint
from python_model.training.recipe_file import read_recipe


def test_what_was_chosen_is_printed_and_kept(tmp_path: Path) -> None:
    generate(tmp_path / "data", preset("small", users=20, events_per_user=30.0, clusters=3, artists=3, tracks=3))
    command = ["pretrain", str(tmp_path / "data"), str(tmp_path / "run"), "--steps", "2", "--set", "validate_every=0"]
    done = CliRunner().invoke(app, [*command, "--recipe", "grown", "--set", "layers=1"])
    assert done.exit_code == 0, done.output
    assert "Recipe for " in done.stderr and "on 27 items: 2 layers of width 64" in done.stderr
    kept = checkpoint.read_description(tmp_path / "run")
    model, train = read_recipe(tmp_path / "run" / "recipe.toml", "pretrain")
    assert model == kept.model_config and model.layers == 1, "what is given wins, and is what the file holds"
    assert train.negatives_uniform == kept.train_config.negatives_uniform == 27
    text = (tmp_path / "run" / "recipe.toml").read_text()
    assert text.startswith("# Recipe for ") and "items = 27" in text
    plain = CliRunner().invoke(app, [*command[:2], str(tmp_path / "demo"), *command[3:], "--recipe", "demo"])
    assert plain.exit_code == 0 and not (tmp_path / "demo" / "recipe.toml").exists()
