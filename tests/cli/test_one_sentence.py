"""What goes wrong around a command is one sentence: usage, paths, places to write, encodings, a reader that is gone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from python_model.__main__ import main as entry_point
from python_model.cli import app, training
from python_model.config import ModelConfig, TrainConfig
from python_model.evaluation.recommend import Recommended, UserRecommendations
from python_model.io.exclusive import owned, replacing
from python_model.reporting import console
from tests.cli.test_hostile_options import COMMANDS

REPOSITORY = Path(__file__).resolve().parents[2]


def said(arguments: list[object], expect: int = 2) -> str:
    """The one line that a command says when it ends with `expect`."""
    result = CliRunner().invoke(app, [str(one) for one in arguments])
    assert result.exit_code == expect, f"{result.output} {result.exception!r}"
    if expect == 2:
        assert result.stderr.startswith("argus: ") and result.stderr.count("\n") == 1, result.stderr
    return result.stderr.removeprefix("argus: ").strip()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["pretrain"], "Missing argument 'DATA' (see `"),
        (["pretrain", "d", "o", "--window", "0"], "--window"),
        (["pretrain", "d", "o", "--threads", "1000000000"], "--threads"),
        (["evaluate", "d", "r", "--k", "0"], "--k"),
        (["evaluate", "d", "r", "--max-events", "0"], "--max-events"),
        (["recommend", "d", "r", "--user", "1", "--k", "-1"], "--k"),
        (["score", "e", "r", "o", "--lag", str(2**63)], "--lag"),
        (["prepare", "netflix", "a", "b"], "'yambda'"),
        (["nonsense"], "No such command 'nonsense'"),
        (["--nonsense"], "No such option: --nonsense"),
        (["study", "nonsense"], "No such command 'nonsense'"),
        (["plan", "--rows", "nan"], "--rows nan: expected a whole number"),
        (["plan", "--rows", "inf"], "--rows inf: expected a whole number"),
        (["study", "data", "o", "--shares", "0.5,2"], "--shares: expected numbers in [1e-06, 1] separated by commas"),
        (["study", "context", "o", "--windows", "16,x"], "--windows: expected numbers in [2, "),
        (["study", "one-pass", "o", "--lengths", ","], "--lengths: expected numbers separated by commas, found ','"),
        (["study", "one-pass", "o", "--precision", "float16"], "'bfloat16'"),
        (["study", "scaling", "o", "--sizes", "²x16"], "size is '²x16', expected the name of a preset or LAYERSxWIDTH"),
        (["study", "scaling", "o", "--set", "colour=red"], "unknown setting colour"),
        (["study", "recipes", "o", "--set", "steps=5"], "setting steps is made by the search itself"),
        (["study", "ablations", "o", "--set", "dropout=NaN"], "dropout is 'NaN', expected a finite number"),
    ],
)
def test_a_value_that_does_not_fit(
    arguments: list[str], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert expected in said([*arguments])
    assert list(tmp_path.iterdir()) == []


HOSTILE_SETTINGS = [
    ('feedback_weights={"like":"a"}', "feedback_weights is {'like': 'a'}, expected a mapping from text to a finite"),
    ('feedback_weights={"like":null}', "feedback_weights"),
    ('feedback_weights={"like":-1}', "feedback_weights"),
    ("feedback_weights=[1]", "feedback_weights is [1]"),
    ("feedback_weights=3", "feedback_weights is 3"),
    ("seed=9223372036854775808", "seed is 9223372036854775808, expected a whole number in [0, 9223372036854775807]"),
    ("seed=-1", "seed is -1"),
    ("seed=abc", "seed is 'abc'"),
    ("steps=1.5", "steps is 1.5"),
    ("steps=true", "steps is True"),
    ("steps=null", "steps is None"),
    ("layers=100000", "layers is 100000, expected a whole number in [1, 1024]"),
    ("width=" + "9" * 30, "width is 9999"),
    ("learning_rate=NaN", "learning_rate is 'NaN'"),
    ("learning_rate=1e400", "learning_rate is '1e400'"),
    ("clip=0", "clip is 0"),
    ("dropout=null", "dropout is None"),
    ("log_q=1", "log_q is 1, expected true or false"),
    ("log_q=yes", "log_q is 'yes', expected true or false"),
    ("protocol=5", "protocol is 5"),
    ("window=", "window is ''"),
    ("=5", "expected NAME=VALUE, or help"),
    ("steps", "expected NAME=VALUE, or help"),
]


@pytest.mark.parametrize(("setting", "expected"), HOSTILE_SETTINGS, ids=[one[:30] for one, _ in HOSTILE_SETTINGS])
def test_a_setting_that_does_not_fit(made: dict[str, str], tmp_path: Path, setting: str, expected: str) -> None:
    assert expected in said(["pretrain", made["data"], tmp_path / "out", "--set", setting])
    assert not (tmp_path / "out").exists()


def test_a_setting_twice_and_a_feedback_that_the_data_lacks(made: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    message = said(["pretrain", made["data"], out, "--set", "steps=3", "--set", "steps=4"])
    assert message == "--set steps: expected once, found again with '4'"
    message = said(["pretrain", made["data"], out, "--set", 'feedback_weights={"clap":1}'])
    assert message.startswith("feedback_weights names clap; the data has like")


@pytest.mark.parametrize("command", [["pretrain"], ["finetune"], ["study", "logq"], ["study", "scaling"], ["compare"]])
def test_set_help_lists_every_setting(command: list[str]) -> None:
    if command == ["study", "logq"]:
        assert "No such option: --set" in said([*command, "--set", "help"])
        return
    result = CliRunner().invoke(app, [*command, "--set", "help"])
    names = [line.split("=")[0] for line in result.stdout.splitlines()]
    assert result.exit_code == 0 and result.stderr == ""
    assert names == [*ModelConfig.__dataclass_fields__, *list(TrainConfig.__dataclass_fields__)[1:]]


@pytest.mark.parametrize(
    "arguments",
    [
        ["score", "MISSING", "rows.parquet", "OUT"], ["score", "MISSING", "rows.parquet", "OUT", "--data", "data"],
        ["score", "export", "MISSING", "OUT"], ["evaluate", "data", "MISSING"], ["evaluate", "data", "row=MISSING"],
        ["recommend", "data", "MISSING", "--user", "1"], ["export", "data", "MISSING", "OUT"],
        ["finetune", "data", "OUT", "--from", "MISSING"],
        ["pretrain", "MISSING", "OUT"], ["evaluate", "MISSING", "finetune"],
        ["compare", "MISSING", "OUT"], ["candidates", "MISSING", "--user", "1"], ["index", "MISSING"],
        ["candidates", "export", "--user", "1", "--exact", "--blocked", "MISSING"],
    ],
    ids=lambda one: "-".join(one[:3]),
)  # fmt: skip
def test_a_path_that_is_missing_is_said_to_be(made: dict[str, str], tmp_path: Path, arguments: list[str]) -> None:
    places = {**made, "OUT": str(tmp_path / "out"), "MISSING": str(tmp_path / "nope")}
    rest = [places.get(one, one.replace("MISSING", places["MISSING"])) for one in arguments[1:]]
    message = said([arguments[0], *rest])
    assert f"{tmp_path / 'nope'}" in message and "not found" in message and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("command", "what"),
    [
        (["serve", "FILE"], "is a file, expected a directory"), (["index", "FILE"], "is a file, expected a directory"),
        (["candidates", "FILE", "--user", "1"], "is a file, expected a directory"),
        (["export", "FILE", "finetune", "OUT"], "is a file, expected a directory"),
        (["evaluate", "FILE", "finetune"], "is a file, expected a directory"),
        (["evaluate", "data", "FILE"], "is a file: expected a run of"),
        (["recommend", "data", "FILE", "--user", "1"], "is a file: expected a run of"),
        (["score", "FILE", "rows.parquet", "OUT", "--data", "data"], "is a file: expected a run of"),
        (["serve", "export", "--state", "FILE"], "is a file, expected a directory of sessions"),
    ],
    ids=lambda one: "-".join(one) if isinstance(one, list) else "",
)  # fmt: skip
def test_a_file_in_the_place_of_a_directory(
    made: dict[str, str], tmp_path: Path, command: list[str], what: str
) -> None:
    file = tmp_path / "blocked.txt"
    file.write_text("50\n")
    places = {**made, "OUT": str(tmp_path / "out"), "FILE": str(file)}
    message = said([command[0], *(places.get(one, one) for one in command[1:])])
    assert message.startswith(str(file)) and what in message and not (tmp_path / "out").exists()


def test_more_batches_a_step_than_there_are_leave_no_run(made: dict[str, str], tmp_path: Path) -> None:
    command = ["pretrain", made["data"], tmp_path / "run", "--set", "batches_per_step=1000000"]
    assert "batches_per_step is 1000000, expected at most the" in said([*command])
    assert list(tmp_path.iterdir()) == []


def test_one_of_a_kind_is_said_in_the_singular(made: dict[str, str], tmp_path: Path) -> None:
    rows = pq.read_table(made["rows.parquet"])
    pq.write_table(rows.slice(0, 1), tmp_path / "one.parquet")
    result = CliRunner().invoke(app, ["score", made["export"], str(tmp_path / "one.parquet"), str(tmp_path / "out")])
    assert result.exit_code == 0 and " of 1 row scored" in result.stderr and "of 1 rows" not in result.stderr


def test_a_folder_that_is_neither_run_nor_export(made: dict[str, str], tmp_path: Path) -> None:
    for command in (["evaluate", made["data"], tmp_path], ["recommend", made["data"], tmp_path, "--user", "1"]):
        assert "no checkpoint: expected a run" in said([*command])
    assert "is no export: give the histories" in said(["score", tmp_path, made["rows.parquet"], tmp_path / "out"])


@pytest.mark.parametrize(
    "command",
    [
        ["evaluate", "data", "finetune", "--json", "FILE"], ["evaluate", "data", "finetune", "--report", "FILE"],
        ["recommend", "data", "finetune", "--user", "1", "--json", "FILE"], ["demo", "--out", "OUT", "--json", "FILE"],
        ["candidates", "export", "--exact", "--out", "FILE"],
        ["score", "export", "rows.parquet", "OUT", "--json", "FILE"],
    ],
    ids=lambda one: f"{one[0]}{one[-2]}",
)  # fmt: skip
def test_a_file_that_cannot_be_written_is_refused_before_the_work(
    made: dict[str, str], tmp_path: Path, command: list[str]
) -> None:
    for file, reason in (
        (tmp_path / "deep" / "x.y", f"the directory {tmp_path / 'deep'} is not there; make it first"),
        (tmp_path, "it is a directory; name a file"),
        (Path("/dev/null"), "it is no regular file"),
        (Path(made["rows.parquet"]) / "x", "is no directory"),
    ):
        places = {**made, "OUT": str(tmp_path / "out"), "FILE": str(file)}
        message = said([places.get(one, one) for one in command])
        assert message.startswith(f"{file}: cannot be written, ") and reason in message and ".partial" not in message
        assert not (tmp_path / "out").exists() and Path("/dev/null").is_char_device()


def test_files_are_written_before_the_table_is_printed(
    made: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone() -> None:
        raise BrokenPipeError

    monkeypatch.setattr(console, "stdout", gone)
    monkeypatch.setattr(console, "print_recommendations", lambda found: gone())
    for name, command in (
        ("table.json", ["evaluate", made["data"], made["finetune"], "--report", str(tmp_path / "report.html")]),
        ("users.json", ["recommend", made["data"], made["finetune"], "--user", "1"]),
    ):
        CliRunner().invoke(app, [*command, "--json", str(tmp_path / name)])
        assert json.loads((tmp_path / name).read_text())
    assert (tmp_path / "report.html").read_text().endswith("</html>\n")


def test_two_commands_at_once_into_one_place(made: dict[str, str], tmp_path: Path) -> None:
    with owned(tmp_path / "demo"):
        assert f"demo is in use by process {os.getpid()}" in said(["demo", "--out", tmp_path / "demo"])
    file = tmp_path / "candidates.parquet"
    command = ["candidates", made["export"], "--k", "2", "--exact", "--out", file]
    with replacing(file):
        assert f"candidates.parquet is in use by process {os.getpid()}" in said([*command])
    said([*command], expect=0)
    assert [entry.name for entry in tmp_path.iterdir() if entry.is_file()] == ["candidates.parquet"]


def test_what_is_blocked_is_said(made: dict[str, str], tmp_path: Path) -> None:
    blocked, out = tmp_path / "blocked.txt", tmp_path / "out.parquet"
    command = ["candidates", made["export"], "--exact", "--k", "1000", "--out", out, "--blocked", blocked]
    blocked.write_text("\ufeff1\n2\n")
    assert f"{blocked}: 2 ids, 2 of the items of" in said([*command], expect=0)
    assert not {1, 2} & set(pq.read_table(out).column("item_id").to_pylist())
    blocked.write_text("1\n12345678\n")
    assert "Warning: " in (text := said([*command], expect=0)) and "1 is unknown: 12345678" in text
    before = out.read_bytes()
    blocked.write_text('1\n"2"\n')
    assert "blocked.txt: line 2: expected an integer alone on its line, found '\"2\"'" in said([*command])
    assert out.read_bytes() == before


def test_users_are_found_by_their_exact_id(made: dict[str, str]) -> None:
    for user in ("007", "7.0", " 7", "+7", "٧", "²", "--5", ""):
        for command in (["recommend", made["data"], made["finetune"]], ["candidates", made["export"], "--exact"]):
            message = said([*command, f"--user={user}"])
            assert repr(user) in message and "0, 1, 2, …" in message


@pytest.mark.parametrize(
    ("protocol", "expected"), [("all", "Next: argus export d r exports/all"), ("temporal", "Next: argus evaluate d r")]
)
def test_what_comes_next_is_possible(capsys: pytest.CaptureFixture[str], protocol: str, expected: str) -> None:
    training._say_next("finetune", Path("d"), Path("r"), protocol)
    assert capsys.readouterr().err == f"{expected}\n"


def test_ids_are_printed_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    items = [Recommended("[red]x[/blue]", 1.0, 0, {}, "new to this user"), Recommended(":tea:", 0.5, 0, {}, "[b]")]
    console.print_recommendations([UserRecommendations("[bold]ann", 3, items)])
    printed = capsys.readouterr().out
    assert all(text in printed for text in ("[red]x[/blue]", ":tea:", "[b]", "User [bold]ann"))


RUN_ALL = """
import sys
from python_model.cli import main
for line in sys.argv[1:]:
    sys.argv = ["argus", *line.split("|")]
    try:
        main()
    except SystemExit as stop:
        print(f"exit code {stop.code}", file=sys.stderr)
