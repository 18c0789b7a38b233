"""The command line without training: help, errors in one sentence, and what refuses to start."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from python_model.cli import app, parse_settings
from python_model.config import ModelConfig, TrainConfig
from python_model.reporting import console
from python_model.training.progress import StepReport
from python_model.training.runs import apply_settings

COMMANDS = ["demo", "prepare", "pretrain", "finetune", "evaluate", "recommend"]
runner = CliRunner()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    out = tmp_path_factory.mktemp("cli") / "data"
    result = runner.invoke(app, ["prepare", "synthetic", "small", str(out), "--set", "users=20", "--set", "seed=9"])
    assert result.exit_code == 0, result.output
    return str(out)


def one_sentence(arguments: list[str]) -> str:
    """The message of a command that has to fail: exit code 2, one line on stderr, nothing on stdout."""
    result = runner.invoke(app, arguments)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("argus: ") and result.stderr.count("\n") == 1, result.stderr
    return result.stderr.removeprefix("argus: ").strip()


def test_help_names_every_command_and_where_to_start() -> None:
    text = runner.invoke(app, ["--help"]).output
    assert "argus demo" in text
    assert all(command in text for command in [*COMMANDS, "doctor"])


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_with_an_example(command: str) -> None:
    result = runner.invoke(app, [command, "--help"])
    assert result.exit_code == 0
    assert "Example" in result.output and f"argus {command}" in result.output


@pytest.mark.parametrize("command", ["demo", "evaluate", "recommend"])
def test_every_command_with_a_table_takes_json(command: str) -> None:
    assert "--json" in runner.invoke(app, [command, "--help"], env={"COLUMNS": "120"}).output


def test_prepare_keeps_the_settings_it_was_given(data: str) -> None:
    info = json.loads((Path(data) / "dataset.json").read_text())
    assert info["users"] == 20 and info["params"]["seed"] == 9


def test_missing_data_set(tmp_path: Path) -> None:
    message = one_sentence(["pretrain", str(tmp_path / "nowhere"), str(tmp_path / "out")])
    assert "nowhere" in message and "not found" in message
    assert not (tmp_path / "out").exists()


def test_prepare_refuses_what_is_there(data: str) -> None:
    assert "exists and is not empty" in one_sentence(["prepare", "synthetic", "small", data])


def test_prepare_names_an_unknown_setting(tmp_path: Path) -> None:
    message = one_sentence(["prepare", "synthetic", "small", str(tmp_path / "out"), "--set", "user=3"])
    assert "user" in message and "users" in message
    assert list(tmp_path.iterdir()) == []


def test_prepare_names_a_missing_file(tmp_path: Path) -> None:
    assert "nothing" in one_sentence(["prepare", "movielens", str(tmp_path / "nothing"), str(tmp_path / "out")])


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        (["--set", "colour=red"], "unknown setting colour"),
        (["--set", "steps"], "expected NAME=VALUE"),
        (["--set", "dropout=2"], "dropout is 2, expected a finite number in [0, 1)"),
        (["--steps", "0"], "steps is 0"),
        (["--recipe", "netflix"], "recipe: expected one of default"),
        (["--device", "cuda:77"], "--device cuda:77"),
        (["--device", "abacus"], "--device abacus"),
    ],
)
def test_pretrain_refuses_bad_settings(data: str, tmp_path: Path, extra: list[str], expected: str) -> None:
    assert expected in one_sentence(["pretrain", data, str(tmp_path / "out"), *extra])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("extra", [[], ["--from", "run", "--from-scratch"], ["--resume"]])
def test_finetune_needs_exactly_one_start(data: str, tmp_path: Path, extra: list[str]) -> None:
    assert "give either --from RUN" in one_sentence(["finetune", data, str(tmp_path / "out"), *extra])


def test_finetune_from_something_that_is_no_run(data: str, tmp_path: Path) -> None:
    message = one_sentence(["finetune", data, str(tmp_path / "out"), "--from", data])
    assert "no checkpoint" in message


@pytest.mark.parametrize("command", ["evaluate", "recommend"])
def test_a_run_without_checkpoint(data: str, tmp_path: Path, command: str) -> None:
    extra = ["--user", "1"] if command == "recommend" else []
    assert "no checkpoint" in one_sentence([command, data, str(tmp_path), *extra])


def test_json_into_a_missing_directory_is_refused_before_the_work(data: str, tmp_path: Path) -> None:
    out, file = tmp_path / "demo", tmp_path / "deep" / "table.json"
    assert "the directory" in one_sentence(["demo", "--out", str(out), "--json", str(file)])
    assert not out.exists()


def test_the_demo_does_not_touch_a_directory_that_is_not_its_own(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    assert "not an earlier demo" in one_sentence(["demo", "--out", str(tmp_path)])
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.txt"]


def test_debug_shows_the_error_itself(tmp_path: Path) -> None:
    result = runner.invoke(app, ["--debug", "pretrain", str(tmp_path / "nowhere"), str(tmp_path / "out")])
    assert isinstance(result.exception, ValueError)


def test_version_and_doctor() -> None:
    assert runner.invoke(app, ["--version"]).output.startswith("argus-kernels ")
    result = runner.invoke(app, ["doctor"])
    assert result.exit_code == 0, result.output


def test_settings_are_json_where_they_can_be() -> None:
    assert parse_settings(["a=1", "b=0.5", "c=true", "d=full", "e=x=y"]) == {
        "a": 1, "b": 0.5, "c": True, "d": "full", "e": "x=y",
    }  # fmt: skip


def test_settings_reach_the_configuration_that_has_them() -> None:
    model, train = apply_settings(ModelConfig(), TrainConfig(), {"width": 128, "steps": 7, "pair_window": None})
    assert (model.width, train.steps, train.pair_window) == (128, 7, None)
    with pytest.raises(ValueError, match="unknown setting stage"):
        apply_settings(ModelConfig(), TrainConfig(), {"stage": "finetune"})


def test_progress_prints_the_last_step_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    report = StepReport("pretrain", 1, 2, 64, 0.1, 640.0, 65.0, 1e-3, {"next_item": 6.5, "feedback_like": 0.25})
    with console.TrainingProgress("Pre-training") as progress:
        progress(report)
        assert capsys.readouterr().err == ""
        progress(StepReport(**{**report.__dict__, "step": 2, "seconds_left": 0.0}))
    expected = "Pre-training: step 2/2, 640 events/s, 0:00 left, next item 6.500, feedback 0.250\n"
    assert capsys.readouterr().err == expected


def test_a_metric_that_is_not_defined_prints_as_a_dash() -> None:
    assert console.format_metric(None) == "–"
    assert console.format_metric(0.12345) == "0.1235" or console.format_metric(0.12345) == "0.1234"
