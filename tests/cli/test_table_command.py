"""`argus prepare table`: its options, what it prints, and one sentence for what does not fit."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from python_model.cli import app
from python_model.data.feedback import categorical
from python_model.data.schema import load_dataset


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A log and its items, in the current directory."""
    (tmp_path / "log.csv").write_text(
        "who,what,at,liked,mood,device\na,x,2024-01-01T00:00:00Z,1,good,tv\na,y,2024-01-02T00:00:00Z,0,bad,tv\n"
    )
    (tmp_path / "items.csv").write_text("id,name,kind\nx,Xylophone,instrument\ny,Yarn,craft\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


COLUMNS = ["--user", "who", "--item", "what", "--time", "at"]


def said(*arguments: str, expect: int = 0) -> str:
    result = CliRunner().invoke(app, ["prepare", *arguments])
    assert result.exit_code == expect, result.output
    return result.stderr


def test_every_option_has_its_effect(log: Path) -> None:
    printed = said(
        "table", "log.csv", "out", *COLUMNS, "--feedback", "like=liked", "--feedback", "mood:classes", "--negative",
        "like", "--context", "device", "--items", "items.csv", "--item-id", "id", "--title", "name", "--item-feature",
        "kind", "--grade", "mood",
    )  # fmt: skip
    assert printed.splitlines()[:5] == [
        "Rows: 2; 2 events of 1 user on 2 items",
        "Events a user: 2 to 2, median 2, mean 2.0; 0 users with one event",
        "Times: read as ISO 8601 with a zone, 2024-01-01 00:00:00 to 2024-01-02 00:00:00 UTC",
        "Feedback like: 50.0 % yes",
        "Feedback mood: bad 50.0 %, good 50.0 %",
    ]
    dataset = load_dataset("out")
    assert dataset.info.negative == ("like",)
    assert dataset.grade.tolist() == [1, 0]
    assert [dataset.names.title(item) for item in (0, 1)] == ["Xylophone", "Yarn"]
    assert dataset.names.label("item_kind", int(dataset.item_column("item_kind")[0])) == "instrument"


def test_an_option_replaces_what_the_mapping_says(log: Path) -> None:
    said("table", "log.csv", "out", *COLUMNS, "--feedback", "like=liked")
    said("table", "log.csv", "two", "--mapping", "out/mapping.toml", "--feedback", "mood:classes")
    assert dict(load_dataset("two").info.feedback) == {"mood": categorical(2)}


WRONG = [
    (["movielens", "log.csv", "out", "--user", "who"], "--user is of `argus prepare table`, found the source"),
    (["movielens", "log.csv", "items.csv", "out"], "movielens reads one PATH, found 2: log.csv, items.csv"),
    (["table", "log.csv", "out", "--user", "who", "--set", "user=who"], "--set user: expected once, found --user too"),
    (["table", "log.csv", "out", "--set", "usr=who"], "unknown option usr of source 'table'; it has: mapping, user"),
    (["table", "log.csv", "out", *COLUMNS, "--feedback", "a=liked", "--feedback", "a=x"], "--feedback a: expected"),
    (["table", "log.csv", "out", "--time", "time"], "log.csv, column 'user': this column is missing; the file"),
    (["table", "no.csv", "out"], "no.csv: not found"),
    (["table", "", "out", *COLUMNS], "PATH is '', expected the name of a file or directory"),
    (["table", "log.csv", "", "out", *COLUMNS], "PATH is '', expected the name of a file or directory"),
    (["table", "log.csv", "out", *COLUMNS, "--missing", "keep"], "missing is 'keep', expected one of refuse, drop"),
    (["table", "log.csv", "out", *COLUMNS, "--unit", "seconds", "--feedback", "l!=liked"], "found 'l!'"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "says"), WRONG)
def test_what_does_not_fit_is_one_sentence(log: Path, arguments: list[str], says: str) -> None:
    printed = said(*arguments, expect=2)
    assert says in printed
    assert len(printed.strip().splitlines()) == 1
    assert sorted(path.name for path in log.iterdir()) == ["items.csv", "log.csv"]


def test_the_list_of_settings_names_every_one() -> None:
    result = CliRunner().invoke(app, ["prepare", "table", "--set", "help"])
    assert result.exit_code == 0
    assert "pair_window=10800" in result.output and "item_features" in result.output
