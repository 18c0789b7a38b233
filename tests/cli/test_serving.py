"""The commands of serving as a user types them, one after the other on one export."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner, Result

from python_model.cli import app
from python_model.data.schema import load_dataset
from python_model.io.exclusive import replacing

SMALL = ["--set", "users=30", "--set", "events_per_user=30"]
QUICK = ["--window", "32", "--batch-events", "256", "--steps", "3", "--threads", "1"]


def argus(*arguments: object, expect: int = 0, lines: str | None = None) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], input=lines)
    assert result.exit_code == expect, f"{arguments}: {result.output} {result.exception!r}"
    return result


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, both stages, the export of the second, and rows to score."""
    folder = tmp_path_factory.mktemp("serving")
    argus("prepare", "synthetic", "small", folder / "data", *SMALL)
    argus("pretrain", folder / "data", folder / "pretrain", *QUICK)
    argus("finetune", folder / "data", folder / "finetune", "--from", folder / "pretrain", *QUICK)
    said = argus("export", folder / "data", folder / "finetune", folder / "out", "--best", "3").stderr
    assert re.search(r"vectors of 64 for the score pair", said) and re.search(r"int8 \d\.\d\d %", said)
    assert "Next: argus index" in said
    data = load_dataset(folder / "data")
    rows = {
        "user_id": np.append(data.user_ids[data.user], -1), "item_id": np.append(data.item, 0),
        "time": np.append(data.time, 0),
    }  # fmt: skip
    pq.write_table(pa.table(rows), folder / "rows.parquet", row_group_size=200)
    return folder


def test_index_states_its_recall(folder: Path) -> None:
    said = argus("index", folder / "out", "--check", "20", "--k", "5", "--json", folder / "index.json").stderr
    figures = json.loads((folder / "index.json").read_text())
    assert figures["recall"] > 0.9 and figures["queries"] == 20 and figures["links"] == 48
    assert f"recall@5 {figures['recall']:.4f} against exact search" in said


def test_one_process_at_a_time_makes_an_index(folder: Path) -> None:
    with replacing(folder / "out" / "index.faiss"):
        said = argus("index", folder / "out", "--check", "0", expect=2).stderr
    assert said.startswith(f"argus: {folder / 'out'} is in use by process ")
    argus("index", folder / "out", "--check", "0")
    assert not list((folder / "out").glob(".*"))


def test_candidates(folder: Path) -> None:
    argus("index", folder / "out", "--check", "0")
    printed = argus("candidates", folder / "out", "--user", "3", "--user", "7", "--k", "4", "--exclude-seen").stdout
    assert "User 3" in printed and "User 7" in printed
    (folder / "blocked.txt").write_text("1\n2\n")
    out = folder / "candidates.parquet"
    argus("candidates", folder / "out", "--k", "4", "--out", out, "--blocked", folder / "blocked.txt", "--exact")
    found = pq.read_table(out).to_pydict()
    assert len(found["score"]) == 4 * 30 and not {1, 2} & set(found["item_id"])
    assert "name users with --user" in argus("candidates", folder / "out", expect=2).stderr
    assert "'999' is not among the users of" in argus("candidates", folder / "out", "--user", 999, expect=2).stderr


def test_score_from_a_run_and_from_an_export(folder: Path) -> None:
    arguments = ["score", folder / "finetune", folder / "rows.parquet", folder / "scores", "--data", folder / "data"]
    said = argus(*arguments, "--json", folder / "score.json").stderr
    assert re.search(r"rows scored, [\d,]+ rows/s", said) and "Without a score: 1 row (unknown user)" in said
    rows = pq.read_metadata(folder / "rows.parquet").num_rows
    assert json.loads((folder / "score.json").read_text())["scored"] == rows - 1
    assert pq.read_table(folder / "scores").num_rows == rows
    assert "all of them before" in argus(*arguments).stderr
    assert "(lag differs)" in argus(*arguments, "--lag", 10**7, expect=2).stderr
    said = argus("score", folder / "out", folder / "rows.parquet", folder / "newest").stderr
    assert "(before the user's vector)" in said
    for given, sentence in (
        (["score", folder / "out", folder / "rows.parquet", folder / "x", "--lag", "5"], "--lag and --window are for"),
        (["score", folder / "finetune", folder / "rows.parquet", folder / "x"], "with --data"),
        (["score", folder / "pretrain", folder / "rows.parquet", folder / "x", "--data", folder / "data", "--score",
          "pair"], "needs a fine-tuned run"),
    ):  # fmt: skip
        assert sentence in argus(*given, expect=2).stderr


def test_serve_answers_lines_and_remembers(folder: Path) -> None:
    lines = [
        {"user": 5, "k": 2},
        {"user": "new", "item": 3, "time": 1_700_000_000, "feedback": {"like": 1}, "k": 2, "vectors": True},
        {"user": "new", "amend": 0, "feedback": {"skip": 1}},
        {"user": "new", "item": 3, "time": "now"},
        {"user": "new", "song": 3},
        "no JSON",
        {"user": "new", "item": 7},
        {"user": "new", "k": 1, "now": "soon"},
        {"user": ["new"]},
    ]
    text = "".join((one if isinstance(one, str) else json.dumps(one)) + "\n" for one in lines)
    done = argus("serve", folder / "out", "--state", folder / "sessions", "--threads", "1", lines=text)
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(answers) == 9
    assert answers[0]["user"] == 5 and answers[0]["event"] >= 0 and len(answers[0]["items"]) == 2
    assert answers[1]["event"] == 0 and len(answers[1]["query"]) == 64 and len(answers[1]["user_vector"]) == 64
    assert answers[2] == {"user": "new", "event": 0}
    assert "time is 'now', expected a whole number of seconds" in answers[3]["error"]
    assert "unknown key 'song'" in answers[4]["error"]
    assert answers[5]["error"].startswith("expected JSON, found 'no JSON' at column 1")
    assert answers[6]["error"] == "item without time: expected both"
    assert "now is 'soon', expected a whole number of seconds" in answers[7]["error"]
    assert "user is ['new'], expected an integer or text" in answers[8]["error"]
    again_lines = '{"user": "new"}\n'
    again = argus("serve", folder / "out", "--state", folder / "sessions", lines=again_lines)
    assert json.loads(again.stdout) == {"user": "new", "event": 0}
    # Another type of cache: the events are encoded again.
    small = argus("serve", folder / "out", "--state", folder / "sessions", "--cache", "int8", lines=again_lines)
    assert json.loads(small.stdout) == {"user": "new", "event": 0}
