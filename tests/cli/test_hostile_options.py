"""Hostile values for every option and argument of every command: exit code 0 or 2, one sentence, no traceback.

Commands, options and arguments are read from the command line itself, so that a new one is tried too. Where a value is
right the work would begin; what is slow of it is replaced by a refusal of its own.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from python_model.cli import app

BEGINS = "the work begins"
SLOW = [
    "python_model.training.tune.tune",
    "python_model.train.train", "python_model.demo.generate", "python_model.data.shards.shard_dataset",
    "python_model.training.runs.evaluate_runs", "python_model.studies.study.run_study",
    "python_model.studies.study.generate",
    "python_model.studies.logq.outcomes", "python_model.studies.one_pass.measure",
    "python_model.serving.export.export", "python_model.serving.index.CandidateIndex.build",
    "python_model.serving.http.server.serve",
]  # fmt: skip
VALUES = [
    "", " ", "0", "-1", "1", "2", "3", "1.5", "nan", "inf", "-inf", "1e400", "1_0", "０", "²", "x", "null", "true",
    str(2**31), str(2**63), str(2**64), str(-(2**63) - 1), "9" * 5000, "a" * 300, "[red]x[/blue]", ":tea:", "{}",
    "é\u2028z",
    "cuda:99", "cpu:0", "meta", "xyz", "temporal", "next_item", "tiny", "1x16", "0x0", "1x33", "2,3", ",", "0.5,nan",
    "/nonexistent/deep/x.json", "/", ".", "/dev/null", "\udcff", "a/b\\c", "--k", "=", "=1", "steps=", "steps=abc",
    "seed=-1", "dropout=NaN", 'feedback_weights={"like":"a"}', 'feedback_weights={"like":1,"like":2}', "layers=1e9",
    "feedback_weights=[1]", "width=null", "colour=red", "sketch_width=" + "9" * 30, "window=[[[[]]]]", "steps",
]  # fmt: skip
SETTINGS = [value for value in VALUES if "=" in value]


@pytest.fixture(autouse=True)
def _nothing_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    def begin(*given: Any, **named: Any) -> Any:
        raise ValueError(BEGINS)

    for name in SLOW:
        # A test of light imports may have left a package without the attribute that names its module.
        owner, _, function = name.rpartition(".")
        try:
            found = importlib.import_module(owner)
        except ModuleNotFoundError:
            found = pkgutil.resolve_name(owner)  # a class
        monkeypatch.setattr(found, function, begin)


def commands(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


COMMANDS = {path: command for path, command in commands(typer.main.get_command(app)) if path != ("doctor",)}


def right(path: tuple[str, ...], made: dict[str, str], out: str) -> list[str]:
    """Arguments with which a command begins its work."""
    arguments: dict[tuple[str, ...], list[str]] = {
        ("demo",): ["--out", out],
        ("prepare",): ["movielens", "/nonexistent", out],
        ("shard",): [made["data"], out, "--shards", "2"],
        ("pretrain",): [made["data"], out],
        ("finetune",): [made["data"], out, "--from", made["pretrain"]],
        ("tune",): [made["data"], out],
        ("plan",): ["--size", "tiny", "--rows", "1e7"],
        ("evaluate",): [made["data"], made["finetune"]],
        ("compare",): [made["data"], out],
        ("recommend",): [made["data"], made["finetune"], "--user", "3"],
        ("export",): [made["data"], made["finetune"], out],
        ("index",): [made["export"]],
        ("candidates",): [made["export"], "--user", "3", "--exact", "--blocked", made["blocked.txt"]],
        ("score",): [made["export"], made["rows.parquet"], out],
        ("serve",): [made["export"]],
    }
    return [*path, *arguments.get(path, [out])]


def outcome(arguments: list[str]) -> tuple[int, str]:
    """Exit code and stderr, with the rules that hold for every invocation."""
    result = CliRunner().invoke(app, arguments, input="")
    shown = [argument[:60] for argument in arguments]
    assert result.exception is None or isinstance(result.exception, SystemExit), f"{shown}: {result.exception!r}"
    assert result.exit_code in (0, 2), f"{shown}: {result.exit_code} {result.output}"
    said = [line for line in result.stderr.split("\n") if line.startswith("argus")]
    if result.exit_code == 2:
        assert len(said) == 1 and result.stderr.endswith(said[0] + "\n"), f"{shown}: {result.stderr}"
        assert len(said[0]) < 3000 and "Errno" not in said[0] and "object at 0x" not in said[0], f"{shown}: {said[0]}"
    else:
        assert not said, f"{shown}: {result.stderr}"
    return result.exit_code, result.stderr


@pytest.mark.parametrize("path", COMMANDS, ids="-".join)
def test_the_right_arguments_begin_the_work(path: tuple[str, ...], made: dict[str, str], tmp_path: Path) -> None:
    """Else the hostile values below would all be refused for another reason."""
    code, said = outcome(right(path, made, str(tmp_path / "out")))
    assert code == 0 or BEGINS in said or path == ("prepare",), said


def tries(path: tuple[str, ...], base: list[str], draw: random.Random) -> Iterator[list[str]]:
    """Each option with one of VALUES, each argument replaced by one."""
    for parameter in COMMANDS[path].params:
        value = draw.choice(VALUES)
        if parameter.param_type_name == "argument":
            places = [at for at in range(len(path), len(base)) if not base[at].startswith("--")]
            at = draw.choice(places or [len(base) - 1])
            yield [*base[:at], value, *base[at + 1 :]]
        elif "--help" not in parameter.opts:
            option = max(parameter.opts, key=len)
            value = draw.choice(SETTINGS) if option == "--set" and draw.random() < 0.7 else value
            yield [*base, option] if parameter.is_flag else [*base, f"{option}={value}"]


def test_any_value_is_taken_or_refused_in_one_sentence(
    made: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    draw = random.Random(5)
    refused = begun = 0
    for round_ in range(int(os.environ.get("ARGUS_FUZZ_SCALE", "1"))):
        for path in COMMANDS:
            for number, arguments in enumerate(tries(path, right(path, made, f"out-{round_}"), draw)):
                arguments = [one.replace(f"out-{round_}", f"out-{round_}-{number}") for one in arguments]
                code, said = outcome(arguments)
                refused += code == 2 and BEGINS not in said
                begun += code == 0 or BEGINS in said
    assert refused > 100 and begun > 30
