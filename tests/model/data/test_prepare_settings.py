"""Options of the sources: every value that does not fit is one sentence, and nothing is made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from python_model.cli import app
from python_model.data.prepare import READERS, prepare
from python_model.data.synthetic import SyntheticConfig, generate
from python_model.io.settings import checked, settings_of

COMMON = {"overwrite", "progress", "engine", "name"}
SETTINGS = [("synthetic", name, kind) for name, kind in settings_of(SyntheticConfig).items()]
SETTINGS += [("synthetic", name, kind) for name, kind in settings_of(generate).items() if name not in COMMON]
SETTINGS += [(source, name, kind) for source, reader in READERS.items()
             for name, kind in settings_of(reader).items() if name not in COMMON]  # fmt: skip
HOSTILE: list[Any] = [
    "abc", "", "1", "1.5", "null", None, True, False, 0, -1, -1.0, 1.5, 10**18, 2**63, -(2**63) - 1, 10**400,
    float("nan"), float("inf"), -float("inf"), 1e308, [], [1], {}, {"a": 1}, "٥", "x" * 10_000, "flat\n", "\ud800",
]  # fmt: skip
GIVEN = [
    ("synthetic", "seed=abc", "seed is 'abc', expected a whole number"),
    ("synthetic", "users=1.5", "users is 1.5, expected a whole number in [1, 2147483647]"),
    ("synthetic", "users=1000000000000000000", "users is 1000000000000000000, expected a whole number in"),
    ("synthetic", "days=null", "days is None, expected a whole number in [1, 10000]"),
    ("synthetic", "days=-1", "days is -1, expected"),
    ("synthetic", "drift=NaN", "drift is "),
    ("synthetic", "chunk_users=0", "chunk_users is 0, expected a whole number in [1, 2147483647]"),
    ("synthetic", "preset=large", "--set preset: give the preset as PATH"),
    ("synthetic", "out=x", "unknown option out of source 'synthetic'"),
    ("synthetic", "engine=ray", "unknown option engine of source 'synthetic'"),
    ("movielens", "overwrite=true", "unknown option overwrite of source 'movielens'; it has: none"),
    ("yambda", "skip_below_pct=abc", "skip_below_pct is 'abc', expected a whole number in [1, 80]"),
    ("yambda", "format=[]", "format is [], expected one of flat, sequential"),
    ("yambda", "size=5B", "size is '5B', expected one of 50m, 500m, 5b"),
    ("yambda", "unsorted=true", "unsorted is True, expected one of refuse, sort"),
]


@pytest.mark.parametrize(("source", "name", "kind"), SETTINGS)
def test_hostile_values_are_refused_in_a_sentence(tmp_path: Path, source: str, name: str, kind: Any) -> None:
    refused = 0
    for value in HOSTILE:
        try:
            checked(kind, name, value)
        except ValueError as error:
            refused += 1
            path = None if source == "synthetic" else tmp_path
            with pytest.raises(ValueError, match=rf"^{name} is .*expected ") as caught:
                prepare(source, path, tmp_path / "out", **{name: value})
            assert str(caught.value) == str(error) and "\n" not in str(error)
            assert len(str(error)) < 300
    assert refused >= 20
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("preset", [value for value in HOSTILE if not isinstance(value, str) or len(value) < 100])
def test_hostile_presets(tmp_path: Path, preset: Any) -> None:
    with pytest.raises(ValueError, match=r"^preset is .*, expected one of demo, small, large, years$"):
        prepare("synthetic", None, tmp_path / "out", preset=preset)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("source", "setting", "says"), GIVEN)
def test_the_command_ends_with_the_sentence(tmp_path: Path, source: str, setting: str, says: str) -> None:
    path = "small" if source == "synthetic" else str(tmp_path)
    result = CliRunner().invoke(app, ["prepare", source, path, str(tmp_path / "out"), "--set", setting])
    assert (result.exit_code, result.output.count("\n")) == (2, 1), result.output
    assert result.output.startswith(f"argus: {says}")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("changes", [
    {"clusters": 1, "artists": 1, "tracks": 2}, {"dimensions": 1}, {"recent": 1000}, {"days": 10_000},
    {"organic_sharpness": 1000, "policy_sharpness": 0, "policy_noise": 1000}, {"expectation": -1000},
    {"expectation": 1000}, {"drift": 0, "mode_persistence": 0, "recommended_share": 0}, {"session_length": 1},
    {"drift": 0.999999, "mode_persistence": 0.999999, "recommended_share": 0.999999}, {"seed": -(2**63)},
    {"seed": 2**63 - 1}, {"events_per_user": 2}, {"seasonality": 1}, {"seasonality": 0.9, "hour_tastes": 0.1},
    {"loyalty": 0.9, "cycles": 0.1, "discovery": 1}, {"cycles": 1, "seasons": 366, "days": 800},
])  # fmt: skip
def test_the_ends_of_every_range_make_a_data_set(tmp_path: Path, changes: dict[str, Any]) -> None:
    info = prepare(
        "synthetic", None, tmp_path / "out", preset="small", **{"users": 20, "events_per_user": 9, **changes}
    )
    assert info.users == 20
    json.loads((tmp_path / "out" / "dataset.json").read_text(), parse_constant=pytest.fail)


@pytest.mark.parametrize("source", [*READERS, "synthetic"])
def test_help_lists_every_option_of_a_source_and_makes_nothing(source: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["prepare", source, "demo", str(tmp_path / "out"), "--set", "help"])
    assert done.exit_code == 0 and not (tmp_path / "out").exists() and done.stderr == ""
    for command in (["prepare", source, "--set", "help"], ["prepare", "--set", "help", source]):
        assert CliRunner().invoke(app, command).output == done.output  # nothing else is needed for it
    listed = {line.split("=")[0] for line in done.output.splitlines() if "=" in line}
    assert listed == {name for owner, name, _ in SETTINGS if owner == source}