"""


@pytest.mark.parametrize(
    "environment",
    [
        pytest.param({"PYTHONIOENCODING": "ascii"}, marks=pytest.mark.slow),
        {"PYTHONIOENCODING": "latin-1", "COLUMNS": "20"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    ],
    ids=str,
)  # fmt: skip
def test_any_encoding_and_width_will_do(environment: dict[str, str]) -> None:
    lines = ["--help", *("|".join([*path, "--help"]) for path in COMMANDS), "pretrain|--set|help", "caf\u00e9\u2028"]
    given = {**os.environ, "PYTHONPATH": str(REPOSITORY), **environment}
    done = subprocess.run([sys.executable, "-c", RUN_ALL, *lines], env=given, capture_output=True, check=True)
    *codes, refused, last = done.stderr.splitlines()
    assert codes == [b"exit code 0"] * (len(lines) - 1) and last == b"exit code 2"
    assert refused.startswith(b"argus: No such command 'caf") and len(done.stdout) > 20_000


class _Interrupting:
    """An importer at which Ctrl-C arrives."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name == "python_model.cli":
            raise KeyboardInterrupt


def test_ctrl_c_while_the_command_is_imported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(sys.modules, "python_model.cli")
    monkeypatch.setattr(sys, "meta_path", [_Interrupting(), *sys.meta_path])
    with pytest.raises(SystemExit) as left:
        entry_point()
    assert left.value.code == 130 and capsys.readouterr().err == "Stopped.\n"


def test_a_reader_that_goes_away_ends_the_command_quietly() -> None:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    for rest in ("--set help | true", "--help | head -1", "--help >&-"):
        command = f"{sys.executable} -m python_model pretrain {rest}"
        done = subprocess.run(["bash", "-c", command], env=environment, capture_output=True, check=False)
        assert done.stderr == b"", rest
